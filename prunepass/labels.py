"""The label algebra: which indices of which tensors can only be removed together.

A *label* is an integer that stands for one removable index; label 0 is pinned and never removed. A *factor* is an
integer array with the rank of a tensor: full length on the axes that it spans, length 1 on all others. An element of
the tensor disappears when, in any of its factors, its label is removed. An axis that no factor spans is pinned.

A factor that spans several axes is *joint*: it arises where an axis is split (heads, conv groups). Its last spanned
axis is the *inner* axis, the ones before it are *block* axes. What remains must stay rectangular, so every block
loses the same number of indices (`balanced`), or whole blocks go (`whole`), or the same inner index goes in every block
(`aligned`).

This module knows numpy and scipy and nothing of ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Factor = np.ndarray
Factors = tuple[Factor, ...]
Policy = Literal["balanced", "whole", "aligned"]
Pairs: TypeAlias = tuple[np.ndarray, np.ndarray]
PINNED = 0
_PORTION = 1 << 20
_INT = np.int32


def spans(factor: Factor) -> tuple[int, ...]:
    """Axes that the factor spans."""
    return tuple(axis for axis, size in enumerate(factor.shape) if size > 1)


def constant_along(factor: Factor, axes: Iterable[int]) -> bool:
    """Say whether the labels do not change along `axes`."""
    first = collapse(factor, axes)
    return first.size == factor.size or bool((factor == first).all())


def collapse(factor: Factor, axes: Iterable[int]) -> Factor:
    """Keep only the first index along `axes`."""
    chosen = set(axes)
    index = tuple(slice(0, 1) if axis in chosen else slice(None) for axis in range(factor.ndim))
    return factor[index]


def lift(factor: Factor, rank: int) -> Factor:
    """Add leading axes of length 1 up to `rank`, as broadcasting does."""
    return factor.reshape((1,) * (rank - factor.ndim) + factor.shape)


def along(factor: Factor, axis: int) -> np.ndarray:
    """Labels of a one-axis factor as a vector."""
    return np.asarray(factor.reshape(factor.shape[axis]))


def on_axis(labels: np.ndarray, axis: int, rank: int) -> Factor:
    """Make a factor of `rank` axes that spans `axis` with a vector of labels."""
    shape = [1] * rank
    shape[axis] = labels.size
    return labels.reshape(shape)


@dataclass
class Pin:
    """One request to keep indices: their labels, who asked, and why."""

    labels: np.ndarray
    owner: int
    reason: str


@dataclass
class Labels:
    """Hold labels, the equalities between them, and the pins, over repeated rounds of propagation.

    Each round runs the whole graph again with the labels that the rounds before have merged. `solve` merges; a first
    series of rounds collects equalities only, so that a pin that merely came too early (labels that turn out
    constant along an axis later) is not kept; a second series applies the pins.
    """

    policy: Policy = "balanced"
    owner: int = -1
    pins: list[Pin] = field(default_factory=list)
    blocks: list[Factor] = field(default_factory=list)
    heads: list[Factor] = field(default_factory=list)
    joint_seen: bool = False
    _count: int = 1
    _bases: dict[Hashable, tuple[int, int]] = field(default_factory=dict)
    _edges: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    _classes: np.ndarray = field(default_factory=lambda: np.zeros(1, _INT))

    # ---- labels and equalities -----------------------------------------------------------------------------------
    def fresh(self, key: Hashable, count: int) -> np.ndarray:
        """Return the vector of `count` labels that belong to `key`; new ones the first time."""
        if key not in self._bases:
            self._bases[key] = (self._count, count)
            self._count += count
        base, count = self._bases[key]
        own = np.arange(base, base + count, dtype=_INT)
        known = self._classes.size
        return own if base >= known else self._classes[own]

    def unify(self, a: Factor, b: Factor) -> None:
        """Make two factors equal, index by index, with numpy broadcasting."""
        if a is b:
            return
        different = a != b
        if not different.any():
            return
        a, b = np.broadcast_arrays(a, b)
        self._edges.append((a[different], b[different]))

    def unify_along(self, factor: Factor, axes: Iterable[int]) -> Factor:
        """Make the labels constant along `axes` and return the factor without them."""
        first = collapse(factor, axes)
        self.unify(factor, first)
        return first

    def pin(self, factor: Factor, reason: str) -> None:
        """Ask for every label of the factor to stay."""
        labels = factor.reshape(-1)
        labels = labels[labels != PINNED]
        if labels.size:
            self.pins.append(Pin(labels, self.owner, reason))

    def pin_all(self, factors: Factors, reason: str) -> None:
        """Pin every label of several factors."""
        for factor in factors:
            self.pin(factor, reason)

    # ---- factors -------------------------------------------------------------------------------------------------
    def pin_axis(self, factor: Factor, axis: int, reason: str) -> Factor | None:
        """Keep the length of one spanned axis; return what is left of the factor.

        A one-axis factor is pinned. On a joint factor, a pinned inner axis leaves whole blocks to remove; a pinned
        block axis keeps the number of blocks, which `balanced` does anyway.
        """
        axes = spans(factor)
        if axis not in axes:
            return factor
        if len(axes) == 1:
            self.pin(factor, reason)
            return None
        if axis == axes[-1]:
            return self.tidy(self.unify_along(factor, [axis]), reason)
        if self.policy == "balanced":
            return factor
        rest = axes[-1:] if self.policy == "whole" else (axis,)
        left = self.tidy(self.unify_along(factor, rest), reason)
        return None if left is None else self.pin_axis(left, axis, reason)

    def drop_axis(self, factor: Factor, axis: int, reason: str) -> Factor | None:
        """Keep the length of one axis, and make the labels the same all along it: the result does not span it."""
        left = self.pin_axis(factor, axis, reason)
        return left if left is None else self.tidy(self.unify_along(left, [axis]), reason)

    def pin_axes(self, factors: Factors, axes: Iterable[int], reason: str) -> Factors:
        """Apply `pin_axis` for several axes, inner ones first, to all factors."""
        return self._along_each(self.pin_axis, factors, axes, reason)

    def drop_axes(self, factors: Factors, axes: Iterable[int], reason: str) -> Factors:
        """Apply `drop_axis` for several axes, inner ones first, to all factors."""
        return self._along_each(self.drop_axis, factors, axes, reason)

    @staticmethod
    def _along_each(
        keep: Callable[[Factor, int, str], Factor | None], factors: Factors, axes: Iterable[int], reason: str
    ) -> Factors:
        order = sorted(axes, reverse=True)
        left: list[Factor] = []
        for factor in factors:
            current: Factor | None = factor
            for axis in order:
                current = None if current is None else keep(current, axis, reason)
            if current is not None:
                left.append(current)
        return tuple(left)

    def tidy(self, factor: Factor, reason: str = "one index covers the whole tensor") -> Factor | None:
        """Drop axes along which a factor does not vary; None where nothing is left to remove."""
        axes = spans(factor)
        if not factor.any():
            return None
        if len(axes) > 1:
            self.joint_seen = True
            for axis in axes:
                if factor.shape[axis] > 1 and constant_along(factor, [axis]):
                    factor = collapse(factor, [axis])
        if factor.size == 1:
            self.pin(factor, reason)
            return None
        return factor

    def relate(self, a: Factor, b: Factor, reason: str) -> Factors:
        """Combine two factors of the same coordinates whose elements meet; return the factors of the result."""
        axes_a, axes_b = spans(a), spans(b)
        if not set(axes_a) & set(axes_b):
            return (a, b)
        if axes_a == axes_b:
            self.unify(a, b)
            return (a,)
        big, small = (a, b) if len(axes_a) > len(axes_b) else (b, a)
        shared, rest = spans(small), [axis for axis in spans(big) if axis not in spans(small)]
        if not set(shared) <= set(spans(big)):
            return self._overlap(big, small, reason)
        if constant_along(big, shared):
            return (collapse(big, shared), small)
        inner = spans(big)[-1]
        if self.policy == "whole" and not constant_along(big, [inner]):
            return self._relate_blocks(big, small, reason)
        if constant_along(big, rest) or inner in shared:
            self.unify(self.unify_along(big, rest), small)
            return (small,)
        self.pin(small, f"{reason}: one index stands for a whole block, and blocks stay")
        return (big,)

    def _relate_blocks(self, big: Factor, small: Factor, reason: str) -> Factors:
        """Policy `whole`: only the blocks of the joint factor may go; an index inside a block stays."""
        inner = spans(big)[-1]
        blocks = self.whole_blocks(big, reason)
        if small.shape[inner] == 1:
            return (small,) if blocks is None else self.relate(blocks, small, reason)
        left = self.pin_axis(small, inner, f"{reason}: only whole blocks are removed")
        if left is None or blocks is None:
            return tuple(f for f in (left, blocks) if f is not None)
        return self.relate(blocks, left, reason)

    def _overlap(self, a: Factor, b: Factor, reason: str) -> Factors:
        """Relate two joint factors of which neither spans the other's axes: keep what they share, aligned."""
        shared = [axis for axis in spans(a) if axis in spans(b)]
        parts = [self.unify_along(f, [x for x in spans(f) if x not in shared]) for f in (a, b)]
        self.unify(parts[0], parts[1])
        left = self.tidy(parts[0], reason)
        return () if left is None else (left,)

    def merge(self, factors: Sequence[Factor], reason: str) -> list[Factor]:
        """Relate all factors with one another, the ones with most axes first."""
        merged: list[Factor] = []
        for factor in sorted(factors, key=lambda f: -len(spans(f))):
            self._merge_into(merged, factor, reason)
        return merged

    def _merge_into(self, merged: list[Factor], factor: Factor, reason: str) -> None:
        axes = set(spans(factor))
        for position, other in enumerate(merged):
            if axes & set(spans(other)):
                del merged[position]
                for part in self.relate(other, factor, reason):
                    self._merge_into(merged, part, reason)
                return
        merged.append(factor)

    def at_block_site(self, factor: Factor, heads: bool = True) -> Factor | None:
        """Apply the policy to a joint factor where its axes play different roles in a contraction or a grouped op.

        `heads`: the blocks are heads of attention, not groups of channels.
        """
        axes = spans(factor)
        if len(axes) < 2:
            return factor
        if self.policy == "whole":
            return self.whole_blocks(factor, heads=heads)
        if self.policy == "aligned":
            return self.tidy(self.unify_along(factor, axes[:-1]))
        self.blocks.append(factor)
        return factor

    def whole_blocks(
        self, factor: Factor, reason: str = "one block is the whole tensor", heads: bool = True
    ) -> Factor | None:
        """Make the labels of each block one."""
        whole = self.tidy(self.unify_along(factor, spans(factor)[-1:]), reason)
        if heads and whole is not None:
            self.heads.append(whole)
        return whole

    def project(self, factor: Factor, keep: Iterable[int]) -> Factor | None:
        """Sum a factor's tensor over the spanned axes that are not in `keep`; return the labels of the result."""
        kept = set(keep)
        axes = spans(factor)
        mixed = [axis for axis in axes if axis not in kept]
        if not mixed:
            return factor
        if len(mixed) == len(axes):
            if len(axes) > 1:
                self.blocks.append(factor)
            return None
        if constant_along(factor, mixed):
            return self.tidy(collapse(factor, mixed))
        if axes[-1] not in mixed:
            return self.tidy(self.unify_along(factor, mixed))
        blocks = [axis for axis in mixed if axis != axes[-1]]
        factor = self.unify_along(factor, blocks) if blocks else factor
        self.blocks.append(factor)
        return None

    def transpose(self, factor: Factor, perm: Sequence[int]) -> Factor | None:
        """Permute the axes; block axes that would come behind the inner axis are unified (`aligned`)."""
        axes = spans(factor)
        if len(axes) > 1:
            place = {axis: position for position, axis in enumerate(perm)}
            behind = [axis for axis in axes[:-1] if place[axis] > place[axes[-1]]]
            if behind:
                left = self.tidy(self.unify_along(factor, behind))
                if left is None:
                    return None
                factor = left
        return np.asarray(factor.transpose(perm))

    # ---- rounds --------------------------------------------------------------------------------------------------
    def begin_round(self) -> None:
        """Forget the pins and block structures of the round before; labels, merges and heads stay."""
        self.pins.clear()
        self.blocks.clear()

    def solve(self, with_pins: bool) -> bool:
        """Merge labels by the equalities (and pins) seen; return whether any class changed."""
        known = np.arange(self._count, dtype=_INT)
        known[: self._classes.size] = self._classes
        pins = [(p.labels, np.zeros(p.labels.size, _INT)) for p in self.pins] if with_pins else []
        before, classes = known, known
        for a, b in _in_portions([*self._edges, *pins], max(_PORTION, 2 * self._count)):
            a, b = classes[a], classes[b]
            if (a != b).any():
                classes = self._merged(classes, a, b)
        self._edges.clear()
        self._classes = classes
        return not np.array_equal(classes, before)

    def _merged(self, classes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Join the classes of some labels; the lowest of each class stands for it."""
        different = a != b
        edges = np.ones(int(different.sum()), bool)
        matrix = coo_matrix((edges, (a[different], b[different])), shape=(self._count, self._count))
        number, member = connected_components(matrix, directed=False)
        lowest = np.full(number, self._count, _INT)
        np.minimum.at(lowest, member, np.arange(self._count, dtype=_INT))
        return np.asarray(lowest[member][classes])

    @property
    def classes(self) -> np.ndarray:
        """Lowest label of the class of every label, after `solve`."""
        return self._classes

    @property
    def count(self) -> int:
        """Number of labels, the pinned one included."""
        return self._count


def _in_portions(pairs: Iterable[Pairs], most: int) -> Iterator[Pairs]:
    """Join short lists of pairs, and split long ones: most of a long list repeats what its first portion says."""
    waiting, size = list[Pairs](), 0
    for a, b in pairs:
        for start in range(0, a.size, most):
            waiting.append((a[start : start + most], b[start : start + most]))
            size += waiting[-1][0].size
            if size >= most:
                yield _joined(waiting)
                waiting, size = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[Pairs]) -> Pairs:
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
