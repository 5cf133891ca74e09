"""Remove what nobody reads, and store equal tensors once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph
from prunepass.manager import Facts, Rewrite
from prunepass.tidying import bypass_no_ops, remove_dead, remove_unused


@dataclass(frozen=True)
class Clean(Rewrite):
    """Remove no-ops, dead nodes and unused initializers, and share equal tensors."""

    name = "clean"

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of nodes, tensors and uses that changed."""
        return bypass_no_ops(graph) + remove_dead(graph) + share_equal(graph) + remove_unused(graph)


def share_equal(graph: Graph) -> int:
    """Let all uses of equal tensors read the first of them; return the number of uses that changed."""
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
