"""Rows of products with constant matrices: what `rules/linear.py` says against what onnxruntime computes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from recovering import drawn, graph_of

from prunepass.rules.flat import flat_range, makes_zeros
from prunepass.rules.linear import LINEAR, Bias, bias_of, linear, residual
from prunepass.runtime import session


def product(op, x, weight, attrs=None, bias=None, left=False):
    """Make a graph of one product, and what it reads and puts out."""
    names = ["w", "x"] if left else ["x", "w"]
    consts = {"w": drawn(*weight)} | ({} if bias is None else {"b": drawn(*bias)})
    nodes = [(op, [*names, *(["b"] if bias else [])], "y", attrs or {})]
    graph = graph_of(nodes, consts, {"x": x})
    feed = drawn(*x)
    return graph, feed, session(graph, optimise="off").run({"x": feed})["y"]


SAME = [{"auto_pad": mode, "strides": s} for mode in ("SAME_UPPER", "SAME_LOWER") for s in ([1, 1], [2, 2], [3, 2])]
CONVOLUTIONS = [
    ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    ((2, 3, 7, 6), (4, 3, 1, 1), {"strides": [2, 2]}),
    ((2, 3, 7, 6), (4, 3, 3, 2), {"pads": [1, 0, 2, 1]}),
    ((2, 3, 7, 6), (4, 3, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 3]}),
    ((2, 3, 9, 9), (4, 3, 3, 3), {"pads": [2, 1, 0, 2], "dilations": [2, 3]}),
    ((2, 3, 9, 8), (4, 3, 3, 2), {"pads": [2, 1, 0, 2], "dilations": [2, 3], "strides": [2, 1]}),
    ((2, 3, 9, 8), (4, 3, 4, 2), {"auto_pad": "VALID", "strides": [2, 2]}),
    *[((2, 3, 7, 8), (4, 3, 4, 3), attrs) for attrs in SAME],
    ((2, 6, 5, 5), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    ((2, 6, 5, 5), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((2, 6, 5, 5), (12, 1, 3, 3), {"group": 6}),
    ((2, 3, 11), (4, 3, 3), {"pads": [2, 1], "strides": [2], "dilations": [2]}),
    ((2, 4, 11), (4, 2, 3), {"auto_pad": "SAME_LOWER", "group": 2, "strides": [2]}),
    ((2, 3, 5, 4, 6), (4, 3, 2, 3, 3), {"pads": [0, 1, 2, 1, 1, 0], "strides": [1, 2, 1]}),
    ((2, 4, 5, 4, 6), (6, 2, 3, 1, 3), {"auto_pad": "SAME_UPPER", "group": 2, "strides": [2, 1, 2]}),
]
TRANSPOSED = [
    ((2, 3, 5, 4), (3, 4, 3, 3), {}),
    ((2, 3, 5, 4), (3, 4, 2, 2), {"strides": [2, 2]}),
    ((2, 3, 5, 4), (3, 4, 1, 1), {"strides": [2, 3]}),
    ((2, 3, 5, 4), (3, 4, 4, 3), {"strides": [2, 2], "pads": [1, 0, 2, 1]}),
    ((2, 3, 5, 4), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((2, 3, 5, 4), (3, 4, 3, 2), {"dilations": [2, 3], "strides": [1, 2], "pads": [1, 0, 3, 2]}),
    ((2, 3, 5, 4), (3, 4, 2, 2), {"strides": [3, 3], "pads": [2, 2, 2, 2]}),
    ((2, 3, 5, 4), (3, 4, 2, 2), {"strides": [3, 3], "output_padding": [1, 2]}),
    ((2, 6, 5, 4), (6, 2, 3, 3), {"group": 2, "strides": [2, 1]}),
    ((2, 6, 5, 4), (6, 1, 3, 3), {"group": 6, "strides": [2, 2], "pads": [0, 1, 1, 0]}),
    ((2, 3, 6), (3, 4, 4), {"strides": [2], "pads": [1, 1]}),
    ((2, 4, 3, 4, 3), (4, 2, 3, 2, 2), {"strides": [2, 1, 2], "pads": [1, 0, 0, 1, 1, 0], "group": 2}),
    ((2, 3, 5, 4), (3, 4, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 3, 5, 4), (3, 4, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((2, 3, 5, 4), (3, 4, 4, 4), {"auto_pad": "SAME_LOWER"}),
    ((2, 3, 5, 4), (3, 4, 3, 4), {"auto_pad": "VALID", "strides": [2, 2]}),
    ((2, 3, 5, 4), (3, 4, 3, 4), {"output_shape": [10, 9], "strides": [2, 2]}),
    ((2, 3, 5, 4), (3, 4, 3, 4), {"output_shape": [10, 9], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((2, 3, 5, 4), (3, 4, 3, 4), {"output_shape": [10, 9], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((2, 3, 5, 4), (3, 4, 3, 3), {"output_shape": [12, 10], "strides": [2, 2], "output_padding": [1, 1]}),
]
GEMMS = [
    ((5, 3) if not a else (3, 5), (3, 4) if not b else (4, 3), attrs | {"transA": a, "transB": b})
    for a in (0, 1)
    for b in (0, 1)
    for attrs in ({}, {"alpha": 0.5, "beta": 3.0})
]
LAYERS = [
    *[("Conv", *case, bias, False) for case in CONVOLUTIONS for bias in ((case[1][0],), None)],
    *[("ConvTranspose", *c, b, False) for c in TRANSPOSED for b in ((c[1][1] * c[2].get("group", 1),), None)],
    *[("Gemm", *case, bias, False) for case in GEMMS for bias in ((4,), (1, 4), (1,), None)],
    *[("MatMul", x, (3, 4), {}, None, False) for x in ((5, 3), (2, 5, 3), (2, 3, 5, 3), (3,))],
    *[("MatMul", x, (4, 3), {}, None, True) for x in ((3, 5), (2, 3, 5), (2, 2, 3, 5), (3,))],
]


def name_of(case):
    op, x, weight, attrs, bias, left = case
    text = ",".join(f"{key}={value}" for key, value in attrs.items())
    return f"{op}-{'left-' if left else ''}{x}-{weight}-{text}-{bias}".replace(" ", "")


def rows_of(graph, feed, y, pick=None):
    """Return X, W, b and the targets of the one product of a graph, at some rows."""
    seen = linear(graph.nodes[0], graph)
    weight = graph.consts["w"]
    matrix = seen.matrix(weight.astype(np.float64))
    pick = np.arange(seen.count(y)) if pick is None else pick
    bias = graph.consts["b"].astype(np.float64).reshape(-1) * seen.bias_scale if "b" in graph.consts else 0.0
    bias = np.broadcast_to(bias, matrix.shape[0] * matrix.shape[2]).reshape(len(matrix), 1, -1)
    targets = seen.targets(y, len(matrix), pick)
    return seen.rows(feed, weight.shape, y.shape, pick).astype(np.float64), matrix, bias, targets


@pytest.mark.parametrize("case", LAYERS, ids=name_of)
def test_rows_times_matrix_are_what_the_layer_computes(case):
    graph, feed, y = product(*case)
    x, matrix, bias, targets = rows_of(graph, feed, y)
    seen = linear(graph.nodes[0], graph)
    assert targets.size == y.size
    assert x.shape == (len(matrix), targets.shape[1], matrix.shape[1])
    np.testing.assert_allclose(x @ matrix + bias, targets, rtol=1e-5, atol=1e-5)
    assert len(matrix) == seen.groups(case[2])
    np.testing.assert_array_equal(seen.tensor(matrix, case[2]).astype(np.float32), graph.consts["w"])
    assert seen.tensor(matrix, case[2]).shape == case[2]
    pick = np.array([0, targets.shape[1] - 1, targets.shape[1] // 2])
    some_x, _, _, some = rows_of(graph, feed, y, pick)
    np.testing.assert_array_equal(some_x, x[:, pick])
    np.testing.assert_array_equal(some, targets[:, pick])


@pytest.mark.parametrize("case", LAYERS, ids=name_of)
def test_channels_hold_what_all_taps_of_a_kernel_share(case):
    graph, feed, _ = product(*case)
    seen = linear(graph.nodes[0], graph)
    matrix = seen.matrix(graph.consts["w"])
    channels = seen.channels(feed, len(matrix))
    assert channels.size == feed.size
    assert channels.shape[2] * seen.taps(case[2]) == matrix.shape[1]
    np.testing.assert_array_equal(np.sort(channels.reshape(-1)), np.sort(feed.reshape(-1)))
    places = np.arange(graph.consts["w"].size).reshape(case[2])
    assert np.array_equal(np.sort(seen.arrange(places).reshape(-1)), np.arange(places.size))


def padded_cases():
    """Yield layers with one pad moved from one end to the other: as many rows, other patches."""
    for op, cases in (("Conv", CONVOLUTIONS), ("ConvTranspose", TRANSPOSED)):
        for x, weight, attrs in cases:
            pads = attrs.get("pads")
            if pads and "output_shape" not in attrs:
                half = len(pads) // 2
                for axis in range(half):
                    if pads[axis]:
                        moved = list(pads)
                        moved[axis], moved[axis + half] = pads[axis] - 1, pads[axis + half] + 1
                        yield op, x, weight, attrs, moved


@pytest.mark.parametrize("case", list(padded_cases()), ids=str)
def test_a_pad_that_is_off_by_one_shows(case):
    op, x, weight, attrs, moved = case
    graph, feed, y = product(op, x, weight, attrs)
    graph.nodes[0].attrs["pads"] = moved
    assert graph.nodes[0].attr("pads") == moved
    found, matrix, _, targets = rows_of(graph, feed, y)
    assert np.abs(found @ matrix - targets).max() > 0.1


def test_every_row_is_tested():
    assert {case[0] for case in LAYERS} == set(LINEAR)


@pytest.mark.parametrize(
    ("op", "names", "consts", "attrs"),
    [
        ("Conv", ["x", "z"], {}, {}),  # computed weight
        ("Conv", ["x", "w", "z"], {"w": drawn(4, 3, 1, 1)}, {}),  # computed bias
        ("Gemm", ["x", "z"], {}, {}),
        ("Gemm", ["w", "x"], {"w": drawn(4, 3)}, {}),  # the constant comes first
        ("Gemm", ["x", "w"], {"w": drawn(3, 4)}, {"alpha": 0.0}),
        ("Gemm", ["x", "w", "b"], {"w": drawn(3, 4), "b": drawn(5, 4)}, {}),  # a bias for each row
        ("Gemm", ["x", "w", "b"], {"w": drawn(3, 4), "b": drawn(5, 1)}, {}),
        ("Gemm", ["x", "w", "b"], {"w": drawn(3, 4), "b": drawn(4)}, {"beta": 0.0}),  # a bias that does not count
        ("MatMul", ["x", "z"], {}, {}),
        ("MatMul", ["v", "w"], {"v": drawn(5, 3), "w": drawn(3, 4)}, {}),  # nothing is multiplied
        ("MatMul", ["x", "w"], {"w": drawn(2, 3, 4)}, {}),  # a matrix for each batch
        ("MatMul", ["x", "w"], {"w": drawn(3)}, {}),
        ("MatMul", ["x", "w"], {"w": np.ones((3, 4), np.int64)}, {}),
        ("Relu", ["x"], {}, {}),
    ],
)
def test_no_product_with_a_matrix(op, names, consts, attrs):
    graph = graph_of([(op, names, "y", attrs)], consts, {"x": [5, 3], "z": [3, 4]})
    assert linear(graph.nodes[0], graph) is None


# ---- what stands behind a product ------------------------------------------------------------------------------------
MATRIX = {
    "w": drawn(3, 4),
    "v": drawn(4, 3),
    "b": drawn(4),
    "one": drawn(1),
    "wide": drawn(1, 1, 4),
    "rows": drawn(5, 4),
}
MATMUL = ("MatMul", ["x", "w"], "p", {})
LEFT = ("MatMul", ["v", "x"], "p", {})
COLUMN = ("MatMul", ["x", "column"], "p", {})


@pytest.mark.parametrize(
    ("nodes", "outputs", "expected"),
    [
        ([("Gemm", ["x", "w", "b"], "y", {})], ["y"], (0, 2, "b", "y")),
        ([("Gemm", ["x", "w"], "y", {})], ["y"], (0, 2, "", "y")),
        ([("Gemm", ["x", "w", ""], "y", {})], ["y"], (0, 2, "", "y")),
        ([MATMUL, ("Add", ["p", "b"], "y", {})], ["y"], (1, 1, "b", "y")),
        ([MATMUL, ("Add", ["b", "p"], "y", {})], ["y"], (1, 0, "b", "y")),
        ([MATMUL, ("Add", ["p", "wide"], "y", {})], ["y"], (1, 1, "wide", "y")),
        ([MATMUL, ("Add", ["p", "one"], "y", {})], ["y"], None),  # one number for all channels
        ([MATMUL, ("Add", ["p", "rows"], "y", {})], ["y"], None),  # a vector for each row
        ([MATMUL, ("Add", ["p", "z"], "y", {})], ["y"], None),  # computed
        ([MATMUL, ("Mul", ["p", "b"], "y", {})], ["y"], None),
        ([MATMUL, ("Add", ["p", "b"], "y", {})], ["y", "p"], None),  # the product is an output
        ([MATMUL, ("Add", ["p", "b"], "q", {}), ("Add", ["p", "q"], "y", {})], ["y"], None),  # read twice
        ([LEFT, ("Add", ["p", "b"], "y", {})], ["y"], None),  # along the other axis
        ([COLUMN, ("Add", ["p", "b"], "y", {})], ["y"], None),  # one output that is spread over four
    ],
)
def test_where_the_bias_is(nodes, outputs, expected):
    graph = graph_of(nodes, MATRIX | {"column": drawn(3, 1)}, {"x": [5, 3], "z": [4]}, outputs)
    found = bias_of(linear(graph.nodes[0], graph), graph, graph.uses())
    if expected is None:
        assert found is None
    else:
        at, position, name, y = expected
        assert found == Bias(graph.nodes[at], position, name, y)


@pytest.mark.parametrize(
    ("nodes", "outputs", "expected"),
    [
        ([("Add", ["p", "z"], "y", {})], ["y"], ("y", "z")),
        ([("Add", ["z", "p"], "y", {})], ["y"], ("y", "z")),
        ([("Add", ["p", "b"], "y", {})], ["y"], None),  # a bias
        ([("Add", ["p", "p"], "y", {})], ["y"], None),
        ([("Mul", ["p", "z"], "y", {})], ["y"], None),
        ([("Add", ["p", "z"], "y", {})], ["y", "p"], None),
        ([("Add", ["p", "z"], "q", {}), ("Add", ["p", "q"], "y", {})], ["y"], None),  # read twice
    ],
)
def test_which_sum_a_value_goes_into(nodes, outputs, expected):
    graph = graph_of([MATMUL, *nodes], MATRIX, {"x": [5, 3], "z": [5, 4]}, outputs)
    assert residual("p", graph, graph.uses()) == expected


INFINITE = math.inf
LIMITS = {"low": np.float32(-1), "six": np.float32(6)}


@pytest.mark.parametrize(
    ("nodes", "opset", "expected"),
    [
        ([("Relu", ["p"], "y", {})], 17, (0, INFINITE)),
        ([("Clip", ["p", "low", "six"], "y", {})], 17, (-1, 6)),
        ([("Clip", ["p", "", "six"], "y", {})], 17, (-INFINITE, 6)),
        ([("Clip", ["p", "low"], "y", {})], 17, (-1, INFINITE)),
        ([("Clip", ["p", "z"], "y", {})], 17, (-INFINITE, INFINITE)),  # a computed limit
        ([("Clip", ["p"], "y", {"min": 0.0, "max": 6.0})], 10, (0, 6)),
        ([("HardSigmoid", ["p"], "y", {})], 17, (-2.5, 2.5)),
        ([("HardSigmoid", ["p"], "y", {"alpha": 0.5, "beta": 1.0})], 17, (-2, 0)),
        ([("HardSigmoid", ["p"], "y", {"alpha": -0.5})], 17, (-INFINITE, INFINITE)),
        ([("HardSwish", ["p"], "y", {})], 17, (-3, INFINITE)),
        ([("Sigmoid", ["p"], "y", {})], 17, (-INFINITE, INFINITE)),
        ([("Relu", ["p"], "q", {}), ("Clip", ["p", "low", "six"], "y", {})], 17, (-1, INFINITE)),
        ([("Relu", ["p"], "q", {}), ("Exp", ["p"], "y", {})], 17, (-INFINITE, INFINITE)),
        ([], 17, (-INFINITE, INFINITE)),
    ],
)
def test_where_all_readers_are_flat(nodes, opset, expected):
    graph = graph_of([("Neg", ["x"], "p", {}), *nodes], LIMITS, {"x": [5, 4], "z": []}, ("p",), opset)
    assert flat_range(graph.uses().get("p", []), graph) == expected
    values = np.linspace(-9, 9, 721, dtype=np.float32)
    for node in graph.nodes[1:]:
        out = run_alone(node, graph, values, opset)
        for flat in (values < expected[0], values > expected[1]):
            assert np.unique(np.round(out[flat], 6)).size <= 1


def run_alone(node, graph, values, opset):
    """Run one activation on a line of values."""
    consts = {name: graph.consts[name] for name in node.inputs if name in graph.consts}
    feeds = {name: np.zeros((), np.float32) for name in node.inputs[1:] if name and name not in consts} | {"p": values}
    shapes = {name: list(value.shape) for name, value in feeds.items()}
    alone = graph_of([(node.op, node.inputs, "y", node.attrs)], consts, shapes, opset=opset)
    return session(alone, optimise="off").run(feeds)["y"]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (("Relu", ["x"], "y", {}), True),
        (("Clip", ["x", "zero", "six"], "y", {}), True),
        (("Clip", ["x", "low", "six"], "y", {}), False),
        (("Clip", ["x", "", "six"], "y", {}), False),
        (("Sigmoid", ["x"], "y", {}), False),
    ],
)
def test_which_activations_make_zeros(node, expected):
    graph = graph_of([node], LIMITS | {"zero": np.float32(0)}, {"x": [5, 4]})
    assert makes_zeros(graph.nodes[0], graph) is expected
