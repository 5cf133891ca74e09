"""Take out what has no effect: nodes that change nothing, nodes that nobody reads, constants that nobody reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunepass.graph import Graph, Node
from prunepass.rules.folding import NO_OPS


def bypass_no_ops(graph: Graph) -> int:
    """Let the users of a node that changes nothing read its input; return the number of nodes removed."""
    return bypass(graph, lambda node: 0 if node.op in NO_OPS and NO_OPS[node.op](node, graph.consts) else None)


def bypass(graph: Graph, same_as: Callable[[Node], int | None]) -> int:
    """Let the users of a node read that input of it which `same_as` names; return the number of nodes removed."""
    results, names, gone = graph.results, dict[str, str](), []
    for node in graph.walk():
        node.inputs = [names.get(name, name) for name in node.inputs]
        for name in () if node.bodies else node.captured:
            if name in names:
                node.rename_captured(name, names[name])
        position = None if results.intersection(node.outputs[:1]) else same_as(node)
        if position is not None:
            names[node.outputs[0]] = node.inputs[position]
            gone.append(node)
    return graph.remove(gone)


def twins(graph: Graph) -> dict[str, str]:
    """Map constants that are equal, bit by bit, to the first of them."""
    first: dict[tuple[object, ...], list[str]] = {}
    twin_of: dict[str, str] = {}
    for name in graph.consts:
        if name in graph.overridable:
            continue
        key = (graph.consts.elem_type(name), graph.consts.shape(name), _sample(graph.consts[name]))
        others = first.setdefault(key, [])
        twin = next((other for other in others if _equal(graph.consts[name], graph.consts[other])), None)
        if twin is None:
            others.append(name)
        else:
            twin_of[name] = twin
    return twin_of


def _sample(array: np.ndarray) -> object:
    """Some elements of a tensor that tell most different ones apart."""
    some = array.reshape(-1)[:: max(1, array.size // 64)]
    return tuple(some) if array.dtype == object else some.tobytes()


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Same bits, NaN included."""
    if a is b:
        return True
    if a.dtype == object:
        return bool((a == b).all())
    step = 1 << 20
    x, y = a.reshape(-1), b.reshape(-1)
    return all(x[i : i + step].tobytes() == y[i : i + step].tobytes() for i in range(0, x.size, step))


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
