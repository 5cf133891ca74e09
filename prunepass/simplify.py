"""Small rewrites that need no plan: equal nodes, nodes that change nothing at these shapes, pairs that are one node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from prunepass.fixed import fold_fixed, named_shapes
from prunepass.graph import Graph, Node
from prunepass.rules.folding import GROWS, IMPURE, RESHAPES, SHAPED_NO_OPS, WHOLE_MOVES, Shaped
from prunepass.rules.values import VALUES, evaluate
from prunepass.tidying import bypass, twins

_TINY_BYTES = 256


def simplify_more(graph: Graph) -> int:
    """Apply each rewrite once; return the number of changes."""
    steps = (fold_sizes_of_file, share_nodes, bypass_at_shapes, merge_moves, pad_in_convolutions, fuse_gemm, fold_large)
    return sum([step(graph) for step in steps])


def fold_sizes_of_file(graph: Graph) -> int:
    """Replace sizes that the file fixes by constants, whatever other axes do."""
    return fold_fixed(graph, always=True)


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


def bypass_at_shapes(graph: Graph) -> int:
    """Let users of a node that changes nothing, given the shapes that the file fixes, read its input."""
    if not any(node.op in SHAPED_NO_OPS for node in graph.walk()):
        return 0
    shapes, kinds = named_shapes(graph)
    fixed = {name: graph.consts[name] for name in graph.consts.keys() - graph.overridable if _small(graph, name)}

    def changes_nothing(node: Node) -> int | None:
        row = SHAPED_NO_OPS.get(node.op)
        return None if row is None or any(node.outputs[1:]) else row(Shaped(node, shapes, kinds, fixed))

    return bypass(graph, changes_nothing)


def _small(graph: Graph, name: str) -> bool:
    return graph.consts.nbytes(name) <= 1 << 12


def fold_large(graph: Graph) -> int:
    """Evaluate nodes whose operands are all stored, where the result is not larger than what only they read."""
    uses, results, gone = graph.uses(), graph.results, list[Node]()
    stored = graph.consts.keys() - graph.overridable
    for node in graph.walk():
        given = {name for name in node.inputs if name}
        if node.op not in VALUES or not given or not given <= stored or not results.isdisjoint(node.outputs):
            continue
        own = sum(graph.consts.nbytes(name) for name in given if len({id(n) for n, _ in uses[name]}) == 1)
        if node.op in GROWS or (node.op in WHOLE_MOVES and not own):
            continue
        found = evaluate(node, [graph.consts[name] if name else None for name in node.inputs])
        if found is not None and sum(array.nbytes for array in found) <= max(own, _TINY_BYTES):
            graph.consts.update({name: np.asarray(array) for name, array in zip(node.outputs, found) if name})
            gone.append(node)
    return graph.remove(gone)


# ---- pairs -----------------------------------------------------------------------------------------------------------
def _pairs(graph: Graph, ops: frozenset[str]) -> Iterator[tuple[Node, Node, int]]:
    """Yield (maker, reader, position) where only the reader sees what the maker makes."""
    uses, results, made = graph.uses(), graph.results, graph.producers()
    for reader in list(graph.walk()):
        for position, name in enumerate(reader.inputs if reader.op in ops else ()):
            if name in made and len(uses.get(name, ())) == 1 and name not in results:
                yield made[name], reader, position


def merge_moves(graph: Graph) -> int:
    """Make one Transpose of two, and one Reshape of two that only change the shape; return how many went."""
    gone: dict[int, Node] = {}
    for maker, reader, position in _pairs(graph, frozenset(("Transpose", "Reshape"))):
        same = maker.op in RESHAPES if reader.op == "Reshape" else maker.op == reader.op
        if position or id(maker) in gone or id(reader) in gone or not same:
            continue
        if reader.op == "Transpose":
            inner, outer = maker.attr("perm"), reader.attr("perm")
            if inner is None or outer is None:
                continue
            reader.set_attr("perm", [inner[axis] for axis in outer])
        elif not _spelled_out(graph, reader):
            continue
        reader.inputs[0] = maker.inputs[0]
        gone[id(maker)] = maker
    return graph.remove(gone.values())


def _spelled_out(graph: Graph, node: Node) -> bool:
    """Whether the target of a Reshape copies no size from its input."""
    target = node.inputs[1] if len(node.inputs) > 1 else ""
    stored = target in graph.consts and target not in graph.overridable
    return stored and not node.attr("allowzero", 0) and bool((graph.consts[target] != 0).all())


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


def fuse_gemm(graph: Graph) -> int:
    """Make a Gemm of a MatMul of matrices and an Add of one number per column; return how many."""
    if graph.opset < 7 or not any(node.op == "MatMul" for node in graph.walk()):
        return 0
    shapes, gone, done = named_shapes(graph)[0], list[Node](), dict[int, tuple[Node, ...]]()
    for maker, reader, position in _pairs(graph, frozenset(("Add",))):
        if maker.op == "MatMul" and id(reader) not in done and _is_dense(graph, maker, reader, position, shapes):
            inputs = [*maker.inputs, reader.inputs[1 - position]]
            done[id(reader)] = (Node.make("Gemm", inputs, reader.outputs, name=maker.name),)
            gone.append(maker)
    graph.replace(done)
    graph.remove(gone)
    return len(gone)


def _is_dense(
    graph: Graph, product: Node, total: Node, position: int, shapes: Mapping[str, tuple[object, ...]]
) -> bool:
    weight, bias = product.inputs[1], total.inputs[1 - position]
    if weight not in graph.consts or bias not in graph.consts or len(shapes.get(product.inputs[0], ())) != 2:
        return False
    shape, row = graph.consts.shape(weight), graph.consts.shape(bias)
    floats = np.issubdtype(graph.consts[weight].dtype, np.floating)
    return floats and len(shape) == 2 and row in ((shape[1],), (1, shape[1]))


__all__ = ["bypass_at_shapes", "fuse_gemm", "merge_moves", "pad_in_convolutions", "share_nodes", "simplify_more"]
