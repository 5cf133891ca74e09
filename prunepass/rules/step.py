"""Show one node to a dimension rule: its operands' factors, its shapes, and where the result goes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunepass.consts import FLOAT_TYPES, QUANTISED_TYPES
from prunepass.graph import Consts, Node
from prunepass.labels import Factor, Factors, Labels, on_axis, spans

Letter = Hashable
Letters = Sequence[Letter]


class Refused(Exception):
    """A rule cannot follow labels through this node; the message is the reason."""


@dataclass(frozen=True)
class Operand:
    """One input of a node as an index equation sees it.

    `adoptable`: a constant (or a constant fill) that has no labels yet and takes those of its partners.
    `tracked`: axes that some factor of the value spans, also where `factors` leaves one out. `stretched`: axes that
    were expanded from a single index and take the labels that they meet.
    """

    name: str
    shape: tuple[int, ...]
    factors: Factors
    adoptable: bool = False
    derived: bool = False
    tracked: frozenset[int] = frozenset()
    stretched: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Producer:
    """Labels on an output axis of a weight: indices that this weight produces."""

    tensor: str
    axis: int
    labels: Factor


@dataclass
class World:
    """What all steps of one propagation share."""

    labels: Labels
    consts: Consts
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, np.ndarray]
    elem_types: Mapping[str, int]
    opset: int
    states: dict[str, Factors] = field(default_factory=dict)
    soft: set[str] = field(default_factory=set)
    stretched: dict[str, frozenset[int]] = field(default_factory=dict)
    derived: set[str] = field(default_factory=set)
    producers: list[Producer] = field(default_factory=list)
    barriers: dict[int, str] = field(default_factory=dict)


@dataclass
class Step:
    """One node under interpretation."""

    world: World
    node: Node
    read: set[int] = field(default_factory=set)

    # ---- what the node is ----------------------------------------------------------------------------------------
    @property
    def labels(self) -> Labels:
        """The label algebra."""
        return self.world.labels

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.world.opset

    def has(self, position: int) -> bool:
        """Say whether an optional input is present."""
        return position < len(self.node.inputs) and bool(self.node.inputs[position])

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Shape of an input."""
        return self._shape_of(self.node.inputs[position])

    def out_shape(self, position: int = 0) -> tuple[int, ...]:
        """Shape of an output."""
        return self._shape_of(self.node.outputs[position])

    def _shape_of(self, name: str) -> tuple[int, ...]:
        shape = self.world.shapes.get(name)
        if shape is None:
            raise Refused(f"the shape of {name!r} is unknown")
        return shape

    def ints(self, position: int, attribute: str = "") -> list[int] | None:
        """Integers given as an attribute or as an input whose value is known; None where absent or unknown."""
        if attribute and attribute in self.node.attrs:
            value = self.node.attrs[attribute]
            return [value] if isinstance(value, int) else list(value)
        if not self.has(position):
            return None
        known = self.world.values.get(self.node.inputs[position])
        return None if known is None else [int(v) for v in np.asarray(known).reshape(-1)]

    def constant(self, position: int) -> np.ndarray | None:
        """Contents of an input that is stored in the file."""
        name = self.node.inputs[position] if self.has(position) else ""
        return self.world.consts.get(name)

    # ---- operands and results ------------------------------------------------------------------------------------
    def operand(self, position: int = 0) -> Operand:
        """Read an input that takes part in an index equation."""
        self.read.add(position)
        return self.value(self.node.inputs[position])

    def value(self, name: str) -> Operand:
        """Read any value as part of an index equation."""
        world = self.world
        known = name in world.states
        soft = name in world.consts or name in world.soft
        factors = world.states.get(name, ())
        return Operand(
            name,
            self._shape_of(name),
            factors,
            adoptable=soft and not known,
            derived=soft or name in world.derived,
            tracked=frozenset(a for f in factors for a in spans(f)),
            stretched=world.stretched.pop(name, frozenset()),  # whoever reads it first decides
        )

    def factors(self, position: int = 0) -> Factors:
        """Read an input that is moved as it is; a constant of data (or a fill) gets labels of its own on every axis."""
        self.read.add(position)
        return self.state(self.node.inputs[position])

    def state(self, name: str) -> Factors:
        """Return the labels of a value; a constant of data (or a fill) gets labels of its own on every axis."""
        world = self.world
        world.stretched.pop(name, None)
        if name not in world.states:
            world.states[name] = self.fresh_factors(name) if name in world.consts or name in world.soft else ()
        return world.states[name]

    def fresh_factors(self, name: str, axes: Iterable[int] | None = None) -> Factors:
        """Labels of its own on every axis (or on `axes`) of a constant (float or quantised) or a fill."""
        consts = self.world.consts
        kind = consts.elem_type(name) if name in consts else self.world.elem_types.get(name)
        if kind not in FLOAT_TYPES and kind not in QUANTISED_TYPES:
            return ()
        shape = self._shape_of(name)
        chosen = range(len(shape)) if axes is None else axes
        return tuple(
            on_axis(self.labels.fresh((name, axis), shape[axis]), axis, len(shape))
            for axis in chosen
            if shape[axis] > 1
        )

    def set(self, position: int, factors: Iterable[Factor | None]) -> None:
        """Store the labels of an output."""
        name = self.node.outputs[position] if position < len(self.node.outputs) else ""
        if name:
            self.world.states[name] = tuple(f for f in factors if f is not None and f.size > 1)

    def produce(self, operand: Operand, axis: int, labels: Factor) -> None:
        """Record that a weight produces the indices of one axis."""
        self.world.producers.append(Producer(operand.name, axis, labels))

    def finish(self) -> None:
        """Pin the inputs that the rule did not read as data: sizes, indices, captured values."""
        for position, name in enumerate(self.node.inputs):
            if name and position not in self.read:
                self.hold(name, "read as a size, an index or a setting")
        for name in () if self.node.bodies else self.node.captured:
            self.hold(name, "read inside a subgraph")

    def note(self, name: str) -> None:
        """Mark all inputs of this name as read."""
        self.read.update(position for position, own in enumerate(self.node.inputs) if own == name)

    def unopened(self) -> None:
        """Refuse a node whose bodies nobody opened.

        Raises
            Refused: always.
        """
        raise Refused("its body was not opened; run canonicalize first")

    def hold(self, name: str, reason: str) -> None:
        """Pin a value as a whole."""
        states = self.world.states
        self.world.stretched.pop(name, None)
        if states.get(name):
            self.labels.pin_all(states[name], f"{self.node.label}: {reason}")
        elif name in self.world.consts or name in self.world.soft:
            states.setdefault(name, ())

    def refuse(self, reason: str) -> None:
        """Make this node a barrier: pin every input, track no output."""
        node = self.node
        inner = [name for body in node.bodies for name in body.outputs] if node.bodies else node.captured
        for name in node.outputs:
            self.world.states[name] = ()
        self.stop((*node.inputs, *inner), reason)

    def stop(self, names: Iterable[str], reason: str) -> None:
        """Pin some values as a whole, and note a barrier where that costs anything."""
        world, costs = self.world, False
        for name in names:
            weight = name in world.consts and len(world.consts.shape(name)) > 1 and name in self.node.inputs
            costs = costs or weight or bool(world.states.get(name))
            self.hold(name, reason)
        if costs:
            world.barriers[self.labels.owner] = reason

    # ---- index equations -----------------------------------------------------------------------------------------
    def equate(
        self,
        operands: Sequence[tuple[Operand, Letters]],
        out: Letters,
        normalised: Iterable[Letter] = (),
    ) -> Factors:
        """Follow labels through an index equation.

        Each operand comes with a letter for each of its axes (None: a pinned axis). The same letter on two operands
        means that the labels are equal index by index. Letters that are not in `out` are mixed. `normalised` letters
        are both mixed and free: every element depends on all indices along them.
        """
        return _Equation(self, operands, list(out), frozenset(normalised)).solve()


class _Equation:
    """The working state of `Step.equate`."""

    def __init__(
        self,
        step: Step,
        operands: Sequence[tuple[Operand, Letters]],
        out: list[Letter],
        normalised: frozenset[Letter],
    ) -> None:
        self.step, self.labels = step, step.labels
        self.operands, self.out, self.normalised = operands, out, normalised
        order: dict[Letter, None] = {}
        for _, letters in operands:
            order.update(dict.fromkeys(x for x in letters if x is not None))
        self.order = list(order)
        self.place = {letter: position for position, letter in enumerate(self.order)}
        self.mixes = any(letter not in out for letter in self.order)
        self.why = step.node.label

    def solve(self) -> Factors:
        lifted = [self._lifted(op, letters) for op, letters in self.operands]
        merged = self.labels.merge([f for factors in self._pinned(lifted) for f in factors], self.why)
        if self.normalised:
            merged = [g for f in merged if (g := self._normalise(f)) is not None]
        if self.mixes:
            merged = [g for f in merged if (g := self.labels.at_block_site(f)) is not None]
        merged = self._adopt(merged)
        if self.mixes:
            self._produce(merged)
        return self._result(merged)

    def _present(self, operand: Operand, letters: Letters) -> frozenset[int]:
        return frozenset(self.place[x] for x, d in zip(letters, operand.shape) if x is not None and d > 1)

    def _lifted(self, operand: Operand, letters: Letters) -> Factors:
        """Move an operand's factors into the space of all letters."""
        fixed = [axis for axis, x in enumerate(letters) if x is None and operand.shape[axis] > 1]
        factors = operand.factors
        if fixed and any(f.shape[a] > 1 for f in factors for a in fixed):
            factors = self.labels.drop_axes(factors, fixed, f"{self.why}: axis {fixed} cannot shrink here")
        return tuple(g for f in factors if (g := self._lift(f, letters)) is not None)

    def _lift(self, factor: Factor, letters: Letters) -> Factor | None:
        axes = sorted(
            (axis for axis, x in enumerate(letters) if x is not None), key=lambda axis: self.place[letters[axis]]
        )
        perm = axes + [axis for axis in range(factor.ndim) if axis not in axes]
        moved = factor if perm == list(range(factor.ndim)) else self.labels.transpose(factor, perm)
        if moved is None:
            return None
        shape = [1] * len(self.order)
        for position, axis in enumerate(axes):
            shape[self.place[letters[axis]]] = moved.shape[position]
        return moved.reshape(shape)

    def _pinned(self, lifted: list[Factors]) -> list[Factors]:
        """Pin letters that some operand has but does not track."""
        self.held: set[int] = set()
        for (operand, letters), own in zip(self.operands, lifted):
            if operand.adoptable:
                continue
            tracked = {axis for f in own for axis in spans(f)}
            tracked |= {self.place[letters[a]] for a in operand.tracked if letters[a] is not None}
            tracked |= self._stretched(operand, letters)
            self.held |= self._present(operand, letters) - tracked
        if not self.held:
            return lifted
        reason = f"{self.why}: meets an axis that cannot shrink"
        return [self.labels.pin_axes(factors, self.held, reason) for factors in lifted]

    def _normalise(self, factor: Factor) -> Factor | None:
        axes = spans(factor)
        blocks = [a for a in axes[:-1] if self.order[a] in self.normalised]
        if blocks and self.order[axes[-1]] not in self.normalised:
            return self.labels.tidy(self.labels.unify_along(factor, blocks))
        return factor

    def _adopt(self, merged: list[Factor]) -> list[Factor]:
        """Let constants without labels take those of their partners, or fresh ones."""
        for operand, letters in self.operands:
            if operand.adoptable and operand.name not in self.step.world.states:
                merged, own = self._adopt_one(merged, operand, letters)
                self.step.world.states[operand.name] = tuple(self._lower(f, letters) for f in own)
            elif operand.adoptable:  # the same constant twice in one equation
                again = [self._lift(f, letters) for f in self.step.world.states[operand.name]]
                merged = self.labels.merge([*merged, *(f for f in again if f is not None)], self.why)
            elif operand.stretched:
                merged = self._follow(merged, operand, letters)
        return merged

    def _stretched(self, operand: Operand, letters: Letters) -> set[int]:
        return {self.place[letters[axis]] for axis in operand.stretched if letters[axis] is not None}

    def _follow(self, merged: list[Factor], operand: Operand, letters: Letters) -> list[Factor]:
        """Let axes that were expanded from one index take the labels that they meet; without any they stay."""
        name, states = operand.name, self.step.world.states
        places, present = self._stretched(operand, letters) - self.held, self._present(operand, letters)
        left: list[Factor] = []
        own: list[Factor] = []
        for factor in merged:
            met = bool(places & set(spans(factor)))
            reduced: Factor | None = factor
            if met and not set(spans(factor)) <= present:
                reduced = self._shared_part(factor, [axis for axis in spans(factor) if axis in present])
            if reduced is not None:
                left.append(reduced)
                if met and set(spans(reduced)) <= present:
                    own.append(self._lower(reduced, letters))
        self.held |= places - {axis for f in left for axis in spans(f)}
        taken = {axis for f in own for axis in spans(f)}
        states[name] = (*(f for f in states.get(name, ()) if not taken & set(spans(f))), *own)
        return left

    def _adopt_one(self, merged: list[Factor], operand: Operand, letters: Letters) -> tuple[list[Factor], list[Factor]]:
        present, own, left = self._present(operand, letters), [], []
        for factor in merged:
            axes = spans(factor)
            shared = [axis for axis in axes if axis in present]
            if shared and len(shared) < len(axes):
                reduced = self._shared_part(factor, shared)
                if reduced is None:
                    continue
                factor, axes = reduced, spans(reduced)
                shared = [axis for axis in axes if axis in present]
            left.append(factor)
            if shared and len(shared) == len(axes):
                own.append(factor)
        covered = {axis for f in left for axis in spans(f)} | self.held
        for axis, letter in enumerate(letters):
            if letter is not None and operand.shape[axis] > 1 and self.place[letter] not in covered:
                fresh = self.labels.fresh((operand.name, axis), operand.shape[axis])
                factor = on_axis(fresh, self.place[letter], len(self.order))
                left.append(factor)
                own.append(factor)
        return left, own

    def _shared_part(self, factor: Factor, shared: list[int]) -> Factor | None:
        """Reduce a joint factor of which a constant has only some axes to what the constant can follow."""
        axes = spans(factor)
        if self.labels.policy == "whole":
            self.held.add(axes[-1])
            return self.labels.whole_blocks(factor)
        if axes[-1] in shared:
            rest = [axis for axis in axes if axis not in shared]
            return self.labels.tidy(self.labels.unify_along(factor, rest))
        return factor

    def _lower(self, factor: Factor, letters: Letters) -> Factor:
        """Move a factor from the space of letters to the axes of a constant operand."""
        axes = [(self.place[x] if x is not None else None) for x in letters]
        picked = [a for a in axes if a is not None]
        rest = [a for a in range(factor.ndim) if a not in picked]
        moved = factor.transpose(picked + rest)
        sizes = iter(moved.shape)
        return np.asarray(moved.reshape([1 if a is None else next(sizes) for a in axes]))

    def _produce(self, merged: list[Factor]) -> None:
        """Record free letters that only weights carry: their output channels."""
        for letter in self.out:
            place = self.place.get(letter)
            if place is None:
                continue
            sources = [(op, ls) for op, ls in self.operands if letter in ls and place in self._present(op, ls)]
            if not sources or not all(op.derived for op, _ in sources):
                continue
            weights = [(op, ls) for op, ls in sources if sum(d > 1 for d in op.shape) > 1] or sources
            for factor in merged:
                if factor.shape[place] > 1:
                    operand, letters = weights[0]
                    self.step.produce(operand, list(letters).index(letter), factor)

    def _result(self, merged: list[Factor]) -> Factors:
        keep = [self.place[x] for x in self.out if x is not None and x in self.place]
        result: list[Factor] = []
        for factor in merged:
            left = self.labels.project(factor, keep)
            if left is None:
                continue
            gone = [a for a in range(left.ndim) if a not in keep]
            perm = keep + gone
            moved = left if perm == list(range(left.ndim)) else self.labels.transpose(left, perm)
            if moved is None:
                continue
            sizes = iter(moved.shape)
            shape = [next(sizes) if x is not None and x in self.place else 1 for x in self.out]
            result.append(moved.reshape(shape))
        return tuple(result)


Row = Any
