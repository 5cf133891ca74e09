"""Remove what nobody reads, and store equal tensors once."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.graph import Graph
from prunepass.manager import Facts, Rewrite
from prunepass.tidying import bypass_no_ops, remove_dead, remove_unused, twins


@dataclass(frozen=True)
class Clean(Rewrite):
    """Remove no-ops, dead nodes and unused initializers, and share equal tensors."""

    name = "clean"

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of nodes, tensors and uses that changed."""
        return bypass_no_ops(graph) + remove_dead(graph) + share_equal(graph) + remove_unused(graph)


def share_equal(graph: Graph) -> int:
    """Let all uses of equal tensors read the first of them; return the number of uses that changed."""
    twin_of = twins(graph)
    changes = 0
    for node in graph.walk() if twin_of else ():
        shared = [twin_of.get(name, name) for name in node.inputs]
        changes += sum(a != b for a, b in zip(shared, node.inputs))
        node.inputs = shared
        for name in () if node.bodies else node.captured:
            if name in twin_of:
                node.rename_captured(name, twin_of[name])
                changes += 1
    return changes
