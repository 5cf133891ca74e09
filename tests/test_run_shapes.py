"""Pruning behind values of which only a run tells the shape: experts that pick their tokens, sizes from these."""

from __future__ import annotations

import numpy as np
import pytest
from textmodels import model, weight

import prunepass
from prunepass.api import Job
from prunepass.manager import Pipeline

HEAD = """g (float[6, 4] x) => (float[6, 3] y) {
    some = Greater(x, zero) first = Slice(some, at0, at1, at1) rows = Squeeze(first, at1) at = NonZero(rows)
    tokens = Squeeze(at, at0) picked = Gather(x, tokens)"""
TAIL = """n = Shape(out) flat = Expand(tokens1, n) none = ConstantOfShape(whole)
    y = ScatterElements<axis = 0>(none, flat, out) }"""
CASES = {
    "halves of a computed size": """wide = MatMul(picked, w) size = Shape(wide) width = Gather(size, at1)
        half = Div(width, at2) gate = Slice(wide, at0, half, at1) up = Slice(wide, half, width, at1)
        inner = Mul(gate, up) out = MatMul(inner, v) tokens1 = Unsqueeze(tokens, at1)""",
    "a size that is left open": """wide = MatMul(picked, w) size = Shape(wide) count = Slice(size, at0, at1)
        target = Concat<axis = 0>(count, at2, open) heads = Reshape(wide, target) gate = Gather<axis = 1>(heads, zeroth)
        out = MatMul(gate, v) tokens1 = Unsqueeze(tokens, at1)""",
}
AT = {f"at{i}": np.array([i], np.int64) for i in range(3)}


@pytest.mark.parametrize("name", CASES)
def test_what_lies_behind_picked_tokens_is_thinned(name: str) -> None:
    weights = {"w": weight(4, 16), "v": weight(8, 3), "zero": np.float32(0), "whole": np.array([6, 3], np.int64)}
    made = model(HEAD + CASES[name] + TAIL, opset=17, open=np.array([-1]), zeroth=np.array(0), **AT, **weights)
    data = {"x": np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)}
    result = prunepass.prune(made, 0.5, align=1, data=data)
    assert result.report["certificate"]["status"] == "passed"
    assert result.graph.consts.shape("w") == (4, 8)


def test_sizes_that_do_not_depend_on_the_run_are_known() -> None:
    weights = {"w": weight(4, 16), "v": weight(8, 3), "zero": np.float32(0), "whole": np.array([6, 3], np.int64)}
    made = model(HEAD + CASES["halves of a computed size"] + TAIL, opset=17, **AT, **weights)
    job = Job.open(made, (), None, None, 0, None)
    Pipeline.parse("canonicalize").run_on(job.facts)
    known = job.facts.get("shapes")
    assert known.value["half"].tolist() == [8]
    assert "size" not in known.value
    assert "at" in known.observed
