"""Data on which a network is not finite, or does not run: a refit by default is left out, one asked for is refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import prunepass
from prunepass.errors import ModelError
from prunepass.recovery.judging import distances

RNG = np.random.default_rng(0)
DATA = {"x": RNG.standard_normal((40, 6)).astype(np.float32)}


def model() -> object:
    """Divide by an input, which may be zero, between two layers."""
    weights = {"w": RNG.standard_normal((6, 8)), "v": RNG.standard_normal((8, 3)), "u": RNG.standard_normal((6, 8))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["x", "u"], ["k"]),
        helper.make_node("Relu", ["k"], ["r"]),
        helper.make_node("Reciprocal", ["r"], ["d"]),
        helper.make_node("Min", ["d", "one"], ["m"]),
        helper.make_node("Mul", ["d", "h"], ["q"]),
        helper.make_node("Mul", ["m", "h"], ["s"]),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
        helper.make_node("MatMul", ["q", "v2"], ["z"]),
        helper.make_node("Tanh", ["z"], ["t"]),
    ]
    consts = {**weights, "v2": RNG.standard_normal((8, 3)), "one": np.ones(1)}
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in consts.items()]
    info = helper.make_tensor_value_info
    outputs = [info("y", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, ["n", 6])], outputs, tensors)
    graph.output.append(info("t", TensorProto.FLOAT, ["n", 3]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_the_default_job_prunes_as_without_data() -> None:
    result = prunepass.prune(model(), 0.4, align=1, data=DATA)
    entry = result.report["recovery"][0]
    assert not entry["kept"]
    assert "NaN or infinity" in entry["note"]
    assert result.report["certificate"]["status"] == "passed"
    assert result.report["after"]["params"] < result.report["before"]["params"]


def test_a_criterion_that_needs_the_value_refuses() -> None:
    with pytest.raises(ModelError, match="NaN or infinity on batch"):
        prunepass.prune(model(), 0.4, align=1, data=DATA, criterion="obs", recover=False)


def test_inputs_that_a_model_does_not_run_on_are_left_out() -> None:
    """The second input asks for a place that the table does not have."""
    table = numpy_helper.from_array(RNG.standard_normal((4, 3)).astype(np.float32), "table")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "g",
        [info("i", TensorProto.INT64, ["n"])],
        [info("y", TensorProto.FLOAT, ["n", 3])],
        [table],
    )
    dense = prunepass.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    good, bad = {"i": np.array([0, 3])}, {"i": np.array([9])}
    assert distances(dense, {"same": dense}, [good, bad])["same"].error == 0
    with pytest.raises(ModelError, match="onnxruntime fails to run"):
        distances(dense, {"same": dense}, [bad])
