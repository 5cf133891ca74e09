"""Small rewrites of operands: those that say what is assumed anyway, types that are known, slices of slices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prunepass.fixed import Named
from prunepass.graph import Graph, Node
from prunepass.rules.folding import ASSUMED, KEEPS_ZERO, KEEPS_ZERO_OF


def drop_zeros(graph: Graph) -> int:
    """Leave out biases and first states that are zero; return how many."""
    makers, changes = graph.producers(), 0
    for node in graph.walk():
        for position in ASSUMED.get(node.op, ()):
            name = node.inputs[position] if position < len(node.inputs) else ""
            if name and not (node.op == "Gemm" and graph.opset < 11) and is_zero(graph, name, makers):
                node.inputs[position] = ""
                changes += 1
        while node.op in ASSUMED and node.inputs and not node.inputs[-1]:
            node.inputs.pop()
    return changes


def is_zero(graph: Graph, name: str, makers: Mapping[str, Node]) -> bool:
    """Whether a value certainly holds nothing but zeros, of whatever shape."""
    if name in graph.consts:
        array = graph.consts[name]
        return name not in graph.overridable and array.dtype != object and not array.any()
    node = makers.get(name)
    if node is None:
        return False
    if node.op == "ConstantOfShape":
        return not np.any(node.attrs.get("value", 0))
    data = node.inputs[: KEEPS_ZERO_OF.get(node.op)] if node.op in KEEPS_ZERO else []
    return bool(data) and all(is_zero(graph, given, makers) for given in data)


def cast_to_known(graph: Graph, kinds: Mapping[str, int]) -> int:
    """Make a Cast of a CastLike where the type is known; return how many."""
    made: dict[int, tuple[Node, ...]] = {}
    for node in graph.walk():
        kind = kinds.get(node.inputs[1]) if node.op == "CastLike" else None
        if kind:
            options = {key: value for key, value in node.attrs.items() if graph.opset >= 19 or key != "saturate"}
            made[id(node)] = (Node.make("Cast", node.inputs[:1], node.outputs, name=node.name, to=kind, **options),)
    return graph.replace(made)


def decide_where(graph: Graph, shapes: Mapping[str, Named]) -> int:
    """Make an Expand of a Where that always takes the same side; return how many."""
    made: dict[int, tuple[Node, ...]] = {}
    for node in graph.walk() if graph.opset >= 9 else ():
        stored = node.op == "Where" and node.inputs[0] in graph.consts.keys() - graph.overridable
        asked = graph.consts[node.inputs[0]].reshape(-1) if stored else np.zeros(0, bool)
        dims = shapes.get(node.outputs[0], (None,))
        sizes = [size for size in dims if isinstance(size, int)]
        if asked.size and bool((asked == asked[0]).all()) and len(sizes) == len(dims):
            target = graph.fresh_name(f"{node.outputs[0]}_shape")
            graph.consts[target] = np.array(sizes, np.int64)
            taken = node.inputs[1 if asked[0] else 2]
            made[id(node)] = (Node.make("Expand", [taken, target], node.outputs, name=node.name),)
    return graph.replace(made)


def merge_slices(graph: Graph) -> int:
    """Let a Slice of a slice along other axes cut both ways; return how many."""
    uses, results, changes = graph.uses(), graph.results, 0
    for maker in graph.walk() if graph.opset >= 10 else ():
        readers = uses.get(maker.outputs[0], []) if maker.op == "Slice" else []
        if maker.outputs[0] in results or not all(at == 0 and _disjoint(graph, maker, node) for node, at in readers):
            continue
        for node, _ in readers:
            pairs = zip(_cuts(graph, maker) or (), _cuts(graph, node) or ())
            both = [np.array([*first, *second], np.int64) for first, second in pairs]
            names = [graph.fresh_name(f"{node.outputs[0]}_{what}") for what in ("starts", "ends", "axes", "steps")]
            graph.consts.update(dict(zip(names, both)))
            node.inputs = [maker.inputs[0], *names]
            changes += 1
    return changes


def _disjoint(graph: Graph, maker: Node, reader: Node) -> bool:
    first, second = _cuts(graph, maker), _cuts(graph, reader) if reader.op == "Slice" else None
    return first is not None and second is not None and set(first[2]).isdisjoint(second[2])


def _cuts(graph: Graph, node: Node) -> list[list[int]] | None:
    """Return starts, ends, axes and steps of a Slice, where they are stored, and axes counted from the front."""
    found: list[list[int]] = []
    for position in (1, 2, 3, 4):
        name = node.inputs[position] if position < len(node.inputs) else ""
        if not name and position > 2:
            count = len(found[0])
            found.append(list(range(count)) if position == 3 else [1] * count)
        elif name in graph.consts and name not in graph.overridable:
            found.append([int(v) for v in graph.consts[name].reshape(-1)])
        else:
            return None
    return found if all(axis >= 0 for axis in found[2]) else None


__all__ = ["cast_to_known", "decide_where", "drop_zeros", "is_zero", "merge_slices"]
