"""Remove what nobody reads, and store equal tensors once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph
from prunepass.manager import Facts, Rewrite


@dataclass(frozen=True)
class Clean(Rewrite):
    """Remove dead nodes and unused initializers, and share equal tensors."""

    name = "clean"

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of nodes, tensors and uses that changed."""
        return remove_dead(graph) + share_equal(graph) + remove_unused(graph)


def remove_dead(graph: Graph) -> int:
    """Remove nodes of which no result reaches a graph output."""
    live, kept = set(graph.output_names), []
    for node in reversed(graph.nodes):
        if live.intersection(node.outputs):
            live.update(node.inputs)
            live.update(node.captured)
            kept.append(node)
    changes = len(graph.nodes) - len(kept)
    graph.nodes = kept[::-1]
    return changes


def share_equal(graph: Graph) -> int:
    """Let all uses of equal tensors read the first of them."""
    first: dict[tuple[object, ...], list[str]] = {}
    twin_of: dict[str, str] = {}
    for name in graph.consts:
        key = (graph.consts.elem_type(name), graph.consts.shape(name), _sample(graph.consts[name]))
        for other in first.setdefault(key, []):
            if name not in graph.overridable and _equal(graph.consts[name], graph.consts[other]):
                twin_of[name] = other
                break
        else:
            if name not in graph.overridable:
                first[key].append(name)
    if not twin_of:
        return 0
    changes = 0
    for node in graph.nodes:
        shared = [twin_of.get(name, name) for name in node.inputs]
        changes += sum(a != b for a, b in zip(shared, node.inputs))
        node.inputs = shared
        for name in node.captured:
            if name in twin_of:
                node.rename_captured(name, twin_of[name])
                changes += 1
    return changes


def _sample(array: np.ndarray) -> bytes:
    """Some bytes of a tensor that tell most different ones apart."""
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // 64)].tobytes()


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Same bits, NaN included."""
    if a is b:
        return True
    if a.dtype == object:
        return bool((a == b).all())
    step = 1 << 20
    x, y = a.reshape(-1), b.reshape(-1)
    return all(x[i : i + step].tobytes() == y[i : i + step].tobytes() for i in range(0, x.size, step))


def remove_unused(graph: Graph) -> int:
    """Remove constants that no node reads."""
    used = set(graph.output_names)
    for node in graph.nodes:
        used.update(node.inputs)
        used.update(node.captured)
    unused = [name for name in graph.consts if name not in used and name not in graph.overridable]
    for name in unused:
        del graph.consts[name]
    return len(unused)
