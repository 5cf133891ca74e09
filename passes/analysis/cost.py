"""The cost of the model and of what a plan leaves of it."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.cost import CostModel, cost_of
from prunepass.graph import Graph
from prunepass.labels import Policy
from prunepass.manager import Analysis, Facts


@dataclass(frozen=True)
class Cost(Analysis):
    """Count MACs, parameters, bytes, peak RAM and traffic, and predict them for any plan without cutting.

    policy: that of the coupling whose units the plans name.
    """

    name = "cost"
    policy: Policy = "balanced"

    def run(self, graph: Graph, facts: Facts) -> CostModel:
        """Return the cost model."""
        factors = facts.get("coupling", policy=self.policy).factors
        return cost_of(graph, facts.get("shapes"), factors)
