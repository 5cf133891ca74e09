"""Which operators multiply by a constant matrix, and how their inputs and outputs look as rows: one row per operator.

`LINEAR[op](node, graph)` sees a node as Y = X W + b, per group: X (groups, rows, features), W (groups, features,
outputs). It is None where the weight is no float constant of its own. What fits W to data asks no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.consts import FLOAT_TYPES
from prunepass.graph import Graph, Node
from prunepass.rules.scales import RESTORES
from prunepass.rules.table import Table


@dataclass(frozen=True)
class Linear:
    """See a node as a product of rows with a constant matrix.

    x, y: the value that is multiplied, and what comes out; weight: a constant. bias_at: the input position of the
    bias, None where the node takes none. bias_scale: what the node multiplies it with. axis: of y, the channels.
    """

    node: Node
    x: str
    weight: str
    y: str
    bias_at: int | None = None
    bias_scale: float = 1.0
    axis: int = -1

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight as (groups, features, outputs)."""
        raise NotImplementedError

    def arrange(self, entries: np.ndarray) -> np.ndarray:
        """Return what stands in the places of the weight as (groups, features, outputs): its entries, not scaled."""
        return self.matrix(entries)

    def groups(self, weight: Sequence[int]) -> int:
        """Return how many matrices there are for a weight of this shape."""
        return int(self.node.attr("group", 1))

    def tensor(self, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return a weight of this shape from (groups, features, outputs)."""
        raise NotImplementedError

    def count(self, y: np.ndarray) -> int:
        """Return how many rows an output has."""
        raise NotImplementedError

    def rows(self, x: np.ndarray, weight: Sequence[int], y: Sequence[int], pick: np.ndarray) -> np.ndarray:
        """Return some rows of an input, (groups, rows, features); `weight` and `y` are shapes."""
        raise NotImplementedError

    def targets(self, y: np.ndarray, groups: int, pick: np.ndarray) -> np.ndarray:
        """Return the same rows of an output, (groups, rows, outputs)."""
        raise NotImplementedError

    def channels(self, x: np.ndarray, groups: int) -> np.ndarray:
        """Return an input as (groups, positions, channels); what the taps of a kernel share."""
        raise NotImplementedError

    def taps(self, weight: Sequence[int]) -> int:
        """Return how many features each channel has: the size of the kernel."""
        return 1


LINEAR: Table[Callable[[Node, Graph], Linear | None]] = Table("rows of a product")


def linear(node: Node, graph: Graph) -> Linear | None:
    """Return a node as a product with a constant matrix, None where it is none."""
    row = LINEAR.get(node.op)
    return None if row is None else row(node, graph)


SUMS = frozenset({"Add"})
"""Operators that add two values element by element."""


@dataclass(frozen=True)
class Bias:
    """Say where a vector is added to a product: the node and the input that reads it, "" where none is there yet.

    y: the value behind it.
    """

    node: Node
    at: int
    name: str
    y: str


def bias_of(product: Linear, graph: Graph, uses: Mapping[str, Sequence[tuple[Node, int]]]) -> Bias | None:
    """Find where a product gets, or could get, its bias: in the node, or in a sum with a constant vector behind it."""
    node, at = product.node, product.bias_at
    if at is not None:
        return Bias(node, at, node.inputs[at] if len(node.inputs) > at else "", product.y)
    readers = uses.get(product.y, ())
    if len(readers) == 1 and readers[0][0].op in SUMS and product.axis == -1 and product.y not in graph.results:
        node, at = readers[0]
        name = node.inputs[1 - at]
        shape = graph.consts.shape(name) if name in graph.consts else ()
        outputs = graph.consts.shape(product.weight)[-1]
        if shape and math.prod(shape) == shape[-1] == outputs > 1:
            return Bias(node, 1 - at, name, node.outputs[0])
    return None


_ROUNDED = RESTORES | {"QuantizeLinear"}
"""Operators behind which a value is the same but for rounding."""


def residual(y: str, graph: Graph, uses: Mapping[str, Sequence[tuple[Node, int]]]) -> tuple[str, str] | None:
    """Return the sum that a value goes into, rounded at most, with the other summand; None where it goes elsewhere."""
    while True:
        readers = uses.get(y, ())
        if len(readers) != 1 or y in graph.results:
            return None
        node, at = readers[0]
        if node.op not in _ROUNDED or at:
            break
        y = node.outputs[0]
    if node.op not in SUMS:
        return None
    other = node.inputs[1 - at]
    return None if other in graph.consts or other == y else (node.outputs[0], other)


def _is_float(graph: Graph, name: str, rank: int | None = None) -> bool:
    consts = graph.consts
    return name in consts and consts.elem_type(name) in FLOAT_TYPES and rank in (None, len(consts.shape(name)))


def _constant_bias(node: Node, graph: Graph, at: int) -> str | None:
    """Return the bias, "" where there is none, None where it is computed."""
    name = node.inputs[at] if len(node.inputs) > at else ""
    return name if not name or _is_float(graph, name) else None


# ---- convolution -----------------------------------------------------------------------------------------------------
class _Positions(Linear):
    """A layer whose rows are the positions of (N, C, spatial...)."""

    def count(self, y: np.ndarray) -> int:
        """Return how many rows an output has."""
        return int(y.shape[0] * math.prod(y.shape[2:]))

    def targets(self, y: np.ndarray, groups: int, pick: np.ndarray) -> np.ndarray:
        """Return the same rows of an output, (groups, rows, outputs)."""
        return _positions(y, groups)[:, pick]

    def channels(self, x: np.ndarray, groups: int) -> np.ndarray:
        """Return an input as (groups, positions, channels)."""
        return _positions(x, groups)

    def taps(self, weight: Sequence[int]) -> int:
        """Return how many features each channel has."""
        return math.prod(weight[2:])


@dataclass(frozen=True)
class ConvRows(_Positions):
    """A convolution: a row is the patch under one position of the output."""

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight as (groups, features, outputs)."""
        groups = self.node.attr("group", 1)
        return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)

    def tensor(self, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return a weight of this shape from (groups, features, outputs)."""
        return np.ascontiguousarray(matrix.transpose(0, 2, 1)).reshape(shape)

    def rows(self, x: np.ndarray, weight: Sequence[int], y: Sequence[int], pick: np.ndarray) -> np.ndarray:
        """Return some rows of an input, (groups, rows, features)."""
        kernel, spatial = weight[2:], len(weight) - 2
        strides = self.node.attr("strides", [1] * spatial)
        dilations = self.node.attr("dilations", [1] * spatial)
        begin, end = _pads(self.node, x.shape[2:], y[2:], kernel, strides, dilations)
        return _patches(x, kernel, strides, dilations, begin, end, y, pick, self.node.attr("group", 1))


def _positions(value: np.ndarray, groups: int) -> np.ndarray:
    """Turn (N, C, spatial...) into (groups, N * positions, C / groups)."""
    moved = np.moveaxis(value, 1, -1).reshape(-1, groups, value.shape[1] // groups)
    return moved.transpose(1, 0, 2)


def _pads(
    node: Node,
    x: Sequence[int],
    y: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Return what stands before and after each spatial axis."""
    spatial = len(kernel)
    mode = node.attr("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(y, strides, kernel, dilations)]
        total = [max(0, r - n) for r, n in zip(reach, x)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        return (small, large) if mode == "SAME_UPPER" else (large, small)
    pads = [0] * 2 * spatial if mode == "VALID" else list(node.attr("pads", [0] * 2 * spatial))
    return pads[:spatial], pads[spatial:]


def _patches(
    x: np.ndarray,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
    y: Sequence[int],
    pick: np.ndarray,
    groups: int,
) -> np.ndarray:
    """Return patches as (groups, rows, channels of a group * taps)."""
    moved = np.moveaxis(x, 1, -1)
    padded = any(begin) or any(end)
    moved = np.pad(moved, [(0, 0), *zip(begin, end), (0, 0)]) if padded else np.ascontiguousarray(moved)
    sample, *at = np.unravel_index(pick, (y[0], *y[2:]))
    starts = [where * stride for where, stride in zip(at, strides)]
    channels = x.shape[1]
    found = np.empty((pick.size, channels, math.prod(kernel)), x.dtype)
    for tap, offset in enumerate(np.ndindex(*kernel)):
        index = tuple(start + o * d for start, o, d in zip(starts, offset, dilations))
        found[:, :, tap] = moved[(sample, *index)]
    return found.reshape(pick.size, groups, -1).transpose(1, 0, 2)


@dataclass(frozen=True)
class ConvTransposeRows(_Positions):
    """A transposed convolution: a convolution over an input with zeros between, the kernel turned round."""

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight as (groups, features, outputs)."""
        groups = self.node.attr("group", 1)
        turned = np.flip(weight, tuple(range(2, weight.ndim)))
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        moved = turned.reshape(groups, inputs, outputs, -1).transpose(0, 1, 3, 2)
        return moved.reshape(groups, -1, outputs)

    def tensor(self, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return a weight of this shape from (groups, features, outputs)."""
        groups = self.node.attr("group", 1)
        moved = matrix.reshape(groups, shape[0] // groups, -1, shape[1]).transpose(0, 1, 3, 2)
        return np.ascontiguousarray(np.flip(moved.reshape(shape), tuple(range(2, len(shape)))))

    def rows(self, x: np.ndarray, weight: Sequence[int], y: Sequence[int], pick: np.ndarray) -> np.ndarray:
        """Return some rows of an input, (groups, rows, features)."""
        kernel, spatial = weight[2:], len(weight) - 2
        strides = self.node.attr("strides", [1] * spatial)
        dilations = self.node.attr("dilations", [1] * spatial)
        sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], strides)]
        spread = np.zeros((*x.shape[:2], *sizes), x.dtype)
        spread[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
        reach = [(k - 1) * d for k, d in zip(kernel, dilations)]
        before = [r - p for r, p in zip(reach, self._pads_before(sizes, reach, y[2:]))]
        after = [o + r - n - b for o, r, n, b in zip(y[2:], reach, sizes, before)]
        for axis, (b, a) in enumerate(zip(before, after), 2):  # pads beyond the kernel cut the input
            spread = spread[(slice(None),) * axis + (slice(max(0, -b), spread.shape[axis] - max(0, -a)),)]
        wide = [max(0, b) for b in before], [max(0, a) for a in after]
        ones = [1] * spatial
        return _patches(spread, kernel, ones, dilations, *wide, y, pick, self.node.attr("group", 1))

    def _pads_before(self, sizes: Sequence[int], reach: Sequence[int], y: Sequence[int]) -> list[int]:
        mode = self.node.attr("auto_pad", "NOTSET")
        if mode in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in self.node.attrs:
            extra = self.node.attr("output_padding", [0] * len(sizes))
            total = [max(0, n + r + e - o) for n, r, e, o in zip(sizes, reach, extra, y)]
            return [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total]
        return [0] * len(sizes) if mode == "VALID" else list(self.node.attr("pads", [0] * 2 * len(sizes)))[: len(sizes)]


def _convolution(kind: type[Linear]) -> Callable[[Node, Graph], Linear | None]:
    def row(node: Node, graph: Graph) -> Linear | None:
        bias = _constant_bias(node, graph, 2)
        if bias is None or not _is_float(graph, node.inputs[1]) or len(graph.consts.shape(node.inputs[1])) < 3:
            return None
        return kind(node, node.inputs[0], node.inputs[1], node.outputs[0], bias_at=2, axis=1)

    return row


LINEAR("Conv", _convolution(ConvRows))
LINEAR("ConvTranspose", _convolution(ConvTransposeRows))


# ---- matrix products -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MatrixRows(Linear):
    """A product with a matrix on the right: all axes of the input but the last are rows.

    turned: the weight is stored as (outputs, features). scale: factor of the product. first: the input is stored as
    (features, rows).
    """

    turned: bool = False
    scale: float = 1.0
    first: bool = False

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight as (groups, features, outputs)."""
        return np.asarray(self.arrange(weight) * weight.dtype.type(self.scale))

    def arrange(self, entries: np.ndarray) -> np.ndarray:
        """Turn them if the weight is stored so."""
        return (entries.T if self.turned else entries)[None]

    def tensor(self, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return a weight of this shape from (groups, features, outputs)."""
        found = matrix[0] / self.scale
        return np.ascontiguousarray(found.T if self.turned else found)

    def count(self, y: np.ndarray) -> int:
        """Return how many rows an output has."""
        return math.prod(y.shape[:-1])

    def rows(self, x: np.ndarray, weight: Sequence[int], y: Sequence[int], pick: np.ndarray) -> np.ndarray:
        """Return some rows of an input, (groups, rows, features)."""
        return self.channels(x, 1)[:, pick]

    def targets(self, y: np.ndarray, groups: int, pick: np.ndarray) -> np.ndarray:
        """Return the same rows of an output, (groups, rows, outputs)."""
        return y.reshape(1, -1, y.shape[-1])[:, pick]

    def channels(self, x: np.ndarray, groups: int) -> np.ndarray:
        """Return an input as (groups, positions, channels)."""
        return (x.T if self.first else x.reshape(-1, x.shape[-1]))[None]


@dataclass(frozen=True)
class LeftMatrixRows(Linear):
    """A product with a matrix on the left: the second last axis of the input holds the features."""

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight as (groups, features, outputs)."""
        return weight.T[None]

    def tensor(self, matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return a weight of this shape from (groups, features, outputs)."""
        return np.ascontiguousarray(matrix[0].T)

    def count(self, y: np.ndarray) -> int:
        """Return how many rows an output has."""
        return int(math.prod(y.shape) // y.shape[-2]) if y.ndim > 1 else 1

    def rows(self, x: np.ndarray, weight: Sequence[int], y: Sequence[int], pick: np.ndarray) -> np.ndarray:
        """Return some rows of an input, (groups, rows, features)."""
        return self.channels(x, 1)[:, pick]

    def targets(self, y: np.ndarray, groups: int, pick: np.ndarray) -> np.ndarray:
        """Return the same rows of an output, (groups, rows, outputs)."""
        return self.channels(y, 1)[:, pick]

    def channels(self, x: np.ndarray, groups: int) -> np.ndarray:
        """Return an input as (groups, positions, channels)."""
        moved = np.moveaxis(x, -2, -1) if x.ndim > 1 else x
        return moved.reshape(1, -1, moved.shape[-1])


@LINEAR.row("Gemm")
def _gemm(node: Node, graph: Graph) -> Linear | None:
    bias = _constant_bias(node, graph, 2)
    if (
        bias is None
        or not _is_float(graph, node.inputs[1], 2)
        or 0 in (node.attr("alpha", 1.0), node.attr("beta", 1.0))
    ):
        return None
    if bias and math.prod(graph.consts.shape(bias)[:-1]) > 1:
        return None  # a bias for each row
    return MatrixRows(
        node,
        node.inputs[0],
        node.inputs[1],
        node.outputs[0],
        bias_at=2,
        bias_scale=node.attr("beta", 1.0),
        turned=bool(node.attr("transB", 0)),
        scale=node.attr("alpha", 1.0),
        first=bool(node.attr("transA", 0)),
    )


@LINEAR.row("MatMul")
def _matmul(node: Node, graph: Graph) -> Linear | None:
    left, right = node.inputs
    if _is_float(graph, right, 2) and left not in graph.consts:
        return MatrixRows(node, left, right, node.outputs[0])
    if _is_float(graph, left, 2) and right not in graph.consts:
        return LeftMatrixRows(node, right, left, node.outputs[0], axis=-2)
    return None
