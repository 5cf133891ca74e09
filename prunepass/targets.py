"""Write the targets of Reshape out where they are put together of fixed or named sizes and one other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prunepass.fixed import Named
from prunepass.graph import Graph, Node
from prunepass.rules.folding import SIZE_MOVES
from prunepass.rules.values import SHAPE_VALUES, evaluate

_FEW = 64


class Sizes:
    """Follow short lists of integers through nodes that only pick and join.

    Units
        lists: by name; a number from 0 on is itself, one below 0 the code of a size that is not fixed.
    """

    def __init__(self, graph: Graph, shapes: Mapping[str, Named]) -> None:
        self._graph, self._shapes = graph, shapes
        self._codes: dict[object, int] = {}
        self._stored = graph.consts.keys() - graph.overridable
        self.lists: dict[str, np.ndarray] = {}
        for node in graph.walk():
            if node.op == "Shape" or node.op in SIZE_MOVES:
                found = self._shape(node) if node.op == "Shape" else self._moved(node)
                if found is not None and all(array.size <= _FEW for array in found):
                    self.lists.update(zip(node.outputs, found))

    def code(self, size: int | str | None) -> int:
        """Return the number that stands for a size; equal names have equal codes."""
        if isinstance(size, int):
            return size
        return self._codes.setdefault(object() if size is None else size, -1 - len(self._codes))

    def _shape(self, node: Node) -> list[np.ndarray] | None:
        shape = self._shapes.get(node.inputs[0])
        return None if shape is None else SHAPE_VALUES[node.op](node, tuple(map(self.code, shape)))

    def _moved(self, node: Node) -> list[np.ndarray] | None:
        data = SIZE_MOVES[node.op] or len(node.inputs)
        operands: list[np.ndarray | None] = []
        for position, name in enumerate(node.inputs):
            stored = self._graph.consts[name] if name in self._stored and self._is_list(name) else None
            array = self.lists.get(name) if stored is None and position < data else stored
            if array is None and name:
                return None
            operands.append(array)
        moved = operands[:data]
        if not any(name in self.lists for name in node.inputs[:data]) or any(a is None or a.size == 0 for a in moved):
            return None
        if any(name in self._stored and (self._graph.consts[name] < 0).any() for name in node.inputs[:data]):
            return None  # not to be taken for a code
        found = evaluate(node, operands)
        return found if found is not None and all(array.dtype.kind == "i" for array in found) else None

    def _is_list(self, name: str) -> bool:
        return self._graph.consts.nbytes(name) <= 8 * _FEW and self._graph.consts[name].dtype.kind == "i"


def spell_targets(graph: Graph, shapes: Mapping[str, Named]) -> int:
    """Give each Reshape a stored target where at most one size is left open; return how many.

    That one is what remains, whatever it is; a size that has the name of the same axis of the input is copied.
    """
    waiting = [n for n in graph.walk() if n.op == "Reshape" and len(n.inputs) > 1 and n.inputs[1] not in graph.consts]
    if not waiting or graph.opset < 5:
        return 0
    sizes, changes = Sizes(graph, shapes), 0
    for node in waiting:
        target = _target(node, sizes, shapes)
        if target is not None:
            node.inputs[1] = store_target(graph, node, target)
            node.del_attr("allowzero")
            changes += 1
    return changes


def _target(node: Node, sizes: Sizes, shapes: Mapping[str, Named]) -> list[int] | None:
    """Return the sizes that a Reshape can be told instead of the list that is computed."""
    found = sizes.lists.get(node.inputs[1])
    if found is None or found.ndim != 1 or not found.all():
        return fixed_target(node, shapes)
    if (found < 0).sum() <= 1:
        return [max(int(size), -1) for size in found]
    own = [sizes.code(size) for size in shapes.get(node.inputs[0], ())]
    copied = [i < len(own) and size < 0 and size == own[i] for i, size in enumerate(found)]
    target = [0 if copied[i] else max(int(size), -1) for i, size in enumerate(found)]
    return target if target.count(-1) <= 1 else fixed_target(node, shapes)


def fixed_target(node: Node, shapes: Mapping[str, Named]) -> list[int] | None:
    """Return the target of a Reshape that gives the shape of a result, -1 for the only size that is not fixed."""
    dims = shapes.get(node.outputs[0])
    target = None if dims is None else [size if isinstance(size, int) else -1 for size in dims]
    return target if target is not None and 0 not in target and target.count(-1) <= 1 else None


def store_target(graph: Graph, node: Node, target: list[int]) -> str:
    """Store the target of a node; return its name."""
    name = graph.fresh_name(f"{node.outputs[0]}_shape")
    graph.consts[name] = np.array(target, np.int64)
    return name


__all__ = ["Sizes", "fixed_target", "spell_targets", "store_target"]
