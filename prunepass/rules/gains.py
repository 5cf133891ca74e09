"""Where norms multiply channels by a number each, and shift them: one row per operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prunepass.consts import FLOAT_TYPES
from prunepass.graph import Graph, Node, Use
from prunepass.rules.attending import CARRIED
from prunepass.rules.linear import SUMS
from prunepass.rules.table import Table

Uses = Mapping[str, Sequence[Use]]


@dataclass(frozen=True)
class Gain:
    """See a node as the end of a norm: y = scale n + shift, channel by channel, with n what it makes of its input.

    x: its input. scale, shift: constants, shift "" where there is none. axis: of y, from the back if below 0.
    """

    node: Node
    x: str
    scale: str
    shift: str
    y: str
    axis: int


Producers = Mapping[str, Node]
Row = Callable[[Node, Graph, Uses, Producers], "Gain | None"]
GAINS: Table[Row] = Table("scale and shift of channels")


def gain(node: Node, graph: Graph, uses: Uses, producers: Producers) -> Gain | None:
    """Return a node as scale and shift of channels; None where it is none, or others read its constants, too."""
    found = GAINS[node.op](node, graph, uses, producers) if node.op in GAINS else None
    if found is None:
        return None
    own = all(len(uses[name]) == 1 and name not in graph.results for name in (found.scale, found.shift) if name)
    return found if own else None


def _vector(graph: Graph, name: str, size: int | None = None) -> bool:
    """Say whether a constant is a vector of numbers, of this size, whatever its rank."""
    if name not in graph.consts or graph.consts.elem_type(name) not in FLOAT_TYPES:
        return False
    shape = graph.consts.shape(name)
    return math.prod(shape) == max(shape, default=1) > 1 and size in (None, max(shape))


def _at(scale: int, shift: int | None, axis: int) -> Row:
    """Make a row for an operator that holds scale and shift as operands."""

    def row(node: Node, graph: Graph, uses: Uses, producers: Producers) -> Gain | None:
        given = [*node.inputs, "", "", "", ""]
        name, other = given[scale], given[shift] if shift is not None else ""
        known = _vector(graph, name) and (not other or _vector(graph, other, max(graph.consts.shape(name))))
        return Gain(node, node.inputs[0], name, other, node.outputs[0], axis) if known else None

    return row


_MS = "com.microsoft::"
_MOST_STEPS = 6
GAINS("InstanceNormalization", _at(1, 2, 1))
GAINS("SimplifiedLayerNormalization RMSNormalization", _at(1, None, -1))
GAINS("LayerNormalization", _at(1, 2, -1))
GAINS(f"{_MS}SkipLayerNormalization", _at(2, 3, -1))
GAINS(f"{_MS}SkipSimplifiedLayerNormalization", _at(2, None, -1))


@GAINS.row("Mul")
def _mul(node: Node, graph: Graph, uses: Uses, producers: Producers) -> Gain | None:
    """The end of a norm that is written out: a vector, and one that is added behind it."""
    for at in (0, 1):
        name, x = node.inputs[at], node.inputs[1 - at]
        if not _vector(graph, name) or not _normalised(x, producers):
            continue
        shape = graph.consts.shape(name)
        axis = shape.index(max(shape)) - len(shape)
        shift, y = _added(node.outputs[0], shape, graph, uses)
        return Gain(node, x, name, shift, y, axis)
    return None


BEFORE = CARRIED | {"Cast"}
NORMS = frozenset("LayerNormalization InstanceNormalization GroupNormalization MeanVarianceNormalization".split())
REDUCED = frozenset("ReduceMean ReduceSum ReduceSumSquare ReduceL2".split())
QUOTIENTS = frozenset(("Div", "Mul"))
ROOTS = frozenset("Sqrt Reciprocal Pow Add Max Clip Div Cast Expand".split())


def _normalised(name: str, producers: Producers) -> bool:
    """Say whether a value comes out of a norm, or is a quotient with what reductions make, behind moves."""
    node = producers.get(name)
    while node is not None and (node.op in BEFORE):
        node = producers.get(node.inputs[0])
    if node is None or node.op in NORMS:
        return node is not None
    return node.op in QUOTIENTS and any(_root(x, producers) for x in node.inputs)


def _root(name: str, producers: Producers) -> bool:
    """Say whether a value is a root, or the like, of what a reduction makes."""
    for _ in range(_MOST_STEPS):
        node = producers.get(name)
        if node is None or node.op in REDUCED:
            return node is not None
        if node.op not in ROOTS:
            return False
        name = next((x for x in node.inputs if x in producers), "")
    return False


def _added(y: str, shape: Sequence[int], graph: Graph, uses: Uses) -> tuple[str, str]:
    readers = uses.get(y, ())
    if len(readers) == 1 and readers[0][0].op in SUMS and readers[0][1] >= 0 and y not in graph.results:
        node, at = readers[0]
        name = node.inputs[1 - at]
        if _vector(graph, name) and tuple(graph.consts.shape(name)) == tuple(shape):
            return name, node.outputs[0]
    return "", y
