"""Which operators normalise by stored statistics: the inputs that are data, mean and variance."""

from __future__ import annotations

from prunepass.graph import Graph, Node
from prunepass.rules.dims import trains
from prunepass.rules.table import Table

STATISTICS: Table[tuple[int, int, int]] = Table("stored statistics")
STATISTICS("BatchNormalization", (0, 3, 4))


def stored_statistics(node: Node, graph: Graph) -> tuple[str, str, str] | None:
    """Return the names of data, mean and variance of a node; None where it stores none, or computes them itself."""
    if node.op not in STATISTICS or trains(node, graph.opset):
        return None
    x, mean, variance = (node.inputs[at] for at in STATISTICS[node.op])
    return (x, mean, variance) if mean in graph.consts and variance in graph.consts else None
