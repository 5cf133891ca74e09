"""Move a part of a model into a body: the branches of an If, or the turns of a Loop or Scan that repeat it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONDITION = "outlined_condition"
KINDS = ("If", "Loop", "Scan")


def outline(model: onnx.ModelProto, kind: str, start: int, stop: int) -> onnx.ModelProto:
    """Return the model with the nodes from `start` to `stop` in bodies; it computes the same."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    nodes = list(twin.graph.node)
    inside, after = nodes[start:stop], nodes[stop:]
    made = {name for node in inside for name in node.output if name}
    read = {name for node in after for name in (*node.input, *_captured(node))} | {o.name for o in twin.graph.output}
    given = [name for node in inside for name in node.output if name in made & read]
    wrapped = {"If": _branches, "Loop": _loop, "Scan": _scan}[kind](twin.graph, inside, made, given)
    del twin.graph.node[:]
    twin.graph.node.extend([*nodes[:start], *wrapped, *after])
    return twin


def _body(
    name: str, inside: Iterable[onnx.NodeProto], made: set[str], given: list[str], loop: bool = False
) -> onnx.GraphProto:
    """Copy nodes into a body that returns some of their values."""
    body = onnx.GraphProto(name=name)
    names = {old: f"{name}_{old}" for old in made}
    for node in inside:
        own = body.node.add()
        own.CopyFrom(node)
        own.input[:] = [names.get(n, n) for n in node.input]
        own.output[:] = [names.get(n, n) for n in node.output]
    if loop:
        body.input.append(helper.make_tensor_value_info(f"{name}_turn", TensorProto.INT64, []))
        body.input.append(helper.make_tensor_value_info(f"{name}_go", TensorProto.BOOL, []))
        body.node.append(helper.make_node("Identity", [f"{name}_go"], [f"{name}_on"]))
        body.output.append(helper.make_tensor_value_info(f"{name}_on", TensorProto.BOOL, []))
    body.output.extend(onnx.ValueInfoProto(name=names[n]) for n in given)
    return body


def _branches(
    graph: onnx.GraphProto, inside: list[onnx.NodeProto], made: set[str], given: list[str]
) -> list[onnx.NodeProto]:
    graph.input.append(helper.make_tensor_value_info(CONDITION, TensorProto.BOOL, []))
    bodies = {f"{name}_branch": _body(name, inside, made, given) for name in ("then", "else")}
    return [helper.make_node("If", [CONDITION], given, name="outlined", **bodies)]


def _loop(
    graph: onnx.GraphProto, inside: list[onnx.NodeProto], made: set[str], given: list[str]
) -> list[onnx.NodeProto]:
    _constant(graph, "outlined_turns", np.array(2))
    body = _body("turn", inside, made, given, loop=True)
    node = helper.make_node("Loop", ["outlined_turns", ""], [f"{n}_all" for n in given], name="outlined", body=body)
    return [node, *_last(graph, given)]


def _scan(
    graph: onnx.GraphProto, inside: list[onnx.NodeProto], made: set[str], given: list[str]
) -> list[onnx.NodeProto]:
    _constant(graph, "outlined_ticks", np.array([1, 2]))
    body = _body("step", inside, made, given)
    body.input.append(helper.make_tensor_value_info("step_tick", TensorProto.INT64, []))
    outputs = [f"{n}_all" for n in given]
    node = helper.make_node("Scan", ["outlined_ticks"], outputs, name="outlined", num_scan_inputs=1, body=body)
    return [node, *_last(graph, given)]


def _last(graph: onnx.GraphProto, given: list[str]) -> list[onnx.NodeProto]:
    """Take the values of the last turn."""
    _constant(graph, "outlined_last", np.array(1))
    return [helper.make_node("Gather", [f"{n}_all", "outlined_last"], [n], axis=0) for n in given]


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> None:
    graph.initializer.append(numpy_helper.from_array(value, name))


def _captured(node: onnx.NodeProto) -> set[str]:
    bodies = [a.g for a in node.attribute if a.type == a.GRAPH]
    return {name for body in bodies for inner in body.node for name in (*inner.input, *_captured(inner))}
