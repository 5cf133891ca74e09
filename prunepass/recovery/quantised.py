"""Weights behind DequantizeLinear: seen and refitted as floats, stored as the nearest integers.

Refitted weights are larger, since fewer of them do the work. Where they leave the range of the integers their scale
grows, and with it that of the bias, since onnxruntime takes it that the scale of a bias is that of the input times that
of the weight. A scale that others read stays as it is; what lies beyond the range is then cut off, and held-back rows
say whether that is still better. Zero points stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunepass.consts import FLOAT_TYPES
from prunepass.graph import Graph, Node, Use
from prunepass.rules.scales import RESTORES


@dataclass(frozen=True)
class Grid:
    """Say which floats can be stored: (integer - zero) * scale.

    name, scale_name: the constants that hold the integers and the scale. free: nothing else reads the scale.

    Shapes
        scale, zero: as many axes as the constant, of length 1 but for the one that they go along.
    """

    name: str
    scale_name: str
    scale: np.ndarray
    zero: np.ndarray
    dtype: np.dtype[np.integer]
    free: bool

    def stored(self, value: np.ndarray) -> np.ndarray:
        """Return the nearest integers."""
        limits = np.iinfo(self.dtype)
        whole = np.rint(value.astype(np.float64) / self.scale) + self.zero
        return np.asarray(np.clip(whole, limits.min, limits.max).astype(self.dtype))

    def real(self, stored: np.ndarray) -> np.ndarray:
        """Return the floats that integers stand for."""
        return np.asarray((stored.astype(np.float64) - self.zero) * self.scale).astype(self.scale.dtype)

    def excess(self, value: np.ndarray) -> np.ndarray:
        """Return how many times larger the scale has to be for a value, at least 1, in the shape of the scale."""
        limits, steps = np.iinfo(self.dtype), value.astype(np.float64) / self.scale
        along = tuple(axis for axis, size in enumerate(self.scale.shape) if size == 1)
        above = steps.max(axis=along, keepdims=True) / np.maximum(limits.max - self.zero, 1)
        below = steps.min(axis=along, keepdims=True) / np.minimum(limits.min - self.zero, -1)
        return np.asarray(np.maximum(np.maximum(above, below), 1.0))

    def times(self, factor: np.ndarray) -> Grid:
        """Return the grid with another scale; factor: as many numbers as the scale has."""
        scale = self.scale * factor.reshape(self.scale.shape)
        return replace(self, scale=scale.astype(self.scale.dtype))


class Grids(Mapping[str, Grid]):
    """Show the weights of a graph that are integers as floats, by the names that their readers use."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.nodes = graph, list(graph.nodes)
        uses, results = graph.uses(), graph.results
        found = {node.outputs[0]: _grid(node, graph, uses) for node in graph.nodes if node.op in RESTORES}
        self._grids = {
            name: grid
            for name, grid in found.items()
            if grid is not None and name not in results and len(uses[grid.name]) == 1
        }
        for name, grid in self._grids.items():
            graph.consts[name] = grid.real(graph.consts[grid.name])
        graph.remove(node for node in self.nodes if node.outputs[0] in self._grids)

    def close(self) -> None:
        """Put the nodes back; the integers are those that were stored last."""
        self.graph.nodes[:] = self.nodes
        for name in self._grids:
            del self.graph.consts[name]

    def fitting(self, name: str, value: np.ndarray, bias: str) -> tuple[Grid, Grid | None]:
        """Return the grids of a weight and its bias, with scales for a new value of the weight."""
        grid, other = self._grids[name], self._grids.get(bias)
        factor = grid.excess(value)
        follows = bias not in self or (other is not None and other.free and other.scale.size == factor.size)
        if not grid.free or not follows or (factor == 1).all():
            return grid, other
        return grid.times(factor), other and other.times(factor)

    def put(self, name: str, grid: Grid, value: np.ndarray) -> dict[str, np.ndarray]:
        """Store a weight on a grid; returns the constants that changed."""
        changed = {grid.name: grid.stored(value)}
        if grid is not self._grids[name]:
            changed[grid.scale_name] = grid.scale.reshape(self.graph.consts.shape(grid.scale_name))
        self._grids[name] = grid
        self.graph.consts.update(changed)
        self.graph.consts[name] = grid.real(changed[grid.name])
        return changed

    def __getitem__(self, name: str) -> Grid:
        return self._grids[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._grids)

    def __len__(self) -> int:
        return len(self._grids)


def as_floats(graph: Graph) -> Graph:
    """Return a copy of a graph in which the weights that are integers are floats."""
    twin = graph.copy()
    Grids(twin)
    return twin


def _grid(node: Node, graph: Graph, uses: Mapping[str, Sequence[Use]]) -> Grid | None:
    """Return the grid of a constant; None where it is none, or one with a scale for each block."""
    consts, names = graph.consts, [name for name in node.inputs if name]
    if any(name not in consts for name in names) or node.attr("block_size", 0):
        return None
    stored, scale = consts[names[0]], consts[names[1]]
    if consts.elem_type(names[1]) not in FLOAT_TYPES or stored.dtype.kind not in "iu" or scale.ndim > 1:
        return None
    zero = consts[names[2]] if len(names) > 2 else np.zeros((), stored.dtype)
    shape = [1] * stored.ndim
    if scale.size > 1:
        axis = node.attr("axis", 1)
        if not -stored.ndim <= axis < stored.ndim:
            return None
        shape[axis] = stored.shape[axis]
    if scale.size not in (1, math.prod(shape)) or zero.size not in (1, scale.size) or not (scale > 0).all():
        return None
    widened = np.broadcast_to(zero.reshape(-1), scale.reshape(-1).shape)
    zeros = widened.reshape(shape).astype(np.int64)
    return Grid(names[0], names[1], scale.reshape(shape), zeros, stored.dtype, len(uses[names[1]]) == 1)
