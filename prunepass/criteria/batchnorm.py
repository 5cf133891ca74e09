"""Criteria that read normalisation gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.criteria.base import Criterion
from prunepass.criteria.weights import Site, Weights

GAIN, VARIANCE = 1, 4
"""Input positions of a BatchNormalization."""
_BATCH_NORMS = frozenset({"BatchNormalization"})


@dataclass(frozen=True)
class BnScale(Criterion):
    """Take |gamma| of the BatchNormalizations of a unit; the L2 norm of its producing weights in a group without any.

    Source
        Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 3.
    """

    name = "bn-scale"

    def tiers(self, weights: Weights) -> dict[str, Sequence[Site]]:
        """Look at the gains first, then at the producing weights."""
        gains = {node.inputs[GAIN] for node in weights.graph.walk() if node.op in _BATCH_NORMS}
        return {
            "BatchNormalization": [site for site in weights.sites if site.tensor in gains],
            "the L2 norm of the producing weights": weights.producers,
            **super().tiers(weights),
        }

    def score(self, weights: Weights, site: Site) -> np.ndarray:
        """Return the norm of what a unit has: |gamma| of a gain, the L2 norm of a weight."""
        return np.asarray(np.sqrt(weights.power(site, 2)))


def squared_gains(weights: Weights) -> dict[str, np.ndarray]:
    """Return gamma^2 / (variance + epsilon) of the BatchNormalization directly behind each producing weight.

    Shapes
        One number for each of the units of the weight's producing site; weights without such a node are left out.
    """
    uses, consts = weights.graph.uses(), weights.graph.consts
    found: dict[str, np.ndarray] = {}
    for site in weights.producers:
        readers = uses.get(uses[site.tensor][0][0].outputs[0], [])
        norm = readers[0][0] if len(readers) == 1 and readers[0][0].op in _BATCH_NORMS else None
        if norm is None or not {norm.inputs[GAIN], norm.inputs[VARIANCE]} <= consts.keys():
            continue
        gain, variance = (consts[norm.inputs[i]].astype(np.float64) for i in (GAIN, VARIANCE))
        per_unit = np.ones(weights.coupling.n_units)
        for factor in weights.coupling.factors.get(norm.inputs[GAIN], ()):
            per_unit[factor.reshape(-1)] = gain**2 / (variance + norm.attr("epsilon", 1e-5))
        found[site.tensor] = per_unit[site.units]
    return found
