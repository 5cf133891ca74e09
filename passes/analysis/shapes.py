"""Give every value a concrete shape, and small tensors their contents, under one binding of the dynamic axes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, TypeProto, helper

from prunepass.binding import Binding, Shape, bindings, cut
from prunepass.graph import Graph, Node
from prunepass.inference import Scope, infer, tensor_type
from prunepass.manager import Analysis, Context, Facts
from prunepass.rules.values import element_type

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShapeFacts:
    """Hold what is known about the values of a graph; a value that is missing here is not known.

    Units
        shape: elements per axis. elem_type: as onnx.TensorProto numbers it. value: contents, at most 4096 elements,
        constants included. binding: size chosen for each dynamic axis, by its name or as `input[axis]`.
        observed: values whose shape only a run could tell.
    """

    shape: dict[str, Shape]
    elem_type: dict[str, int]
    value: dict[str, np.ndarray]
    binding: dict[str, int]
    observed: frozenset[str]


def observe(graph: Graph, inputs: Mapping[str, Shape], context: Context, scope: Scope) -> dict[str, TypeProto]:
    """Run the part of the graph that computes the missing values, and return their types; nothing where it cannot run.

    Values of known element type are measured by a Shape node behind them, so that they need not be kept.
    """
    missing = [name for node in graph.nodes for name in node.outputs if name and name not in scope.shape]
    tensors = [name for name in missing if name not in scope.types or scope.types[name].HasField("tensor_type")]
    if not tensors:
        return {}
    part = _ancestors(graph, tensors, scope.value)
    taps = {name: part.fresh_name(f"{name}_shape") if name in scope.types else name for name in tensors}
    part.nodes += [Node.make("Shape", [name], [tap]) for name, tap in taps.items() if tap != name]
    part.outputs = [onnx.ValueInfoProto(name=tap) for tap in taps.values()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    rng = np.random.default_rng(context.seed)
    try:
        feeds = {info.name: _feed(info, inputs[info.name], context, rng) for info in part.inputs}
        model = part.to_proto()
        model.ir_version = max(model.ir_version, 4)  # older versions want every constant to be an input as well
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = dict(zip(taps, session.run(list(taps.values()), feeds)))
    except Exception as error:  # noqa: BLE001  onnxruntime has no common base for what it raises
        log.info("the shapes of %d values stay unknown: onnxruntime cannot run the model (%s)", len(tensors), error)
        return {}
    return {
        name: tensor_type(element_type(array), array.shape)
        if taps[name] == name
        else tensor_type(scope.types[name].tensor_type.elem_type, array)
        for name, array in found.items()
        if isinstance(array, np.ndarray)
    }


def _ancestors(graph: Graph, names: Iterable[str], known: Mapping[str, np.ndarray]) -> Graph:
    """Copy the part of a graph that computes some values; what is known already becomes a constant."""
    part, nodes = graph.copy(), []
    wanted, read, made = set(names), set[str](), set[str]()
    for node in reversed(part.nodes):
        if not wanted.isdisjoint(node.outputs):
            nodes.append(node)
            made.update(node.outputs)
            read.update(node.inputs, node.captured)
            wanted.update(name for name in (*node.inputs, *node.captured) if name not in known)
    part.nodes = nodes[::-1]
    for name in [name for name in part.consts if name not in read]:
        del part.consts[name]
    for name in sorted(read - made - set(part.consts)):
        if name in known:
            part.consts[name] = known[name]
    return part


def _feed(info: onnx.ValueInfoProto, shape: Shape, context: Context, rng: np.random.Generator) -> np.ndarray:
    """Return the given data of an input, or numbers that nearly every model accepts: 0 and 1 for integers."""
    if context.data and info.name in context.data:
        return cut(context.data[info.name], shape)
    elem_type = info.type.tensor_type.elem_type
    if elem_type == TensorProto.STRING:
        return np.full(shape, "", dtype=object)
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    if elem_type == TensorProto.BOOL:
        return np.ones(shape, dtype)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _best(graph: Graph, context: Context) -> tuple[Scope, Binding]:
    """Walk with the first binding that fits, or the one that fits best."""
    tried = []
    for binding in bindings(graph, context):
        scope = infer(graph, binding.shapes)
        tried.append((scope, binding))
        if not scope.misfits:
            return scope, binding
    return min(tried, key=lambda pair: pair[0].misfits)


@dataclass(frozen=True)
class Shapes(Analysis):
    """Find the shape of every value, and the contents of small ones, for one choice of the dynamic axes."""

    name: ClassVar[str] = "shapes"

    def run(self, graph: Graph, facts: Facts) -> ShapeFacts:
        """Infer node by node; where that leaves holes, run the model once and infer on."""
        scope, binding = _best(graph, facts.context)
        observed: set[str] = set()
        names = [name for node in graph.nodes for name in node.outputs if name]
        if not all(name in scope.shape for name in names):
            seen = observe(graph, binding.shapes, facts.context, scope)
            for node in graph.nodes if seen else ():
                scope.visit(node)
                for name in node.outputs:
                    if name in seen and name not in scope.shape:
                        scope.learn(name, seen[name])
                        observed.add(name)
                        scope.from_run.add(name)
        kinds = {name: kind.tensor_type.elem_type for name, kind in scope.types.items()}
        elem_type = {name: kind for name, kind in kinds.items() if kind}
        return ShapeFacts(scope.shape, elem_type, scope.value, binding.sizes, frozenset(observed))
