"""Blocks that few networks have: rearranged axes, sizes as values, fills, scatters, fused operators."""

from __future__ import annotations

import itertools

import numpy as np
from graphs import Grower, Value, block, elements, resized
from onnx import TensorProto

Made = Value | list[Value] | None
MOST = 4096  # elements of a value
MS = {"domain": "com.microsoft"}


# ---- axes ------------------------------------------------------------------------------------------------------------
@block()
@block()
def rearranged(g: Grower, x: Value) -> Made:
    """Split, merge and permute any axes: what was a channel may become a position."""
    if not x.static:
        return None
    shape = x.shape
    y = x
    for _ in range(g.pick((1, 2, 3))):
        axes = [a for a in range(1, len(shape)) if shape[a] > 3 and any(shape[a] % d == 0 for d in (2, 3))]
        if len(shape) < 5 and axes and g.rarely(2):
            axis = g.pick(axes)
            part = g.divisor(shape[axis], (2, 3, 4)) or 1
            split = g.pick(((part, shape[axis] // part), (shape[axis] // part, part)))
            shape = (*shape[:axis], *split, *shape[axis + 1 :])
            y = Value(g.reshape(y, 0, *shape[1:]), shape)
        elif len(shape) > 2 and g.rarely(2):
            axis = g.pick(range(1, len(shape) - 1))
            shape = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
            y = Value(g.reshape(y, 0, *shape[1:]), shape)
        else:
            perm = g.pick(list(itertools.permutations(range(1, len(shape)))))
            shape = (shape[0], *(shape[a] for a in perm))
            y = Value(g.transpose(y, 0, *perm), shape)
    if len(shape) > 4:
        shape = (*shape[:3], shape[3] * shape[4])
        y = Value(g.reshape(y, 0, *shape[1:]), shape)
    return y if max(shape[1:]) <= 256 and y is not x else None


@block("sequence", "image")
def batched(g: Grower, x: Value) -> Made:
    """Move positions to the batch axis for a layer, and back."""
    if not x.static:
        return None
    shape = x.shape
    if len(shape) == 3:
        y = g.linear(g.reshape(x, -1, shape[2]), shape[2], 8)
        return Value(g("Reshape", g("Relu", y), g.ints(-1, shape[1], 8)), (*shape[:2], 8))
    y = g.reshape(g.transpose(x, 0, 2, 1, 3), -1, shape[1], shape[3])
    y = g("Conv", y, g.weight(8, shape[1], 3, fan_in=3 * shape[1]), g.vector(8), pads=[1, 1])
    y = g("Reshape", y, g.ints(-1, shape[2], 8, shape[3]))
    return Value(g.transpose(y, 0, 2, 1, 3), resized(x.shape, 1, 8))


@block("sequence", "image")
def gram(g: Grower, x: Value) -> Made:
    """Products of all pairs of channels: the same units on two axes."""
    if not x.static or x.width > 16:
        return None
    y = g.reshape(x, 0, x.width, -1) if len(x.shape) == 4 else g.transpose(x, 0, 2, 1)
    pairs = g("MatMul", y, g.transpose(y, 0, 2, 1))
    return Value(g("Tanh", pairs), (x.shape[0], x.width, x.width))


@block("sequence")
def bilinear(g: Grower, x: Value) -> Made:
    others = [v for v in g.values if len(v.shape) == 3 and v.shape[0] == x.shape[0] and v.shape[2] == x.shape[2]]
    y = g.pick(others)
    if not y.shape[1]:
        return None
    return Value(g("Tanh", g("MatMul", x, g.transpose(y, 0, 2, 1))), (*x.shape[:2], y.shape[1]))


# ---- sizes and values that come from shapes --------------------------------------------------------------------------
@block()
def sized(g: Grower, x: Value) -> Made:
    """Divide by the root of a width that is read at run time."""
    axis = g.along(x)
    if axis is None:
        return None
    size = g("Cast", g.size_of(x, axis), to=TensorProto.FLOAT)
    return Value(g("Div", x, g("Sqrt", size)), x.shape)


@block()
def chunked(g: Grower, x: Value) -> Made:
    """Halves whose bounds are computed from the shape, as exporters write chunk."""
    axis = g.along(x)
    if axis is None or g.opset < 10 or x.shape[axis] % 2:
        return None
    size, half = g.size_of(x, axis), x.shape[axis] // 2
    middle = g("Div", g("Add", size, g.ints(1)), g.ints(2))
    a = g("Slice", x, g.ints(0), middle, g.ints(axis))
    b = g("Slice", x, middle, g("Mul", middle, g.ints(2)), g.ints(axis))
    shape = resized(x.shape, axis, half)
    if g.rarely(2):
        return Value(g("Mul", a, g("Sigmoid", b)), shape)
    return [Value(a, shape), Value(b, shape)]


@block()
def filled(g: Grower, x: Value) -> Made:
    """Fills made at run time: added, or put beside."""
    axis = g.along(x)
    if axis is None or elements(resized(x.shape, axis, 2 * x.shape[axis])) > MOST:
        return None
    zeros = g("ConstantOfShape", g("Shape", x))
    way = g.pick(("add", "beside", "expand", "mask"))
    if way == "add":
        return Value(g("Add", *g.either(x.name, zeros)), x.shape)
    if way == "beside":
        return Value(g("Concat", *g.either(x.name, zeros), axis=axis), resized(x.shape, axis, 2 * x.shape[axis]))
    if way == "expand":
        return Value(g("Mul", x, g("Expand", g.scalar(0.5), g("Shape", x))), x.shape)
    return Value(g("Where", g("Cast", zeros, to=TensorProto.BOOL), g.scalar(1), x), x.shape)


@block("image")
def resized_to(g: Grower, x: Value) -> Made:
    """Resize to sizes of which the first two come from the shape, as feature pyramids do."""
    n, c, h, w = x.shape
    if g.opset < 11 or elements(x.shape) * 4 > MOST:
        return None
    ends = [g.ints(0), g.ints(2)]
    sizes = g("Concat", g("Slice", g("Shape", x), *ends), g.ints(2 * h, 2 * w), axis=0)
    empty = g.net.const(np.zeros(0, np.float32)) if g.opset < 13 else ""
    return Value(g("Resize", x, empty, empty, sizes, mode="nearest"), (n, c, 2 * h, 2 * w))


# ---- indices ---------------------------------------------------------------------------------------------------------
@block()
def scattered(g: Grower, x: Value) -> Made:
    """Pick or overwrite elements by stored indices."""
    if not x.static or g.dynamic or g.opset < 11:
        return None
    rank = len(x.shape)
    way = g.pick(("GatherElements", "ScatterElements", "GatherND", "ScatterND"))
    axis = g.pick(range(1, rank))
    if way.endswith("Elements"):
        index = g.net.const(g.net.rng.integers(0, x.shape[axis], x.shape))
        rest = [g.net.const(g.array(*x.shape))] if way == "ScatterElements" else []
        return Value(g(way, x, index, *rest, axis=axis), x.shape)
    if way == "GatherND":
        index = g.net.const(np.stack([np.zeros(3, np.int64), np.arange(3) % x.shape[1]], 1))
        y = g("GatherND", x, index)
        return Value(y, (3, *x.shape[2:])) if rank > 2 and x.shape[0] == 3 else None
    index = g.net.const(np.zeros((1, 1), np.int64))
    return Value(g("ScatterND", x, index, g.net.const(g.array(1, *x.shape[1:]))), x.shape)


@block("vector", "sequence")
def looked_up(g: Grower, x: Value) -> Made:
    """Look rows of a table up by what an activation says; add them."""
    if g.opset < 11:
        return None
    table = g.shared((5, x.width), lambda: g.net.weight(5, x.width, fan_in=1))
    index = g("Cast", g.clip(g.reduce("ReduceMean", x, [len(x.shape) - 1], 0), 0, 4), to=TensorProto.INT64)
    rows = g("Gather", table, index)
    return Value(g("Add", x, rows), x.shape)


# ---- norms and precisions --------------------------------------------------------------------------------------------
@block()
def normalised(g: Grower, x: Value) -> Made:
    if not x.static:
        return None
    rank = len(x.shape)
    way = g.pick(("many", "lp", "variance", "instance", "batch"))
    if way == "many" and g.opset >= 17:
        axis = g.pick(range(1, rank))
        shape = x.shape[axis:]
        scale, shift = (g.net.const(mean + 0.2 * g.array(*shape)) for mean in (1, 0))
        return Value(g("LayerNormalization", x, scale, shift, axis=axis), x.shape)
    if way == "lp":
        return Value(g("LpNormalization", x, axis=g.pick(range(1, rank)), p=g.pick((2, 1))), x.shape)
    if way == "variance" and rank == 4:
        return Value(g("MeanVarianceNormalization", x, axes=g.pick(([2, 3], [1, 2, 3]))), x.shape)
    if rank == 3 and x.shape[1] > 1:
        c = x.shape[1]
        if way == "instance":
            return Value(g("InstanceNormalization", x, g.vector(c, 1), g.vector(c)), x.shape)
        return Value(g("BatchNormalization", x, g.vector(c, 1), g.vector(c), g.net.vector(c), g.vector(c, 1)), x.shape)
    return None


@block("vector", "sequence")
def precise(g: Grower, x: Value) -> Made:
    """A layer in float64."""
    weight = g.net.fresh("wide")
    g.net.consts[weight] = g.array(x.width, 8, scale=x.width**-0.5).astype(np.float64)
    y = g("MatMul", g("Cast", x, to=TensorProto.DOUBLE), weight)
    return Value(g("Cast", y, to=TensorProto.FLOAT), resized(x.shape, len(x.shape) - 1, 8))


@block("vector", "sequence")
def integer_product(g: Grower, x: Value) -> Made:
    """A layer quantised while it runs."""
    if g.opset < 11:
        return None
    q, scale, zero = g.many("DynamicQuantizeLinear", 3, x)
    weight = g.net.const(g.net.rng.integers(-90, 90, (x.width, 8)).astype(np.int8))
    own = g.net.const((0.01 + 0.005 * np.abs(g.array(8))).astype(np.float32)) if g.rarely(2) else g.scalar(0.01)
    y = g("Cast", g("MatMulInteger", q, weight, zero), to=TensorProto.FLOAT)
    return Value(g("Mul", g("Mul", y, scale), own), resized(x.shape, len(x.shape) - 1, 8))


@block("image")
def integer_convolution(g: Grower, x: Value) -> Made:
    """A convolution between integers, in groups at times."""
    if g.opset < 11:
        return None
    c = x.width
    group = g.pick((1, g.divisor(c) or 1, c))
    out = 8 if group == 1 else 2 * group
    weight = g.net.const(g.net.rng.integers(-90, 90, (out, c // group, 3, 3)).astype(np.int8))
    if g.rarely(2):
        q, scale, zero = g.many("DynamicQuantizeLinear", 3, x)
        y = g("ConvInteger", q, weight, zero, pads=[1] * 4, group=group)
        y = g("Mul", g("Cast", y, to=TensorProto.FLOAT), scale)
        return Value(g("Mul", y, g.scalar(0.01)), resized(x.shape, 1, out))
    zero, scale = g.net.const(np.uint8(120)), g.scalar(0.03)
    scales = g.net.const((0.004 + 0.002 * np.abs(g.array(out))).astype(np.float32))
    zeros = g.net.const(np.zeros(out, np.int8))
    bias = [g.net.const(g.net.rng.integers(-200, 200, out).astype(np.int32))] if g.rarely(2) else []
    y = g("QuantizeLinear", x, scale, zero)
    y = g("QLinearConv", y, scale, zero, weight, scales, zeros, scale, zero, *bias, pads=[1] * 4, group=group)
    return Value(g("DequantizeLinear", y, scale, zero), resized(x.shape, 1, out))


# ---- recurrent layers with states ------------------------------------------------------------------------------------
@block("sequence")
def remembered(g: Grower, x: Value) -> Made:
    """A recurrent layer that starts from a learnt or a computed state."""
    n, length, d = x.shape
    if not length:
        return None
    op, gates = g.pick((("LSTM", 4), ("GRU", 3)))
    hidden, ways = 6, 1 + g.rarely(2)
    weights = [g.net.weight(ways, gates * hidden, size, fan_in=size) for size in (d, hidden)]
    if g.rarely(2):
        batch = g.size_of(x, 0)
        shape = g("Concat", g.ints(ways), batch, g.ints(hidden), axis=0)
        state = g("Expand", g.net.const(g.array(ways, 1, hidden)), shape)
    else:
        start = g.linear(g.reduce("ReduceMean", x, [1], 0), d, ways * hidden)
        state = g.transpose(g.reshape(start, 0, ways, hidden), 1, 0, 2)
    rest = [state] * (2 if op == "LSTM" and g.rarely(2) else 1)
    direction = "bidirectional" if ways == 2 else "forward"
    moved = g.transpose(x, 1, 0, 2)
    bias = g.net.const(0.2 * g.array(ways, 2 * gates * hidden))
    y, last = g.many(op, 2, moved, *weights, bias, "", *rest, hidden_size=hidden, direction=direction)
    out = [Value(g.reshape(g.transpose(y, 2, 0, 1, 3), 0, 0, -1), (n, length, ways * hidden))]
    if g.rarely(3):
        out.append(Value(g.reduce("ReduceMean", last, [0], 0), (n, hidden)))
    return out


# ---- operators of onnxruntime ----------------------------------------------------------------------------------------
@block("sequence")
def fused(g: Grower, x: Value) -> Made:
    n, length, d = x.shape
    way = g.pick(("heads", "norm", "gelu", "product", "heads"))
    if way == "norm":
        y = g.partner(x)
        beta = [g.vector(d), *([g.vector(d)] if g.rarely(2) else [])]
        return Value(g("SkipLayerNormalization", x, y, g.vector(d, 1), *beta, **MS), x.shape)
    if way == "gelu":
        return Value(g("BiasGelu", x, g.vector(d), **MS), x.shape)
    if way == "product":
        y = g("FusedMatMul", x, g.net.weight(8, d, fan_in=d), transB=1, alpha=0.5, **MS)
        return Value(y, (n, length, 8))
    heads = g.pick((2, 4))
    inner = heads * 4
    q, k, v = (g.linear(x, d, inner) for _ in range(3))
    y = g("MultiHeadAttention", q, k, v, num_heads=heads, **MS)
    return Value(g("Add", x, g.linear(y, inner, d)), x.shape)


@block("image")
def fused_convolution(g: Grower, x: Value) -> Made:
    group = g.pick((1, g.divisor(x.width) or 1))
    out = 4 * group
    weight = g.net.weight(out, x.width // group, 1, 1, fan_in=x.width)
    return Value(
        g("FusedConv", x, weight, g.vector(out), activation="Relu", group=group, **MS), resized(x.shape, 1, out)
    )


@block("image")
def two_uses(g: Grower, x: Value) -> Made:
    """One weight as a convolution forth, and as its transpose back; or as a matrix too."""
    c = x.width
    weight = g.net.weight(12, c, 1, 1, fan_in=c)
    y = g("Relu", g("Conv", x, weight))
    if g.rarely(2):
        return Value(g("ConvTranspose", y, weight), x.shape)
    pooled = g.reduce("ReduceMean", x, [2, 3], 0)
    gate = g("Sigmoid", g("Gemm", pooled, g("Reshape", weight, g.ints(12, c)), g.vector(12), transB=1))
    return Value(g("Mul", y, g.with_axes("Unsqueeze", gate, [2, 3])), resized(x.shape, 1, 12))
