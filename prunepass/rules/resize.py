"""Show one node to a size rule: which axes of its values change, and how to change the integers that say so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunepass.graph import Graph, Node
from prunepass.kept import kept_masks, new_shape
from prunepass.labels import Factors


@dataclass
class Change:
    """What a plan does to the values of one graph."""

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, np.ndarray]
    factors: Mapping[str, Factors]
    removed: np.ndarray
    _masks: dict[str, list[np.ndarray]] = field(default_factory=dict)
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def masks(self, name: str) -> list[np.ndarray]:
        """Return the kept masks of a value, only those that lose something."""
        if name not in self._masks:
            hit = [f for f in self.factors.get(name, ()) if self.removed[f].any()]
            self._masks[name] = kept_masks(hit, self.removed)
        return self._masks[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value after the change."""
        if name not in self._shapes:
            self._shapes[name] = new_shape(self.shapes[name], self.masks(name))
        return self._shapes[name]

    def axes(self, name: str) -> dict[int, tuple[int, int]]:
        """Return the axes of a value that change: axis -> (old size, new size)."""
        if name not in self.shapes or not self.masks(name):
            return {}
        before, after = self.shapes[name], self.shape(name)
        return {a: (b, n) for a, (b, n) in enumerate(zip(before, after)) if b != n}

    def axis_mask(self, name: str, axis: int) -> np.ndarray | None:
        """Return which indices of one axis stay; for the inner axis of a joint factor, in its first kept block."""
        for mask in self.masks(name):
            if mask.shape[axis] > 1:
                rows = np.moveaxis(mask, axis, -1).reshape(-1, mask.shape[axis])
                inner = axis == max(a for a, d in enumerate(mask.shape) if d > 1)
                return np.asarray(rows[int(np.argmax(rows.any(axis=1)))] if inner else rows.any(axis=0))
        return None


@dataclass
class Resizing:
    """One node whose size operands may have to change."""

    change: Change
    node: Node
    before: list[Node] = field(default_factory=list)
    after: list[Node] = field(default_factory=list)

    @property
    def graph(self) -> Graph:
        """The graph that is being rewritten."""
        return self.change.graph

    def known(self, position: int, attribute: str = "") -> list[int] | None:
        """Integers of an attribute or of an operand whose value is known."""
        if attribute and attribute in self.node.attrs:
            value = self.node.attrs[attribute]
            return [value] if isinstance(value, int) else list(value)
        name = self.node.inputs[position] if position < len(self.node.inputs) else ""
        value = self.change.values.get(name)
        if value is None and name in self.graph.consts:
            value = self.graph.consts[name]
        return None if value is None else [int(v) for v in np.asarray(value).reshape(-1)]

    def private(self, position: int, values: np.ndarray) -> None:
        """Replace an operand by a constant of its own."""
        old = self.node.inputs[position] if position < len(self.node.inputs) else "size"
        name = self.graph.fresh_name(f"{old}_pruned")
        self.graph.consts[name] = values
        self.node.inputs += [""] * (position + 1 - len(self.node.inputs))
        self.node.inputs[position] = name

    def replace(self, position: int, attribute: str, entries: Mapping[int, int]) -> None:
        """Set some entries of an integer operand to new sizes; entries computed at run time too."""
        self._patch(position, attribute, {i: (0, 1, size) for i, size in entries.items()})

    def scale(
        self, position: int, attribute: str, entries: Mapping[int, tuple[int, int]], unknown: bool = False
    ) -> None:
        """Scale some entries of an integer operand from an old size to a new one.

        A constant entry becomes the new size. One that is computed at run time is multiplied and divided, which is
        right also where it is the old size times a dynamic one. With `unknown`, an entry may turn out to be -1, 0 or 1,
        and stays so.
        """
        name = self.node.inputs[position] if position < len(self.node.inputs) else ""
        stored = attribute in self.node.attrs or name in self.graph.consts
        if entries and unknown and not stored:
            self.node.inputs[position] = self._lessened(name, self.change.shapes[name], entries)
        else:
            self._patch(position, attribute, {i: (new, old, 0) for i, (old, new) in entries.items()})

    def _lessened(self, name: str, shape: Sequence[int], entries: Mapping[int, tuple[int, int]]) -> str:
        """Insert nodes that compute entry - entry * (old - new) / old; the division goes towards zero."""
        losses = dict.fromkeys(range(math.prod(shape)), (0, 1, 0))
        losses |= {i: (old - new, old, 0) for i, (old, new) in entries.items()}
        loss = self._arithmetic(name, shape, losses, self.before)
        out = self.graph.fresh_name(f"{name}_resized")
        self.before.append(Node.make("Sub", [name, loss], [out], name=out))
        return out

    def _patch(self, position: int, attribute: str, entries: Mapping[int, tuple[int, int, int]]) -> None:
        if not entries:
            return
        if attribute and attribute in self.node.attrs:
            value = list(self.node.attrs[attribute])
            self.node.set_attr(attribute, [int(v) for v in _patched(np.array(value), entries)])
            return
        name = self.node.inputs[position]
        if name in self.graph.consts:
            array = self.graph.consts[name]
            flat = _patched(array.reshape(-1), entries).astype(array.dtype)
            self.private(position, flat.reshape(array.shape))
            return
        self.node.inputs[position] = self._arithmetic(name, self.change.shapes[name], entries, self.before)

    def _arithmetic(
        self, name: str, shape: Sequence[int], entries: Mapping[int, tuple[int, int, int]], into: list[Node]
    ) -> str:
        """Insert nodes that compute (entry * times // by) + plus."""
        count = math.prod(shape)
        times, by, plus = np.ones(count, np.int64), np.ones(count, np.int64), np.zeros(count, np.int64)
        for index, (t, b, p) in entries.items():
            times[index], by[index], plus[index] = t, b, p
        for op, factor, neutral in (("Mul", times, 1), ("Div", by, 1), ("Add", plus, 0)):
            if (factor != neutral).any():
                constant = self.graph.fresh_name(f"{name}_{op.lower()}")
                self.graph.consts[constant] = factor.reshape(shape)
                out = self.graph.fresh_name(f"{name}_resized")
                into.append(Node.make(op, [name, constant], [out], name=out))
                name = out
        return name

    def freeze_output(self, entries: Mapping[int, tuple[int, int]], shape: Sequence[int]) -> None:
        """Make an integer output keep the numbers of the unpruned model: scale entries from new back to old."""
        public = self.node.outputs[0]
        raw = self.graph.fresh_name(f"{public}_sliced")
        self.node.outputs[0] = raw
        self._arithmetic(raw, shape, {i: (old, new, 0) for i, (old, new) in entries.items()}, self.after)
        self.after[-1].outputs[0] = public


def _patched(values: np.ndarray, entries: Mapping[int, tuple[int, int, int]]) -> np.ndarray:
    result = values.astype(np.int64)
    for index, (times, by, plus) in entries.items():
        result[index] = result[index] * times // by + plus
    return result
