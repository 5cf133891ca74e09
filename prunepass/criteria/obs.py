"""What the removal of a unit costs when all that reads it is refitted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from prunepass.criteria.base import Criterion
from prunepass.criteria.weights import Site, Weights

if TYPE_CHECKING:
    from prunepass.recovery.errors import UnitErrors


@dataclass(frozen=True)
class Obs(Criterion):
    """Predict the output error that a unit causes when it goes after all cheaper ones of its group, the rest refitted.

    Source
        Hassibi, Stork 1992, Optimal Brain Surgeon; Meng et al. 2024, OSSCAR, section 3.1. Here the layers that read a
        unit are summed, each weighted by what an error there does to the output; see `recovery/obs.py`.
    """

    name = "obs"
    normalise: ClassVar[str] = "none"
    needs = ("errors",)

    def tiers(self, weights: Weights) -> dict[str, Sequence[Site]]:
        """Score all units at once."""
        units = np.arange(1, weights.coupling.n_units)
        return {"errors": [Site("", (), units, None, produces=False, is_weight=True)]}

    def scores(self, weights: Weights, sites: Iterable[Site]) -> Iterator[tuple[Site, np.ndarray]]:
        """Look the errors up."""
        errors: UnitErrors = weights.fact("errors")
        return ((site, errors.scores[site.units]) for site in sites)

    def sets(self, weights: Weights) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Return the sets that the sweep has found."""
        errors: UnitErrors = weights.fact("errors")
        return errors.sets
