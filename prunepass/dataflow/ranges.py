"""Intervals, one for each index that matters: what a value may be, channel by channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_MOST = 1 << 21
"""Elements of an interval array; what would be larger is not known."""


class Unknown(Exception):
    """Nothing can be said about a value."""


@dataclass(frozen=True)
class Range:
    """Bound the elements of a value; where both bounds are one finite number, the element is a known constant.

    Shapes
        low, high: float64, of one shape: the rank of the value, on each axis its length, or 1 where all are alike.
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, low: np.ndarray, high: np.ndarray) -> Range:
        """Make a range of two arrays that may be NaN, which says nothing, and may be the same along some axes."""
        low, high = np.broadcast_arrays(np.asarray(low, np.float64), np.asarray(high, np.float64))
        if low.size > _MOST:
            raise Unknown
        if np.isnan(low).any() or np.isnan(high).any():
            low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
        for axis in range(low.ndim):
            if low.shape[axis] > 1:
                first = (slice(None),) * axis + (slice(0, 1),)
                if (low == low[first]).all() and (high == high[first]).all():
                    low, high = low[first], high[first]
        return cls(low, high)

    @classmethod
    def exactly(cls, array: np.ndarray) -> Range:
        """Say that a value is known."""
        return cls.of(array, array)

    @classmethod
    def anything(cls, rank: int) -> Range:
        """Say nothing of a value."""
        return cls(np.full((1,) * rank, -np.inf), np.full((1,) * rank, np.inf))

    @cached_property
    def fixed(self) -> np.ndarray:
        """Where the element is one known number."""
        return np.asarray((self.low == self.high) & np.isfinite(self.low))

    @property
    def nothing(self) -> bool:
        """Whether this says nothing at all."""
        return bool(np.isneginf(self.low).all() and np.isposinf(self.high).all())

    def hull(self, axes: Iterable[int]) -> Range:
        """Bound what lies along some axes together."""
        over = tuple(axis for axis in axes if self.low.shape[axis] > 1)
        if not over:
            return self
        return Range(self.low.min(axis=over, keepdims=True), self.high.max(axis=over, keepdims=True))

    def with_number(self, number: float, axes: Iterable[int] = ()) -> Range:
        """Bound the value where elements may also be a given number: at its border, for one."""
        whole = self.hull(axes)
        return Range(np.minimum(whole.low, number), np.maximum(whole.high, number))

    def apply(self, function: Callable[[np.ndarray], np.ndarray]) -> Range:
        """Move the elements: the same function for both bounds."""
        return Range.of(function(self.low), function(self.high))

    def __add__(self, other: Range) -> Range:
        return Range.of(self.low + other.low, self.high + other.high)

    def __neg__(self) -> Range:
        return Range(-self.high, -self.low)

    def __mul__(self, other: Range) -> Range:
        """Multiply; zero times anything is zero, as all values are taken to be finite."""
        pairs = [(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        products = [np.where((a == 0) | (b == 0), 0.0, a * b) for a, b in pairs]
        low = np.minimum(np.minimum(products[0], products[1]), np.minimum(products[2], products[3]))
        high = np.maximum(np.maximum(products[0], products[1]), np.maximum(products[2], products[3]))
        return Range.of(low, high)

    def reciprocal(self) -> Range:
        """Divide one by the value; nothing is known where it may be zero."""
        safe = (self.low > 0) | (self.high < 0)
        return Range.of(np.where(safe, 1 / self.high, -np.inf), np.where(safe, 1 / self.low, np.inf))

    def positive(self) -> Range:
        """Cut off what is below zero."""
        return Range(np.maximum(self.low, 0), np.maximum(self.high, 0))


def union(parts: Sequence[Range]) -> Range:
    """Bound a value that is one of several, element by element."""
    low, high = parts[0].low, parts[0].high
    for part in parts[1:]:
        low, high = np.minimum(low, part.low), np.maximum(high, part.high)
    return Range.of(low, high)


def dot(positive: np.ndarray, negative: np.ndarray, data: Range) -> Range:
    """Bound sums of products with weights that are split into their positive and negative parts.

    Shapes
        positive, negative: (..., outputs, inputs). data: (..., inputs). The result: (..., outputs).
    """
    low, high, fixed = data.low, data.high, data.fixed

    def total(weights: np.ndarray, vector: np.ndarray) -> np.ndarray:
        return np.asarray(np.matmul(weights, vector[..., None])[..., 0])

    known = total(positive, np.where(fixed, low, 0)) + total(negative, np.where(fixed, low, 0))
    bounds = []
    for own, other in ((low, high), (high, low)):
        a, b = (np.where(fixed | ~np.isfinite(x), 0, x) for x in (own, other))
        endless = total(positive != 0, np.isinf(own)) + total(negative != 0, np.isinf(other))
        part = total(positive, a) + total(negative, b)
        bounds.append(np.where(endless > 0, -np.inf if own is low else np.inf, known + part))
    return Range.of(bounds[0], bounds[1])


# ---- moves -----------------------------------------------------------------------------------------------------------
def whole(data: Range, shape: Sequence[int], axes: Iterable[int]) -> Range:
    """Spread a range over the whole length of some axes."""
    target = [shape[a] if a in set(axes) else size for a, size in enumerate(data.low.shape)]
    if math.prod(target) > _MOST:
        raise Unknown
    return Range(np.broadcast_to(data.low, target), np.broadcast_to(data.high, target))


def reshape(data: Range, before: Sequence[int], after: Sequence[int]) -> Range:
    """Reshape; only runs of axes that change and that the range tells apart are spelled out."""
    if 0 in before or 0 in after:
        raise Unknown
    final: list[int] = []
    spread: list[int] = []
    for own, new in runs(before, after):
        if all(data.low.shape[axis] == 1 for axis in own):
            final += [1] * len(new)
        else:
            final += [after[axis] for axis in new]
            spread += own
    return whole(data, before, spread).apply(lambda x: x.reshape(final))


def runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split two shapes of the same size into the shortest runs of axes of the same size."""
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        own, new, a, b = [], [], 1, 1
        while True:
            if i < len(before) and (a <= b or j >= len(after)):
                own.append(i)
                a, i = a * before[i], i + 1
            elif j < len(after):
                new.append(j)
                b, j = b * after[j], j + 1
            else:
                break
            if a == b and own and new:
                break
        found.append((own, new))
    return found
