"""What the values of the model are like on calibration data."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.errors import PipelineError
from prunepass.graph import Graph
from prunepass.manager import Analysis, Facts
from prunepass.recovery.batches import calibration
from prunepass.recovery.statistics import Statistics as StatisticsFacts


@dataclass(frozen=True)
class Statistics(Analysis):
    """Answer for means, variances, zeros and Gram matrices of values on calibration data, one run for each question.

    Units
        memory: MB of activations that are held; what goes beyond it lies in files.

    Raises
        ModelError: a value is not finite.
    """

    name = "statistics"
    memory: int = 1024

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise PipelineError(f"statistics: memory={self.memory} must be at least 1")

    def run(self, graph: Graph, facts: Facts) -> StatisticsFacts:
        """Return what answers; nothing is computed before it is asked for."""
        shapes, context = facts.get("shapes").shape, facts.context
        return StatisticsFacts(graph, calibration(facts), shapes, context.seed, self.memory << 20, context.tell)
