"""Sizes and ranks that the file itself fixes, whatever the inputs: they decide which branch of an If is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from prunepass.graph import Graph, Node
from prunepass.inference import FOLLOWS
from prunepass.protos import op_key, subgraphs_of
from prunepass.rules.values import SHAPE_VALUES, evaluate

_SMALL_BYTES = 1024
PICKS = frozenset(("Gather", "Slice"))
"""Operators that take some of the sizes that a Shape gives."""
Dims = tuple[int | None, ...]
Named = tuple[int | str | None, ...]


def fixed_shapes(graph: Graph) -> dict[str, Dims]:
    """Return shapes as the file fixes them, in bodies too: None for an axis that may change from run to run."""
    found = {}
    for info in _inferred(graph):
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found


def named_shapes(graph: Graph) -> tuple[dict[str, Named], dict[str, int]]:
    """Return shapes and element types as the file fixes them; equal names of dynamic axes mean equal lengths."""
    shapes: dict[str, Named] = {name: tuple(graph.consts.shape(name)) for name in graph.consts}
    kinds = {name: graph.consts.elem_type(name) for name in graph.consts}
    for info in _inferred(graph):
        tensor = info.type.tensor_type
        if tensor.elem_type:
            kinds[info.name] = tensor.elem_type
        if tensor.HasField("shape"):
            dims = tensor.shape.dim
            shapes[info.name] = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)
    return shapes, kinds


def _inferred(graph: Graph) -> Iterator[onnx.ValueInfoProto]:
    try:
        yield from _infos(onnx.shape_inference.infer_shapes(_with_sizes(graph), data_prop=True).graph)
    except onnx.shape_inference.InferenceError:
        return


def _with_sizes(graph: Graph) -> onnx.ModelProto:
    """Encode the model without weights, but with stored sizes."""
    model = graph.skeleton()
    for output in model.graph.output:  # what an exporter declares may be wrong, and is not needed
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    for node in model.graph.node:
        if FOLLOWS.get(op_key(node.op_type, node.domain), ())[:1] == (0,) and not any(node.output[1:]):
            follow = helper.make_node("Identity", node.input[:1], node.output[:1])
            node.CopyFrom(follow)
    stored = {name for name in graph.consts if _is_size(graph, name)} - graph.overridable
    inputs = [info for info in model.graph.input if info.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(graph.consts.proto(name) for name in graph.consts if name in stored)
    return model


def _is_size(graph: Graph, name: str) -> bool:
    kinds = (TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT)  # numbers scale sizes
    return graph.consts.elem_type(name) in kinds and graph.consts.nbytes(name) <= _SMALL_BYTES


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.input
    yield from graph.output
    for node in graph.node:
        for attribute in node.attribute:
            for body in subgraphs_of(attribute):
                yield from _infos(body)


def fold_fixed(graph: Graph, always: bool = False) -> int:
    """Replace sizes that are fixed by constants, where an If may depend on them or `always`; return how many nodes."""
    if not always and not any(node.op == "If" and node.bodies for node in graph.walk()):
        return 0
    shapes, makers, results = fixed_shapes(graph), graph.producers(), graph.results
    gone = []
    for node in graph.walk():
        array = _size(graph, node, shapes, makers)
        if array is not None and results.isdisjoint(node.outputs):
            graph.consts[node.outputs[0]] = array
            gone.append(node)
    return graph.remove(gone)


def _size(graph: Graph, node: Node, shapes: Mapping[str, Dims], makers: Mapping[str, Node]) -> np.ndarray | None:
    """Evaluate Shape, Size, and a Gather from a Shape, as far as the file fixes what they read."""
    if node.op in SHAPE_VALUES:
        fixed = shapes.get(node.inputs[0])
        known = None if fixed is None or None in fixed else tuple(size for size in fixed if size is not None)
        found = SHAPE_VALUES[node.op](node, known) if known is not None else []
        return np.asarray(found[0]) if found else None
    source = makers.get(node.inputs[0]) if node.op in PICKS else None
    if source is None or source.op != "Shape" or source.attrs:
        return None
    fixed = shapes.get(source.inputs[0])
    stored = graph.consts.keys() - graph.overridable
    operands = [graph.consts[name] if name in stored else None for name in node.inputs[1:] if name]
    if fixed is None or any(operand is None for operand in operands):
        return None
    sizes = evaluate(node, [np.array([-1 if size is None else size for size in fixed], np.int64), *operands])
    return None if sizes is None or (sizes[0] < 0).any() else sizes[0]
