"""Criteria that look at the size of the weights alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunepass.criteria.base import Criterion
from prunepass.criteria.combine import lamp
from prunepass.criteria.weights import Site, Weights


@dataclass(frozen=True)
class L1(Criterion):
    """Sum |w| over everything that a unit has in the weights.

    Source
        Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1; here summed over the consumers too.
    """

    name = "l1"

    def score(self, weights: Weights, site: Site) -> np.ndarray:
        """Sum |w| of each unit."""
        return weights.power(site, 1)


@dataclass(frozen=True)
class L2(Criterion):
    """Sum w^2 over everything that a unit has in the weights; no root is taken before or after the reduction.

    Source
        Fang et al. 2023, "DepGraph", section 3.3, and Torch-Pruning `GroupNormImportance(p=2)`, here without the gains
        of normalisations.
    """

    name = "l2"

    def score(self, weights: Weights, site: Site) -> np.ndarray:
        """Sum w^2 of each unit."""
        return weights.power(site, 2)


@dataclass(frozen=True)
class Linf(Criterion):
    """Take the largest |w| that a unit has in a weight.

    Source
        The p = infinity member of the family of Li et al. 2017.
    """

    name = "linf"

    def score(self, weights: Weights, site: Site) -> np.ndarray:
        """Return the largest |w| of each unit."""
        return weights.largest(site)


@dataclass(frozen=True)
class Lamp(L2):
    """Divide the sum of w^2 of a unit by that of all units of its group that are not below it.

    Source
        Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", eq. 4, with units for weights.
    """

    name = "lamp"
    normalise = "none"

    def finish(self, scores: np.ndarray) -> np.ndarray:
        """Apply the quotient within a group."""
        return lamp(scores)
