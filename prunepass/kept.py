"""What is left of a tensor when units are removed: its kept elements, its new shape, its physical cut.

A mask is a factor seen through a plan: a boolean array with the rank of the tensor, full length on the axes that its
factor spans, 1 on all others, True where the label stays. An element stays when it stays in every mask. What
stays must be a rectangle: along the inner (last spanned) axis, every block that keeps anything keeps the same number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from prunepass.labels import spans


def kept_masks(factors: Iterable[np.ndarray], removed: np.ndarray) -> list[np.ndarray]:
    """Turn the factors of a tensor into masks.

    Shapes
        removed: boolean, one entry per unit; entry 0 (pinned) is False.
    """
    kept = ~removed
    return [kept[factor] for factor in factors]


def merged(masks: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Combine the masks that share an axis, so that each axis is spanned by at most one."""
    result: list[np.ndarray] = []
    for mask in masks:
        axes = set(spans(mask))
        apart = []
        for other in result:
            if axes & set(spans(other)):
                mask = mask & other
                axes = set(spans(mask))
            else:
                apart.append(other)
        result = [*apart, mask]
    return result


def kept_sizes(mask: np.ndarray) -> dict[int, int]:
    """Return the new length of every axis that a mask spans.

    The inner axis keeps what a block keeps, a block axis the number of blocks that keep anything.
    """
    axes = spans(mask)
    if len(axes) == 1:
        return {axes[0]: int(np.count_nonzero(mask))}
    left = mask.reshape([mask.shape[axis] for axis in axes])
    found: dict[int, int] = {}
    for position in reversed(range(len(axes))):
        counts = np.count_nonzero(left, axis=position)
        found[axes[position]] = int(np.max(counts))
        left = np.asarray(counts) > 0
    return found


def new_shape(shape: Sequence[int], masks: Iterable[np.ndarray]) -> tuple[int, ...]:
    """Return the shape of the rectangle that is left; whether it is one, `cut` checks."""
    sizes = list(shape)
    for mask in merged(masks):
        for axis, size in kept_sizes(mask).items():
            sizes[axis] = size
    return tuple(sizes)


def element_mask(shape: Sequence[int], masks: Iterable[np.ndarray]) -> np.ndarray:
    """Return which elements of the whole tensor stay, as a read-only boolean array of its shape."""
    every = reduce(np.logical_and, masks, np.ones((1,) * len(shape), bool))
    return np.broadcast_to(every, tuple(shape))


def cut(array: np.ndarray, masks: Iterable[np.ndarray]) -> np.ndarray:
    """Return the kept elements of a tensor as a smaller tensor; the same object where everything stays.

    Raises
        ValueError: what is left is ragged or empty, or a mask does not fit the array.
    """
    for mask in sorted(merged(masks), key=spans):
        if mask.all():
            continue
        axes = spans(mask)
        if mask.ndim != array.ndim or any(mask.shape[axis] != array.shape[axis] for axis in axes):
            raise ValueError(f"a mask of shape {mask.shape} does not fit a tensor of shape {array.shape}")
        if not mask.any():
            raise ValueError(f"nothing is left of a tensor of shape {array.shape} along axes {list(axes)}")
        array = array.take(np.flatnonzero(mask), axis=axes[0]) if len(axes) == 1 else _cut_joint(array, mask, axes)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _cut_joint(array: np.ndarray, mask: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    sizes = [size for _, size in sorted(kept_sizes(mask).items())]
    if math.prod(sizes) != np.count_nonzero(mask):
        raise ValueError(f"the {np.count_nonzero(mask)} entries kept along axes {list(axes)} are not {sizes}")
    front = range(len(axes))
    moved = np.moveaxis(array, axes, front)
    flat = moved[mask.reshape(moved.shape[: len(axes)])]
    return np.moveaxis(flat.reshape(*sizes, *flat.shape[1:]), front, axes)


def sharing_axes(factors: Iterable[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    """Split the factors of one value into the sets that share axes."""
    parts: list[tuple[set[int], list[np.ndarray]]] = []
    for factor in factors:
        axes, together = set(spans(factor)), [factor]
        apart = []
        for other in parts:
            if axes & other[0]:
                axes, together = axes | other[0], [*other[1], *together]
            else:
                apart.append(other)
        parts = [*apart, (axes, together)]
    return [tuple(together) for _, together in parts]


class Lengths:
    """Compute the axis lengths of many values under many plans; equal factors are counted once.

    The lengths of all values lie in one flat array, `places[name]` says where.
    """

    def __init__(self) -> None:
        self.places: dict[str, slice] = {}
        self._base: list[int] = []
        self._vectors: dict[bytes, tuple[int, np.ndarray]] = {}
        self._patches: list[tuple[int, int]] = []
        self._joints: dict[tuple[object, ...], tuple[tuple[np.ndarray, ...], list[tuple[int, int]]]] = {}
        self._frozen: _Frozen | None = None

    def add(self, name: str, shape: Sequence[int], factors: Iterable[np.ndarray]) -> bool:
        """Add a value if a plan can change its shape; return whether it can."""
        if name in self.places:
            return True
        parts = sharing_axes(f for f in factors if f.size > 1 and f.any())
        if not parts:
            return False
        start = len(self._base)
        self.places[name] = slice(start, start + len(shape))
        self._base.extend(shape)
        for part in parts:
            if len(part) == 1 and len(spans(part[0])) == 1:
                self._patches.append((start + spans(part[0])[0], self._vector(part[0])))
            else:
                self._add_joint(part, start)
        self._frozen = None
        return True

    def _vector(self, factor: np.ndarray) -> int:
        labels = factor.reshape(-1).astype(np.int64)
        return self._vectors.setdefault(labels.tobytes(), (len(self._vectors), labels))[0]

    def _add_joint(self, part: tuple[np.ndarray, ...], start: int) -> None:
        key = tuple((f.shape, f.dtype.str, f.tobytes()) for f in part)
        _, targets = self._joints.setdefault(key, (part, []))
        targets.extend((axis, start + axis) for axis in sorted({axis for f in part for axis in spans(f)}))

    def _freeze(self) -> _Frozen:
        vectors = [labels for _, labels in self._vectors.values()]
        ends = np.cumsum([0, *map(len, vectors)])
        patches = np.array(self._patches, np.int64).reshape(-1, 2)
        return _Frozen(
            np.concatenate([*vectors, ends[:0]]),
            ends,
            patches[:, 0],
            patches[:, 1],
            np.array(self._base),
            _ranges((labels,) for labels in vectors),
            _ranges(part for part, _ in self._joints.values()),
        )

    def after(self, removed: np.ndarray) -> np.ndarray:
        """Return the flat array of lengths after a plan."""
        if self._frozen is None:
            self._frozen = self._freeze()
        frozen, kept, gone = self._frozen, ~removed, np.flatnonzero(removed)
        lengths: np.ndarray = frozen.base.copy()
        if frozen.labels.size:
            lengths[frozen.positions] = frozen.counts(kept, _hit(frozen.ranges, gone))[frozen.numbers]
        for (part, targets), changes in zip(self._joints.values(), _hit(frozen.joint_ranges, gone).tolist()):
            sizes = kept_sizes(merged(kept[factor] for factor in part)[0]) if changes else {}
            for axis, position in targets if changes else ():
                lengths[position] = sizes[axis]
        return lengths


@dataclass(frozen=True)
class _Frozen:
    """The vectors of `Lengths` one after the other, where each goes, and the lowest and highest label of each."""

    labels: np.ndarray
    ends: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray
    base: np.ndarray
    ranges: np.ndarray
    joint_ranges: np.ndarray

    def counts(self, kept: np.ndarray, hit: np.ndarray) -> np.ndarray:
        """Count what is kept of each vector; where few are hit, only those are looked at."""
        if 4 * np.count_nonzero(hit) > hit.size:
            return np.add.reduceat(kept[self.labels], self.ends[:-1], dtype=np.int64)
        found = np.diff(self.ends)
        for number in np.flatnonzero(hit):
            found[number] = np.count_nonzero(kept[self.labels[self.ends[number] : self.ends[number + 1]]])
        return found


def _ranges(parts: Iterable[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Return the lowest label that is not 0, and one more than the highest, of each set of factors."""
    ends = [(min(int(f[f > 0].min(initial=f.max())) for f in p), max(int(f.max()) for f in p) + 1) for p in parts]
    return np.array(ends, np.int64).reshape(-1, 2)


def _hit(ranges: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Say which ranges of labels hold one that is removed."""
    return np.searchsorted(gone, ranges[:, 1]) > np.searchsorted(gone, ranges[:, 0])
