"""Criteria that look at the layers before and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.criteria.base import Criterion
from prunepass.criteria.batchnorm import squared_gains
from prunepass.criteria.weights import Site, Weights
from prunepass.labels import spans


@dataclass(frozen=True)
class Lookahead(Criterion):
    """Multiply w^2 by the squared norms of what feeds it and of what reads it.

    The score of the producing row of unit i is |W_next[:, i]|^2 bn_i^2 sum_j w_ij^2 |W_prev[j, :]|^2 bn_j^2, the sum of
    the scores of its weights. Several producers or consumers of a unit add up; the input and the output of the model
    count 1. bn is gamma / sqrt(variance + epsilon) of the BatchNormalization directly behind a weight.

    Source
        Park et al. 2020, "Lookahead: A Far-Sighted Alternative of Magnitude-based Pruning", eq. 5 and section 3.1;
        `LAP` of the authors' code. A depthwise weight counts as one more producer of its channel.
    """

    name = "lookahead"

    def tiers(self, weights: Weights) -> dict[str, Sequence[Site]]:
        """Look at the producing weights first."""
        return {"producing weights": weights.producers, **super().tiers(weights)}

    def scores(self, weights: Weights, sites: Iterable[Site]) -> Iterator[tuple[Site, np.ndarray]]:
        """Collect the norms of all producers and consumers, then score each site."""
        before, after = np.zeros((2, weights.coupling.n_units))
        gains = squared_gains(weights)
        for site in weights.matrices:
            if site.produces:
                before[site.units] += weights.power(site, 2) * gains.get(site.tensor, 1.0)
            else:
                after[site.units] += weights.power(site, 2)
        for norms in (before, after):
            norms[norms == 0] = norms[0] = 1
        for site in sites:
            yield site, _fed(weights, site, before) * after[site.units] * gains.get(site.tensor, 1.0)


def _fed(weights: Weights, site: Site, before: np.ndarray) -> np.ndarray:
    """Sum w^2 times the norm of what feeds it, per unit of a producing site."""
    factors = weights.coupling.factors[site.tensor]
    inputs = [factor for factor in factors if spans(factor) and not set(spans(factor)) & set(site.axes)]
    axes = sorted({*site.axes, *(axis for factor in inputs for axis in spans(factor))})
    scores = weights.power_over(site.tensor, axes, 2)
    for factor in inputs:
        scores = scores * before[factor]
    others = tuple(axis for axis in range(scores.ndim) if axis not in site.axes)
    return site.per_unit(scores.sum(axis=others))
