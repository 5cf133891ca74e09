"""Which operands turn a stored integer weight back into real numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph, Node
from prunepass.rules.table import Table


@dataclass(frozen=True)
class Scaling:
    """Positions of weight, scale (None: 1) and zero point (None: 0) of an operator, and the axis of their entries.

    An axis of None: they have an entry for each matrix of a stack, or for each column of each.
    """

    weight: int
    scale: int | None
    zero_point: int | None
    axis: int | None


SCALES: Table[Callable[[Node], Scaling | tuple[Scaling, ...]]] = Table("scales")
RESTORES = frozenset({"DequantizeLinear"})
"""They turn integers into real numbers and do nothing else."""
_MS = "com.microsoft::"

SCALES(
    f"DequantizeLinear {_MS}DequantizeLinear",
    lambda node: Scaling(0, 1, 2, node.attr("axis", 1)),
)
SCALES("Cast CastLike", lambda node: Scaling(0, None, None, 0))
SCALES("QLinearConv", lambda node: Scaling(3, 4, 5, 0))
SCALES("QLinearMatMul", lambda node: Scaling(3, 4, 5, -1))
SCALES("ConvInteger", lambda node: Scaling(1, None, 3, 0))
SCALES("MatMulInteger", lambda node: Scaling(1, None, 3, -1))
SCALES(f"{_MS}QGemm", lambda node: Scaling(3, 4, 5, 0 if node.attr("transB", 0) else -1))
SCALES(f"{_MS}DynamicQuantizeMatMul", lambda node: Scaling(1, 2, 3, -1))
SCALES(f"{_MS}MatMulIntegerToFloat", lambda node: Scaling(1, 3, 5, -1))
SCALES(f"{_MS}DynamicQuantizeLSTM", lambda node: (Scaling(1, 8, 9, None), Scaling(2, 10, 11, None)))


def real_weights(graph: Graph) -> dict[str, Callable[[], np.ndarray]]:
    """Map every stored integer weight of rank 2 or more to a function that returns its real values, float32."""
    found: dict[str, Callable[[], np.ndarray]] = {}
    for node in graph.walk():
        row = SCALES.get(node.op)
        if row is None:
            continue
        scalings = row(node)
        for scaling in scalings if isinstance(scalings, tuple) else (scalings,):
            name = node.inputs[scaling.weight]
            if name in graph.consts and len(graph.consts.shape(name)) > 1:
                found.setdefault(name, lambda node=node, scaling=scaling: _real(graph, node, scaling))  # type: ignore[misc]
    return found


def _real(graph: Graph, node: Node, scaling: Scaling) -> np.ndarray:
    weight = graph.consts[node.inputs[scaling.weight]].astype(np.float32)
    axis = None if scaling.axis is None else scaling.axis % weight.ndim
    zero = _entries(graph, node, scaling.zero_point, weight.shape, axis)
    scale = _entries(graph, node, scaling.scale, weight.shape, axis)
    weight = weight if zero is None else weight - zero
    return weight if scale is None else weight * scale


def _entries(
    graph: Graph, node: Node, position: int | None, shape: tuple[int, ...], axis: int | None
) -> np.ndarray | None:
    """Spread a scale or zero point over a weight; None where it is absent or computed."""
    name = node.inputs[position] if position is not None and position < len(node.inputs) else ""
    if name not in graph.consts:
        return None
    values = graph.consts[name].astype(np.float32)
    if values.size == 1:
        return values.reshape(())
    if axis is None:
        return values.reshape(shape[0], 1, -1)
    if values.ndim == len(shape):  # blocked
        return np.repeat(values, -(-shape[axis] // values.shape[axis]), axis=axis)[
            tuple(slice(0, size) for size in shape)
        ]
    return values.reshape([-1 if a == axis else 1 for a in range(len(shape))])
