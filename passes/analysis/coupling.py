"""Which indices of which tensors can only be removed together."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.coupling import Coupling as CouplingFacts
from prunepass.coupling import analyse
from prunepass.graph import Graph
from prunepass.labels import Policy
from prunepass.manager import Analysis, Facts


@dataclass(frozen=True)
class Coupling(Analysis):
    """Find the groups of indices that can only be removed together, by running the graph on labels.

    Units
        policy: how heads and conv groups shrink: every block loses the same number (balanced), whole blocks go
        (whole), or the same index goes in every block (aligned).
    """

    name = "coupling"
    policy: Policy = "balanced"

    def run(self, graph: Graph, facts: Facts) -> CouplingFacts:
        """Return units, groups and barriers."""
        shapes = facts.get("shapes")
        return analyse(graph, shapes.shape, shapes.value, shapes.elem_type, self.policy)
