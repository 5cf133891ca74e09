"""Ridge regression on streamed rows: in float64, shrunk toward given weights, judged on held-back rows.

Where an activation behind the layer is flat (Relu below 0, Clip on both sides), an error there does not count: the loss
is convex still, and a few more solves with the same matrix minimise it.

Source
    Zhang, Zou, He, Sun 2015, Accelerating Very Deep Convolutional Networks, section 3.2, for the nonlinear case; here
    its loss is relaxed to a convex one and minimised by majorisation instead of an auxiliary variable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from prunepass.recovery.threads import threads_for

RIDGES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Multiples of the mean variance of the features; the papers on least squares after pruning use 1e-3 throughout."""
_START = RIDGES.index(1e-3)
_ROUNDS = 8
_SMALL = 64
_PLENTY = 100
"""Rows per feature from which on held-back rows are not missed."""
_ROUNDING = 1e-13
"""Variance of what rounding to float32 adds to a value, relative to its square; a few times that."""


@dataclass
class Rows:
    """Collect rows of X and Y, group by group.

    Shapes
        x: blocks (groups, n, features). total: blocks (groups, n, outputs), what X W + b and the rest shall add up to.
        rest: like total, or 0.
    """

    x: list[np.ndarray] = field(default_factory=list)
    total: list[np.ndarray] = field(default_factory=list)
    rest: list[np.ndarray] = field(default_factory=list)

    def add(self, x: np.ndarray, total: np.ndarray, rest: np.ndarray | None = None) -> None:
        """Take in rows."""
        if x.shape[1]:
            self.x.append(x.astype(np.float32))
            self.total.append(total.astype(np.float32))
            self.rest.append(np.zeros((1, 1, 1), np.float32) if rest is None else rest.astype(np.float32))

    @property
    def y(self) -> Iterator[np.ndarray]:
        """What X W + b alone shall be."""
        return (total.astype(np.float64) - rest for total, rest in zip(self.total, self.rest))

    def misses(self, weight: np.ndarray, bias: np.ndarray, flat: Flat) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows and by how much X W + b misses what is as good as the target."""
        for x, total, rest in zip(self.x, self.total, self.rest):
            found = x @ weight.astype(np.float32) + bias[:, None].astype(np.float32) + rest
            yield x, flat.aim(total, found) - found

    @property
    def n(self) -> int:
        """How many rows there are."""
        return sum(block.shape[1] for block in self.x)


@dataclass(frozen=True)
class Flat:
    """Say where the activation behind a layer is flat: below `low` and above `high`."""

    low: float = -math.inf
    high: float = math.inf

    def aim(self, target: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Return the nearest output that is as good as the target."""
        aim = np.where(target <= self.low, np.minimum(found, self.low), target)
        return np.where(target >= self.high, np.maximum(found, self.high), aim)

    @property
    def nowhere(self) -> bool:
        """Say whether every error counts."""
        return self.low == -math.inf and self.high == math.inf


class Moments:
    """Hold means and covariances of rows; with less rows than features, the centred rows themselves as `xx`.

    Shapes
        x: (groups, features). y: (groups, outputs). xx: (groups, features, features). xy: (groups, features, outputs).
        scale: (groups,) mean variance of the features. rounding: (groups,) variance that may come from rounding alone.
    """

    def __init__(self, rows: Rows, centre: bool) -> None:
        n = max(1, rows.n)
        groups, features, outputs = rows.x[0].shape[0], rows.x[0].shape[2], rows.total[0].shape[2]
        self.x, self.y = np.zeros((groups, features)), np.zeros((groups, outputs))
        if centre:
            self.x = sum((b.sum(axis=1, dtype=np.float64) for b in rows.x), self.x) / n
            self.y = sum((b.sum(axis=1) for b in rows.y), self.y) / n
        self.rows = rows.n < features
        self.xy = np.zeros((groups, features, outputs))
        if self.rows:
            self.xx = np.concatenate(rows.x, axis=1).astype(np.float64) - self.x[:, None]
            self.xy += self.xx.transpose(0, 2, 1) @ (np.concatenate(list(rows.y), axis=1) - self.y[:, None])
            self.scale = np.square(self.xx).sum(axis=(1, 2)) / n / features
        else:
            self.xx = np.zeros((groups, features, features))
            for x, y in zip(rows.x, rows.y):
                x = x - self.x[:, None]
                self.xx += x.transpose(0, 2, 1) @ x
                self.xy += x.transpose(0, 2, 1) @ (y - self.y[:, None])
            self.xx /= n
            self.scale = np.trace(self.xx, axis1=1, axis2=2) / features
        self.xy /= n
        self.rounding = _ROUNDING * (self.scale + np.square(self.x).mean(axis=1))

    def applied(self, weight: np.ndarray) -> np.ndarray:
        """Return the covariance of the features times a weight."""
        if self.rows:
            return np.asarray(self.xx.transpose(0, 2, 1) @ (self.xx @ weight) / self.xx.shape[1])
        return np.asarray(self.xx @ weight)


@dataclass(frozen=True)
class Fit:
    """Hold a refitted matrix, its intercept, and how far off each is on rows that it has not seen.

    Units
        before, after: squared error on held-back rows, relative to the variance of the targets.
    """

    weight: np.ndarray
    bias: np.ndarray
    ridge: float
    before: float
    after: float


class Regression:
    """Fit Y ~ X W + b to rows, near to given weights.

    train, held: rows to fit, rows to judge. free: there is an intercept. plain: nothing will be solved, only judged.
    """

    def __init__(self, train: Rows, held: Rows, start: np.ndarray, free: bool, flat: Flat, plain: bool = False) -> None:
        self.train, self.held, self.start, self.free, self.flat = train, held, start, free, flat
        if not plain:
            self.moments = Moments(train, free)
        self._inverse: tuple[float, Any] | None = None
        self.signal = max(self._signal(), 1e-30)

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Return the error on held-back rows, relative to the variance of the targets."""
        total = 0.0
        for _, miss in self.held.misses(weight, bias, self.flat):
            total += float(np.square(miss).sum())
        return total / self.signal

    def solve(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Minimise |Y - X W - b|^2 + ridge |W - start|^2.

        Units
            ridge: in multiples of the mean variance of the features.
        """
        m = self.moments
        weight = self.start + self._applied(ridge, m.xy - m.applied(self.start))
        return weight, self._intercept(weight)

    def bent(self, weight: np.ndarray, bias: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Go on from a solution where errors behind a flat activation do not count."""
        m, n = self.moments, max(1, self.train.n)
        for _ in range(_ROUNDS):
            slope, offset = np.zeros(weight.shape), np.zeros(bias.shape)
            for x, miss in self.train.misses(weight, bias, self.flat):
                sums = miss.sum(axis=1, dtype=np.float64)
                slope += x.transpose(0, 2, 1) @ miss - m.x[:, :, None] * sums[:, None]
                offset += sums
            pull = ridge * m.scale[:, None, None] * (weight - self.start)
            step = self._applied(ridge, slope / n - pull)
            weight = weight + step
            if self.free:
                bias = bias + offset / n - np.einsum("gf,gfo->go", m.x, step)
        return weight, bias

    def _applied(self, ridge: float, right: np.ndarray) -> np.ndarray:
        """Return (XX + ridge)^-1 right; inverses are fine here, since the ridge keeps the matrix well away from 0."""
        m = self.moments
        shifts = np.maximum(ridge * m.scale, m.rounding)
        shifts = np.where(shifts > 0, shifts, 1.0)
        if not m.rows:
            return self._solved(m.xx, ridge, shifts, right)
        turned, n = m.xx.transpose(0, 2, 1), m.xx.shape[1]
        inner = self._solved(m.xx @ turned / n, ridge, shifts, m.xx @ right)  # Woodbury's identity
        return np.asarray((right - turned @ inner / n) / shifts[:, None, None])

    def _solved(self, matrix: np.ndarray, ridge: float, shifts: np.ndarray, right: np.ndarray) -> np.ndarray:
        if self._inverse is None or self._inverse[0] != ridge:
            matrix = matrix.copy()
            matrix.reshape(len(matrix), -1)[:, :: matrix.shape[1] + 1] += shifts[:, None]
            large = matrix.shape[1] > _SMALL
            known = [cho_factor(m, check_finite=False) for m in matrix] if large else np.linalg.inv(matrix)
            self._inverse = ridge, known
        known = self._inverse[1]
        if isinstance(known, np.ndarray):
            return np.asarray(known @ right)
        return np.stack([cho_solve(factor, own, check_finite=False) for factor, own in zip(known, right)])

    def _intercept(self, weight: np.ndarray) -> np.ndarray:
        return np.asarray(self.moments.y - np.einsum("gf,gfo->go", self.moments.x, weight))

    def _signal(self) -> float:
        """Return the variance of all targets, at least what rounding makes of constant ones, times the rows judged."""
        blocks, n = [*self.train.total, *self.held.total], max(1, self.train.n + self.held.n)
        mean = sum(y.sum(axis=1, dtype=np.float64) for y in blocks) / n
        spread = sum(float(np.square(y - mean[:, None]).sum()) for y in blocks)
        return max(spread, 1e-12 * n * float(np.square(mean).sum())) / n * self.held.n


def fit(train: Rows, held: Rows, start: np.ndarray, bias: np.ndarray | None, flat: Flat) -> Fit:
    """Choose the ridge by the held-back rows; start, bias: the weights to stay near to, None for no intercept."""
    with threads_for(start.shape[1]):
        return _fit(train, held, start, bias, flat)


def _fit(train: Rows, held: Rows, start: np.ndarray, bias: np.ndarray | None, flat: Flat) -> Fit:
    work = Regression(train, held, start, bias is not None, flat)
    before = work.error(start, work.moments.y * 0 if bias is None else bias)
    tried: dict[int, tuple[float, np.ndarray, np.ndarray]] = {}

    def attempt(at: int) -> float:
        if at not in tried:
            weight, own = work.solve(RIDGES[at])
            tried[at] = work.error(weight, own), weight, own
        return tried[at][0]

    best = _downhill(attempt, _START, len(RIDGES))
    after, weight, own = tried[best]
    if not flat.nowhere:
        bent = work.bent(weight, own, RIDGES[best])
        if (error := work.error(*bent)) < after:
            after, (weight, own) = error, bent
    if held is not train and train.n < _PLENTY * start.shape[1] and after < before:
        weight, own = _fitted_to_all(
            train, held, start, bias is not None, flat, RIDGES[best], bends=after != tried[best][0]
        )
    return Fit(weight, own, RIDGES[best], before, after)


def judge(
    train: Rows, held: Rows, start: np.ndarray, bias: np.ndarray | None, flat: Flat, weight: np.ndarray | None
) -> Fit:
    """Judge a weight that was found otherwise, with its bias as it is; without one, fit the bias of the start alone."""
    work = Regression(train, held, start, bias is not None, flat, plain=True)
    zero = np.zeros((len(start), start.shape[2]))
    own = zero if bias is None else bias
    before = work.error(start, own)
    if weight is None and bias is not None:
        misses = [miss.sum(axis=1, dtype=np.float64) for _, miss in train.misses(start, zero, Flat())]
        return Fit(start, shifted := sum(misses, zero) / max(1, train.n), 0.0, before, work.error(start, shifted))
    chosen = start if weight is None else weight
    return Fit(chosen, own, 0.0, before, work.error(chosen, own))


def _fitted_to_all(
    train: Rows, held: Rows, start: np.ndarray, free: bool, flat: Flat, ridge: float, bends: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Fit to the held-back rows, too, once everything is chosen: where rows are few, each helps."""
    rows = Rows([*train.x, *held.x], [*train.total, *held.total], [*train.rest, *held.rest])
    work = Regression(rows, held, start, free, flat)
    found = work.solve(ridge)
    return work.bent(*found, ridge) if bends else found


def _downhill(value: Callable[[int], float], start: int, count: int) -> int:
    """Walk from `start` to a local minimum of a function of 0 .. count - 1."""
    best = start
    for step in (-1, 1):
        while 0 <= best + step < count and value(best + step) < value(best):
            best += step
        if best != start:
            break
    return best
