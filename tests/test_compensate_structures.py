"""Layers that share weights or biases, meet in sums, or have states; and data that are few or useless."""

from __future__ import annotations

import numpy as np
import pytest
from recovering import cut, drawn, error, graph_of, run, start, weights

from fixtures.tiny import TINY
from prunepass import load
from prunepass.errors import PruneError
from prunepass.feeds import random_inputs
from prunepass.manager import Context, Facts
from prunepass.recovery.batches import Batches
from prunepass.recovery.recurrent import RecurrentRefit
from prunepass.recovery.staged import Staged, Store
from prunepass.recovery.teacher import Teacher
from prunepass.rules.gates import gates
from prunepass.runtime import session

CHOICE = "canonicalize,select{ratio=0.4 align=1 scope=local},slice-channels"
PADS = {"pads": [1, 1, 1, 1]}
SMALL = {"conv_chain": {"image": (2, 3, 16, 16)}, "pixel_shuffle": {"image": (2, 3, 16, 16)}}
SHARES = {
    "flatten_linear": 0.4,  # more features than rows
    "mlp": 0.6,
    "attention": 0.95,  # whole heads, whose queries nobody can make up for
    "grouped_query_attention": 0.99,
    "tied_embedding": 0.8,
    "unet_skip": 0.3,
    "pixel_shuffle": 0.5,
    "split_chain": 0.6,
}
"""Of the error after slicing, what may be left; a tenth for all others."""


@pytest.mark.parametrize("name", TINY)
def test_every_structure_gets_nearer_to_the_dense_model(name):
    model, feeds = TINY[name]()
    graph = load(model)
    shapes = SMALL.get(name, {key: value.shape for key, value in feeds.items()})
    batches = Batches(tuple(random_inputs(graph, shapes, seed) for seed in range(24)), 48)
    facts = Facts(graph, Context(calibration=batches, shapes=shapes))
    run(facts, CHOICE)
    fresh = random_inputs(facts.graph, {key: (64, *shape[1:]) for key, shape in shapes.items()}, 99)
    before = error(facts.source, facts.graph, fresh)
    assert run(facts, "compensate") > 0  # and the certificate holds
    assert error(facts.source, facts.graph, fresh) < SHARES.get(name, 0.1) * before


def outputs(graph, data):
    return session(graph, optimise="off").run(data)


# ---- what is shared --------------------------------------------------------------------------------------------------
def copied(*shape, seed=0):
    """Draw a weight whose last two rows are copies of the first two."""
    found = weights(*shape, seed=seed)
    found[-2:] = found[:2]
    return found


def test_a_bias_that_layers_share_is_not_changed_for_the_others():
    """One layer reads what was cut, one does not; both have the bias b."""
    nodes = [
        ("Gemm", ["x", "w"], "h", {"transB": 1}),
        ("Relu", ["h"], "a", {}),
        ("Gemm", ["a", "v", "b"], "y", {}),
        ("Gemm", ["x", "u", "b"], "z", {}),
    ]
    consts = {"w": weights(8, 6), "v": weights(8, 4), "u": weights(6, 4), "b": drawn(4)}
    graph = graph_of(nodes, consts, {"x": ["n", 6]}, ["y", "z"])
    facts = cut(start(graph, {"x": drawn(60, 6)}), {("w", 0): [6, 7]})
    fresh = {"x": drawn(16, 6, seed=1)}
    before = outputs(facts.graph, fresh)
    assert run(facts, "compensate") == 1
    after = outputs(facts.graph, fresh)
    np.testing.assert_array_equal(after["z"], before["z"])
    names = [node.inputs[2] for node in facts.graph.nodes if node.op == "Gemm" and len(node.inputs) == 3]
    assert names[1] == "b" != names[0]
    np.testing.assert_array_equal(facts.graph.consts["b"], consts["b"])
    assert np.abs(facts.graph.consts[names[0]] - consts["b"]).max() > 1e-3


def test_two_layers_with_one_bias_get_one_each():
    nodes = [
        ("Gemm", ["x", "w"], "h", {"transB": 1}),
        ("Relu", ["h"], "a", {}),
        ("Gemm", ["a", "v", "b"], "y", {}),
        ("Gemm", ["a", "u", "b"], "z", {}),
    ]
    consts = {"w": copied(8, 6), "v": weights(8, 4), "u": weights(8, 4, seed=1), "b": drawn(4)}
    graph = graph_of(nodes, consts, {"x": ["n", 6]}, ["y", "z"])
    facts = cut(start(graph, {"x": drawn(60, 6)}), {("w", 0): [6, 7]})
    assert run(facts, "compensate,clean") >= 0
    assert error(graph, facts.graph, {"x": drawn(16, 6, seed=1)}) < 1e-8


def test_a_weight_that_layers_share_stays():
    nodes = [
        ("MatMul", ["x", "w"], "h", {}),
        ("MatMul", ["h", "v"], "y", {}),
        ("Relu", ["h"], "a", {}),
        ("MatMul", ["a", "v"], "z", {}),
        ("MatMul", ["a", "u"], "t", {}),
    ]
    consts = {"w": weights(6, 8), "v": weights(8, 4), "u": weights(8, 4, seed=1)}
    graph = graph_of(nodes, consts, {"x": ["n", 6]}, ["y", "z", "t"])
    facts = cut(start(graph, {"x": drawn(60, 6)}), {("w", 1): [6, 7]})
    before = facts.graph.consts["v"]
    assert run(facts, "compensate") == 1
    np.testing.assert_array_equal(facts.graph.consts["v"], before)
    assert (facts.graph.consts["u"] != consts["u"][:6]).any()


# ---- sums ------------------------------------------------------------------------------------------------------------
STREAM = [("Conv", ["x", "w"], "e", {}), ("Conv", ["x", "u"], "a", {})]
BRANCH, SHORTCUT = ("Conv", ["e", "v"], "q", PADS), ("Conv", ["a", "s"], "r", {})
STREAMS = {"w": weights(8, 3, 1, 1), "u": weights(3, 3, 1, 1), "v": weights(5, 8, 3, 3), "s": weights(5, 3, 1, 1)}


@pytest.mark.parametrize("nodes", [[SHORTCUT, BRANCH], [BRANCH, SHORTCUT]], ids=["shortcut first", "branch first"])
@pytest.mark.parametrize("order", [["q", "r"], ["r", "q"]], ids=str)
def test_a_branch_makes_up_for_what_its_shortcut_lost(nodes, order):
    """The shortcut has lost a dimension of the image for good; the branch still sees all of them."""
    graph = graph_of([*STREAM, *nodes, ("Add", order, "y", {})], STREAMS, {"x": ["n", 3, 6, 6]})
    facts = cut(start(graph, {"x": drawn(60, 3, 6, 6)}), {("w", 0): [7], ("u", 0): [2]})
    fresh = {"x": drawn(16, 3, 6, 6, seed=1)}
    before = error(graph, facts.graph, fresh)
    run(facts, "compensate")
    assert error(graph, facts.graph, fresh) < 1e-8 < 0.05 < before
    layers = facts.recovery[0]["layers"]
    assert [layer["name"] for layer in layers][-1] == next(n.name for n in graph.nodes if n.outputs == ["q"])


@pytest.mark.parametrize("first", [True, False])
def test_a_sum_that_spreads_one_summand_is_no_target(first):
    """Means of channels are added to an image: the layer behind them is refitted to its own output."""
    nodes = [
        ("Conv", ["x", "w"], "h", PADS),
        ("Relu", ["h"], "a", {}),
        ("GlobalAveragePool", ["a"], "g", {}),
        ("Conv", ["g", "v"], "q", {}),
        ("Conv", ["x", "u"], "r", {}),
        ("Add", ["q", "r"] if first else ["r", "q"], "y", {}),
    ]
    consts = {"w": copied(8, 3, 3, 3), "v": weights(5, 8, 1, 1), "u": weights(5, 3, 1, 1)}
    graph = graph_of(nodes, consts, {"x": ["n", 3, 6, 6]})
    facts = cut(start(graph, {"x": drawn(60, 3, 6, 6)}), {("w", 0): [6, 7]})
    assert run(facts, "compensate") == 1
    assert error(graph, facts.graph, {"x": drawn(16, 3, 6, 6, seed=1)}) < 1e-8


@pytest.mark.parametrize("act", ["Relu", "Clip"])
def test_errors_behind_a_flat_activation_do_not_count(act):
    """The dense layer puts out a square that Relu cuts off; what is fitted matters above 0 only."""
    limits = {"low": np.float32(0), "high": np.float32(1.5)}
    nodes = [
        ("Gemm", ["x", "w"], "h", {"transB": 1}),
        ("Relu", ["h"], "a", {}),
        ("Gemm", ["a", "v", "b"], "p", {}),
        (act, ["p", "low", "high"] if act == "Clip" else ["p"], "y", {}),
    ]
    consts = {"w": weights(12, 6), "v": 2 * weights(12, 9), "b": np.full(9, -1.5, np.float32)}
    consts |= limits if act == "Clip" else {}
    found = []
    for behind in (nodes, [*nodes[:3], ("Identity", ["p"], "i", {}), (act, ["i", *nodes[3][1][1:]], "y", {})]):
        graph = graph_of(behind, consts, {"x": ["n", 6]})
        facts = cut(start(graph, {"x": drawn(400, 6)}), {("w", 0): range(6, 12)})
        run(facts, "compensate")
        found.append(error(graph, facts.graph, {"x": drawn(400, 6, seed=1)}))
    assert found[0] < found[1]


# ---- layers with states ----------------------------------------------------------------------------------------------
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
RECURRENT = [
    ("RNN", "forward", {}),
    ("RNN", "bidirectional", {}),
    ("GRU", "forward", {"linear_before_reset": 0}),
    ("GRU", "reverse", {"linear_before_reset": 1}),
    ("GRU", "bidirectional", {"linear_before_reset": 1}),
    ("LSTM", "forward", {}),
    ("LSTM", "reverse", {}),
    ("LSTM", "bidirectional", {}),
]


def recurrent(op, direction, attrs, bias=True, initial=False):
    """Make a graph: a layer, a recurrent layer of 12 units that reads it, and a layer that reads the states."""
    hidden, ways, gates = 12, 1 + (direction == "bidirectional"), GATES[op]
    consts = {
        "v": weights(6, 10),
        "w": weights(ways, gates * hidden, 10) * 3,
        "r": weights(ways, gates * hidden, hidden) * 3,
        "o": weights(ways * hidden, 4),
        "flat": np.array([0, 0, -1]),
    }
    if bias:
        consts["b"] = drawn(ways, 2 * gates * hidden) * 0.3
    rest = (["b"] if bias else [""]) + (["", "start"] if initial else [])
    if initial:
        consts["first"] = drawn(ways, 4, hidden)
    nodes = [
        *([("Neg", ["first"], "start", {})] if initial else []),
        ("MatMul", ["x", "v"], "e", {}),
        ("Tanh", ["e"], "t", {}),
        (op, ["t", "w", "r", *rest], "states", {"hidden_size": hidden, "direction": direction, **attrs}),
        ("Transpose", ["states"], "moved", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["moved", "flat"], "joined", {}),
        ("MatMul", ["joined", "o"], "y", {}),
    ]
    return graph_of(nodes, consts, {"x": [9, 4, 6]})


@pytest.mark.parametrize(("op", "direction", "attrs"), RECURRENT, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_recurrent_layers_follow_the_dense_ones(op, direction, attrs, bias):
    graph = recurrent(op, direction, attrs, bias)
    batches = Batches(tuple({"x": drawn(9, 4, 6, seed=at)} for at in range(30)), 30)
    facts = Facts(graph, Context(calibration=batches))
    run(facts, "canonicalize,select{ratio=0.3 align=1 scope=local},slice-channels")
    assert facts.graph.consts.shape("r") != graph.consts.shape("r") or facts.cuts
    tests = [{"x": drawn(9, 4, 6, seed=at)} for at in range(100, 110)]
    before = np.mean([error(facts.source, facts.graph, feeds) for feeds in tests])
    run(facts, "compensate")
    after = np.mean([error(facts.source, facts.graph, feeds) for feeds in tests])
    layer = next(layer for layer in facts.recovery[0]["layers"] if layer["op"] == op)
    assert after < 0.5 * before
    assert layer["method"] == "ls"
    assert layer["after"] < (0.45 if op == "RNN" else 0.2) * layer["before"]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_candidate_of_a_gru_sees_what_the_reset_gate_leaves(direction):
    """h = (1 - z) n + z h' with z, r, n made of the targets, n of the state times r."""
    graph = recurrent("GRU", direction, {"linear_before_reset": 0})
    batches = Batches(({"x": drawn(9, 4, 6)},), 1)
    facts = cut(start(graph, {"x": drawn(9, 4, 6)}), {("v", 1): [9]}, verify=False)
    teacher = Teacher(facts.cuts)
    dense, pruned = (Staged(g, batches.feeds, Store(1 << 30)) for g in (teacher.graph, facts.graph))
    layer = gates(next(node for node in facts.graph.nodes if node.op == "GRU"), facts.graph)
    dense.need(layer.x, layer.y)
    update, _, candidate = RecurrentRefit(layer, facts.graph, teacher, dense, pruned, batches)._targets(0)[0]
    states = dense.value(layer.y, 0)[:, 0]
    none = np.zeros_like(states[:1])
    before = np.concatenate([none, states[:-1]] if direction == "forward" else [states[1:], none]).reshape(36, -1)
    keep = 1 / (1 + np.exp(-update))
    made = (1 - keep) * np.tanh(candidate) + keep * before
    np.testing.assert_allclose(made, states.reshape(36, -1), atol=1e-5)


@pytest.mark.parametrize("attrs", [{"activations": ["HardSigmoid", "Tanh"]}, {"clip": 3.0}], ids=str)
def test_a_reset_gate_of_another_kind_leaves_the_candidate_alone(attrs):
    graph = recurrent("GRU", "forward", attrs)
    layer = gates(next(node for node in graph.nodes if node.op == "GRU"), graph)
    assert layer.joint == (0, 1)
    assert layer.apart == ()


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("initial", [False, True])
def test_targets_of_gates_are_what_the_dense_layer_activates(direction, initial):
    """The states of a simple recurrent layer are Tanh of its targets, narrowed; the first state is given or 0."""
    graph = recurrent("RNN", direction, {}, initial=initial)
    batches = Batches(({"x": drawn(9, 4, 6)},), 1)
    facts = cut(start(graph, {"x": drawn(9, 4, 6)}), {("v", 1): [9]}, verify=False)
    teacher = Teacher(facts.cuts)
    dense, pruned = (Staged(g, batches.feeds, Store(1 << 30)) for g in (teacher.graph, facts.graph))
    layer = gates(next(node for node in facts.graph.nodes if node.op == "RNN"), facts.graph)
    dense.need(layer.x, layer.y, *([layer.initial] if initial else []))
    targets = RecurrentRefit(layer, facts.graph, teacher, dense, pruned, batches)._targets(0)
    states = dense.value(layer.y, 0)
    for way, (target,) in enumerate(targets):
        np.testing.assert_allclose(np.tanh(target), states[:, way].reshape(36, -1), atol=1e-5)


# ---- data that are few or useless ------------------------------------------------------------------------------------
def digits_like():
    nodes = [
        ("Conv", ["x", "w", "b"], "h", PADS),
        ("Relu", ["h"], "a", {}),
        ("Conv", ["a", "v"], "k", PADS),
        ("Relu", ["k"], "l", {}),
        ("GlobalAveragePool", ["l"], "g", {}),
        ("Flatten", ["g"], "f", {}),
        ("Gemm", ["f", "o", "c"], "y", {}),
    ]
    consts = {"w": weights(8, 3, 3, 3), "b": drawn(8), "v": weights(8, 8, 3, 3), "o": weights(8, 5), "c": drawn(5)}
    return graph_of(nodes, consts, {"x": ["n", 3, 8, 8]})


@pytest.mark.parametrize(
    ("images", "scale"),
    [
        (drawn(1, 3, 8, 8), 1),
        (drawn(8, 3, 8, 8), 1),
        (np.zeros((20, 3, 8, 8), np.float32), 1),
        (np.full((1, 3, 8, 8), 0.5, np.float32), 1),
        (1e6 * drawn(20, 3, 8, 8), 1e6),
        (1e-6 * drawn(20, 3, 8, 8), 1e-6),
        (1e-6 * drawn(20, 3, 8, 8), 1),
    ],
    ids=["one", "eight", "black", "grey", "huge", "tiny", "tiny for large"],
)
def test_few_or_constant_images_do_no_harm(images, scale):
    graph = digits_like()
    facts = start(graph, {"x": images})
    run(facts, "select{ratio=0.4 align=1 scope=local},slice-channels")
    fresh = {"x": np.float32(scale) * drawn(64, 3, 8, 8, seed=5)}
    before = error(graph, facts.graph, fresh)
    run(facts, "compensate")
    assert error(graph, facts.graph, fresh) <= before
    for layer in facts.recovery[0]["layers"]:
        assert layer["method"] == "ls" or layer["note"]
        assert np.isfinite(layer["before"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused(value):
    graph = digits_like()
    images = drawn(20, 3, 8, 8)
    images[7, 0, 2, 2] = value
    facts = start(graph, {"x": images})
    run(facts, "select{ratio=0.4 align=1 scope=local},slice-channels", verify=False)
    before = facts.graph.to_proto().SerializeToString(deterministic=True)
    with pytest.raises(PruneError, match="NaN or infinity"):
        run(facts, "compensate", verify=False)
    assert facts.graph.to_proto().SerializeToString(deterministic=True) == before
