"""Give every value a concrete shape, and small tensors their contents, under one binding of the dynamic axes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import TypeProto

from prunepass import runtime
from prunepass.binding import Binding, Shape, bindings, cut
from prunepass.errors import PruneError
from prunepass.feeds import random_inputs
from prunepass.graph import Graph, Node
from prunepass.inference import Scope, infer
from prunepass.manager import Analysis, Context, Facts
from prunepass.protos import tensor_type
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


def observe(
    graph: Graph, tensors: list[str], inputs: Mapping[str, Shape], context: Context, scope: Scope
) -> dict[str, TypeProto]:
    """Run the part of the graph that computes some tensors, and return their types; nothing where it cannot run.

    Values of known element type are measured by a Shape node behind them, so that they need not be kept.
    """
    part = _ancestors(graph, tensors, scope.value)
    taps = {name: part.fresh_name(f"{name}_shape") if name in scope.types else name for name in tensors}
    part.nodes += [Node.make("Shape", [name], [tap]) for name, tap in taps.items() if tap != name]
    part.outputs = [onnx.ValueInfoProto(name=tap) for tap in taps.values()]
    try:
        feeds = random_inputs(graph, inputs, context.seed)
        given = {name: array for name, array in (context.data or {}).items() if name in feeds}
        feeds |= {name: cut(array, inputs[name]) for name, array in given.items()}
        found = runtime.session(part, optimise="off").run(feeds)
    except PruneError as error:
        log.info("the shapes of %d values stay unknown: %s", len(tensors), error)
        return {}
    kinds = {}
    for name, tap in taps.items():
        if tap != name:
            kinds[name] = tensor_type(scope.types[name].tensor_type.elem_type, found[tap])
        elif isinstance(found[tap], np.ndarray):
            kinds[name] = tensor_type(element_type(found[tap]), found[tap].shape)
    return kinds


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


def complete(graph: Graph, binding: Binding, context: Context, scope: Scope) -> set[str] | None:
    """Fill the holes of a walk by one run and infer on; return what only the run told, None where it cannot run."""
    missing = [name for node in graph.nodes for name in node.outputs if name and name not in scope.shape]
    tensors = [name for name in missing if name not in scope.types or scope.types[name].HasField("tensor_type")]
    if not tensors:
        return set()
    seen = observe(graph, tensors, binding.shapes, context, scope)
    if not seen:
        return None
    observed = set()
    for node in graph.nodes:
        scope.visit(node)
        for name in node.outputs:
            if name in seen and name not in scope.shape:
                scope.learn(name, seen[name])
                observed.add(name)
                scope.from_run.add(name)
    return observed


@dataclass(frozen=True)
class Shapes(Analysis):
    """Find the shape of every value, and the contents of small ones, for one choice of the dynamic axes."""

    name: ClassVar[str] = "shapes"

    def run(self, graph: Graph, facts: Facts) -> ShapeFacts:
        """Infer node by node; where that leaves holes, run the model once and infer on; until a binding fits."""
        misfits: list[tuple[Scope, Binding]] = []
        observed: set[str] | None = None
        for binding in bindings(graph, facts.context):
            scope = infer(graph, binding.shapes)
            if not scope.misfits:
                observed = complete(graph, binding, facts.context, scope)
            if observed is not None:
                break
            misfits.append((scope, binding))
        else:
            scope, binding = min(misfits, key=lambda pair: pair[0].misfits)
            observed = complete(graph, binding, facts.context, scope) if scope.misfits else None
        kinds = {name: kind.tensor_type.elem_type for name, kind in scope.types.items()}
        elem_type = {name: kind for name, kind in kinds.items() if kind}
        return ShapeFacts(scope.shape, elem_type, scope.value, binding.sizes, frozenset(observed or ()))
