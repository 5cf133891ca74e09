"""Carry out the plan: cut every tensor, and shrink every integer that says a size."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.errors import UnsupportedError
from prunepass.graph import Graph
from prunepass.manager import Cut, Facts, Rewrite
from prunepass.plan import Plan
from prunepass.slicing import slice_graph


@dataclass(frozen=True)
class SliceChannels(Rewrite):
    """Cut the indices that the plan removes out of every tensor of their group.

    Raises
        UnsupportedError: there is no plan; `select` makes one.
    """

    name = "slice-channels"
    idempotent = False  # a plan is carried out once

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of tensors and nodes that changed."""
        plan: Plan | None = facts.plan
        facts.plan = None
        if plan is None:
            raise UnsupportedError("slice-channels: there is no plan; put a select pass before it")
        before = graph.copy()
        changes = slice_graph(graph, plan)
        if changes:
            facts.cuts.append(Cut(before, plan, graph))
        return changes
