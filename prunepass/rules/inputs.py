"""What stored numbers say of the value that they meet: how a step with a constant is undone, and stored statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph, Node
from prunepass.rules.table import Table

UNDO: Table[Callable[[np.ndarray, np.ndarray], np.ndarray]] = Table("the first operand, from result and constant")
UNDO("Sub", lambda value, constant: value + constant)
UNDO("Add", lambda value, constant: value - constant)
UNDO("Div", lambda value, constant: value * constant)
UNDO("Mul", lambda value, constant: value / np.where(constant == 0, 1, constant))

PASSES = frozenset({"Identity", "Cast", "Dropout"})
"""Operators that leave every number in its place."""


@dataclass(frozen=True)
class Stored:
    """Hold the mean and the variance that a node stores, for the channels of its input."""

    mean: np.ndarray
    variance: np.ndarray
    axis: int = 1


STORED: Table[Callable[[Node, Graph], Stored | None]] = Table("stored statistics of the input")


@STORED.row("BatchNormalization")
def _batch_normalization(node: Node, graph: Graph) -> Stored | None:
    names = node.inputs[3:5]
    if node.attr("training_mode", 0) or len(names) < 2 or any(name not in graph.consts for name in names):
        return None
    mean, variance = (graph.consts[name].astype(np.float64) for name in names)
    good = np.isfinite(mean).all() and np.isfinite(variance).all() and (variance >= 0).all()
    return Stored(mean, variance) if good else None
