"""What random graphs and damaged files once broke, written down by hand."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from textmodels import model, weight

import prunepass
from prunepass import runtime
from prunepass.api import Job
from prunepass.ephemeral import mask_graph
from prunepass.errors import ModelError, UnsupportedError
from prunepass.manager import Pipeline
from prunepass.stepwise import Pair, compare_nodes


# ---- graphs that must be pruned --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Row:
    """One graph, how to prune it, and the values that must shrink."""

    body: str
    weights: dict[str, np.ndarray]
    select: str = "ratio=0.5 align=1"
    opset: int = 17
    shrinks: tuple[str, ...] = ()


def half(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (weight(*shape) * scale).astype(np.float16)


ROWS = {
    "whole groups of a convolution whose input is fixed stay": Row(
        "g (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] y) { h = Conv<group = 3>(x, w)  y = Conv(h, v) }",
        {"w": weight(6, 1, 1, 1), "v": weight(2, 6, 1, 1)},
        "ratio=0.5 align=1 policy=whole",
    ),
    "groups of a convolution whose input is fixed are thinned": Row(
        "g (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] y) { h = Conv<group = 3>(x, w)  y = Conv(h, v) }",
        {"w": weight(6, 1, 1, 1), "v": weight(2, 6, 1, 1)},
        shrinks=("w", "v"),
    ),
    "a size that is 1 or not, which only a run tells, stays 1": Row(
        """g (float[n, 6] x) => (float[n, a, 4] y) {
            h = MatMul(x, w)  r = ReduceMax(x)  p = Sigmoid(r)  c = Ceil(p)  i = Cast<to = 7>(c)  o = Reshape(i, minus)
            s = Concat<axis = 0>(o, o, o)  e = Expand(t, s)  u = Unsqueeze(h, one)  a = Add(e, u)  y = MatMul(a, v)
        }""",
        {
            "w": weight(6, 8),
            "minus": np.array([-1]),
            "one": np.array([1]),
            "t": weight(1, 1, 8),
            "v": weight(8, 4),
        },
        shrinks=("w", "t", "v"),
    ),
    "a norm over channels and batch counts the samples of the run": Row(
        """g (float[batch, 6] x) => (float[batch, 4] y) {
            h = MatMul(x, w)  m = MeanVarianceNormalization<axes = [0, 1]>(h)  y = MatMul(m, v)
        }""",
        {"w": weight(6, 8), "v": weight(8, 4)},
        shrinks=("w", "v"),
    ),
    "where one index of each block is read, whole blocks go": Row(
        """g (float[3, 8, 6] x) => (float[a, 5] y) {
            h = MatMul(x, w)  r = Reshape(h, rows)  s = Slice(r, zero, one, two)  q = Squeeze(s, two)  y = MatMul(q, v)
        }""",
        {
            "w": weight(6, 12),
            "rows": np.array([-1, 4, 3]),
            "zero": np.array([0]),
            "one": np.array([1]),
            "two": np.array([2]),
            "v": weight(4, 5),
        },
        "ratio=0.7 align=1 policy=aligned",
        shrinks=("w", "v"),
    ),
    "an assignment to an empty slice is none": Row(
        "g (float[n, 6] x) => (float[n, 4] y) { h = MatMul(x, w)  s = ScatterND(h, at, none)  y = MatMul(s, v) }",
        {"w": weight(6, 8), "at": np.zeros((0, 2), np.int64), "none": np.zeros(0, np.float32), "v": weight(8, 4)},
        shrinks=("w", "v"),
    ),
    "a bias of which a part is set to zero is a bias": Row(
        """g (float[n, 6] x) => (float[n, 4] y) {
            z = Expand(zero, many)  b = ScatterND(bias, at, z)  h = MatMul(x, w)  a = Add(h, b)  y = MatMul(a, v)
        }""",
        {
            "w": weight(6, 200),
            "bias": weight(200),
            "zero": np.zeros(1, np.float32),
            "many": np.array([80]),
            "at": np.arange(40, 120)[:, None],
            "v": weight(200, 4),
        },
        shrinks=("w", "v"),
    ),
    "a product in float64 behind a transposition does not end the process": Row(
        """g (float[n, 5, 6] x) => (float[p, q, 4] y) {
            h = MatMul(x, w)  t = Transpose<perm = [1, 0, 2]>(h)  c = Cast<to = 11>(t)  m = MatMul(c, u)
            d = Cast<to = 1>(m)  y = MatMul(d, v)
        }""",
        {"w": weight(6, 8), "u": weight(8, 8).astype(np.float64), "v": weight(8, 4)},
        shrinks=("w", "u", "v"),
    ),
    "a mean over masked float16 is scaled in float16": Row(
        "g (float16[n, 8] x) => (float16[n, 1] y) { h = MatMul(x, w)  y = ReduceMean<axes = [1]>(h) }",
        {"w": half(8, 6)},
        shrinks=("w",),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_pruned(name: str) -> None:
    row = ROWS[name]
    source = model(row.body, row.opset, **row.weights)
    pipeline = f"canonicalize,select{{{row.select}}},slice-channels,clean"
    result = prunepass.prune(source, pipeline=pipeline)
    assert result.report["certificate"]["status"] == "passed"
    after = result.graph.consts
    shrunk = {n for n, w in row.weights.items() if n in after and after.shape(n) != w.shape}
    assert shrunk == set(row.shrinks)


# ---- models that cannot run are refused as that, whatever breaks on them ---------------------------------------------
REFUSED = {
    "a bias of another length": (
        "g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) { h = Conv(x, w, b)  y = Conv(h, v) }",
        {"w": weight(6, 3, 1, 1), "b": weight(1, 2, 2), "v": weight(2, 6, 1, 1)},
    ),
    "a permutation of another rank": (
        "g (float[1, 8] x) => (y) { h = MatMul(x, w)  r = Reshape(h, k)  y = Transpose<perm = [0, 2, 1, 3]>(r) }",
        {"w": weight(8, 12), "k": np.array([1, 2, 3, 2, 1])},
    ),
    "an index beyond the end": (
        "g (float[1, 8] x) => (y) { h = MatMul(x, w)  r = Gather<axis = 1>(h, k)  y = MatMul(r, v) }",
        {"w": weight(8, 12), "k": np.array([3, 12]), "v": weight(2, 3)},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    body, weights = REFUSED[name]
    source = model(body.replace("(y)", "(float[a, b] y)"), **weights)
    with pytest.raises(ModelError, match="onnxruntime"):
        prunepass.prune(source, 0.5)
    with contextlib.suppress(ModelError):
        prunepass.inspect(source)


@pytest.mark.parametrize("size", [1 << 31, 1 << 62])
def test_inputs_that_are_too_large_to_be_made_are_refused(size: int) -> None:
    source = model(
        f"g (float[1, {size}, 3] x) => (y) {{ y = MatMul(x, w) }}".replace("(y)", "(float[a, b, c] y)"), w=weight(3, 8)
    )
    with pytest.raises(UnsupportedError, match="too many to be run"):
        prunepass.prune(source, 0.5)


def test_a_message_is_one_line_whatever_the_names_hold() -> None:
    source = model("g (float[n, 3] x) => (float[n, 3] y) { y = Abs(x) }")
    source.graph.node[0].op_type = "two\nlines"
    with pytest.raises(UnsupportedError, match="two lines"):
        prunepass.prune(source, 0.5)


# ---- the comparison node by node -------------------------------------------------------------------------------------
def test_nodes_are_compared_where_the_batch_is_merged_into_a_pruned_axis() -> None:
    text = """g (float[batch, 4] x) => (float[a, 3] y) {
        h = MatMul(x, w)  r = Reshape(h, rows)  s = Relu(r)  t = Reshape(s, columns)  y = MatMul(t, v)
    }"""
    rows, columns = np.array([-1, 2]), np.array([-1, 12])
    source = model(text, w=weight(4, 12), rows=rows, columns=columns, v=weight(12, 3))
    job = Job.open(source, (), None, None, 0, None)
    Pipeline.parse("canonicalize,select{ratio=0.5 align=1},slice-channels").run_on(job.facts)
    (cut,) = job.facts.cuts
    coupling, removed = cut.plan.coupling, cut.plan.removed
    assert coupling is not None and removed is not None and removed.any()
    known = (coupling.shapes, coupling.elem_types, coupling.factors, removed, coupling.values)
    pair = Pair("pair", mask_graph(cut.before, *known), job.facts.graph, coupling.shapes, coupling.factors, removed)
    feeds = [{"x": weight(samples, 4)} for samples in (1, 2)]
    outputs = [[runtime.session(graph).run(f)["y"] for f in feeds] for graph in (pair.first, pair.second)]
    for a, b in zip(*outputs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    finding = compare_nodes(pair, feeds)
    assert finding is not None
    assert finding.nodes.faults == []
    assert finding.values >= 3


def test_int8_weights_are_multiplied_in_float32() -> None:
    text = """g (float[n, 16] x) => (float[n, 4] y) {
        h = MatMul(x, w)  d = DequantizeLinear<axis = 1>(q, scale)  y = MatMul(h, d)
    }"""
    stored = (weight(12, 4) * 40).astype(np.int8)
    source = model(text, w=weight(16, 12), q=stored, scale=np.abs(weight(4)) / 40)
    certificate = prunepass.prune(source, 0.5, align=1).report["certificate"]
    assert certificate["notes"] == []
    assert certificate["max_rel"] < 1e-5


def test_models_are_valid() -> None:
    for row in ROWS.values():
        onnx.checker.check_model(model(row.body, row.opset, **row.weights))
