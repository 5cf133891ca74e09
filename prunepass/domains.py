"""Find out which values an input may take, from what reads it: an index of a table, a size, a root."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import numpy_helper

from prunepass.graph import Graph, Node, walk_nodes

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Domain:
    """Hold what the readers of a value ask of it."""

    below: int | None = None  # an index: smaller than this
    size: bool = False  # a size, a count or an axis
    positive: bool = False  # a root or a logarithm is taken of it
    choices: tuple[float, ...] = ()  # constants that it is compared with

    def both(self, other: Domain) -> Domain:
        """Return what satisfies two readers."""
        limits = [b for b in (self.below, other.below) if b is not None]
        below = min(limits) if limits else None
        choices = tuple(dict.fromkeys((*self.choices, *other.choices)))
        return Domain(below, self.size or other.size, self.positive or other.positive, choices)

    def moved(self, offset: float, scale: float = 1) -> Domain:
        """Return the domain of x where this is the one of x * scale + offset."""
        below = None if self.below is None or scale <= 0 else math.ceil((self.below - offset) / scale)
        return Domain(below, size=self.size and scale == 1 and offset == 0)


_ANY = Domain()
_FIRST = """Cast CastLike Reshape Unsqueeze Squeeze Identity Flatten Transpose Slice Expand Tile Split Dropout Pad
Gather GatherElements GatherND ReduceMax ReduceMin Clip"""
_SECOND = "Reshape Expand Tile TopK Split OneHot Pad"
_SAME = {  # operators whose output holds the values of these inputs; None = of all
    **dict.fromkeys(_FIRST.split(), (0,)),
    **dict.fromkeys(("Concat", "Max", "Min")),
    "Where": (1, 2),
}
_SIZES = {  # inputs that are shapes, sizes, counts or bounds
    **dict.fromkeys(_SECOND.split(), (1,)),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Resize": (3,),
    "Slice": (1, 2, 3, 4),
    "Loop": (0,),
}
_TABLES = {  # (operator, position of the indices) -> position of what is indexed
    ("Gather", 1): 0,
    ("GatherElements", 1): 0,
    ("ScatterElements", 1): 0,
    ("GatherND", 1): 0,
    ("ScatterND", 1): 0,
    ("ai.onnx.ml::ArrayFeatureExtractor", 1): 0,
    ("com.microsoft::EmbedLayerNormalization", 0): 2,
    ("com.microsoft::EmbedLayerNormalization", 1): 4,
    ("com.microsoft::EmbedLayerNormalization", 8): 3,
}
_DERIVED = (
    "Cast",
    "DequantizeLinear",
    "Identity",
    "Mul",
    "Div",
    "Add",
    "Sub",
    "Where",
    "Neg",
)  # a table of the same shape


class Domains:
    """Answer for the values of one graph what may stand in them; input shapes help where tables are computed."""

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self._graph, self._shapes = graph, shapes
        nodes = list(graph.nodes)
        for node in graph.nodes:
            nodes.extend(Node(inner) for body in node.subgraphs for inner in walk_nodes(body))
        self._makers = {name: node for node in nodes for name in node.outputs}
        self._uses: dict[str, list[tuple[Node, int]]] = {}
        for node in nodes:
            for position, name in enumerate(node.inputs):
                self._uses.setdefault(name, []).append((node, position))
        self._known: dict[str, Domain] = {}

    def of(self, name: str) -> Domain:
        """Return what the readers of a value ask of it, directly or after moves, casts and offsets."""
        if name not in self._known:
            self._known[name] = _ANY  # while it is being found; a loop ends here
            found = _ANY
            for node, position in self._uses.get(name, ()):
                found = found.both(self._of_use(node, position))
            self._known[name] = found
        return self._known[name]

    def _of_use(self, node: Node, position: int) -> Domain:
        op = node.op
        if (op, position) in _TABLES:
            return Domain(below=self._extent(node, node.inputs[_TABLES[op, position]]))
        if position in _SIZES.get(op, ()):
            return Domain(size=True)
        if op == "OneHot" and position == 0:
            depth = self._constant(node.inputs[1])
            return _ANY if depth is None else Domain(below=int(depth.max()))
        if op in ("Sqrt", "Log"):
            return replace(self.of(node.outputs[0]), below=None, positive=True)
        if op in _SAME and position in (_SAME[op] or (position,)):
            return functools.reduce(Domain.both, map(self.of, node.outputs), _ANY)
        if op in ("Add", "Sub", "Mul", "Equal") and len(node.inputs) == 2:
            return self._of_arithmetic(node, position)
        return _ANY

    def _of_arithmetic(self, node: Node, position: int) -> Domain:
        other = self._constant(node.inputs[1 - position])
        if other is None or other.size == 0 or other.dtype.kind not in "iuf":
            return _ANY
        if node.op == "Equal":
            return Domain(choices=(float(other.flat[0]),)) if other.size == 1 else _ANY
        after = self.of(node.outputs[0])
        if node.op == "Mul":
            return after.moved(0, float(other.max()))
        if node.op == "Add":
            return after.moved(float(other.max()))
        return after.moved(-float(other.min())) if position == 0 else _ANY

    def _extent(self, node: Node, table: str) -> int:
        """Return how many entries a table has along the indexed axis; 1 where nobody knows."""
        shape = self._shape(table, 4)
        if not shape:
            return 1
        if node.op in ("GatherND", "ScatterND"):
            return max(1, min(shape))
        axis = -1 if node.op.endswith("ArrayFeatureExtractor") else int(node.attr("axis", 0))
        return max(1, shape[axis]) if -len(shape) <= axis < len(shape) else 1

    def _shape(self, name: str, depth: int) -> tuple[int, ...] | None:
        if name in self._graph.consts:
            return self._graph.consts.shape(name)
        if name in self._shapes:
            return self._shapes[name]
        node = self._makers.get(name)
        if node is None or depth == 0:
            return None
        tensor = node.tensor("value") if node.op == "Constant" else None
        if tensor is not None:
            return tuple(tensor.dims)
        if node.op in _DERIVED:
            shapes = [self._shape(i, depth - 1) for i in node.inputs if i]
            return max((s for s in shapes if s), key=lambda s: (len(s), s), default=None)
        if node.op == "Transpose":
            inner = self._shape(node.inputs[0], depth - 1)
            order = node.attr("perm") or list(range(len(inner or ())))[::-1]
            return None if inner is None or len(order) != len(inner) else tuple(inner[i] for i in order)
        return None

    def _constant(self, name: str) -> np.ndarray | None:
        if name in self._graph.consts and self._graph.consts.nbytes(name) <= 2**16:
            return self._graph.consts[name]
        node = self._makers.get(name)
        tensor = node.tensor("value") if node is not None and node.op == "Constant" else None
        return None if tensor is None else numpy_helper.to_array(tensor)
