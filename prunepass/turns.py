"""Infer shapes inside bodies: both branches of an If, and the turns of a Loop or Scan.

A value that is carried from turn to turn has a shape only if every turn gives it the same one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, TypeProto

from prunepass.binding import Shape
from prunepass.graph import Node
from prunepass.node import Body
from prunepass.protos import tensor_type
from prunepass.rules.control import Ports, Slices, State, origin, ports

if TYPE_CHECKING:
    from prunepass.inference import Scope

_MOST = 4096
"""Elements of the largest tensor whose contents are followed."""


def visit_bodies(scope: Scope, node: Node) -> None:
    """Learn what is in the bodies of a node, and its outputs."""
    if node.op == "If":
        _visit_branches(scope, node)
    else:
        _visit_turns(scope, node)


def any_shape(kind: TypeProto | None) -> TypeProto | None:
    """Return a tensor type without its shape."""
    if kind is None or not kind.HasField("tensor_type"):
        return kind
    return TypeProto(tensor_type=TypeProto.Tensor(elem_type=kind.tensor_type.elem_type))


# ---- If --------------------------------------------------------------------------------------------------------------
def _visit_branches(scope: Scope, node: Node) -> None:
    known = scope.value.get(node.inputs[0])
    wanted = None if known is None else "then_branch" if known.all() else "else_branch"
    taken = [body for body in node.bodies if wanted in (None, body.attribute)]
    for body in node.bodies:
        misfits = scope.misfits
        for inner in body.nodes:
            scope.visit(inner)
        if wanted != body.attribute:
            scope.misfits = misfits  # a branch that is not taken may fit other shapes only
    for position, name in enumerate(node.outputs):
        if name and name not in scope.shape:
            _learn_result(scope, name, [body.outputs[position] for body in taken])


def _learn_result(scope: Scope, name: str, sources: list[str]) -> None:
    """Learn a value that is one of several others."""
    kinds = [scope.types.get(source) for source in sources]
    shapes = [scope.shape.get(source) for source in sources]
    first = kinds[0]
    if first is None:
        return
    if len(sources) == 1 or (shapes[0] is not None and all(shape == shapes[0] for shape in shapes)):
        scope.learn(name, first)
        values = [scope.value[source] for source in sources if source in scope.value]
        if len(values) == len(sources) and all(np.array_equal(value, values[0]) for value in values):
            scope.value[name] = values[0]
    elif all(any_shape(kind) == any_shape(first) for kind in kinds):
        scope.types[name] = any_shape(first) or first


# ---- Loop and Scan ---------------------------------------------------------------------------------------------------
def _visit_turns(scope: Scope, node: Node) -> None:
    found, body = ports(node), node.bodies[0]
    changing: set[str] = set()
    while True:
        turn = scope.inner()
        _begin(turn, node, found, changing)
        for inner in body.nodes:
            turn.visit(inner)
        more = {state.taken for state in found.states if not _stays(turn, state)} - changing
        if not more:
            break
        changing |= more
    scope.adopt(turn)
    length = _length(scope, node, found)
    for state in found.states:
        if state.outer and state.outer not in scope.shape:
            _learn_result(scope, state.outer, [state.returned, state.taken])
    for slices in found.collected:
        if slices.outer and slices.outer not in scope.shape and slices.inner in scope.types:
            _learn_collected(scope, slices, length)


def _learn_collected(scope: Scope, slices: Slices, length: int | None) -> None:
    """Learn what a body adds to in every turn."""
    kind, shape = scope.types[slices.inner], scope.shape.get(slices.inner)
    if shape is None or length is None:
        scope.types[slices.outer] = any_shape(kind) or kind
        return
    axis = slices.axis % (len(shape) + 1)
    scope.learn(slices.outer, tensor_type(kind.tensor_type.elem_type, (*shape[:axis], length, *shape[axis:])))
    if slices.inner in scope.value and 0 < length * math.prod(shape) <= _MOST:
        scope.value[slices.outer] = np.stack([scope.value[slices.inner]] * length, axis)


def _stays(turn: Scope, state: State) -> bool:
    """Whether what a turn returns has the shape of what it takes."""
    shape = turn.shape.get(state.taken)
    return shape is not None and shape == turn.shape.get(state.returned)


def _begin(turn: Scope, node: Node, found: Ports, changing: set[str]) -> None:
    """Learn what the body takes in every turn."""
    body = node.bodies[0]
    if node.op == "Loop":
        for name, number in zip(body.inputs, (TensorProto.INT64, TensorProto.BOOL)):
            turn.learn(name, tensor_type(number, _scalar(body, name)))
    for state in found.states:
        kind = turn.types.get(state.initial)
        if kind is not None and state.taken in changing:
            turn.types[state.taken] = any_shape(kind) or kind
        elif kind is not None:
            turn.learn(state.taken, kind)
    for slices in found.scanned:
        kind, shape = turn.types.get(slices.outer), turn.shape.get(slices.outer)
        if kind is not None and shape is not None:
            axis = slices.axis % len(shape)
            turn.learn(slices.inner, tensor_type(kind.tensor_type.elem_type, shape[:axis] + shape[axis + 1 :]))


def _scalar(body: Body, name: str) -> Shape:
    """Shape of the number of the turn and the condition: some exporters declare one axis of length 1."""
    return (1,) * len(body.kinds.get(name, onnx.TypeProto()).tensor_type.shape.dim)


def _length(scope: Scope, node: Node, found: Ports) -> int | None:
    """Return the number of turns where it is known."""
    if node.op == "Scan":
        outer = found.scanned[0] if found.scanned else None
        shape = scope.shape.get(outer.outer) if outer else None
        return shape[outer.axis] if outer and shape else None
    most, begins = (scope.value.get(name) if name else None for name in node.inputs[:2])
    body = node.bodies[0]
    goes_on = scope.value.get(body.outputs[0])
    kept = origin(body, body.outputs[0]) == body.inputs[1] or (goes_on is not None and goes_on.all())
    steady = kept and (not node.inputs[1] or (begins is not None and begins.all()))
    return int(most.reshape(-1)[0]) if most is not None and steady else None
