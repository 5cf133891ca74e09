"""Strided views become reshapes where they are contiguous, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from textmodels import model

from prunepass import runtime
from prunepass.graph import Graph
from prunepass.strides import reshape_views

VIEW = """g (float[n, 6, 1] x) => (float[m, 3, 2] y) {
    flat = Reshape(x, all) shape = Shape<end = 1>(x) rows = Squeeze(shape)
    row = Range(start, rows, step) first = Mul(row, size) column = Unsqueeze(first, axes)
    some = Add(column, within) place = Add(zero, some) y = Gather(flat, place) }"""
WITHIN = np.arange(6).reshape(1, 3, 2)
PARTS = {"all": [-1], "start": 0, "step": 1, "size": 6, "axes": [1, 2], "zero": [[[0]]], "within": WITHIN}
CASES = [
    ("contiguous", {}, True),
    ("rows that overlap", {"size": 5}, False),
    ("rows in another order", {"within": WITHIN[:, ::-1]}, False),
    ("every second row", {"step": 2}, False),
    ("not the first row", {"start": 1}, False),
    ("an offset", {"zero": [[[1]]]}, False),
    ("rows on another axis", {"axes": [0, 2], "within": WITHIN.reshape(6, 1, 1)}, False),
    ("not flat", {"all": [0, -1], "within": np.zeros((1, 3, 2)), "size": 1}, False),
]


@pytest.mark.parametrize(("changes", "becomes"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_contiguous_views_become_reshapes(changes: dict[str, object], becomes: bool) -> None:
    parts = {name: np.array(value, np.int64) for name, value in (PARTS | changes).items()}
    graph = Graph(model(VIEW, opset=18, **parts))
    assert reshape_views(graph) == becomes
    assert ("Gather" in {node.op for node in graph.nodes}) != becomes
    assert reshape_views(graph) == 0
    if becomes:
        for rows in (1, 4):
            feeds = {"x": np.random.default_rng(rows).standard_normal((rows, 6, 1)).astype(np.float32)}
            np.testing.assert_array_equal(runtime.session(graph).run(feeds)["y"], feeds["x"].reshape(-1, 3, 2))
