"""How much the output of the next layer fluctuates with a unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunepass.criteria.data import Carrier, DataCriterion, Reader, columns, summed
from prunepass.criteria.weights import Site, Weights

if TYPE_CHECKING:
    from prunepass.recovery.moments import Moments


@dataclass(frozen=True)
class Flap(DataCriterion):
    """Sum the variance of each input times the squared norm of its column, over all layers that read a unit.

    The mean is left out because an intercept can replace it: compensate the model afterwards.

    Source
        An et al. 2023, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", eq. 5 (WIFV) and the
        standardisation of section 3.3, here per group. The authors' code squares the metric of attention and averages
        it over each head; here all layers are treated alike. Where no such layer reads a unit, what its own layers
        put out counts as if it were read with weight 1.
    """

    name = "flap"
    normalise = "standardise"

    def by_readers(self, weights: Weights, sites: Sequence[Reader]) -> Iterator[tuple[Site, np.ndarray]]:
        """Sum over all layers."""
        yield summed(weights, columns(weights, sites, "variance", 2))

    def carried(self, site: Carrier, moments: Moments) -> np.ndarray:
        """Return the variance of what is put out."""
        return site.per_unit(moments.variance)
