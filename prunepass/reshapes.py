"""Small rewrites of Reshape and its like: two made one, moved behind what no shape matters to."""

from __future__ import annotations

from collections.abc import Mapping

from prunepass.fixed import Named
from prunepass.graph import Graph, Node
from prunepass.rules.folding import BROADCASTS, POINTWISE, RESHAPES
from prunepass.targets import fixed_target, store_target

Shapes = Mapping[str, Named]


def merge_reshapes(graph: Graph, shapes: Shapes) -> int:
    """Let a Reshape, Squeeze or the like read what the one in front of it reads; return how many."""
    made, makers, changes = dict[int, tuple[Node, ...]](), graph.producers(), 0
    for node in graph.walk() if graph.opset >= 5 else ():
        maker = makers.get(node.inputs[0]) if node.op in RESHAPES else None
        if maker is None or maker.op not in RESHAPES:
            continue
        other = _reshaped(graph, node, maker.inputs[0], shapes)
        if other is not None:
            made[id(node)] = (other,)
            makers[node.outputs[0]] = other
            changes += 1
    graph.replace(made)
    return changes


def _reshaped(graph: Graph, node: Node, source: str, shapes: Shapes) -> Node | None:
    """Return a Reshape of something with the same elements; None where the target is not known."""
    target = node.inputs[1] if node.op == "Reshape" and len(node.inputs) > 1 else ""
    if not (target in graph.consts and target not in graph.overridable and bool((graph.consts[target] != 0).all())):
        sizes = fixed_target(node, shapes)
        if sizes is None:
            return None
        target = store_target(graph, node, sizes)
    return Node.make("Reshape", [source, target], node.outputs, name=node.name)


def sink_reshapes(graph: Graph, shapes: Shapes) -> int:
    """Take out a Reshape where all that follows, up to the next ones, works element by element; return how many.

    What lies between has another shape then, and another name.
    """
    uses, results, touched, made = graph.uses(), graph.results, set[str](), dict[int, tuple[Node, ...]]()
    for nodes in (graph.nodes, *(body.nodes for body in graph.bodies)) if graph.opset >= 5 else ():
        places = {id(node) for node in nodes}
        for first in [node for node in nodes if node.op in RESHAPES]:
            source, out = first.inputs[0], first.outputs[0]
            region = _region(graph, first, shapes, uses, places) if id(first) not in made else None
            if region is None or not touched.isdisjoint((source, *region)) or not results.isdisjoint(region):
                continue
            ends = {id(n): n for name in region for n, _ in uses.get(name, ()) if n.op in RESHAPES}
            read = {key: source if end.inputs[0] == out else end.inputs[0] for key, end in ends.items()}
            ended = {key: _reshaped(graph, end, read[key], shapes) for key, end in ends.items()}
            if None in ended.values():
                continue
            touched.update((source, *region))
            made.update({key: (end,) for key, end in ended.items() if end is not None})
            made[id(first)] = ()
            names = {name: graph.fresh_name(f"{name}_unshaped") for name in region if name != out} | {out: source}
            for node in [n for name in region for n, _ in uses.get(name, ())] + [end for end in ended.values() if end]:
                node.inputs = [names.get(name, name) for name in node.inputs]
                node.outputs = [names.get(name, name) for name in node.outputs]
    graph.replace(made)
    return sum(not nodes for nodes in made.values())


def _region(
    graph: Graph,
    first: Node,
    shapes: Shapes,
    uses: Mapping[str, list[tuple[Node, int]]],
    places: set[int],
) -> dict[str, None] | None:
    """Return the values that could keep the shape in front of a Reshape; None where somebody minds."""
    source = shapes.get(first.inputs[0])
    if source is None:
        return None
    region, waiting, inner = {first.outputs[0]: None}, [first.outputs[0]], dict[int, Node]()
    while waiting:
        for node, position in uses.get(waiting.pop(), ()):
            if id(node) not in places or (node.op in RESHAPES and position != 0):
                return None
            if node.op in RESHAPES or id(node) in inner:
                continue
            if node.op not in POINTWISE or len(node.outputs) != 1:
                return None
            inner[id(node)] = node
            region[node.outputs[0]] = None
            waiting.append(node.outputs[0])
    fits = all(name in region or _is_number(graph, name, len(source)) for n in inner.values() for name in n.inputs)
    return region if inner and fits else None


def _is_number(graph: Graph, name: str, rank: int) -> bool:
    """Whether an operand is absent, or a single stored number that adds no axes."""
    shape = graph.consts.shape(name) if name in graph.consts else None
    return not name or (shape is not None and set(shape) <= {1} and len(shape) <= rank)


def bypass_stretches(graph: Graph, shapes: Shapes) -> int:
    """Let element-wise nodes read what an Expand, or one that adds leading axes, reads: they stretch it anyway."""
    makers, changes = graph.producers(), 0
    for node in graph.walk() if graph.opset >= 8 else ():
        for position, name in enumerate(node.inputs if node.op in BROADCASTS else ()):
            maker = makers.get(name)
            if maker is None or (maker.op != "Expand" and maker.op not in RESHAPES):
                continue
            own, stretched = shapes.get(maker.inputs[0]), shapes.get(name)
            others = [shapes.get(other) for at, other in enumerate(node.inputs) if at != position]
            if own is None or stretched is None or (maker.op in RESHAPES and not _leads(own, stretched)):
                continue
            if _stretches_alike(own, stretched, [other for other in others if other is not None]):
                node.inputs[position] = maker.inputs[0]
                changes += 1
    return changes


def _leads(own: Named, stretched: Named) -> bool:
    """Whether a shape is another one with axes of length one in front."""
    more = len(stretched) - len(own)
    return more > 0 and None not in own and set(stretched[:more]) == {1} and stretched[more:] == own


def _stretches_alike(own: Named, stretched: Named, others: list[Named]) -> bool:
    """Whether the other operands stretch every axis as far as it was stretched."""
    for back, size in enumerate(reversed(stretched), 1):
        there = [other[-back] for other in others if len(other) >= back]
        mine = own[-back] if back <= len(own) else 1
        if size is None or not (size in there or (mine == size and (back <= len(own) or there))):
            return False
    return True


__all__ = ["bypass_stretches", "merge_reshapes", "sink_reshapes"]
