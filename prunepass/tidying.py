"""Take out what has no effect: nodes that change nothing, nodes that nobody reads, constants that nobody reads."""

from __future__ import annotations

from prunepass.graph import Graph, Node
from prunepass.rules.folding import NO_OPS


def bypass_no_ops(graph: Graph) -> int:
    """Let the users of a node that changes nothing read its input; return the number of nodes removed."""
    outputs, names, kept = set(graph.output_names), dict[str, str](), []
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]
        for name in node.captured:
            if name in names:
                node.rename_captured(name, names[name])
        if node.op in NO_OPS and node.outputs[0] not in outputs and NO_OPS[node.op](node):
            names[node.outputs[0]] = node.inputs[0]
        else:
            kept.append(node)
    return _keep(graph, kept)


def remove_dead(graph: Graph) -> int:
    """Remove nodes of which no result reaches a graph output; return their number."""
    live, kept = set(graph.output_names), []
    for node in reversed(graph.nodes):
        if not live.isdisjoint(node.outputs):
            live.update(name for name in (*node.inputs, *node.captured) if name)
            kept.append(node)
    return _keep(graph, kept[::-1])


def remove_unused(graph: Graph) -> int:
    """Remove constants that no node reads, except those that a caller may feed; return their number."""
    used = {*graph.output_names, *graph.overridable}
    for node in graph.nodes:
        used.update(node.inputs)
        used.update(node.captured)
    unused = [name for name in graph.consts if name not in used]
    for name in unused:
        del graph.consts[name]
    return len(unused)


def _keep(graph: Graph, kept: list[Node]) -> int:
    changes = len(graph.nodes) - len(kept)
    graph.nodes = kept
    return changes
