"""Recovery of models whose weights are integers behind DequantizeLinear."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import DIGITS, load_digits
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from recovering import drawn, graph_of, run, start, weights

import prunepass
from fixtures import accuracy
from prunepass import load
from prunepass.recovery.quantised import Grids
from prunepass.rules.flat import flat_range
from prunepass.rules.linear import residual
from prunepass.runtime import session

IMAGES = load_digits()["calibration"]


class Reader(CalibrationDataReader):
    """Give onnxruntime what it finds the ranges of activations with."""

    def __init__(self) -> None:
        self.left = [{"image": IMAGES[at : at + 16]} for at in range(0, 64, 16)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Quantise the digits network as a user would, with one scale for each tensor and for each channel."""
    folder = tmp_path_factory.mktemp("quantised")
    onnx.save(prunepass.prune(DIGITS, lossless=True).model, folder / "float.onnx")
    found = {}
    logging.disable()
    for per_channel in (False, True):
        found[per_channel] = folder / f"{per_channel}.onnx"
        kind = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
        quantize_static(folder / "float.onnx", found[per_channel], Reader(), per_channel=per_channel, **kind)
    logging.disable(logging.NOTSET)
    return found


def right(model: onnx.ModelProto) -> float:
    return accuracy(session(load(model)).run)


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many constants there are of each type."""
    types = [TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer]
    return {kind: types.count(kind) for kind in set(types)}


def check_scales(model: onnx.ModelProto) -> None:
    """The scale of every bias is that of the input times that of the weight, as onnxruntime takes it."""
    graph = load(model)
    made = graph.producers()
    for node in graph.nodes:
        if node.op in ("Conv", "Gemm"):
            x, weight, bias = (graph.consts[made[name].inputs[1]].astype(float) for name in node.inputs)
            np.testing.assert_allclose(bias, x * weight, rtol=1e-5)


@pytest.mark.parametrize("per_channel", [False, True])
def test_an_int8_model_gets_its_accuracy_back_and_stays_int8(quantised: dict[bool, Path], per_channel: bool) -> None:
    source = onnx.load(quantised[per_channel])
    assert any(node.op_type == "QuantizeLinear" for node in source.graph.node)
    text = "canonicalize,select{{ratio=0.4 criterion=l2 scope=local align=1}},slice-channels,{}clean"
    made = {
        way: prunepass.prune(source, pipeline=text.format(way), data={"image": IMAGES[:64]})
        for way in ("", "compensate,")
    }
    bare, found = made[""], made["compensate,"]
    assert right(source) > 0.95
    assert right(bare.model) < 0.6
    assert right(found.model) > 0.94
    assert found.report["certificate"]["status"] == "passed"
    layers = found.report["recovery"][0]["layers"]
    assert sum(layer["method"] == "ls" for layer in layers) > len(layers) / 2
    assert kinds(found.model) == kinds(bare.model)
    before = {t.name: t for t in bare.model.graph.initializer}
    for tensor in found.model.graph.initializer:
        array, old = (numpy_helper.to_array(t) for t in (tensor, before[tensor.name]))
        assert array.shape == old.shape
        assert array.dtype.kind == "i" or (array >= old).all(), f"{tensor.name}: a scale has shrunk"
    check_scales(found.model)


def test_selection_sees_the_errors_of_layers_of_integers(quantised: dict[bool, Path]) -> None:
    options: dict[str, Any] = {"macs": 0.4, "align": 1, "data": {"image": IMAGES[:64]}}
    source = onnx.load(quantised[True])
    best = right(prunepass.prune(source, **options).model)
    assert best > right(prunepass.prune(source, criterion="l2", **options).model)
    assert best > 0.94


# ---- small graphs ----------------------------------------------------------------------------------------------------
SCALE = np.float32(0.02)


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 100, shape).astype(np.int8)


def two_layers(**more: Any) -> Any:
    """Make x -> Gemm -> Relu -> Gemm -> y, the second weight and its bias integers."""
    consts = {
        "w": weights(5, 8),
        "v": integers(8, 3),
        "s": SCALE,
        "z": np.int8(3),
        "b": np.array([5, -7, 9], np.int32),
        "sb": np.float32(0.001),
        **more,
    }
    nodes = [
        ("MatMul", ["x", "w"], "h", {}),
        ("Relu", ["h"], "a", {}),
        ("DequantizeLinear", ["v", "s", "z"], "vf", {}),
        ("DequantizeLinear", ["b", "sb"], "bf", {}),
        ("Gemm", ["a", "vf", "bf"], "y", {}),
    ]
    return graph_of(nodes, consts, {"x": ["n", 5]})


def test_a_refit_stores_what_it_judges() -> None:
    """What the report says of a layer is true of the integers in the file."""
    graph = two_layers()
    facts = start(graph, {"x": drawn(400, 5)})
    run(facts, "canonicalize,select{ratio=0.4 align=1 criterion=l2},slice-channels,compensate,clean")
    layer = facts.recovery[0]["layers"][-1]
    assert layer["method"] == "ls"
    data = {"x": drawn(4000, 5, seed=9)}
    wanted, made = (session(g).run(data)["y"] for g in (graph, facts.graph))
    share = np.square(wanted - made).sum() / np.square(wanted - wanted.mean(axis=0)).sum()
    assert share == pytest.approx(layer["after"], rel=0.25)
    consts = facts.graph.consts
    assert {consts[name].dtype for name in ("v", "b")} == {np.dtype(np.int8), np.dtype(np.int32)}
    assert consts["s"] / SCALE == pytest.approx(consts["sb"] / np.float32(0.001))
    assert consts["s"] >= SCALE


def test_integers_beyond_the_range_are_cut_off() -> None:
    grid = Grids(two_layers())["vf"]
    stored = grid.stored(np.array([[-100.0, 0.0, 100.0, 0.02]]))
    assert stored.tolist() == [[-128, 3, 127, 4]]
    np.testing.assert_allclose(grid.real(stored), [[-2.62, 0, 2.48, 0.02]], atol=1e-6)


def test_a_scale_grows_where_it_is_too_small_and_takes_that_of_the_bias_along() -> None:
    value = np.full((8, 3), 0.1)
    value[2, 1] = 4.96
    for own, shared in ((True, {}), (False, {"z2": np.int8(3)})):
        graph = two_layers(**shared)
        if not own:
            graph.nodes.append(graph.nodes[2].copy())
            graph.nodes[-1].inputs, graph.nodes[-1].outputs = ["v2", "s", "z"], ["other"]
            graph.consts["v2"] = integers(8, 3)
        grids = Grids(graph)
        grid, bias = grids.fitting("vf", value, "bf")
        assert bias is not None
        factor = 2.0 if own else 1.0
        assert grid.scale.item() == pytest.approx(factor * SCALE)
        assert bias.scale.item() == pytest.approx(factor * 0.001)
        changed = grids.put("vf", grid, value)
        assert changed["v"].max() == 127
        assert ("s" in changed) == own
        grids.close()
        wanted = value if own else np.minimum(value, 124 * SCALE)
        part = session(graph.part([graph.nodes[2]], {}, ["vf"])).run({})["vf"]
        np.testing.assert_allclose(part, wanted, atol=SCALE * factor / 2)


def test_a_scale_for_each_channel_goes_along_its_axis() -> None:
    scales = np.array([0.1, 0.2, 0.4], np.float32)
    graph = two_layers(s=scales, z=np.zeros(3, np.int8))
    next(node for node in graph.nodes if node.outputs == ["vf"]).attrs["axis"] = -1
    wanted = session(graph).run({"x": drawn(3, 5)})["y"]
    stored = graph.consts["v"].copy()
    grids = Grids(graph)
    np.testing.assert_allclose(graph.consts["vf"], stored * scales, rtol=1e-6)
    np.testing.assert_array_equal(grids["vf"].stored(graph.consts["vf"]), stored)
    grids.close()
    np.testing.assert_array_equal(session(graph).run({"x": drawn(3, 5)})["y"], wanted)


@pytest.mark.parametrize(
    "more",
    [
        {"s": np.float32(-0.02)},
        {"s": np.float32([0.1, 0.2])},
        {"v": integers(8, 3).astype(np.float32).astype("uint8"), "s": None},
    ],
    ids=["a scale below 0", "scales that do not fit", "a scale that is computed"],
)
def test_other_integers_stay_as_they_are(more: dict[str, Any]) -> None:
    graph = two_layers(**{k: v for k, v in more.items() if v is not None})
    if more["s"] is None:
        del graph.consts["s"]
    nodes = list(graph.nodes)
    grids = Grids(graph)
    assert list(grids) == ["bf"]
    grids.close()
    assert graph.nodes == nodes


def test_a_weight_of_two_layers_stays_an_integer() -> None:
    graph = two_layers()
    again = graph.nodes[2].copy()
    again.outputs = ["vg"]
    graph.nodes.append(again)
    assert "vf" not in Grids(graph)


def test_a_sum_behind_a_rounding_is_a_residual_sum() -> None:
    nodes = [
        ("MatMul", ["x", "w"], "h", {}),
        ("QuantizeLinear", ["h", "s", "z"], "q", {}),
        ("DequantizeLinear", ["q", "s", "z"], "r", {}),
        ("Add", ["r", "x"], "y", {}),
    ]
    graph = graph_of(nodes, {"w": weights(5, 5), "s": SCALE, "z": np.int8(3)}, {"x": ["n", 5]})
    assert residual("h", graph, graph.uses()) == ("y", "x")
    low, high = flat_range(graph.uses()["h"], graph)
    assert (low, high) == pytest.approx((-131 * 0.02, 124 * 0.02))
    graph.consts["s"] = np.array([0.1] * 5, np.float32)
    assert np.isinf(flat_range(graph.uses()["h"], graph)).all()
