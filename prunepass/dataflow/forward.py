"""Run a graph on ranges: which channels are known constants, whatever the input."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunepass.dataflow.ranges import Range, Unknown
from prunepass.graph import Graph, Node
from prunepass.rules import range_moves
from prunepass.rules.known import FLOATS, Known
from prunepass.rules.ranges import RANGES

__all__ = ["find_ranges", "range_moves", "view"]


def find_ranges(graph: Graph, shapes: Any) -> dict[str, Range]:
    """Return the range of every float value of which something is known, from front to back.

    Source
        This project: interval arithmetic on channels; a channel whose bounds meet is a constant.
    """
    found: dict[str, Range] = {}
    for node in graph.walk():
        if node.op in RANGES and shapes.elem_type.get(node.outputs[0]) in FLOATS:
            known = view(graph, node, shapes.shape, shapes.value, found)
            for name, data in zip(node.outputs, _results(known)):
                if name and not data.nothing and data.low.ndim == len(shapes.shape.get(name, ())):
                    found[name] = data
    return found


def view(graph: Graph, node: Node, shapes: Any, values: Any, ranges: dict[str, Range]) -> Known:
    """Show a node to the rows of a table."""
    return Known(node, graph.opset, graph.consts, graph.overridable, shapes, values, ranges)


def _results(known: Known) -> list[Range]:
    try:
        with np.errstate(all="ignore"):
            return list(RANGES[known.node.op](known))
    except Unknown:
        return []
