"""How operators move the range of each channel: what is constant stays known, a sign stays a sign.

A row takes a `Known` and returns one range per output. Operators without a row may return anything. Only continuous
functions have rows: a constant is computed here with other rounding than at run time, and must not fall on the other
side of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
from onnx import helper

from prunepass.dataflow.ranges import Range, Unknown, dot, union, whole
from prunepass.rules.activations import OTHER, RISING
from prunepass.rules.dims import trains
from prunepass.rules.known import LARGE, Known
from prunepass.rules.table import Table

_COARSE = 2.0**-7
"""What the shortest type may round off."""
RANGES: Table[Callable[[Known], Sequence[Range]]] = Table("the range of each channel of the result")


# ---- element by element ----------------------------------------------------------------------------------------------
def rising(k: Known) -> list[Range]:
    """Move both bounds."""
    return [k.of().apply(RISING[k.node.op](k.node))]


def other(k: Known) -> list[Range]:
    """Compute what is fixed; the least and greatest value bound the rest."""
    function, least, greatest = OTHER[k.node.op](k.node)
    x = k.of()
    y = function(np.where(x.fixed, x.low, 0))
    return [Range.of(np.where(x.fixed, y, least), np.where(x.fixed, y, greatest))]


RANGES(" ".join(RISING), rising)
RANGES(" ".join(OTHER), other)


@RANGES.row("Cast")
def cast(k: Known) -> list[Range]:
    """A number that a shorter type rounds is not known any more: at run time it may be rounded the other way."""
    kind, x = helper.tensor_dtype_to_np_dtype(k.node.attr("to")), k.of()
    if kind.itemsize >= 4:
        return [x]
    low, high = (v.astype(kind).astype(np.float64) for v in (x.low, x.high))
    below, above = x.low - np.abs(x.low) * _COARSE, x.high + np.abs(x.high) * _COARSE
    return [
        Range.of(
            np.where(low == x.low, low, np.minimum(low, below)), np.where(high == x.high, high, np.maximum(high, above))
        )
    ]


@RANGES.row("Dropout")
def passed_on(k: Known) -> list[Range]:
    if k.has(2) or any(k.node.outputs[1:]):
        raise Unknown
    return [k.of()]


@RANGES.row("Neg")
def neg(k: Known) -> list[Range]:
    return [-k.of()]


@RANGES.row("Abs")
def absolute(k: Known) -> list[Range]:
    x = k.of()
    least = np.where((x.low <= 0) & (x.high >= 0), 0, np.minimum(np.abs(x.low), np.abs(x.high)))
    return [Range.of(least, np.maximum(np.abs(x.low), np.abs(x.high)))]


@RANGES.row("Clip")
def clip(k: Known) -> list[Range]:
    low, high = k.node.attr("min"), k.node.attr("max")
    bounds = [low if low is not None else -np.inf, high if high is not None else np.inf]
    for i in (0, 1):
        if k.has(i + 1):
            known = k.weight(i + 1)
            if known is None:
                raise Unknown
            bounds[i] = float(known.reshape(-1)[0])
    return [k.of().apply(lambda x: np.minimum(np.maximum(x, bounds[0]), bounds[1]))]


@RANGES.row("Add Sum")
def add(k: Known) -> list[Range]:
    total, *more = k.every()
    for part in more:
        total = total + part
    return [total]


@RANGES.row("Sub")
def sub(k: Known) -> list[Range]:
    return [k.of(0) + -k.of(1)]


@RANGES.row("Mul")
def mul(k: Known) -> list[Range]:
    if k.node.inputs[0] == k.node.inputs[1]:
        return [absolute(k)[0].apply(np.square)]
    return [k.of(0) * k.of(1)]


@RANGES.row("Div")
def div(k: Known) -> list[Range]:
    a, b = k.of(0), k.of(1)
    if (b.fixed & (b.low != 0)).all():
        x, y = a.low / b.low, a.high / b.low
        return [Range.of(np.minimum(x, y), np.maximum(x, y))]
    return [a * b.reciprocal()]


@RANGES.row("Reciprocal")
def reciprocal(k: Known) -> list[Range]:
    return [k.of().reciprocal()]


@RANGES.row("Pow")
def power(k: Known) -> list[Range]:
    x, exponent = k.of(0), k.of(1)
    fixed = x.fixed & exponent.fixed
    y = np.power(np.where(fixed, x.low, 1), np.where(fixed, exponent.low, 1))
    even = exponent.fixed & (np.mod(exponent.low, 2) == 0)
    return [Range.of(np.where(fixed, y, np.where(even, 0, -np.inf)), np.where(fixed, y, np.inf))]


def extreme(pick: np.ufunc) -> Callable[[Known], list[Range]]:
    """Build the row of an operator that picks one of its inputs by size."""

    def row(k: Known) -> list[Range]:
        every = k.every()
        return [Range.of(reduce(pick, [part.low for part in every]), reduce(pick, [part.high for part in every]))]

    return row


RANGES("Max", extreme(np.maximum))
RANGES("Min", extreme(np.minimum))


@RANGES.row("Where")
def where(k: Known) -> list[Range]:
    rank = max(len(k.shape(i)) for i in range(3))
    both = union([k.of(1), k.of(2)])
    return [both.apply(lambda v: v.reshape((1,) * (rank - v.ndim) + v.shape))]


@RANGES.row("PRelu")
def prelu(k: Known) -> list[Range]:
    x = k.of()
    below = Range(np.minimum(x.low, 0), np.minimum(x.high, 0))
    return [x.positive() + k.of(1) * below]


@RANGES.row("Softmax")
def softmax(k: Known) -> list[Range]:
    rank = len(k.shape())
    return [Range(np.zeros((1,) * rank), np.ones((1,) * rank))]


# ---- contractions ----------------------------------------------------------------------------------------------------
def pads(k: Known) -> bool:
    """Say whether a sliding window may lie over the border."""
    kernel = k.node.attr("kernel_shape") or (k.shape(1)[2:] if k.has(1) else ())
    if k.node.attr("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return any(size > 1 for size in kernel) or any(s > 1 for s in k.node.attr("strides", []))
    return any(k.node.attr("pads", []))


def split_signs(weight: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Sum the positive and the negative weights over some axes."""
    weight = weight if weight.dtype.itemsize >= 4 else weight.astype(np.float32)
    parts = np.maximum(weight, 0), np.minimum(weight, 0)
    positive, negative = (x.sum(axis=axes, dtype=np.float64) if axes else x for x in parts)
    return positive, negative


def linear(weight: np.ndarray, data: Range) -> Range:
    """Bound the results of a matrix of outputs times inputs, some rows at a time."""
    step = max(1, LARGE // max(1, weight.shape[1]))
    parts = [dot(*split_signs(weight[i : i + step], ()), data) for i in range(0, len(weight), step)]
    parts = [whole(part, weight[i * step :][:step].shape, [0]) for i, part in enumerate(parts)]
    return Range.of(np.concatenate([p.low for p in parts]), np.concatenate([p.high for p in parts]))


def channels(data: Range, axis: int) -> Range:
    """Bound each index of one axis, whatever the others."""
    return data.hull(a for a in range(data.low.ndim) if a != axis)


def _spread(data: Range, axis: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    found = channels(data, axis)
    return np.broadcast_to(found.low.reshape(-1), size), np.broadcast_to(found.high.reshape(-1), size)


@RANGES.row("Conv ConvTranspose")
def conv(k: Known) -> list[Range]:
    weight, transposed = k.weight(1), k.node.op == "ConvTranspose"
    if weight is None:
        raise Unknown
    groups, outs, ins = k.node.attr("group", 1), k.out_shape()[1], k.shape()[1]
    x = k.of().with_number(0.0) if transposed or pads(k) else k.of()
    low, high = (v.reshape(groups, ins // groups) for v in _spread(x, 1, ins))
    signs = split_signs(weight, tuple(range(2, weight.ndim)))
    if transposed:
        positive, negative = (w.reshape(groups, ins // groups, -1).swapaxes(1, 2) for w in signs)
        positive, negative = np.maximum(positive, 0), np.minimum(negative, 0)
    else:
        positive, negative = (w.reshape(groups, outs // groups, -1) for w in signs)
    y = dot(positive, negative, Range(low, high))
    shape = (1, outs) + (1,) * (len(k.shape()) - 2)
    found = whole(y, (groups, outs // groups), (0, 1)).apply(lambda v: v.reshape(shape))
    return [found + k.of(2).apply(lambda v: v.reshape((*shape[:1], -1, *shape[2:]))) if k.has(2) else found]


@RANGES.row("Gemm")
def gemm(k: Known) -> list[Range]:
    weight = k.weight(1)
    if weight is None:
        raise Unknown
    into = 0 if k.node.attr("transA", 0) else 1
    weight = weight if k.node.attr("transB", 0) else weight.T
    alpha = Range.exactly(np.array(k.node.attr("alpha", 1.0)))
    y = linear(weight, Range(*_spread(k.of(), into, k.shape()[into]))) * alpha
    y = y.apply(lambda v: v.reshape(1, -1))
    beta = Range.exactly(np.array(k.node.attr("beta", 1.0)))
    return [y + beta * k.of(2) if k.has(2) else y]


@RANGES.row("MatMul")
def matmul(k: Known) -> list[Range]:
    weight, rank = k.weight(1), len(k.out_shape())
    if len(k.shape(0)) < 2 or len(k.shape(1)) < 2:
        raise Unknown
    if weight is not None and weight.ndim == 2:
        y = linear(weight.T, Range(*_spread(k.of(), len(k.shape()) - 1, k.shape()[-1])))
        return [y.apply(lambda v: v.reshape((1,) * (rank - 1) + (-1,)))]
    a, b = k.of(0), k.of(1)
    a, b = a.hull([a.low.ndim - 1]), b.hull([b.low.ndim - 2])
    product = a * b  # every term of the sum lies here; how many there are may change from run to run
    return [sum_of(product)]


def sum_of(term: Range) -> Range:
    """Bound a sum of any number of terms by their sign."""
    return Range.of(np.where(term.low >= 0, 0, -np.inf), np.where(term.high <= 0, 0, np.inf))


# ---- normalisation ---------------------------------------------------------------------------------------------------
@RANGES.row("BatchNormalization")
def batch_norm(k: Known) -> list[Range]:
    if trains(k.node, k.opset):
        raise Unknown
    scale, bias, mean, var = (k.weight(i) for i in range(1, 5))
    if scale is None or bias is None or mean is None or var is None:
        raise Unknown
    shape = (1, -1) + (1,) * (len(k.shape()) - 2)
    scale, bias, mean, var = (v.astype(np.float64).reshape(shape) for v in (scale, bias, mean, var))
    deviation = np.sqrt(var + k.node.attr("epsilon", 1e-5))
    return [k.of() * Range.exactly(scale / deviation) + Range.exactly(bias - mean * scale / deviation)]


@RANGES.row("InstanceNormalization GroupNormalization")
def channel_norm(k: Known) -> list[Range]:
    shape = (1, -1) + (1,) * (len(k.shape()) - 2)
    if k.shape(1)[0] != k.shape()[1]:
        raise Unknown
    scale, bias = (k.of(i).apply(lambda v: v.reshape(shape)) for i in (1, 2))
    return [Range.anything(len(k.shape())) * scale + bias]


@RANGES.row("LayerNormalization RMSNormalization SimplifiedLayerNormalization")
def layer_norm(k: Known) -> list[Range]:
    y = Range.anything(len(k.shape())) * k.of(1)
    return [y + k.of(2) if k.has(2) else y]
