"""The baseline that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.criteria.base import Criterion
from prunepass.criteria.weights import Site, Weights


@dataclass(frozen=True)
class Random(Criterion):
    """Draw each unit's score from U(0, 1).

    seed: None takes the seed of the run.

    Source
        The baseline of Blalock et al. 2020, "What is the State of Neural Network Pruning?"
    """

    name = "random"
    normalise = "none"
    seed: int | None = None

    def tiers(self, weights: Weights) -> dict[str, Sequence[Site]]:
        """Look at all constants: the numbers do not matter."""
        return {"constants": weights.sites}

    def scores(self, weights: Weights, sites: Iterable[Site]) -> Iterator[tuple[Site, np.ndarray]]:
        """Draw once; a unit has the same number at each of its sites."""
        generator = np.random.default_rng(weights.seed if self.seed is None else self.seed)
        drawn = generator.random(weights.coupling.n_units)
        return ((site, drawn[site.units]) for site in sites)
