"""Compute once and for all what only stored tensors decide, as far as the file gets smaller by it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from prunepass.consts import FLOAT_TYPES, QUANTISED_TYPES
from prunepass.fixed import named_shapes
from prunepass.graph import Graph, Node
from prunepass.rules.folding import GROWS
from prunepass.rules.values import VALUES, element_type, evaluate
from prunepass.tidying import twins

_NODE_BYTES = 256
_NUMBER = 16
"""What a node is worth: so many bytes of integers may be stored to be rid of it, a sixteenth where they are numbers."""
_MOST_ELEMENTS, _FEW_ELEMENTS = 1 << 24, 1 << 12
_MOST_BYTES = 1 << 28
_ENDLESS = 1 << 30
_SOURCE, _SINK = 0, 1


def fold_stored(graph: Graph) -> int:
    """Replace nodes that read only stored tensors by what they compute; return how many.

    Which ones is a minimum cut: a tensor costs its bytes where anybody who stays reads it, a node that stays costs a
    little. So a large table that a few nodes make of a small one is still made by them.
    """
    values, nodes = _computed(graph)
    if not nodes:
        return 0
    stays = _kept(graph, nodes, values)
    gone = [node for node in nodes if id(node) not in stays]
    left = {id(node) for node in gone}
    uses = graph.uses()
    for node in gone:
        for name in node.outputs:
            if any(id(reader) not in left for reader, _ in uses.get(name, ())):
                graph.consts[name] = values[name]
    return graph.remove(gone)


def _computed(graph: Graph) -> tuple[dict[str, np.ndarray], list[Node]]:
    """Compute what can be computed; return the values by name, and their nodes in order."""
    stored = graph.consts.keys() - graph.overridable
    values, nodes, results = dict[str, np.ndarray](), list[Node](), graph.results
    shapes: Mapping[str, tuple[object, ...]] | None = None
    size = 0
    for node in graph.walk():
        given = [name for name in node.inputs if name]
        if node.op not in VALUES or not given or not results.isdisjoint(node.outputs) or size > _MOST_BYTES:
            continue
        if not all(name in values or name in stored for name in given):
            continue
        shapes = named_shapes(graph)[0] if shapes is None else shapes
        operands = [(values[name] if name in values else graph.consts[name]) if name else None for name in node.inputs]
        found = evaluate(node, operands) if _is_bounded(node, operands, shapes) else None
        if found is not None:
            made = {name: np.asarray(array) for name, array in zip(node.outputs, found) if name}
            values.update(made)
            size += sum(array.nbytes for array in made.values())
            nodes.append(node)
    return values, nodes


def _is_bounded(node: Node, operands: list[np.ndarray | None], shapes: Mapping[str, tuple[object, ...]]) -> bool:
    """Whether the result is certainly not too large to be made."""
    dims = shapes.get(node.outputs[0])
    if dims is not None and all(isinstance(size, int) for size in dims):
        return math.prod(size for size in dims if isinstance(size, int)) <= _MOST_ELEMENTS
    if node.op in GROWS:
        sizes = operands[GROWS[node.op]]
        known = sizes is not None and sizes.dtype.kind in "iu" and sizes.size <= 16
        grown = math.prod(max(1, int(v)) for v in sizes.reshape(-1)) if known and sizes is not None else _ENDLESS
        return grown * max(1, operands[0].size if operands[0] is not None else 1) <= _MOST_ELEMENTS
    return node.op != "Range" and sum(array.size for array in operands if array is not None) <= _FEW_ELEMENTS


def _kept(graph: Graph, nodes: list[Node], values: Mapping[str, np.ndarray]) -> set[int]:
    """Return the nodes that stay, by id: those on the far side of a minimum cut."""
    arcs = _arcs(graph, nodes, values)
    shift = max(0, sum(cost or 0 for cost in arcs.values()).bit_length() - 29)
    costs = [_ENDLESS if cost is None else max(1, cost >> shift) for cost in arcs.values()]
    count = 1 + max(max(arc) for arc in arcs)
    network = sparse.csr_matrix((np.array(costs, np.int32), tuple(zip(*arcs))), shape=(count, count))
    left = network - csgraph.maximum_flow(network, _SOURCE, _SINK).flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    reached = csgraph.breadth_first_order(left.T.tocsr(), _SINK, return_predecessors=False)
    return {id(nodes[place - 2]) for place in reached.tolist() if 2 <= place < 2 + len(nodes)}


def _arcs(graph: Graph, nodes: list[Node], values: Mapping[str, np.ndarray]) -> dict[tuple[int, int], int | None]:
    """Map (from, to) to a cost, None for endless: from who makes a tensor to it, and from it to who reads it."""
    place = {id(node): 2 + i for i, node in enumerate(nodes)}
    arcs: dict[tuple[int, int], int | None] = {(_SOURCE, at): _NODE_BYTES for at in place.values()}
    same, uses, results = twins(graph), graph.uses(), graph.results
    makers = {name: place[id(node)] for node in nodes for name in node.outputs if name}
    roots = {same.get(name, name) for node in nodes for name in node.inputs if name and name not in values}
    tensors: dict[str, int] = {}
    for name in (*graph.consts, *values):
        root = same.get(name, name)
        if name in values or root in roots:
            at = tensors.setdefault(root, 2 + len(nodes) + len(tensors))
            arcs[makers.get(name, _SOURCE), at] = _cost(values[name] if name in values else graph.consts[root])
            readers = {place.get(id(reader), _SINK) for reader, _ in uses.get(name, ())}
            arcs.update({(at, reader): None for reader in readers})
            if name in results or name in graph.overridable:
                arcs[at, _SINK] = None
    return arcs


def _cost(array: np.ndarray) -> int:
    kind = 0 if array.dtype == object else element_type(array)
    numbers = kind in FLOAT_TYPES or (kind in QUANTISED_TYPES and array.ndim > 1)
    return 16 + (_NUMBER if numbers else 1) * array.nbytes


__all__ = ["fold_stored"]
