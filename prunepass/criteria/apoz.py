"""How often a unit is active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunepass.criteria.data import Carrier, DataCriterion, carriers, outputs_and_weights
from prunepass.criteria.weights import Site, Weights
from prunepass.rules.cost import MACS
from prunepass.rules.flat import makes_zeros

if TYPE_CHECKING:
    from prunepass.recovery.moments import Moments


@dataclass(frozen=True)
class Apoz(DataCriterion):
    """Take 1 - the average percentage of zeros behind the activation: the share of values above 0.

    Source
        Hu et al. 2016, "Network Trimming", eq. 1. Behind Relu and Clip at 0 the two are the same; behind activations
        that are never 0, as Gelu, and where there is none, a value counts as a zero unless it is above 0. Several
        activations of a unit are averaged by the reduction.
    """

    name = "apoz"

    def tiers(self, weights: Weights) -> dict[str, Sequence[Site]]:
        """Look behind activations that make zeros, then at what layers read, then at what they put out."""
        return {**activation_tiers(weights), **outputs_and_weights(weights)}

    def carried(self, site: Carrier, moments: Moments) -> np.ndarray:
        """Return the share of values above 0."""
        shares = moments.positive_share
        return np.asarray(site.per_unit(shares) / site.per_unit(np.ones(shares.size)))


def activation_tiers(weights: Weights) -> dict[str, Sequence[Site]]:
    """Return the values behind activations that make zeros, and those that layers read."""
    graph = weights.graph
    zeroed = (node.outputs[0] for node in graph.nodes if makes_zeros(node, graph))
    read = (name for node in graph.nodes if node.op in MACS for name in node.inputs)
    return {
        "activations that make zeros": carriers(weights, zeroed),
        "what layers read of it": carriers(weights, read),
    }
