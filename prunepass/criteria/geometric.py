"""Criteria that compare the filters of a layer with one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.criteria.base import Criterion
from prunepass.criteria.weights import Site, Weights

_ROWS = 256
"""Filters that are compared at a time."""


@dataclass(frozen=True)
class Fpgm(Criterion):
    """Sum the Euclidean distances from a filter to all others of its layer; the one nearest to all can be replaced.

    Source
        He et al. 2019, "Filter Pruning via Geometric Median", eq. 6 and `get_filter_similar` of the authors' code.
        Only producing weights are compared; Torch-Pruning compares the consumers' columns too, and |w|^2 instead of w.
    """

    name = "fpgm"

    def tiers(self, weights: Weights) -> dict[str, Sequence[Site]]:
        """Look at the producing weights first."""
        return {"producing weights": weights.producers, **super().tiers(weights)}

    def score(self, weights: Weights, site: Site) -> np.ndarray:
        """Return the sum of distances of each unit's row."""
        rows = weights.rows(site)
        sums = distance_sums(rows)
        return sums if len(rows) == site.units.size else site.per_unit(sums)


def distance_sums(rows: np.ndarray) -> np.ndarray:
    """Return for each row the sum of its distances to all rows, by |a|^2 + |b|^2 - 2ab on centred rows."""
    rows = rows - rows.mean(axis=0)  # distances do not change, but the subtraction cancels less
    squares = np.einsum("ij,ij->i", rows, rows)
    sums = np.zeros(len(rows))
    for start in range(0, len(rows), _ROWS):
        stop = min(start + _ROWS, len(rows))
        between = squares[start:stop, None] + squares[start:] - 2 * (rows[start:stop] @ rows[start:].T)
        np.fill_diagonal(between, 0)
        distances = np.sqrt(np.maximum(between, 0))
        sums[start:stop] += distances.sum(axis=1)
        sums[stop:] += distances[:, stop - start :].sum(axis=0)  # each pair is computed once
    return sums
