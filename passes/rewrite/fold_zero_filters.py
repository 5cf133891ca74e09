"""Remove channels that are constant or that nobody reads, without changing the result."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.dataflow.liveness import Liveness
from prunepass.dataflow.moving import move_constants
from prunepass.graph import Graph
from prunepass.manager import Cut, Facts, Rewrite
from prunepass.plan import Plan
from prunepass.selection import kept_by_name
from prunepass.slicing import slice_graph


@dataclass(frozen=True)
class FoldZeroFilters(Rewrite):
    """Remove channels that are constant or unread, and move what they contribute into biases; lossless.

    A filter of zeros gives its bias, whatever the input; BatchNormalization and activations make other constants of it.
    A channel goes where each reader can take its constant over exactly, or has only zeros for it. At a border that is
    padded with zeros only the constant zero can be taken over.
    """

    name = "fold-zero-filters"

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of tensors and nodes that changed."""
        changes = 0
        while found := _fold(graph, facts):
            changes += found
            facts.invalidate()
        return changes


def _fold(graph: Graph, facts: Facts) -> int:
    coupling = facts.get("coupling")
    if coupling.n_units == 1:
        return 0
    live = Liveness(graph, coupling, facts.get("constants"))
    removed = live.settle(kept_by_name(graph, coupling, facts.context.keep))
    if not removed.any():
        return 0
    before = graph.copy()
    coupling = move_constants(graph, coupling, live.sites, removed)
    plan = Plan.of(graph, coupling, removed, source_sha256=facts.context.source_sha256)
    changes = slice_graph(graph, plan)
    facts.cuts.append(Cut(before, plan, graph, lossless=True))
    return changes
