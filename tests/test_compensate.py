"""Layers refitted to the dense model: exact where it can be, nothing where nothing is to do, certified throughout."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import DIGITS
from onnx import TensorProto
from recovering import cut, drawn, error, graph_of, run, start, weights

from fixtures.tiny import TINY
from prunepass import load
from prunepass.errors import UnsupportedError
from prunepass.manager import Context, Facts, Pipeline

CHOICE = "select{ratio=0.4 align=1 scope=local},slice-channels"


def with_copies(weight, axis=0, scales=(0.5, 2.0)):
    """Make the last channels of an axis multiples of the first ones."""
    found, moved = weight.copy(), np.arange(weight.shape[axis])
    for last, scale in zip((moved[-1], moved[-2]), scales):
        index = [slice(None)] * weight.ndim
        index[axis] = last
        found[tuple(index)] = scale * np.take(weight, last % 2, axis)
    return found


def mixed(weight, axis=0):
    """Make the last two channels of an axis combinations of the others."""
    moved = np.moveaxis(weight, axis, 0).copy()
    moved[-1], moved[-2] = moved[0] - 0.5 * moved[1], 0.3 * moved[1] + 0.7 * moved[2]
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))


IMAGE, ROWS, SEQUENCE = ["n", 3, 8, 8], ["n", 6], ["n", 7, 6]
MAKE, MIX = with_copies(weights(8, 3, 3, 3)), mixed(weights(8, 3, 3, 3))
VECTOR = with_copies(drawn(8))
PADS = {"pads": [1, 1, 1, 1]}
FIRST = ("Conv", ["x", "w", "b"], "h", PADS)
ACT = ("Relu", ["h"], "a", {})
STEM = {"w": MAKE, "b": VECTOR}
DENSE = {"w": with_copies(weights(8, 6)), "b": VECTOR}
LAYER = [("Gemm", ["x", "w", "b"], "h", {"transB": 1}), ACT]

EXACT = {
    "conv": (
        [FIRST, ACT, ("Conv", ["a", "v", "c"], "y", PADS)],
        {**STEM, "v": weights(5, 8, 3, 3), "c": drawn(5)},
        IMAGE,
    ),
    "conv without bias": ([FIRST, ACT, ("Conv", ["a", "v"], "y", {})], {**STEM, "v": weights(5, 8, 3, 3)}, IMAGE),
    "conv with strides": (
        [FIRST, ACT, ("Conv", ["a", "v"], "y", {"strides": [2, 2], "dilations": [2, 1], "pads": [0, 1, 2, 0]})],
        {**STEM, "v": weights(5, 8, 3, 2)},
        IMAGE,
    ),
    "linear combinations": (
        [("Conv", ["x", "w"], "h", {}), ("Conv", ["h", "v"], "y", PADS)],
        {"w": MIX, "v": weights(5, 8, 3, 3)},
        IMAGE,
    ),
    "depthwise between": (
        [FIRST, ACT, ("Conv", ["a", "d"], "e", {"group": 8}), ("Conv", ["e", "v"], "y", {})],
        {**STEM, "d": with_copies(weights(8, 1, 3, 3), scales=(1.0, 1.0)), "v": weights(5, 8, 1, 1)},
        IMAGE,
    ),
    "transposed": (
        [FIRST, ACT, ("ConvTranspose", ["a", "v"], "y", {"strides": [2, 2], "pads": [1, 0, 0, 1]})],
        {**STEM, "v": weights(8, 5, 3, 3)},
        IMAGE,
    ),
    "batch normalisation": (
        [
            ("Conv", ["x", "w"], "h", PADS),
            ("BatchNormalization", ["h", "s", "t", "t", "s"], "n", {}),
            ("Relu", ["n"], "a", {}),
            ("Conv", ["a", "v"], "y", {}),
        ],
        {"w": with_copies(weights(8, 3, 3, 3), scales=(1.0, 1.0))}
        | {"s": np.float32([1, 2, 1, 1, 1, 1, 1, 2]), "t": np.zeros(8, np.float32), "v": weights(5, 8, 3, 3)},
        IMAGE,
    ),
    "residual sum": (
        [FIRST, ACT, ("Conv", ["a", "v", "c"], "q", PADS), ("Conv", ["x", "u"], "r", {}), ("Add", ["q", "r"], "y", {})],
        {**STEM, "v": weights(5, 8, 3, 3), "c": drawn(5), "u": weights(5, 3, 1, 1)},
        IMAGE,
    ),
    "gemm": ([*LAYER, ("Gemm", ["a", "v", "c"], "y", {})], {**DENSE, "v": weights(8, 5), "c": drawn(5)}, ROWS),
    "gemm with factors": (
        [*LAYER, ("Gemm", ["a", "v", "c"], "y", {"transB": 1, "alpha": 0.5, "beta": 3.0})],
        {**DENSE, "v": weights(5, 8), "c": drawn(1)},
        ROWS,
    ),
    "gemm without bias": ([*LAYER, ("Gemm", ["a", "v"], "y", {})], {**DENSE, "v": weights(8, 5)}, ROWS),
    "flattened": (
        [FIRST, ACT, ("Flatten", ["a"], "f", {}), ("Gemm", ["f", "v"], "y", {})],
        {**STEM, "v": weights(512, 5)},
        IMAGE,
    ),
    "matmul": (
        [("MatMul", ["x", "w"], "h", {}), ACT, ("MatMul", ["a", "v"], "q", {}), ("Add", ["c", "q"], "y", {})],
        {"w": with_copies(weights(6, 8), 1), "v": weights(8, 5), "c": drawn(5)},
        SEQUENCE,
    ),
    "matmul without bias": (
        [("MatMul", ["x", "w"], "h", {}), ACT, ("MatMul", ["a", "v"], "y", {})],
        {"w": with_copies(weights(6, 8), 1), "v": weights(8, 5)},
        SEQUENCE,
    ),
    "matmul from the left": (
        [("MatMul", ["w", "x"], "h", {}), ACT, ("MatMul", ["v", "a"], "y", {})],
        {"w": with_copies(weights(8, 7)), "v": weights(5, 8)},
        SEQUENCE,
    ),
}


def case_of(name):
    nodes, consts, shape = EXACT[name]
    graph = graph_of(nodes, consts, {"x": shape})
    count = 600 if name == "flattened" else 100  # more than features
    return graph, {"x": drawn(count, *shape[1:])}, {"x": drawn(16, *shape[1:], seed=1)}


def lost(graph):
    """Return the channels that are combinations of others: of the first weight."""
    axis = 1 if graph.nodes[0].op == "MatMul" and graph.nodes[0].inputs[1] == "w" else 0
    return {("w", axis): [graph.consts.shape("w")[axis] - 1, graph.consts.shape("w")[axis] - 2]}


@pytest.mark.parametrize("name", EXACT)
def test_inputs_that_others_make_up_for_are_restored(name):
    graph, data, fresh = case_of(name)
    facts = cut(start(graph, data), lost(graph))
    assert error(graph, facts.graph, fresh) > 1e-2
    assert run(facts, "compensate") == 1
    dense, pruned = (error_of(g, fresh) for g in (graph, facts.graph))
    np.testing.assert_allclose(pruned, dense, atol=1e-4 * np.abs(dense).max())
    assert run(facts, "clean") >= 0
    layer = facts.recovery[0]["layers"][-1]
    assert (layer["method"], layer["op"]) == ("ls", next(n.op for n in graph.nodes if "v" in n.inputs))
    assert layer["after"] < 1e-8 < 1e-3 < layer["before"]


def error_of(graph, data):
    from prunepass.runtime import session

    return session(graph, optimise="off").run(data)["y"]


def test_an_intercept_makes_up_for_constant_offsets():
    """Channels that differ by a constant from a combination of others: the new bias takes it."""
    bias = drawn(8) * 3
    nodes = [("Gemm", ["x", "w", "b"], "h", {"transB": 1}), ("Gemm", ["h", "v"], "y", {})]
    graph = graph_of(nodes, {"w": mixed(weights(8, 6)), "b": bias, "v": weights(8, 5)}, {"x": ROWS})
    facts = cut(start(graph, {"x": drawn(60, 6)}), {("w", 0): [6, 7]})
    assert len(facts.graph.nodes[1].inputs) == 2
    assert run(facts, "compensate") == 1
    assert facts.graph.nodes[1].inputs[2] in facts.graph.consts
    assert error(graph, facts.graph, {"x": drawn(16, 6, seed=1)}) < 1e-8


# ---- nothing to do ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["conv_chain", "residual", "mlp", "attention"])
def test_a_model_that_lost_nothing_stays_as_it_is(name):
    model, _ = TINY[name]()
    sizes = {"image": (1, 3, 16, 16)} if name == "conv_chain" else {}
    facts = Facts(load(model), Context(shapes=sizes))
    Pipeline.parse("canonicalize,select{ratio=0},slice-channels").run_on(facts)
    before = facts.graph.to_proto().SerializeToString(deterministic=True)
    assert run(facts, "compensate") == 0
    assert facts.graph.to_proto().SerializeToString(deterministic=True) == before
    assert facts.recovery == []


def test_layers_in_front_of_the_cut_stay_as_they_are(digits):
    facts = start(load(DIGITS), {"image": digits["calibration"][:40]})
    run(facts, "canonicalize,fold-batchnorm")
    dense = facts.graph.copy()
    head = next(node for node in facts.graph.nodes if node.name == "head.conv.out")
    cut(facts, {(head.inputs[1], 0): range(0, 64, 2)})
    names = {node.name: node.inputs[1] for node in facts.graph.nodes if node.op in ("Conv", "Gemm")}
    before = {name: facts.graph.consts[name] for name in names.values()}
    changed = run(facts, "compensate")
    after = {name for name, weight in names.items() if not np.array_equal(before[weight], facts.graph.consts[weight])}
    assert changed == len(after)
    assert after <= {"head.conv.out", "logits"}
    assert "logits" in after
    data = {"image": digits["image"][:100]}
    assert error(dense, facts.graph, data) < 0.02


def test_compensation_needs_a_cut():
    facts = start(graph_of([("Relu", ["x"], "y", {})], {}, {"x": [3]}), {"x": drawn(1, 3)})
    with pytest.raises(UnsupportedError, match="nothing was pruned"):
        run(facts, "compensate")


# ---- whole networks --------------------------------------------------------------------------------------------------
def network(digits, samples=48):
    """Return facts of the digits network with its normalisation folded, and fresh images."""
    facts = start(load(DIGITS), {"image": digits["calibration"][:samples]})
    run(facts, "canonicalize,fold-batchnorm")
    return facts, {"image": digits["image"][:120]}


def test_layers_that_are_cut_on_both_sides(digits):
    facts, fresh = network(digits)
    dense = facts.graph.copy()
    run(facts, CHOICE)
    before = error(dense, facts.graph, fresh)
    assert run(facts, "compensate") >= 8
    assert error(dense, facts.graph, fresh) < 0.25 * before
    layers = {layer["name"]: layer for layer in facts.recovery[0]["layers"]}
    assert [*layers] == sorted(layers, key=[n.name for n in facts.graph.nodes].index)
    assert all(layer["after"] <= layer["before"] for layer in layers.values())
    assert all(layer["method"] == "ls" or layer["note"] for layer in layers.values())


def test_two_cuts_one_after_the_other(digits):
    facts, fresh = network(digits)
    dense = facts.graph.copy()
    twice = f"{CHOICE},compensate"
    run(facts, twice)
    once = error(dense, facts.graph, fresh)
    run(facts, CHOICE)
    before = error(dense, facts.graph, fresh)
    run(facts, "compensate,clean")
    assert len(facts.cuts) == len(facts.recovery) == 2
    after = error(dense, facts.graph, fresh)
    assert once < after < 0.5 * before
    assert facts.get("verify").status == "passed"


@pytest.mark.parametrize("memory", [1, 1024])
def test_same_bytes_twice_and_with_files(digits, memory, monkeypatch):
    from prunepass.recovery import staged

    spilled, plain = [], staged.Store._spill
    monkeypatch.setattr(staged.Store, "_spill", lambda self, value: spilled.append(1) or plain(self, value))
    facts, _ = network(digits)
    run(facts, f"{CHOICE},compensate{{memory={memory}}}", verify=False)
    found = facts.graph.to_proto().SerializeToString(deterministic=True)
    again, _ = network(digits)
    run(again, f"{CHOICE},compensate", verify=False)
    assert again.graph.to_proto().SerializeToString(deterministic=True) == found
    assert bool(spilled) == (memory == 1)


def test_half_precision():
    nodes = [FIRST, ACT, ("Conv", ["a", "v"], "y", PADS)]
    consts = {**STEM, "v": weights(5, 8, 3, 3)}
    half = {name: value.astype(np.float16) for name, value in consts.items()}
    graph = graph_of(nodes, half, {"x": IMAGE}, elem_type=TensorProto.FLOAT16)
    facts = cut(start(graph, {"x": drawn(40, 3, 8, 8).astype(np.float16)}), {("w", 0): [6, 7]})
    assert run(facts, "compensate") == 1
    assert all(facts.graph.consts[name].dtype == np.float16 for name in facts.graph.consts)
    assert error(graph, facts.graph, {"x": drawn(8, 3, 8, 8, seed=1).astype(np.float16)}) < 1e-5
