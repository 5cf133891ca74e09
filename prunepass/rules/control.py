"""How labels pass through If, Loop and Scan: their bodies are part of the walk over all nodes.

A branch of an If has no inputs; what it captures has labels already. What a Loop or Scan carries from turn to turn is
one value: the initial value, what the body takes, what it returns and the result lose the same indices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Body, Node
from prunepass.labels import Factor, Factors
from prunepass.rules.dims import DIMS, DimsRow
from prunepass.rules.step import Step
from prunepass.rules.table import Table

ENTERED = frozenset(("If", "Loop", "Scan"))
"""Operators with bodies that labels flow through."""
ENTER: Table[DimsRow] = Table("labels of what a body takes")


# ---- what belongs together -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class State:
    """Names of one value that is carried: before the first turn, in the body, what it returns, after the last."""

    initial: str
    taken: str
    returned: str
    outer: str


@dataclass(frozen=True)
class Slices:
    """A value of which a body takes, or to which it adds, one index of an axis in every turn."""

    outer: str
    inner: str
    axis: int


@dataclass(frozen=True)
class Ports:
    """What a Loop or Scan carries, scans, and collects."""

    states: tuple[State, ...]
    scanned: tuple[Slices, ...]
    collected: tuple[Slices, ...]


def ports(node: Node) -> Ports:
    """Pair the values of a Loop or Scan with those of its body."""
    body = node.bodies[0]
    first = 1 if node.op == "Loop" else 0  # the body returns a condition, and takes the number of the turn, too
    scans = int(node.attr("num_scan_inputs", 0))
    count = len(node.inputs) - 2 * first - scans
    outer = [*node.outputs, *[""] * (len(body.outputs) - first - len(node.outputs))]
    given, taken, returned = node.inputs[2 * first :], body.inputs[2 * first :], body.outputs[first:]
    states = tuple(map(State, given[:count], taken[:count], returned[:count], outer[:count]))
    axes_in = node.attr("scan_input_axes") or [0] * scans
    axes_out = node.attr("scan_output_axes") or [0] * (len(returned) - count)
    return Ports(
        states,
        tuple(map(Slices, given[count:], taken[count:], axes_in)),
        tuple(map(Slices, outer[count:], returned[count:], axes_out)),
    )


def origin(body: Body, name: str) -> str:
    """Follow Identity nodes of a body backwards."""
    makers = {out: node for node in body.nodes if node.op == "Identity" for out in node.outputs}
    while name in makers:
        name = makers[name].inputs[0]
    return name


# ---- labels ----------------------------------------------------------------------------------------------------------
@ENTER.row("If")
def enter_branches(step: Step) -> None:
    """Branches take nothing."""


@ENTER.row("Loop Scan")
def enter_turns(step: Step) -> None:
    """Give what the body takes the labels of the initial values, and of what is scanned without the scanned axis."""
    node, states = step.node, step.world.states
    states.update((name, ()) for name in node.bodies[0].inputs)
    found = ports(node)
    for state in found.states:
        if _one_shape(step, (state.initial, state.taken)):
            states[state.taken] = _opening(step, state)
    for slices in found.scanned:
        shape = step.world.shapes.get(slices.outer)
        if shape is not None:
            axis = slices.axis % len(shape)
            reason = f"{node.label}: is scanned along this axis"
            factors = step.labels.drop_axes(step.state(slices.outer), [axis], reason)
            states[slices.inner] = tuple(f.reshape(f.shape[:axis] + f.shape[axis + 1 :]) for f in factors)
            step.note(slices.outer)


def _opening(step: Step, state: State) -> Factors:
    """Labels that the body takes: those of the initial value; a constant will get those that the body finds."""
    world = step.world
    if state.initial in world.states:
        return world.states[state.initial]
    soft = state.initial in world.consts or state.initial in world.soft
    return step.fresh_factors(state.taken) if soft else ()


@DIMS.row("Loop Scan")
def leave_turns(step: Step) -> None:
    """Equate what is carried; what is collected has an axis more."""
    if not step.node.bodies:
        step.unopened()
    found = ports(step.node)
    if step.node.op == "Loop":
        step.hold(step.node.bodies[0].outputs[0], "is the condition of a Loop")
    for state in found.states:
        names = [name for name in (state.returned, state.taken, state.initial) if name]
        step.note(state.initial)
        _become_one(step, names, state.outer, "the shape of what it carries is unknown, or changes from turn to turn")
    for slices in found.collected:
        if slices.outer and slices.inner in step.world.shapes:
            rank = len(step.world.shapes[slices.inner]) + 1
            axis = slices.axis % rank
            factors = step.world.states.get(slices.inner, ())
            lifted = [f.reshape((*f.shape[:axis], 1, *f.shape[axis:])) for f in factors]
            step.world.states[slices.outer] = tuple(lifted)
            step.world.derived.update([slices.outer] if slices.inner in step.world.derived else [])
        else:
            step.stop([slices.inner], "the shape of what it collects is unknown")
            step.world.states[slices.outer] = ()


@DIMS.row("If")
def leave_branches(step: Step) -> None:
    """Equate what the branches return."""
    if not step.node.bodies:
        step.unopened()
    for position, name in enumerate(step.node.outputs):
        names = [body.outputs[position] for body in step.node.bodies]
        _become_one(step, names, name, "its branches return different shapes, or unknown ones")
        if step.world.derived.issuperset(names):
            step.world.derived.add(name)


def _one_shape(step: Step, names: Iterable[str]) -> bool:
    shapes = [step.world.shapes.get(name) for name in names]
    return None not in shapes and len(set(shapes)) == 1


def _become_one(step: Step, names: list[str], outer: str, reason: str) -> None:
    """Equate values that are one and the same at different times; `outer` is that value outside."""
    states = step.world.states
    if outer:
        states[outer] = ()
    if not _one_shape(step, names):
        step.stop(names, reason)
        return
    letters = list(range(len(step.world.shapes[names[0]])))
    merged = step.equate([(step.value(name), letters) for name in names], letters)
    kept = [_structure(states.get(name, ())) for name in names]
    if any(found != _structure(merged) for found in kept):
        for name in names:
            step.hold(name, "is split into blocks in different ways")
    elif outer:
        states[outer] = merged


def _structure(factors: Iterable[Factor]) -> list[tuple[int, ...]]:
    """Shapes of the factors that can lose something."""
    return sorted(np.shape(f) for f in factors if f.any())
