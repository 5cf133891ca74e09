"""The size of a weight times the size of what it meets."""

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
class Wanda(DataCriterion):
    """Sum |w| times the norm of the input that it meets, over all weights of all layers that read a unit.

    Source
        Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1. There weights are
        compared within each output row; here they are summed over what a unit loses. The norm is the root mean
        square over all positions of the calibration data; the taps of a kernel share that of their channel. Where no
        such layer reads a unit, what its own layers put out counts as if it were read with weight 1.
    """

    name = "wanda"

    def by_readers(self, weights: Weights, sites: Sequence[Reader]) -> Iterator[tuple[Site, np.ndarray]]:
        """Sum over all layers."""
        yield summed(weights, columns(weights, sites, "norm", 1))

    def carried(self, site: Carrier, moments: Moments) -> np.ndarray:
        """Return the norm of what is put out."""
        return site.per_unit(moments.norm)
