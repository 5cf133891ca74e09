"""Execute operators in numpy: what folds integer subgraphs, shape arithmetic and constant subgraphs on weights.

A row takes the node and its operands (None or missing = absent optional) and returns its outputs. The form of the
node decides between opsets: an axis list may come as an attribute or as an operand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper
from scipy import special

from prunepass.consts import densify
from prunepass.graph import Node
from prunepass.rules.table import Table

Operands: TypeAlias = Sequence[Any]
Fold: TypeAlias = Callable[[Node, Operands], list[np.ndarray]]
ShapeFold: TypeAlias = Callable[[Node, tuple[int, ...]], list[np.ndarray]]
Function: TypeAlias = Callable[..., Any]

VALUES: Table[Fold] = Table("values")
SHAPE_VALUES: Table[ShapeFold] = Table("values that follow from a shape")

_FINFO: Any = ml_dtypes.finfo  # knows float8, which numpy.finfo does not
_SHIFTS = {"LEFT": np.left_shift, "RIGHT": np.right_shift}
_REFUSED = (ValueError, TypeError, IndexError, KeyError, ArithmeticError, MemoryError)


def evaluate(node: Node, operands: Operands) -> list[np.ndarray] | None:
    """Execute a node whose operands are known; None where it has no row or its operands are not valid."""
    row = VALUES.get(node.op)
    if row is None:
        return None
    try:
        with np.errstate(all="ignore"):
            return row(node, operands)
    except _REFUSED:
        return None


def operand(operands: Operands, position: int) -> Any:
    """Return the operand at a position, None where it is absent."""
    return operands[position] if position < len(operands) else None


def numbers(node: Node, operands: Operands, position: int, name: str) -> list[int] | None:
    """Return an integer list that old opsets carry as an attribute and new ones as an operand."""
    value = operand(operands, position)
    if value is None:
        value = node.attr(name)
    return None if value is None else [int(v) for v in np.ravel(value)]


def element_type(array: np.ndarray) -> int:
    """Return the ONNX element type of an array."""
    return TensorProto.STRING if array.dtype == object else int(helper.np_dtype_to_tensor_dtype(array.dtype))


# Families


def pointwise(function: Function) -> Fold:
    """Apply a numpy function; the result has the type of the first operand."""
    return lambda node, xs: [np.asarray(function(*xs)).astype(xs[0].dtype, copy=False)]


def scientific(function: Function) -> Fold:
    """Apply a function that knows native floats only; the others go through float32."""

    def row(node: Node, xs: Operands) -> list[np.ndarray]:
        x = xs[0] if xs[0].dtype in (np.float32, np.float64) else xs[0].astype(np.float32)
        return [np.asarray(function(x)).astype(xs[0].dtype, copy=False)]

    return row


def predicate(function: Function) -> Fold:
    """Apply a numpy function whose result is boolean."""
    return lambda node, xs: [np.asarray(function(*xs)).astype(np.bool_, copy=False)]


def variadic(function: Function) -> Fold:
    """Fold any number of operands from the left."""
    return lambda node, xs: [np.asarray(reduce(function, xs)).astype(xs[0].dtype, copy=False)]


def reduction(function: Function) -> Fold:
    """Reduce over the axes given as attribute or operand; none given means all, or none with `noop_with_empty_axes`."""

    def row(node: Node, xs: Operands) -> list[np.ndarray]:
        axes = tuple(numbers(node, xs, 1, "axes") or ())
        if not axes and not node.attr("noop_with_empty_axes", 0):
            axes = tuple(range(xs[0].ndim))
        result = function(xs[0], axis=axes, keepdims=bool(node.attr("keepdims", 1)))
        return [np.asarray(result).astype(xs[0].dtype, copy=False)]

    return row


def extremum(function: Function) -> Fold:
    """Reduce with max or min; over nothing they give the lowest or the highest value of the type."""

    def bounded(x: np.ndarray, **options: Any) -> Any:
        if x.size:
            return function(x, **options)
        return np.full(np.sum(x, **options).shape, _limit(x.dtype, lowest=function is np.max))

    return reduction(bounded)


def _limit(dtype: np.dtype[Any], lowest: bool) -> Any:
    if dtype == np.bool_:
        return not lowest
    if np.issubdtype(dtype, np.integer):
        return np.iinfo(dtype).min if lowest else np.iinfo(dtype).max
    return -np.inf if lowest else np.inf


def arg_extremum(function: Function) -> Fold:
    """Find the position of the max or min along one axis: the first, or the last where asked."""

    def row(node: Node, xs: Operands) -> list[np.ndarray]:
        x, axis = xs[0], node.attr("axis", 0)
        if node.attr("select_last_index", 0):
            found = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis)
        else:
            found = function(x, axis=axis)
        return [np.expand_dims(found, axis) if node.attr("keepdims", 1) else np.asarray(found)]

    return row


def scatter(locate: Callable[[Node, Operands], tuple[Any, ...]]) -> Fold:
    """Write updates into a copy of the data at the places that `locate` gives, reduced as the node asks."""
    reductions = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}

    def row(node: Node, xs: Operands) -> list[np.ndarray]:
        result, places, how = np.array(xs[0]), locate(node, xs), node.attr("reduction", "none")
        if how == "none":
            result[places] = xs[2]
        else:
            reductions[how].at(result, places, xs[2])
        return [result]

    return row


# Arithmetic


def divide(a: np.ndarray, b: np.ndarray) -> Any:
    """Divide; integers truncate toward zero."""
    if not np.issubdtype(a.dtype, np.integer):
        return a / b
    if not np.all(b):
        raise ZeroDivisionError
    return (a - np.fmod(a, b)) // b


def power(base: np.ndarray, exponent: np.ndarray) -> Any:
    """Raise to a power; an integer base gives an integer, truncated where the exponent is negative or a fraction."""
    if not np.issubdtype(base.dtype, np.integer):
        return np.power(base, exponent)
    if np.issubdtype(exponent.dtype, np.integer) and not np.any(exponent < 0):
        return np.power(base, exponent.astype(base.dtype))
    return np.trunc(np.power(base.astype(np.float64), exponent))


def clip(node: Node, xs: Operands) -> list[np.ndarray]:
    """Clip between bounds that are attributes in old opsets; either may be absent."""
    low, high = (node.attr(name) if operand(xs, i) is None else xs[i] for i, name in ((1, "min"), (2, "max")))
    result = xs[0] if low is None else np.maximum(xs[0], low)
    result = result if high is None else np.minimum(result, high)
    return [np.asarray(result).astype(xs[0].dtype, copy=False)]


def cast(x: np.ndarray, to: int, saturate: bool) -> np.ndarray:
    """Convert to an ONNX element type; float8 saturates unless told otherwise."""
    name = TensorProto.DataType.Name(to)
    if name in ("STRING", "FLOAT8E8M0", "UNDEFINED"):
        raise TypeError(name)
    dtype = helper.tensor_dtype_to_np_dtype(to)
    if name.startswith("FLOAT8") and saturate:
        limits = _FINFO(dtype)
        x = np.clip(x, limits.min, limits.max)
    return x.astype(dtype)


def arange(node: Node, xs: Operands) -> list[np.ndarray]:
    """Count from start to limit."""
    start, limit, delta = (np.ravel(x)[0] for x in xs)
    count = max(math.ceil((limit - start) / delta), 0)
    return [(start + np.arange(count).astype(start.dtype) * delta).astype(start.dtype)]


def gemm(node: Node, xs: Operands) -> list[np.ndarray]:
    """Compute alpha * A @ B + beta * C."""
    a = xs[0].T if node.attr("transA", 0) else xs[0]
    b = xs[1].T if node.attr("transB", 0) else xs[1]
    result = node.attr("alpha", 1.0) * (a @ b)
    if operand(xs, 2) is not None:
        result = result + node.attr("beta", 1.0) * xs[2]
    return [result.astype(xs[0].dtype)]


def dropout(node: Node, xs: Operands) -> list[np.ndarray]:
    """Pass through; a training Dropout is random and has no value."""
    training = operand(xs, 2)
    if training is not None and bool(np.ravel(training)[0]):
        raise ValueError("random")
    return [xs[0], np.ones(xs[0].shape, np.bool_)][: len(node.outputs)]


# Constants


def constant(node: Node, xs: Operands) -> list[np.ndarray]:
    """Return the constant that a node carries, in whichever attribute."""
    (name, value), *_ = node.attrs.items()
    if name == "sparse_value":
        return [densify(value)]
    if name in ("value_string", "value_strings"):
        return [np.array(value, dtype=object)]
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return [np.asarray(value, dtypes.get(name))]


def constant_of_shape(node: Node, xs: Operands) -> list[np.ndarray]:
    """Fill a shape with one value, float32 zero by default."""
    value = np.ravel(node.attr("value", np.zeros(1, np.float32)))
    return [np.full(tuple(xs[0]), value[0], value.dtype)]


def eye_like(node: Node, xs: Operands) -> list[np.ndarray]:
    """Return ones on a diagonal."""
    to, (rows, columns) = node.attr("dtype"), xs[0].shape
    dtype = xs[0].dtype if to is None else helper.tensor_dtype_to_np_dtype(to)
    return [np.eye(rows, columns, node.attr("k", 0), dtype)]


# Indexing


def gather(node: Node, xs: Operands) -> list[np.ndarray]:
    """Take along one axis."""
    return [np.asarray(np.take(xs[0], xs[1], axis=node.attr("axis", 0)))]


def element_places(node: Node, xs: Operands) -> tuple[Any, ...]:
    """Locate the elements that GatherElements reads and ScatterElements writes."""
    places: list[Any] = list(np.indices(xs[1].shape, sparse=True))
    places[node.attr("axis", 0)] = xs[1]
    return tuple(places)


def tuple_places(node: Node, xs: Operands) -> tuple[Any, ...]:
    """Locate the slices that GatherND reads and ScatterND writes."""
    batch, indices = node.attr("batch_dims", 0), xs[1]
    free = indices.ndim - 1 - batch
    grid = np.indices(indices.shape[:batch], sparse=True)
    return (*(g.reshape(g.shape + (1,) * free) for g in grid), *np.moveaxis(indices, -1, 0))


def slices(node: Node, xs: Operands) -> list[np.ndarray]:
    """Slice by bounds that may be negative or far outside."""
    starts, ends = numbers(node, xs, 1, "starts") or [], numbers(node, xs, 2, "ends") or []
    axes = numbers(node, xs, 3, "axes") or list(range(len(starts)))
    steps = numbers(node, xs, 4, "steps") or [1] * len(starts)
    index = [slice(None)] * xs[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Going backwards, Python treats a start before the first element as empty, ONNX as the first element.
        first = max(start, -xs[0].shape[axis]) if step < 0 else start
        index[axis] = slice(first, end, step)
    return [xs[0][tuple(index)]]


def split(node: Node, xs: Operands) -> list[np.ndarray]:
    """Split into given sizes, or evenly with a smaller last part."""
    axis, sizes = node.attr("axis", 0), numbers(node, xs, 1, "split")
    if sizes is None:
        count = node.attr("num_outputs", len(node.outputs))
        sizes = [-(-xs[0].shape[axis] // count)] * count
    return list(np.split(xs[0], np.cumsum(sizes)[:-1], axis))


def arg_top(x: np.ndarray, axis: int, largest: bool) -> np.ndarray:
    """Order positions along an axis by value; of equal values the first comes first."""
    order: np.ndarray = np.argsort(np.flip(x, axis) if largest else x, axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(order, axis) if largest else order


def top_k(node: Node, xs: Operands) -> list[np.ndarray]:
    """Return the k largest or smallest values along an axis, and where they are."""
    axis, (k,) = node.attr("axis", -1), numbers(node, xs, 1, "k") or [0]
    order = arg_top(xs[0], axis, bool(node.attr("largest", 1)))
    places = np.take(order, np.arange(k), axis=axis)
    return [np.take_along_axis(xs[0], places, axis), places.astype(np.int64)]


def one_hot(node: Node, xs: Operands) -> list[np.ndarray]:
    """Mark each index along a new axis; an index outside marks nothing."""
    depth, (off, on), axis = int(np.ravel(xs[1])[0]), xs[2], node.attr("axis", -1)
    indices = xs[0].astype(np.int64)
    positive = np.expand_dims(np.where(indices < 0, indices + depth, indices), axis)
    hit = positive == np.moveaxis(np.arange(depth).reshape((-1,) + (1,) * indices.ndim), 0, axis)
    return [np.where(hit, on, off).astype(xs[2].dtype)]


def cumsum(node: Node, xs: Operands) -> list[np.ndarray]:
    """Sum up along an axis, optionally from the end and without the element itself."""
    x, axis = xs[0], int(np.ravel(xs[1])[0])
    x = np.flip(x, axis) if node.attr("reverse", 0) else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    total = total - x if node.attr("exclusive", 0) else total
    return [np.flip(total, axis) if node.attr("reverse", 0) else total]


def trilu(node: Node, xs: Operands) -> list[np.ndarray]:
    """Keep one triangle of each matrix."""
    k = operand(xs, 1)
    function = np.triu if node.attr("upper", 1) else np.tril
    return [function(xs[0], 0 if k is None else int(np.ravel(k)[0]))]


# Layout


def reshape(node: Node, xs: Operands) -> list[np.ndarray]:
    """Reshape; 0 copies the size of the operand unless `allowzero`, -1 is what remains."""
    target = numbers(node, xs, 1, "shape") or []
    if not node.attr("allowzero", 0):
        target = [size or xs[0].shape[axis] for axis, size in enumerate(target)]
    return [xs[0].reshape(target)]


def flatten(node: Node, xs: Operands) -> list[np.ndarray]:
    """Make a matrix: the axes before `axis`, and the rest."""
    axis = node.attr("axis", 1)
    return [xs[0].reshape(math.prod(xs[0].shape[:axis]), -1 if xs[0].size else math.prod(xs[0].shape[axis:]))]


def squeeze(node: Node, xs: Operands) -> list[np.ndarray]:
    """Drop axes of length one."""
    axes = numbers(node, xs, 1, "axes")
    return [np.squeeze(xs[0], tuple(axes) if axes else None)]


def unsqueeze(node: Node, xs: Operands) -> list[np.ndarray]:
    """Insert axes of length one, counted in the result."""
    return [np.expand_dims(xs[0], tuple(numbers(node, xs, 1, "axes") or ()))]


def expand(node: Node, xs: Operands) -> list[np.ndarray]:
    """Broadcast both ways with a shape."""
    return [np.array(np.broadcast_to(xs[0], np.broadcast_shapes(xs[0].shape, tuple(xs[1]))))]


def pad(node: Node, xs: Operands) -> list[np.ndarray]:
    """Pad, or crop where a pad is negative."""
    x, amounts = xs[0], numbers(node, xs, 1, "pads") or []
    axes = numbers(node, xs, 3, "axes") or list(range(x.ndim))
    widths = np.zeros((x.ndim, 2), np.int64)
    widths[axes] = np.reshape(amounts, (2, len(axes))).T
    crops = np.maximum(-widths, 0)
    x = x[tuple(slice(low, size - high) for (low, high), size in zip(crops, x.shape, strict=True))]
    mode, fill = node.attr("mode", "constant"), operand(xs, 2)
    fill = node.attr("value", 0) if fill is None else np.ravel(fill)[0]
    options: dict[str, Any] = {"constant_values": fill} if mode == "constant" else {}
    return [np.pad(x, np.maximum(widths, 0), mode, **options)]


VALUES("Neg", pointwise(np.negative))
VALUES("Abs", pointwise(np.abs))
VALUES("Sign", pointwise(np.sign))
VALUES("Sqrt", pointwise(np.sqrt))
VALUES("Exp", pointwise(np.exp))
VALUES("Log", pointwise(np.log))
VALUES("Sin", pointwise(np.sin))
VALUES("Cos", pointwise(np.cos))
VALUES("Tan", pointwise(np.tan))
VALUES("Tanh", pointwise(np.tanh))
VALUES("Floor", pointwise(np.floor))
VALUES("Ceil", pointwise(np.ceil))
VALUES("Round", pointwise(np.rint))
VALUES("Reciprocal", pointwise(lambda x: 1 / x))
VALUES("Relu", pointwise(lambda x: np.maximum(x, 0)))
VALUES("Sigmoid", scientific(special.expit))
VALUES("Erf", scientific(special.erf))
VALUES("Clip", clip)

VALUES("Add", pointwise(np.add))
VALUES("Sub", pointwise(np.subtract))
VALUES("Mul", pointwise(np.multiply))
VALUES("Div", pointwise(divide))
VALUES("Pow", pointwise(power))
VALUES("Mod", lambda node, xs: [np.asarray((np.fmod if node.attr("fmod", 0) else np.mod)(xs[0], xs[1]))])
VALUES("Min", variadic(np.minimum))
VALUES("Max", variadic(np.maximum))
VALUES("Sum", variadic(np.add))
VALUES("Mean", lambda node, xs: [np.asarray(reduce(np.add, xs) / len(xs)).astype(xs[0].dtype)])
VALUES("BitShift", lambda node, xs: [np.asarray(_SHIFTS[node.attr("direction")](xs[0], xs[1]))])
VALUES("BitwiseAnd", pointwise(np.bitwise_and))
VALUES("BitwiseOr", pointwise(np.bitwise_or))
VALUES("BitwiseXor", pointwise(np.bitwise_xor))
VALUES("BitwiseNot", pointwise(np.invert))
VALUES("MatMul", pointwise(np.matmul))
VALUES("Gemm", gemm)
VALUES("Einsum", lambda node, xs: [np.asarray(np.einsum(node.attr("equation"), *xs)).astype(xs[0].dtype)])

VALUES("Equal", predicate(np.equal))
VALUES("Less", predicate(np.less))
VALUES("Greater", predicate(np.greater))
VALUES("LessOrEqual", predicate(np.less_equal))
VALUES("GreaterOrEqual", predicate(np.greater_equal))
VALUES("And", predicate(np.logical_and))
VALUES("Or", predicate(np.logical_or))
VALUES("Xor", predicate(np.logical_xor))
VALUES("Not", predicate(np.logical_not))
VALUES("IsNaN", predicate(np.isnan))
VALUES("Where", lambda node, xs: [np.asarray(np.where(xs[0], xs[1], xs[2])).astype(xs[1].dtype, copy=False)])

VALUES("ReduceSum", reduction(np.sum))
VALUES("ReduceProd", reduction(np.prod))
VALUES("ReduceMean", reduction(np.mean))
VALUES("ReduceMax", extremum(np.max))
VALUES("ReduceMin", extremum(np.min))
VALUES("ReduceL1", reduction(lambda x, **options: np.sum(np.abs(x), **options)))
VALUES("ReduceL2", reduction(lambda x, **options: np.sqrt(np.sum(np.square(x), **options))))
VALUES("ReduceSumSquare", reduction(lambda x, **options: np.sum(np.square(x), **options)))
VALUES("ArgMax", arg_extremum(np.argmax))
VALUES("ArgMin", arg_extremum(np.argmin))
VALUES("CumSum", cumsum)
VALUES("TopK", top_k)

VALUES("Constant", constant)
VALUES("ConstantOfShape", constant_of_shape)
VALUES("EyeLike", eye_like)
VALUES("Range", arange)
VALUES("OneHot", one_hot)
VALUES("NonZero", lambda node, xs: [np.array(np.nonzero(np.atleast_1d(xs[0])))])
VALUES("Trilu", trilu)
VALUES("Dropout", dropout)
VALUES("Identity", lambda node, xs: [xs[0]])
VALUES("Cast", lambda node, xs: [cast(xs[0], node.attr("to"), bool(node.attr("saturate", 1)))])
VALUES("CastLike", lambda node, xs: [cast(xs[0], element_type(xs[1]), bool(node.attr("saturate", 1)))])

VALUES("Gather", gather)
VALUES("GatherElements", lambda node, xs: [xs[0][element_places(node, xs)]])
VALUES("GatherND", lambda node, xs: [xs[0][tuple_places(node, xs)]])
VALUES("Scatter ScatterElements", scatter(element_places))
VALUES("ScatterND", scatter(tuple_places))
VALUES("Concat", lambda node, xs: [np.concatenate(xs, axis=node.attr("axis", 1))])
VALUES("Slice", slices)
VALUES("Split", split)
VALUES("Reshape", reshape)
VALUES("Flatten", flatten)
VALUES("Squeeze", squeeze)
VALUES("Unsqueeze", unsqueeze)
VALUES("Transpose", lambda node, xs: [np.transpose(xs[0], node.attr("perm"))])
VALUES("Expand", expand)
VALUES("Tile", lambda node, xs: [np.tile(xs[0], tuple(xs[1]))])
VALUES("Pad", pad)


@SHAPE_VALUES.row("Shape")
def shape_of(node: Node, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return the sizes from `start` to `end`."""
    return [np.array(shape[node.attr("start", 0) : node.attr("end")], np.int64)]


@SHAPE_VALUES.row("Size")
def size_of(node: Node, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return the number of elements."""
    return [np.array(math.prod(shape), np.int64)]
