"""Statistics of values on calibration data against numpy, and inputs that are drawn where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fixtures.tiny import TINY
from prunepass import load
from prunepass.errors import ModelError, PipelineError
from prunepass.graph import Graph
from prunepass.manager import Context, Facts, build
from prunepass.recovery import batches as batches_module
from prunepass.recovery.batches import DRAWN, Batches, calibration, drawn, from_arrays
from prunepass.recovery.drawing import scale_of
from prunepass.recovery.moments import Gram, Moments
from prunepass.recovery.statistics import Statistics, Tap


def model(nodes, consts, shape, out="y", name="x"):
    """Make a graph of one input from nodes (operator, inputs, output, attributes)."""
    protos = [helper.make_node(op, ins, [result], **attrs) for op, ins, result, attrs in nodes]
    arrays = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in consts.items()]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)]
    graph = helper.make_graph(protos, "g", inputs, outputs, arrays)
    return Graph(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


def conv_relu(group=1, batch="n"):
    """Conv and Relu, which onnxruntime fuses, then a Conv of some groups."""
    rng = np.random.default_rng(1)
    consts = {"w": rng.normal(size=(4, 2, 3, 3)), "b": rng.normal(size=4), "v": rng.normal(size=(6, 4 // group, 3, 3))}
    nodes = [
        ("Conv", ["x", "w", "b"], "a", {"pads": [1, 1, 1, 1]}),
        ("Relu", ["a"], "r", {}),
        ("Conv", ["r", "v"], "y", {"group": group, "strides": [2, 2], "pads": [1, 0, 1, 0]}),
    ]
    return model(nodes, consts, [batch, 2, 6, 6])


def convolved(x, weight, bias=None, pads=1):
    """Convolve slowly: stride 1, one group, square kernels, equal pads."""
    wide = np.pad(x, [(0, 0), (0, 0), (pads, pads), (pads, pads)])
    windows = np.lib.stride_tricks.sliding_window_view(wide, weight.shape[2:], axis=(2, 3))
    found = np.einsum("nchwij,ocij->nohw", windows, weight)
    return found if bias is None else found + bias[:, None, None]


IMAGES = np.random.default_rng(0).standard_normal((20, 2, 6, 6)).astype(np.float32)


def of(graph, data, **options):
    return Statistics(graph, from_arrays({"x": data}, graph), **options)


# ---- moments ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("blocks", [[10], [1, 9], [3, 0, 3, 4], [1] * 10])
def test_moments_of_blocks_are_those_of_the_whole(blocks):
    rows = np.maximum(np.random.default_rng(0).standard_normal((2, 10, 3)), 0).astype(np.float32)
    found = Moments()
    for block in np.split(rows, np.cumsum(blocks)[:-1], axis=1):
        found.add(block)
    whole = rows.astype(float)
    assert found.count == 10
    for name, expected in (
        ("mean", whole.mean(axis=1)),
        ("variance", whole.var(axis=1)),
        ("square", (whole**2).mean(axis=1)),
        ("norm", np.sqrt((whole**2).mean(axis=1))),
        ("zero_share", (whole == 0).mean(axis=1)),
        ("positive_share", (whole > 0).mean(axis=1)),
    ):
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-12, err_msg=name)


def test_variances_do_not_cancel_far_from_zero():
    rows = 1e7 + np.random.default_rng(0).standard_normal((1, 1000, 1))
    found = Moments()
    for block in np.split(rows, 10, axis=1):
        found.add(block)
    np.testing.assert_allclose(found.variance, rows.var(axis=1), rtol=1e-9)


@pytest.mark.parametrize("blocks", [[40], [5, 35], [10, 0, 30]])
def test_gram_of_blocks_is_that_of_the_whole(blocks):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 40, 3)) + 5, rng.standard_normal((2, 40, 4))
    found, cuts = Gram(), np.cumsum(blocks)[:-1]
    for a, b in zip(np.split(x, cuts, axis=1), np.split(y, cuts, axis=1)):
        found.add(a, b)
    for group in range(2):
        np.testing.assert_allclose(found.second[group], x[group].T @ x[group] / 40, rtol=1e-10)
        np.testing.assert_allclose(found.covariance[group], np.cov(x[group].T, bias=True), rtol=1e-10, atol=1e-12)
        both = np.cov(x[group].T, y[group].T, bias=True)
        np.testing.assert_allclose(found.cross[group], both[:3, 3:], rtol=1e-9, atol=1e-12)


# ---- statistics of a graph -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("group", "batch"), [(1, "n"), (2, "n"), (1, 1)])
def test_values_that_onnxruntime_would_fuse_away(group, batch):
    graph = conv_relu(group, batch)
    before = convolved(IMAGES, graph.consts["w"], graph.consts["b"])
    after = np.maximum(before, 0)
    statistics = of(graph, IMAGES)
    assert [layer.y for layer in statistics.layers] == ["a", "y"]
    moments = statistics.inputs(statistics.layers)["y"]
    by_group = after.transpose(1, 0, 2, 3).reshape(group, 4 // group, -1)
    assert moments.count == 20 * 36
    np.testing.assert_allclose(moments.mean, by_group.mean(axis=2), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, by_group.var(axis=2), rtol=1e-5)
    found = statistics.channels([("a", (1,)), ("r", (1,)), ("r", (2, 3))])
    np.testing.assert_allclose(found["a", (1,)].mean[0], before.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["r", (1,)].zero_share[0], (after == 0).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(found["r", (2, 3)].mean[0], after.mean(axis=(0, 1)).ravel(), rtol=1e-5)


def test_a_gram_matrix_predicts_what_a_layer_puts_out():
    """Sum over all positions of y^2 is W^T G W; the cross products with y itself are G W."""
    graph = conv_relu(2)
    statistics = of(graph, IMAGES)
    layer = statistics.layers[1]
    gram = statistics.grams([layer], {"y": "y"})["y"]
    matrix = layer.matrix(graph.consts["v"].astype(np.float64))
    moments = statistics.channels([("y", (1,))])["y", (1,)]
    assert gram.count == moments.count
    energy = np.einsum("gfo,gfe,geo->go", matrix, gram.second, matrix)
    np.testing.assert_allclose(energy.ravel(), moments.square[0], rtol=1e-5)
    np.testing.assert_allclose(gram.cross, gram.covariance @ matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [1, 30000, 1 << 30])
def test_memory_changes_nothing(memory):
    graph = conv_relu()
    exact, found = of(graph, IMAGES), of(graph, IMAGES, memory=memory, shapes={"x": (1, 2, 6, 6), "r": (1, 4, 6, 6)})
    keys = [("r", (1,)), ("a", (1,)), ("y", (1,)), ("x", (1,))]
    for a, b in zip(exact.channels(keys).values(), found.channels(keys).values()):
        np.testing.assert_array_equal(a.mean, b.mean)
        np.testing.assert_array_equal(a.variance, b.variance)


def test_every_node_runs_once_whatever_is_tapped(monkeypatch):
    from prunepass.recovery import staged

    graph, ran = conv_relu(), []
    plain = staged._start

    def start(part):
        ran.extend(node.outputs[0] for node in part.nodes)
        return plain(part)

    monkeypatch.setattr(staged, "_start", start)
    statistics = of(graph, IMAGES, memory=1)  # a stage for each tap
    statistics.channels([("y", (1,)), ("r", (1,)), ("a", (1,))])
    assert sorted(ran) == ["a", "r", "y"]
    statistics.channels([("r", (1,))])
    assert sorted(ran) == ["a", "r", "y"], "what is known is not computed again"


def test_taps_come_batch_by_batch_and_progress_is_told():
    told, seen = [], []
    statistics = of(conv_relu(), IMAGES, tell=lambda *args: told.append(args))
    statistics.stream([Tap(("r", "x"), lambda batch, r, x: seen.append((batch, len(r), len(x))))])
    assert seen == [(i, 2, 2) for i in range(10)]
    assert told == [("statistics", 1, 1)]
    assert statistics.first(5).batches.samples == 6


@pytest.mark.parametrize(("given", "message"), [(False, "take such samples out"), (True, "give calibration data")])
def test_values_that_are_not_finite_are_refused(given, message):
    data = IMAGES.copy()
    data[3] = np.nan
    statistics = Statistics(conv_relu(), Batches(({"x": data[:2]}, {"x": data[2:4]}), 4, given))
    for _ in range(2):  # nothing half-done is kept
        with pytest.raises(ModelError, match=f"'x' has NaN or infinity on batch 1 .*{message}"):
            statistics.inputs(statistics.layers)


# ---- where the data come from ----------------------------------------------------------------------------------------
def test_calibration_comes_first_then_data_then_the_draw(caplog):
    graph = conv_relu()
    given = from_arrays({"x": IMAGES[:3]}, graph)
    assert calibration(Facts(graph, Context(calibration=given, data={"x": IMAGES}))) is given
    facts = Facts(graph, Context(data={"x": IMAGES}))
    assert calibration(facts).samples == 20
    assert calibration(facts) is calibration(facts)
    assert not caplog.records
    facts = Facts(graph, Context(seed=3))
    assert (calibration(facts).samples, calibration(facts).drawn) == (DRAWN, True)
    assert [record.getMessage() for record in caplog.records] == [
        f"no calibration data: {DRAWN} random inputs are drawn; results are better with data"
    ]
    assert facts.get("statistics").drawn


def test_the_pass_checks_its_option():
    assert str(build("statistics", memory=7)) == "statistics{memory=7}"
    with pytest.raises(PipelineError, match="memory=0 must be at least 1"):
        build("statistics", memory=0)


# ---- inputs without data ---------------------------------------------------------------------------------------------
NORM = {"scale": np.ones(3), "shift": np.zeros(3), "mean": [5, -3, 100], "var": [4, 0.01, 9]}
NORMALISES = ("BatchNormalization", ["a", "scale", "shift", "mean", "var"], "y", {})
LAYER = np.random.default_rng(2).standard_normal((3, 3, 1, 1)) * [[[[1]], [[2]], [[3]]]]


def pooled(graph, name="x", shape=(4, 3, 8, 8), seed=0):
    """Draw inputs and return the mean and the standard deviation of each channel."""
    found = np.concatenate([feeds[name] for feeds in drawn(graph, {name: shape}, seed).feeds])
    return found.mean(axis=(0, 2, 3)), found.std(axis=(0, 2, 3))


@pytest.mark.parametrize(
    ("nodes", "consts", "mean", "deviation"),
    [
        ([], {}, [0, 0, 0], [1, 1, 1]),
        ([("Sub", ["x", "m"], "a", {})], {"m": np.reshape([2, 3, 4], (1, 3, 1, 1))}, [2, 3, 4], [1, 1, 1]),
        (
            [("Div", ["x", "s"], "b", {}), ("Sub", ["b", "m"], "a", {})],
            {"s": [255], "m": [0.5]},
            [127.5] * 3,
            [255] * 3,
        ),
        ([("Mul", ["x", "s"], "b", {}), ("Add", ["b", "m"], "a", {})], {"s": [4], "m": [-2]}, [0.5] * 3, [0.25] * 3),
        ([("Identity", ["x"], "a", {}), NORMALISES], NORM, [5, -3, 100], [2, 0.1, 3]),
        ([("Div", ["x", "s"], "a", {}), NORMALISES], {**NORM, "s": [10]}, [50, -30, 1000], [20, 1, 30]),
        ([("Sub", ["m", "x"], "a", {})], {"m": [9]}, [0, 0, 0], [1, 1, 1]),
        ([("Sub", ["x", "m"], "a", {}), ("Mul", ["x", "a"], "y", {})], {"m": [9]}, [0, 0, 0], [1, 1, 1]),
    ],
)
def test_drawn_inputs_are_on_the_scale_that_the_graph_stores(nodes, consts, mean, deviation):
    last = nodes[-1][2] if nodes else "x"
    graph = model([*nodes, ("Relu", [last], "z", {})], consts, ["n", 3, 8, 8], out="z")
    found = pooled(graph)
    np.testing.assert_allclose(found[0], mean, atol=0.02 * max(deviation) + 1e-6, rtol=0)
    np.testing.assert_allclose(found[1], deviation, rtol=0.02)


def test_a_layer_before_the_normalisation_tells_the_scale_too():
    """White noise of mean 2, 3, 4 and deviation 0.5 goes in; what a BatchNormalization would have seen is stored."""
    mean = LAYER[:, :, 0, 0] @ [2, 3, 4] + [1, 0, -1]
    variance = 0.25 * (LAYER**2).sum(axis=(1, 2, 3))
    nodes = [("Conv", ["x", "w", "b"], "a", {}), NORMALISES]
    graph = model(nodes, {**NORM, "w": LAYER, "b": [1, 0, -1], "mean": mean, "var": variance}, ["n", 3, 8, 8])
    found = pooled(graph)
    np.testing.assert_allclose(found[0], [2, 3, 4], atol=0.01)
    np.testing.assert_allclose(found[1], [0.5] * 3, rtol=0.02)


def test_masks_and_tokens_are_not_scaled():
    steps = [("Sub", ["mask", "one"], "a", {}), ("Mul", ["a", "big"], "y", {})]
    graph = model(steps, {"one": [1], "big": [10000]}, ["n", 3], name="mask")
    assert scale_of(graph, "mask") is not None
    assert all(np.isin(feeds["mask"], [0, 1]).all() for feeds in drawn(graph, {"mask": (2, 3)}, 0).feeds)
    tokens = load(TINY["tied_embedding"]()[0])
    name = tokens.input_names[0]
    assert all(feeds[name].dtype == np.int64 for feeds in drawn(tokens, {name: (1, 4)}, 0).feeds)


def test_the_draw_is_seeded(monkeypatch):
    monkeypatch.setattr(batches_module, "DRAWN", 2)
    graph = model([("Sub", ["x", "m"], "y", {})], {"m": [7]}, ["n", 3])
    one, same, other = (drawn(graph, {"x": (1, 3)}, seed).feeds for seed in (0, 0, 9))
    assert (one[0]["x"] == same[0]["x"]).all()
    assert (one[0]["x"] != one[1]["x"]).any()
    assert (one[0]["x"] != other[0]["x"]).any()
