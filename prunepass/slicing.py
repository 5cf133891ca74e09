"""Cut a bound plan out of a graph."""

from __future__ import annotations

from prunepass.errors import UnsupportedError
from prunepass.graph import Graph, Node
from prunepass.kept import cut
from prunepass.plan import Plan
from prunepass.rules.resize import Change, Resizing
from prunepass.rules.sizes import SIZES


def slice_graph(graph: Graph, plan: Plan) -> int:
    """Cut the constants and shrink the sizes in place; return the number of tensors and nodes changed.

    Raises
        UnsupportedError: what is left of a tensor is not a rectangle.
    """
    assert plan.coupling is not None and plan.removed is not None, "bind the plan first"
    coupling = plan.coupling
    change = Change(graph, coupling.shapes, coupling.values, coupling.factors, plan.removed)
    made: dict[int, list[Node]] = {}
    changes = 0
    for node in graph.walk():
        row = SIZES.get(node.op)
        if row is None or not any(change.axes(name) for name in (*node.inputs, *node.outputs)):
            continue
        resizing = Resizing(change, node)
        row(resizing)
        made[id(node)] = [*resizing.before, node, *resizing.after]
        changes += 1
    graph.replace(made)
    for name in plan.tensors:
        masks = change.masks(name)
        try:
            graph.consts[name] = cut(graph.consts[name], masks)
        except ValueError as error:
            raise UnsupportedError(f"tensor {name!r}: {error}; please report this model") from error
        changes += 1
    return changes
