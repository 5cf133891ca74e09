"""How well the next layer does without a unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunepass.criteria.data import Carrier, DataCriterion, Reader
from prunepass.criteria.weights import Site, Weights

if TYPE_CHECKING:
    from prunepass.recovery.moments import Moments
    from prunepass.recovery.statistics import Statistics, Tap
    from prunepass.rules.linear import Linear


@dataclass(frozen=True)
class Thinet(DataCriterion):
    """Remove units greedily so that the next layers lose least; the score is the error when a unit goes.

    At each sampled position one output of a layer is drawn, and what each unit adds to it is noted. The error of a set
    of units is the mean square of what they add together.

    Source
        Luo et al. 2017, "ThiNet", section 3.2, eq. 6 and algorithm 1. Here for all layers that read a group, their
        errors times their outputs summed, and many more positions than the 10 per image of the authors. The scaling
        of what is left (eq. 7) is left to `compensate`. Where no such layer reads a unit, the mean square of what its
        own layers put out.
    """

    name = "thinet"
    normalise = "max"

    def by_readers(self, weights: Weights, sites: Sequence[Reader]) -> Iterator[tuple[Site, np.ndarray]]:
        """Collect what units add to samples, then choose greedily in each group."""
        statistics: Statistics = weights.fact("statistics")
        groups = [group.units.reshape(-1) for group in weights.coupling.groups]
        work = _Additions(weights, statistics, groups)
        taps = [work.tap(site, layer) for site in sites for layer in site.layers]
        statistics.stream(taps)
        for number, products in work.products.items():
            own = groups[number]
            seen = np.isin(own, np.concatenate([site.units for site in sites]))
            units = np.flatnonzero(seen)
            order = np.argsort(own[units], kind="stable")
            at = units[order]
            values = greedy_errors(products[np.ix_(at, at)])
            yield Site("", (), own[at], None, produces=False, is_weight=True), values

    def carried(self, site: Carrier, moments: Moments) -> np.ndarray:
        """Return the mean square of what is put out."""
        return site.per_unit(moments.square)


class _Additions:
    """Sum the products of what pairs of units of a group add to sampled outputs."""

    def __init__(self, weights: Weights, statistics: Statistics, groups: Sequence[np.ndarray]) -> None:
        self.weights, self.statistics = weights, statistics
        self.products: dict[int, np.ndarray] = {}
        self._sizes = [units.size for units in groups]
        self._group = np.full(weights.coupling.n_units, -1)
        self._place = np.zeros(weights.coupling.n_units, np.int64)
        for number, units in enumerate(groups):
            self._group[units] = number
            self._place[units] = np.arange(units.size)

    def tap(self, site: Reader, layer: Linear) -> Tap:
        """Return what collects the samples of a layer."""
        from prunepass.recovery.statistics import Tap

        matrix, spots = site.entries(layer, self.weights)
        matrix, unit = matrix.astype(np.float32), site.units[spots]
        rng = np.random.default_rng([self.weights.seed, *layer.y.encode()])
        batches = len(self.statistics.batches.feeds)

        def visit(batch: int, x: np.ndarray, y: np.ndarray) -> None:
            rows, _ = self.statistics.rows(layer, batch, x, y)
            share = matrix.shape[2] / max(1, rows.shape[1] * batches)
            for group, block in enumerate(rows):
                output = rng.integers(0, matrix.shape[2], len(block))
                added = block * matrix[group][:, output].T
                self._add(added, unit[group], output, share)

        return Tap((layer.x, layer.y), visit)

    def _add(self, added: np.ndarray, unit: np.ndarray, output: np.ndarray, share: float) -> None:
        """Take in what features add to samples, (samples, features), whose units may depend on the output."""
        if (unit != unit[:, :1]).any():
            for one in range(unit.shape[1]):
                self._add(added[output == one], unit[:, [one]], output[output == one], share)
            return
        own = unit[:, 0]
        for number in np.unique(self._group[own]).tolist():
            if number < 0:
                continue
            of_group = np.flatnonzero(self._group[own] == number)
            order = of_group[np.argsort(self._place[own[of_group]], kind="stable")]
            places, starts = np.unique(self._place[own[order]], return_index=True)
            sums = np.add.reduceat(added[:, order].astype(np.float64), starts, axis=1)
            size = self._sizes[number]
            total = self.products.setdefault(number, np.zeros((size, size)))
            total[np.ix_(places, places)] += share * (sums.T @ sums)


def greedy_errors(products: np.ndarray) -> np.ndarray:
    """Remove units one by one, always the one with the least error of all removed together.

    Shapes
        products: (n, n), the error of a set is the sum over all its pairs. The result: per unit, the largest error up
        to its removal, rising strictly in the order of removal.
    """
    left = np.ones(len(products), bool)
    each, crossed = np.diagonal(products), np.zeros(len(products))
    scores, total, last = np.zeros(len(products)), 0.0, 0.0
    for _ in range(len(products)):
        step = np.where(left, each + 2 * crossed, np.inf)
        best = int(np.argmin(step))
        total += float(step[best])
        last = max(total, float(np.nextafter(last, np.inf)))
        scores[best] = last
        left[best] = False
        crossed = crossed + products[best]
    return scores
