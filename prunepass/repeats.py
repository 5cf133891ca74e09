"""How often the nodes in bodies run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunepass.rules.control import ports
from prunepass.rules.cost import MACS, Shape

if TYPE_CHECKING:
    from prunepass.graph import Graph, Node


def turns(graph: Graph, known: Mapping[str, Shape]) -> dict[int, int]:
    """Return how often each node in a body runs, by its id: 0 in the branch of an If that costs less.

    Shapes
        known: of all values where they are known.
    """
    found: dict[int, int] = {}
    for node in graph.nodes:
        if node.bodies:
            _count(graph, node, known, 1, found)
    return found


def _count(graph: Graph, node: Node, known: Mapping[str, Shape], times: int, found: dict[int, int]) -> int:
    """Note how often the nodes in the bodies of a node run; return their MACs."""
    inner = times * _length(graph, node, known)
    costs = []
    for body in node.bodies:
        macs = 0
        for own in body.nodes:
            found[id(own)] = inner
            macs += _count(graph, own, known, inner, found) if own.bodies else inner * _macs(own, known)
        costs.append(macs)
    if node.op == "If":
        for body, cost in zip(node.bodies, costs):
            if cost < max(costs) or body is not node.bodies[costs.index(cost)]:
                _skip(body.nodes, found)
    return max(costs)


def _skip(nodes: list[Node], found: dict[int, int]) -> None:
    for node in nodes:
        found[id(node)] = 0
        for body in node.bodies:
            _skip(body.nodes, found)


def _length(graph: Graph, node: Node, known: Mapping[str, Shape]) -> int:
    """Return how often the body of a node runs: a stored number, the length of what it scans or collects, or 1."""
    if node.op == "If":
        return 1
    slices = ports(node).collected if node.op == "Loop" else ports(node).scanned
    for name, axis in [(s.outer, s.axis) for s in slices if s.outer in known]:
        return known[name][axis]
    stored = node.op == "Loop" and node.inputs[0] in graph.consts
    return max(0, int(graph.consts[node.inputs[0]].reshape(-1)[0])) if stored else 1


def _macs(node: Node, known: Mapping[str, Shape]) -> int:
    names = [name for name in (*node.inputs, *node.outputs) if name]
    if node.op not in MACS or any(name not in known for name in names):
        return 0
    ins = [known[name] if name else None for name in node.inputs]
    return MACS[node.op](node, ins, [known[name] if name else () for name in node.outputs])
