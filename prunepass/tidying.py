"""Take out what has no effect: nodes that change nothing, nodes that nobody reads, constants that nobody reads."""

from __future__ import annotations

from prunepass.graph import Graph, Node
from prunepass.rules.folding import NO_OPS


def bypass_no_ops(graph: Graph) -> int:
    """Let the users of a node that changes nothing read its input; return the number of nodes removed."""
    results, names, gone = graph.results, dict[str, str](), []
    for node in graph.walk():
        node.inputs = [names.get(name, name) for name in node.inputs]
        for name in () if node.bodies else node.captured:
            if name in names:
                node.rename_captured(name, names[name])
        if node.op in NO_OPS and node.outputs[0] not in results and NO_OPS[node.op](node, graph.consts):
            names[node.outputs[0]] = node.inputs[0]
            gone.append(node)
    return graph.remove(gone)


def remove_dead(graph: Graph) -> int:
    """Remove nodes of which no result reaches a graph output; return their number."""
    before = sum(1 for _ in graph.walk())
    graph.nodes = _live(graph.nodes, set(graph.output_names))
    return before - sum(1 for _ in graph.walk())


def _live(nodes: list[Node], live: set[str]) -> list[Node]:
    """Return the nodes that compute one of the names in `live`, and add what they read to it; bodies shrink, too."""
    kept = []
    for node in reversed(nodes):
        if live.isdisjoint(node.outputs):
            continue
        for body in node.bodies:
            live.update(body.outputs)
            body.nodes = _live(body.nodes, live)
        live.update(name for name in (*node.inputs, *(() if node.bodies else node.captured)) if name)
        kept.append(node)
    return kept[::-1]


def remove_unused(graph: Graph) -> int:
    """Remove constants that no node reads, except those that a caller may feed; return their number."""
    used = {*graph.output_names, *graph.overridable}
    for node in graph.walk():
        used.update(node.inputs)
        used.update(() if node.bodies else node.captured)
    unused = [name for name in graph.consts if name not in used]
    for name in unused:
        del graph.consts[name]
    return len(unused)
