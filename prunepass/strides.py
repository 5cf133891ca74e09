"""Turn strided views that an exporter writes as a lookup of computed positions back into reshapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from prunepass.graph import Graph, Node


def reshape_views(graph: Graph) -> int:
    """Turn Gather of a flattened tensor at `row * size + [0 .. size - 1]`, for all rows, into Reshape.

    So torch.onnx writes `as_strided` of a contiguous tensor whose first axis is dynamic.
    """
    if not any(node.op == "Range" for node in graph.nodes):
        return 0
    makers, changes = graph.producers(), 0
    for node in graph.nodes:
        flat = makers.get(node.inputs[0]) if node.op == "Gather" and node.attr("axis", 0) == 0 else None
        if flat is None or not _flattens(graph, flat):
            continue
        rest = _rows_of(graph, makers, node.inputs[1])
        if rest is not None:
            target = graph.fresh_name(f"{node.outputs[0]}_shape")
            graph.consts[target] = np.array([-1, *rest], np.int64)
            graph.replace({id(node): [Node.make("Reshape", [flat.inputs[0], target], node.outputs, name=node.name)]})
            changes += 1
    return changes


def _flattens(graph: Graph, node: Node) -> bool:
    known = node.op == "Reshape" and node.inputs[1] in graph.consts
    return known and graph.consts[node.inputs[1]].tolist() == [-1]


def _rows_of(graph: Graph, makers: Mapping[str, Node], name: str) -> tuple[int, ...] | None:
    """Shape of one row of positions, if they are consecutive from row to row; else None."""
    known: list[str] = []
    computed: list[str] = []
    for term in _terms(makers, name):
        (known if term in graph.consts else computed).append(term)
    if len(computed) != 1 or not known:
        return None
    within = sum((graph.consts[term].astype(np.int64) for term in known), np.zeros((), np.int64))
    if within.ndim < 2 or within.shape[0] != 1 or not np.array_equal(within.reshape(-1), np.arange(within.size)):
        return None
    starts = makers.get(computed[0])
    if starts is None or starts.op != "Unsqueeze" or starts.inputs[1] not in graph.consts:
        return None
    along_first = graph.consts[starts.inputs[1]].tolist() == list(range(1, within.ndim))
    return within.shape[1:] if along_first and _counts_by(graph, makers, starts.inputs[0], within.size) else None


def _terms(makers: Mapping[str, Node], name: str) -> Iterator[str]:
    """Leaves of a tree of additions."""
    node = makers.get(name)
    if node is not None and node.op == "Add":
        for operand in node.inputs:
            yield from _terms(makers, operand)
    else:
        yield name


def _counts_by(graph: Graph, makers: Mapping[str, Node], name: str, size: int) -> bool:
    """Say whether a value is 0, size, 2 * size, and so on."""
    product = makers.get(name)
    if product is None or product.op != "Mul":
        return False
    step = [graph.consts[x] for x in product.inputs if x in graph.consts]
    rows = [makers.get(x) for x in product.inputs if x not in graph.consts]
    if len(step) != 1 or len(rows) != 1 or rows[0] is None or rows[0].op != "Range" or step[0].tolist() != size:
        return False
    start, stride = rows[0].inputs[0], rows[0].inputs[2]
    return all(x in graph.consts and graph.consts[x].tolist() == y for x, y in ((start, 0), (stride, 1)))
