"""What the removal of each unit does to the output, from calibration data."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.graph import Graph
from prunepass.labels import Policy
from prunepass.manager import Analysis, Facts
from prunepass.recovery.errors import UnitErrors, unit_errors
from prunepass.recovery.sequential import Options


@dataclass(frozen=True)
class Errors(Analysis):
    """Predict the output error that each unit causes when it goes and the layers behind it are refitted.

    Units
        memory: MB of activations that are held; beyond it they go to files.
    """

    name = "errors"
    memory: int = 1024
    policy: Policy = "balanced"

    def run(self, graph: Graph, facts: Facts) -> UnitErrors:
        """Return the errors."""
        from prunepass.recovery.batches import calibration

        coupling = facts.get("coupling", policy=self.policy)
        macs = facts.get("cost", policy=self.policy).total.macs
        options = Options(facts.context.seed, self.memory << 20)
        return unit_errors(graph, coupling, calibration(facts), macs, options, facts.context.tell)
