"""Small rewrites that need no plan: equal nodes, nodes that change nothing at these shapes, pairs that are one node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from prunepass.fixed import Named, fold_fixed, named_shapes
from prunepass.graph import Graph, Node
from prunepass.operands import cast_to_known, decide_where, drop_zeros, merge_slices
from prunepass.reshapes import bypass_stretches, merge_reshapes, sink_reshapes
from prunepass.rules.folding import IMPURE, NO_OPS, SHAPED_NO_OPS, Shaped
from prunepass.targets import spell_targets
from prunepass.tidying import bypass, twins


def simplify_more(graph: Graph) -> int:
    """Apply each rewrite once; return the number of changes."""
    plain = (share_nodes, drop_zeros, merge_slices, merge_transposes, merge_concats, pad_in_convolutions)
    changes = fold_fixed(graph, always=True) + sum([step(graph) for step in plain])
    shapes, kinds = named_shapes(graph)
    changes += bypass_at_shapes(graph, shapes, kinds) + cast_to_known(graph, kinds)
    shaped = (
        decide_where,
        spell_targets,
        merge_reshapes,
        bypass_stretches,
        fuse_gemm,
        sink_reshapes,
    )  # the last one changes shapes
    return changes + sum([step(graph, shapes) for step in shaped])


def share_nodes(graph: Graph) -> int:
    """Compute equal nodes once: same operator, attributes and operands; return the number removed."""
    same, results, gone = twins(graph), graph.results, list[Node]()
    first: dict[tuple[object, ...], Node] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]
        for name in () if node.bodies else node.captured:
            if name in names:
                node.rename_captured(name, names[name])
        if node.op in IMPURE or node.subgraphs or node.bodies:
            continue
        key = (node.op, _attributes(node), tuple(same.get(name, name) for name in node.inputs), _present(node))
        twin = first.setdefault(key, node)
        if twin is not node and results.isdisjoint(node.outputs):
            names.update(zip(node.outputs, twin.outputs))
            gone.append(node)
    for body in graph.bodies:
        for old, new in names.items():
            body.rename(old, new)
    return graph.remove(gone)


def _attributes(node: Node) -> tuple[bytes, ...]:
    return tuple(sorted(attribute.SerializeToString() for attribute in node.to_proto().attribute))


def _present(node: Node) -> tuple[bool, ...]:
    return tuple(bool(name) for name in node.outputs)


def bypass_at_shapes(graph: Graph, shapes: Mapping[str, Named], kinds: Mapping[str, int]) -> int:
    """Let users of a node that changes nothing, given the shapes that the file fixes, read its input."""
    fixed = {name: graph.consts[name] for name in graph.consts.keys() - graph.overridable if _small(graph, name)}

    def changes_nothing(node: Node) -> int | None:
        row = SHAPED_NO_OPS.get(node.op)
        return None if row is None or any(node.outputs[1:]) else row(Shaped(node, shapes, kinds, fixed))

    return bypass(graph, changes_nothing) + bypass_at_outputs(graph, changes_nothing)


def bypass_at_outputs(graph: Graph, same_as: Callable[[Node], int | None]) -> int:
    """Let who makes the operand of a node that changes nothing make the graph output; return how many nodes went."""
    gone, ends = list[Node](), graph.results
    for node in [node for node in graph.nodes if node.outputs[0] in graph.output_names]:
        position = 0 if node.op in NO_OPS and NO_OPS[node.op](node, graph.consts) else same_as(node)
        source, out = node.inputs[position or 0] if node.inputs else "", node.outputs[0]
        maker = next((other for other in graph.nodes if source and source in other.outputs), None)
        if position is None or maker is None or source in ends:
            continue
        maker.outputs = [out if name == source else name for name in maker.outputs]
        for reader, at in graph.uses().get(source, ()):
            reader.inputs = [out if name == source else name for name in reader.inputs]
            if at < 0:
                reader.rename_captured(source, out)
        gone.append(node)
    return graph.remove(gone)


def _small(graph: Graph, name: str) -> bool:
    return graph.consts.nbytes(name) <= 1 << 12


# ---- pairs -----------------------------------------------------------------------------------------------------------
def _pairs(graph: Graph, ops: frozenset[str]) -> Iterator[tuple[Node, Node, int]]:
    """Yield (maker, reader, position) where only the reader, in the same body, sees what the maker makes."""
    uses, results = graph.uses(), graph.results
    for nodes in (*(body.nodes for body in graph.bodies), graph.nodes):
        made = {name: node for node in nodes for name in node.outputs if name}
        for reader in list(nodes):
            for position, name in enumerate(reader.inputs if reader.op in ops else ()):
                if name in made and len(uses.get(name, ())) == 1 and name not in results:
                    yield made[name], reader, position


def merge_transposes(graph: Graph) -> int:
    """Let a Transpose read what the one in front of it reads; return how many."""
    makers, changes = graph.producers(), 0
    for node in graph.walk():
        maker = makers.get(node.inputs[0]) if node.op == "Transpose" else None
        inner, outer = (n.attr("perm") if n and n.op == "Transpose" else None for n in (maker, node))
        if maker is not None and inner is not None and outer is not None:
            node.set_attr("perm", [inner[axis] for axis in outer])
            node.inputs[0] = maker.inputs[0]
            changes += 1
    return changes


def merge_concats(graph: Graph) -> int:
    """Let a Concat take in one along the same axis that nobody else reads; return how many."""
    gone = dict[int, Node]()
    for maker, reader, _ in _pairs(graph, frozenset(("Concat",))):
        if maker.op == "Concat" and maker.attr("axis") == reader.attr("axis") and maker.attr("axis", -1) >= 0:
            at = reader.inputs.index(maker.outputs[0])
            reader.inputs[at : at + 1] = maker.inputs
            gone[id(maker)] = maker
    return graph.remove(gone.values())


def pad_in_convolutions(graph: Graph) -> int:
    """Let a Conv pad with zeros by itself; return the number of Pad nodes that went."""
    gone: list[Node] = []
    for maker, reader, position in _pairs(graph, frozenset(("Conv",))):
        widths = _zero_border(graph, maker) if maker.op == "Pad" and position == 0 else None
        if widths is None or reader.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        rank = len(widths) // 2
        own = reader.attr("pads") or [0] * (2 * rank - 4)
        if len(own) != 2 * rank - 4:
            continue
        reader.del_attr("auto_pad")
        reader.set_attr("pads", [a + b for a, b in zip(own, [*widths[2:rank], *widths[rank + 2 :]])])
        reader.inputs[0] = maker.inputs[0]
        gone.append(maker)
    return graph.remove(gone)


def _zero_border(graph: Graph, node: Node) -> list[int] | None:
    """Return the widths of a Pad that puts zeros around the positions of an image, and nothing around its channels."""
    attribute = "pads" if "pads" in node.attrs else "paddings"
    stored = [graph.consts[name] for name in node.inputs[1:] if name in graph.consts.keys() - graph.overridable]
    if node.attr("mode", "constant") != "constant" or len(stored) < sum(map(bool, node.inputs[1:])) or len(stored) > 2:
        return None
    widths = [int(v) for v in np.ravel(node.attrs[attribute] if attribute in node.attrs else stored[0])]
    number = float(np.ravel(stored[1])[0]) if len(stored) > 1 else node.attr("value", 0.0)
    rank = len(widths) // 2
    outer = [*widths[:2], *widths[rank : rank + 2]]
    return None if number or any(outer) or min(widths) < 0 or rank < 3 else widths


def fuse_gemm(graph: Graph, shapes: Mapping[str, Named]) -> int:
    """Make a Gemm of a MatMul of matrices and an Add of one number per column; return how many."""
    gone, done = list[Node](), dict[int, tuple[Node, ...]]()
    for maker, reader, position in _pairs(graph, frozenset(("Add",))) if graph.opset >= 7 else ():
        if maker.op == "MatMul" and id(reader) not in done and _is_dense(graph, maker, reader, position, shapes):
            inputs = [*maker.inputs, reader.inputs[1 - position]]
            done[id(reader)] = (Node.make("Gemm", inputs, reader.outputs, name=maker.name),)
            gone.append(maker)
    graph.replace(done)
    graph.remove(gone)
    return len(gone)


def _is_dense(graph: Graph, product: Node, total: Node, position: int, shapes: Mapping[str, Named]) -> bool:
    weight, bias = product.inputs[1], total.inputs[1 - position]
    if weight not in graph.consts or bias not in graph.consts or len(shapes.get(product.inputs[0], ())) != 2:
        return False
    shape, row = graph.consts.shape(weight), graph.consts.shape(bias)
    floats = np.issubdtype(graph.consts[weight].dtype, np.floating)
    return floats and len(shape) == 2 and row in ((shape[1],), (1, shape[1]))


__all__ = [
    "bypass_at_outputs",
    "bypass_at_shapes",
    "fuse_gemm",
    "merge_concats",
    "merge_transposes",
    "pad_in_convolutions",
    "share_nodes",
    "simplify_more",
]
