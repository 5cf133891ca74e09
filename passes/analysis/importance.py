"""How much each unit matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunepass.criteria import ImportanceFacts, criterion, rate, weights_for
from prunepass.graph import Graph
from prunepass.labels import Policy
from prunepass.manager import Analysis, Facts


@dataclass(frozen=True)
class Importance(Analysis):
    """Score every unit: weights -> site -> unit (reduce) -> comparable across groups (normalise).

    criterion: its text, options in braces: random{seed=3}. normalise: auto is the normaliser that the criterion
    names, mean for most. policy: that of the coupling whose units are scored.

    Raises
        ModelError: a weight holds NaN or infinity.
    """

    name = "importance"
    criterion: str = "l2"
    reduce: Literal["mean", "sum", "max", "first"] = "mean"
    normalise: Literal["auto", "mean", "max", "sum", "none", "lamp", "standardise"] = "auto"
    policy: Policy = "balanced"

    def __post_init__(self) -> None:
        criterion(self.criterion)

    def run(self, graph: Graph, facts: Facts) -> ImportanceFacts:
        """Return the scores."""
        chosen = criterion(self.criterion)
        weights = weights_for(chosen, graph, facts.get("coupling", policy=self.policy), facts)
        return rate(weights, chosen, self.reduce, self.normalise)
