"""Sizes and ranks that the file itself fixes, whatever the inputs: they decide which branch of an If is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from prunepass.graph import Graph, Node
from prunepass.protos import subgraphs_of
from prunepass.rules.values import SHAPE_VALUES

_SMALL_BYTES = 1024
Dims = tuple[int | None, ...]


def fixed_shapes(graph: Graph) -> dict[str, Dims]:
    """Return shapes as the file fixes them, in bodies too: None for an axis that may change from run to run."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_with_sizes(graph), data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return {}
    found = {}
    for info in _infos(inferred):
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found


def _with_sizes(graph: Graph) -> onnx.ModelProto:
    """Encode the model without weights, but with stored sizes."""
    model = graph.skeleton()
    stored = {name for name in graph.consts if _is_size(graph, name)} - graph.overridable
    inputs = [info for info in model.graph.input if info.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(graph.consts.proto(name) for name in graph.consts if name in stored)
    return model


def _is_size(graph: Graph, name: str) -> bool:
    kinds = (TensorProto.INT64, TensorProto.INT32)
    return graph.consts.elem_type(name) in kinds and graph.consts.nbytes(name) <= _SMALL_BYTES


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.input
    for node in graph.node:
        for attribute in node.attribute:
            for body in subgraphs_of(attribute):
                yield from _infos(body)


def fold_fixed(graph: Graph) -> int:
    """Replace sizes that are fixed by constants, where an If may depend on them; return the number of nodes."""
    if not any(node.op == "If" and node.bodies for node in graph.walk()):
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
    source = makers.get(node.inputs[0]) if node.op == "Gather" else None
    if source is None or source.op != "Shape" or source.attrs or node.inputs[1] not in graph.consts:
        return None
    fixed, index = shapes.get(source.inputs[0]), graph.consts[node.inputs[1]]
    if fixed is None or index.size != 1 or not -len(fixed) <= int(index.reshape(-1)[0]) < len(fixed):
        return None
    size = fixed[int(index.reshape(-1)[0])]
    return None if size is None else np.full(index.shape, size, np.int64)
