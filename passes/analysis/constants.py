"""What each channel of each value may be: a known constant, a number of known sign, anything."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.dataflow.forward import find_ranges
from prunepass.dataflow.ranges import Range
from prunepass.graph import Graph
from prunepass.manager import Analysis, Facts


@dataclass(frozen=True)
class Constants(Analysis):
    """Find out channel by channel what values may be, above all which channels are known constants."""

    name = "constants"

    def run(self, graph: Graph, facts: Facts) -> dict[str, Range]:
        """Return the range of every float value of which something is known."""
        return find_ranges(graph, facts.get("shapes"))
