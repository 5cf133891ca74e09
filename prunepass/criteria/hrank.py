"""How much information the feature maps of a unit hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunepass.criteria.apoz import activation_tiers
from prunepass.criteria.data import Carrier, DataCriterion, outputs_and_weights
from prunepass.criteria.weights import Site, Weights

if TYPE_CHECKING:
    from prunepass.recovery.statistics import Statistics


@dataclass(frozen=True)
class Hrank(DataCriterion):
    """Average the rank of the feature maps of a unit over the images.

    Source
        Lin et al. 2020, "HRank: Filter Pruning using High-Rank Feature Map", eq. 5: maps behind Relu or, where there is
        none, what the next layer reads. The authors take 500 images. Only images have maps: units of other values are
        scored by the L2 norm of the weights.

    Units
        images: how many are looked at; ranks hardly depend on them, and each costs a decomposition per channel.
    """

    name = "hrank"
    images: int = 64

    def tiers(self, weights: Weights) -> dict[str, Sequence[Site]]:
        """Look at maps behind activations, at those that layers read and put out, then at the weights."""
        tiers = {**activation_tiers(weights), **outputs_and_weights(weights)}
        return {name: [site for site in sites if _is_map(site)] for name, sites in tiers.items()}

    def by_carriers(self, weights: Weights, sites: Sequence[Carrier]) -> Iterator[tuple[Site, np.ndarray]]:
        """Return the mean ranks."""
        from prunepass.recovery.statistics import Tap

        statistics: Statistics = weights.fact("statistics")
        few = statistics.first(self.images)
        ranks = {site.tensor: np.zeros(0) for site in sites}
        counts = dict.fromkeys(ranks, 0)

        def tap(name: str) -> Tap:
            def visit(batch: int, maps: np.ndarray) -> None:
                found = matrix_ranks(maps).sum(axis=0)
                ranks[name] = found + (ranks[name] if counts[name] else 0)
                counts[name] += len(maps)

            return Tap((name,), visit)

        few.stream([tap(name) for name in ranks])
        for site in sites:
            mean = ranks[site.tensor] / max(1, counts[site.tensor])
            yield site, site.per_unit(mean)


def matrix_ranks(maps: np.ndarray) -> np.ndarray:
    """Return the numerical rank of each (..., m, n) matrix of float32 numbers.

    The squares of the singular values come from the smaller Gram matrix in float64, several times faster; the limit is
    that of `numpy.linalg.matrix_rank`.
    """
    wide = maps.shape[-1] > maps.shape[-2]
    tall = (np.swapaxes(maps, -1, -2) if wide else maps).astype(np.float64)
    squares = np.linalg.eigvalsh(np.swapaxes(tall, -1, -2) @ tall)
    limit = max(maps.shape[-2:]) * np.finfo(np.float32).eps
    return np.asarray((squares > squares[..., -1:] * limit**2).sum(axis=-1))


def _is_map(site: Site) -> bool:
    """Say whether a site is a constant, or the channels of images."""
    return not isinstance(site, Carrier) or (site.rank == 4 and site.axes == (1,))
