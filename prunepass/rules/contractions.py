"""What a contraction reads of each channel, and where a constant that it reads may go instead.

A row takes a `Known` and says which outputs read which inputs, and the sum of the weights between them. Where a window
lies over the border, a channel that is not zero is read in part, and cannot be moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunepass.rules.known import Known
from prunepass.rules.ranges import pads
from prunepass.rules.table import Table


@dataclass(frozen=True)
class Contraction:
    """One sum over the channels of an operand.

    Shapes
        reads: (groups, outputs, inputs), whether an output has a weight that is not zero for an input. total: takes
        (group, input) indices of some inputs and returns (outputs, inputs) sums of weights; None where they are not
        known or not all of them count everywhere.
    Units
        data: position of the operand. axis, out_axis: of the channels. bias: position of the operand that holds one
        number per output, or none. times: what the bias is multiplied by. border: whether windows lie over the border
        of the data; the weight is then operand 1, of (outputs, inputs, ...).
    """

    data: int
    axis: int
    out_axis: int
    reads: np.ndarray
    total: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    bias: int | None = None
    times: float = 1.0
    border: bool = False


Row = Callable[[Known], "list[Contraction]"]
CONTRACTIONS: Table[Row] = Table("which outputs read which channels, with which weights")
UNHARMED: Table[float] = Table("the number that a reduction does not notice")
UNHARMED("ReduceSum ReduceL1 ReduceL2 ReduceSumSquare", 0.0)
UNHARMED("ReduceProd", 1.0)
ASKED = frozenset(
    """ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceProd ReduceMax ReduceMin ReduceMean ReduceLogSum
    ReduceLogSumExp Softmax LogSoftmax LayerNormalization RMSNormalization SimplifiedLayerNormalization
    BatchNormalization InstanceNormalization MeanVarianceNormalization LpNormalization""".split()
)
"""Operators whose row in MASKS says exactly what they mix; any other is taken to mix all that it reads."""


@CONTRACTIONS.row("Conv ConvTranspose")
def conv(k: Known) -> list[Contraction]:
    weight, transposed, groups = k.weight(1), k.node.op == "ConvTranspose", k.node.attr("group", 1)
    outs, ins = k.out_shape()[1] // groups, k.shape()[1] // groups
    if weight is None:
        return [Contraction(0, 1, 1, np.ones((groups, outs, ins), bool), None)]
    taps = tuple(range(2, weight.ndim))

    def grouped(w: np.ndarray) -> np.ndarray:
        return w.reshape(groups, ins, outs).swapaxes(1, 2) if transposed else w.reshape(groups, outs, ins)

    def total(group: np.ndarray, index: np.ndarray) -> np.ndarray:
        split = weight.reshape(groups, outs, ins, -1)
        return np.asarray(split[group, :, index].sum(axis=-1, dtype=np.float64).T)

    padded = not transposed and pads(k)
    moves = not transposed and not padded
    return [Contraction(0, 1, 1, grouped((weight != 0).any(axis=taps)), total if moves else None, 2, 1.0, padded)]


@CONTRACTIONS.row("Gemm")
def gemm(k: Known) -> list[Contraction]:
    into, alpha = 0 if k.node.attr("transA", 0) else 1, k.node.attr("alpha", 1.0)
    beta, weight = k.node.attr("beta", 1.0), k.weight(1)
    if weight is None:
        reads = np.ones((1, k.out_shape()[1], k.shape()[into]), bool)
        return [Contraction(0, into, 1, reads, None), _other(k)]
    rows = weight if k.node.attr("transB", 0) else weight.T

    def total(group: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.asarray(alpha * rows[:, index].astype(np.float64))

    return [Contraction(0, into, 1, (rows != 0)[None], total, 2 if beta else None, beta or 1.0)]


def _other(k: Known) -> Contraction:
    """Say that a computed second factor is read along the same axis."""
    along = 1 if k.node.attr("transB", 0) else 0
    outs = k.out_shape()[0]
    return Contraction(1, along, 0, np.ones((1, outs, k.shape(1)[along]), bool), None)


@CONTRACTIONS.row("MatMul")
def matmul(k: Known) -> list[Contraction]:
    a, b = k.shape(0), k.shape(1)
    if min(len(a), len(b)) < 2:
        return []
    rank, left, right = len(k.out_shape()), k.weight(0), k.weight(1)
    if right is not None:
        return [_times(0, len(a) - 1, rank - 1, np.moveaxis(right, -1, -2))]
    if left is not None:
        return [_times(1, len(b) - 2, rank - 2, left)]
    return _product(k)


def _times(data: int, axis: int, out_axis: int, weight: np.ndarray) -> Contraction:
    """Multiply by a weight of (..., outputs, inputs)."""
    reads = (weight != 0).reshape(-1, *weight.shape[-2:]).any(axis=0)

    def total(group: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.asarray(weight[:, index].astype(np.float64))

    return Contraction(data, axis, out_axis, reads[None], total if weight.ndim == 2 else None)


def _product(k: Known) -> list[Contraction]:
    """Multiply two computed values: nothing is read where the other factor is zero."""
    rank, a, b = len(k.out_shape()), k.of(0), k.of(1)
    size = k.shape(0)[-1]

    def reads(zero: np.ndarray, axis: int, outs: int) -> np.ndarray:
        rest = tuple(x for x in range(zero.ndim) if x != axis % zero.ndim)
        read = np.broadcast_to(~zero.all(axis=rest), size)
        return np.broadcast_to(read, (1, outs, size))

    nothing = [(x.low == 0) & (x.high == 0) for x in (a, b)]
    rows, columns = k.out_shape()[-2:]
    return [
        Contraction(0, len(k.shape(0)) - 1, rank - 1, reads(nothing[1], -2, columns), None),
        Contraction(1, len(k.shape(1)) - 2, rank - 2, reads(nothing[0], -1, rows), None),
    ]
