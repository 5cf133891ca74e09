"""Where activations are flat, so that an error before them does not count: one row per operator."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from prunepass.graph import Graph, Node
from prunepass.rules.table import Table

Range = tuple[float, float]
FLAT: Table[Callable[[Node, Graph], Range]] = Table("flat below and above")
NOWHERE: Range = (-math.inf, math.inf)

FLAT("Relu", lambda node, graph: (0.0, math.inf))


@FLAT.row("Clip")
def _clip(node: Node, graph: Graph) -> Range:
    return _limit(node, graph, 1, "min", -math.inf), _limit(node, graph, 2, "max", math.inf)


@FLAT.row("HardSigmoid")
def _hard_sigmoid(node: Node, graph: Graph) -> Range:
    slope, offset = node.attr("alpha", 0.2), node.attr("beta", 0.5)
    return (-offset / slope, (1 - offset) / slope) if slope > 0 else NOWHERE


FLAT("HardSwish", lambda node, graph: (-3.0, math.inf))


@FLAT.row("QuantizeLinear")
def _quantise(node: Node, graph: Graph) -> Range:
    """What lies beyond the integers is cut off."""
    consts, names = graph.consts, [name for name in node.inputs[1:] if name]
    if any(name not in consts or math.prod(consts.shape(name)) != 1 for name in names):
        return NOWHERE
    scale, *rest = (consts[name].reshape(()) for name in names)
    zero = rest[0] if rest else np.zeros((), np.uint8)
    if zero.dtype.kind not in "iu" or (not rest and node.attr("output_dtype", 0)):
        return NOWHERE
    limits = np.iinfo(zero.dtype)
    return (limits.min - int(zero)) * float(scale), (limits.max - int(zero)) * float(scale)


def _limit(node: Node, graph: Graph, at: int, name: str, default: float) -> float:
    """Return a limit of Clip: an attribute before opset 11, an input since; nothing is flat where it is computed."""
    if len(node.inputs) > at and node.inputs[at]:
        known = graph.consts[node.inputs[at]] if node.inputs[at] in graph.consts else np.float32(default)
        return float(np.asarray(known, np.float64).reshape(-1)[0])
    return float(node.attr(name, default))


def flat_range(readers: list[tuple[Node, int]], graph: Graph) -> Range:
    """Return below and above what all readers of a value are flat."""
    found = [FLAT[node.op](node, graph) if node.op in FLAT and at == 0 else NOWHERE for node, at in readers]
    if not found:
        return NOWHERE
    return min(low for low, _ in found), max(high for _, high in found)


FLOOR: Table[Callable[[Node, Graph], float]] = Table("output where it is flat below")
FLOOR("Relu ThresholdedRelu HardSigmoid HardSwish", lambda node, graph: 0.0)
FLOOR("Clip", lambda node, graph: _limit(node, graph, 1, "min", -math.inf))


def makes_zeros(node: Node, graph: Graph) -> bool:
    """Say whether a node is an activation that is 0 on a whole range of inputs, as Relu is."""
    return node.op in FLOOR and FLOOR[node.op](node, graph) == 0
