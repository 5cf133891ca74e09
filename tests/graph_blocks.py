"""The blocks that random graphs are made of; each takes a value and returns new ones, or None where it does not fit."""

from __future__ import annotations

import numpy as np
from graphs import CHANNELS, Grower, Value, block, elements, resized
from onnx import TensorProto

Made = Value | list[Value] | None
MOST = 4096  # elements of a value


# ---- any value: element by element -----------------------------------------------------------------------------------
@block()
def activation(g: Grower, x: Value) -> Made:
    simple = ["Relu", "Sigmoid", "Tanh", "Softplus", "LeakyRelu", "Elu", "HardSigmoid", "Erf", "Identity", "Dropout"]
    late = [("HardSwish", 14), ("Mish", 18), ("Gelu", 20)]
    op = g.pick([*simple, *(name for name, since in late if g.opset >= since), "silu", "gelu", "clip", "PRelu"])
    if op == "silu":
        return Value(g("Mul", *g.either(x.name, g("Sigmoid", x))), x.shape)
    if op == "gelu":
        half = g("Mul", x, g.scalar(0.5))
        return Value(g("Mul", half, g("Add", g("Erf", g("Mul", x, g.scalar(0.7))), g.scalar(1))), x.shape)
    if op == "clip":
        return Value(g.clip(x, -1.5, 1.5), x.shape)
    if op == "PRelu":
        shape = [x.width] + [1] * (len(x.shape) - 1 - x.channel)
        return Value(g("PRelu", x, g.net.const(0.2 + 0.1 * g.array(*shape))), x.shape)
    return Value(g(op, x), x.shape)


@block()
def constant(g: Grower, x: Value) -> Made:
    """A stored operand on either side, spanning some axes."""
    axes = range(1, len(x.shape))
    way = g.pick(("channel", "any", "scalar", "channel"))
    chosen = {"channel": [x.channel], "any": [a for a in axes if not g.rarely(3)], "scalar": []}[way]
    spanned = [a for a in chosen if x.shape[a]]
    shape = [x.shape[a] if a in spanned else 1 for a in range(len(x.shape))]
    lead = g.pick((0, min(spanned, default=len(shape)), 1))
    value = 1 + 0.3 * g.array(*shape[lead:])
    op = g.pick(("Add", "Mul", "Sub", "Div", "Max", "Where"))
    if op == "Where":
        other = g.partner(x).name if g.rarely(2) else g.scalar(0)
        return Value(g("Where", g.net.const(g.array(*shape[lead:]) > 0), x, other), x.shape)
    if op == "Div":
        return Value(g("Div", x, g.net.const(np.abs(value) + 1)), x.shape)
    return Value(g(op, *g.either(x.name, g.net.const(value))), x.shape)


@block()
def residual(g: Grower, x: Value) -> Made:
    y = g.partner(x)
    op = g.pick(("Add", "Add", "Mul", "Sub", "Max", "Where", "Sum", "Mean"))
    if op == "Where":
        return Value(g("Where", g("Greater", x, g.scalar(0)), *g.either(x.name, y.name)), x.shape)
    if op == "Mul":
        return Value(g("Mul", x, g("Tanh", y)), x.shape)
    return Value(g(op, x, y), x.shape)


@block()
def quantised(g: Grower, x: Value) -> Made:
    if g.opset < 10:
        return None
    zero = [g.net.const(np.uint8(128))]
    scale = g.net.const(np.float32(0.02))
    return Value(g("DequantizeLinear", g("QuantizeLinear", x, scale, *zero), scale, *zero), x.shape)


@block()
def cast(g: Grower, x: Value) -> Made:
    to = g.pick((TensorProto.DOUBLE, TensorProto.FLOAT16))
    return Value(g("Cast", g("Cast", x, to=to), to=TensorProto.FLOAT), x.shape)


# ---- any value: moving data ------------------------------------------------------------------------------------------
@block()
def joined(g: Grower, x: Value) -> Made:
    axis = g.along(x)
    if axis is None:
        return None
    same_rank = [v for v in g.values if len(v.shape) == len(x.shape) and v.shape[axis]]
    fits = [v for v in same_rank if resized(v.shape, axis, 0) == resized(x.shape, axis, 0)]
    parts = [x, *(g.pick(fits) for _ in range(g.pick((1, 2)))), *([g.partner(x)] if g.rarely(2) else [])]
    size = sum(v.shape[axis] for v in parts)
    if elements(resized(x.shape, axis, size)) > MOST:
        return None
    place = axis - len(x.shape) if g.opset >= 11 and g.rarely(2) else axis
    return Value(g("Concat", *parts, axis=place), resized(x.shape, axis, size))


@block()
def parted(g: Grower, x: Value) -> Made:
    axis = g.along(x)
    if axis is None:
        return None
    size, count = x.shape[axis], g.divisor(x.shape[axis]) or 1
    sizes = [size // count] * count if count > 1 and not g.rarely(3) else [size // 2, size - size // 2]
    return [Value(name, resized(x.shape, axis, s)) for name, s in zip(g.split(x, axis, sizes), sizes)]


@block()
def sliced(g: Grower, x: Value) -> Made:
    axis = g.along(x)
    if axis is None:
        return None
    size = x.shape[axis]
    start, end, step = g.pick(((0, size // 2, 1), (1, size, 1), (0, -1, 1), (0, size, 2), (1, 2**31, 2), (-1, -99, -1)))
    step = step if g.opset >= 10 else 1
    if step == -1:
        return Value(g.slice(x, axis, start, end, step), x.shape)
    start = start if step > 0 else 0
    left = len(range(size)[start:end:step])
    return Value(g.slice(x, axis, start, end, step), resized(x.shape, axis, left)) if left else None


@block()
def gathered(g: Grower, x: Value) -> Made:
    axis = g.along(x)
    if axis is None:
        return None
    size = x.shape[axis]
    index = g.pick((list(range(size))[::-1], list(range(0, size, 2)), [0, 0, 1, *range(size)], [size - 1]))
    return Value(g("Gather", x, g.ints(*index), axis=axis), resized(x.shape, axis, len(index)))


@block()
def picked(g: Grower, x: Value) -> Made:
    """One index of an axis: the rank falls."""
    axis = g.along(x)
    if axis is None or len(x.shape) < 3 or (len(x.shape) == 4 and axis == 1 and not g.rarely(3)):
        return None
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    if not shape[-1] or not all(shape[2:]):
        return None
    index = g.pick((0, x.shape[axis] - 1))
    if g.rarely(2) or g.opset < 10:
        return Value(g.gather(x, index, axis), shape)
    return Value(g.with_axes("Squeeze", g.slice(x, axis, index, index + 1), [axis]), shape)


@block()
def padded(g: Grower, x: Value) -> Made:
    axis = g.along(x)
    if axis is None:
        return None
    head, tail, rank = g.pick((0, 1, 2)), g.pick((1, 3)), len(x.shape)
    pads = [head if a == axis else 0 for a in range(rank)] + [tail if a == axis else 0 for a in range(rank)]
    mode = g.pick(("constant", "constant", "edge"))
    if g.opset < 11:
        y = g("Pad", x, pads=pads, mode=mode)
    elif g.opset >= 18 and g.rarely(2):
        y = g("Pad", x, g.ints(head, tail), "", g.ints(axis - rank), mode=mode)
    else:
        y = g("Pad", x, g.ints(*pads), *([g.scalar(0.5)] if mode == "constant" and g.rarely(2) else []), mode=mode)
    return Value(y, resized(x.shape, axis, x.shape[axis] + head + tail))


@block()
def repeated(g: Grower, x: Value) -> Made:
    axis = g.along(x)
    if axis is None or elements(x.shape) * 2 > MOST:
        return None
    times = g.ints(*(2 if a == axis else 1 for a in range(len(x.shape))))
    return Value(g("Tile", x, times), resized(x.shape, axis, 2 * x.shape[axis]))


@block()
def spread(g: Grower, x: Value) -> Made:
    """Subtract or multiply a reduction over an axis, which Expand brings back to its length at times."""
    axis = g.along(x)
    if axis is None:
        return None
    ops = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceLogSumExp")
    y = g.reduce(g.pick(ops), x, [axis])
    if g.rarely(3):
        y = g("Expand", y, g("Shape", x))
    elif g.rarely(4):
        y = g("Expand", y, g.ints(*(x.shape[a] if a == axis else 1 for a in range(len(x.shape)))))
    return Value(g("Sub", x, y) if g.rarely(2) else g("Mul", x, g("Tanh", y)), x.shape)


@block()
def softmax(g: Grower, x: Value) -> Made:
    if g.opset < 13 and len(x.shape) != 2 and not g.rarely(4):
        return None
    axis = g.along(x) if g.opset >= 13 else len(x.shape) - 1
    return None if axis is None else Value(g(g.pick(("Softmax", "LogSoftmax")), x, axis=axis), x.shape)


@block()
def ordered(g: Grower, x: Value) -> Made:
    """Operators for which the order along an axis matters."""
    axis = g.along(x)
    if axis is None or g.opset < 11:
        return None
    if g.rarely(2):
        return Value(g("CumSum", x, g.ints(axis)), x.shape)
    count = max(1, x.shape[axis] // 2)
    return Value(g.many("TopK", 2, x, g.ints(count), axis=axis)[0], resized(x.shape, axis, count))


# ---- images ----------------------------------------------------------------------------------------------------------
@block("image")
@block("image")
@block("image")
@block("image")
def convolution(g: Grower, x: Value) -> Made:
    _, c, h, w = x.shape
    group = g.pick((1, 1, 1, g.divisor(c) or 1, c))
    out = c * g.pick((1, 1, 2)) if group == c > 1 else group * g.pick((2, 3, 4)) if group > 1 else g.pick(CHANNELS)
    kernel = g.pick((3, 1)) if min(h, w) > 1 else 1
    stride = 2 if g.rarely(5) and h % 2 == w % 2 == 0 and kernel == 3 else 1
    weight = g.weight(out, c // group, kernel, kernel, fan_in=c // group * kernel**2)
    bias = [g.vector(out)] if g.rarely(2) else []
    y = g("Conv", x, weight, *bias, pads=[kernel // 2] * 4, group=group, strides=[stride] * 2)
    return Value(y, (x.shape[0], out, h // stride, w // stride))


@block("image")
def transposed_convolution(g: Grower, x: Value) -> Made:
    n, c, h, w = x.shape
    group = g.pick((1, 1, g.divisor(c) or 1, c))
    each = g.pick((1, 2)) if group == c else g.pick((2, 3, 4)) if group > 1 else g.pick(CHANNELS)
    bias = [g.vector(group * each)] if g.rarely(2) else []
    if elements(x.shape) > 512:
        y = g("ConvTranspose", x, g.weight(c, each, 3, 3, fan_in=c * 9, axis=1), *bias, group=group, pads=[1] * 4)
        return Value(y, (n, group * each, h, w))
    y = g("ConvTranspose", x, g.weight(c, each, 2, 2, fan_in=c, axis=1), *bias, group=group, strides=[2, 2])
    return Value(y, (n, group * each, 2 * h, 2 * w))


@block("image")
@block("image")
def image_norm(g: Grower, x: Value) -> Made:
    n, c, h, w = x.shape
    way = g.pick(("batch", "batch", "instance", "groups", "group op", "last", "LRN"))
    if way == "batch":
        return Value(g("BatchNormalization", x, g.vector(c, 1), g.vector(c), g.net.vector(c), g.vector(c, 1)), x.shape)
    if way == "instance":
        return Value(g("InstanceNormalization", x, g.vector(c, 1), g.vector(c)), x.shape)
    if way == "LRN":
        return Value(g("LRN", x, size=3), x.shape)
    if way == "last" and g.opset >= 17:
        y = g("LayerNormalization", g.transpose(x, 0, 2, 3, 1), g.vector(c, 1), g.vector(c), axis=-1)
        return Value(g.transpose(y, 0, 3, 1, 2), x.shape)
    groups = g.divisor(c) or 1
    if way == "group op" and g.opset >= 21:
        return Value(g("GroupNormalization", x, g.vector(c, 1), g.vector(c), num_groups=groups), x.shape)
    ones = g.net.const(np.ones(groups, np.float32))
    y = g("InstanceNormalization", g.reshape(x, 0, groups, -1), ones, g.vector(groups))
    y = g.reshape(Value(y, (n, groups, c // groups * h * w)), 0, c, h, w)
    scaled = g("Mul", y, g.net.const(1 + 0.2 * g.array(c, 1, 1)))
    return Value(g("Add", scaled, g.net.const(0.2 * g.array(c, 1, 1))), x.shape)


@block("image")
def shuffled(g: Grower, x: Value) -> Made:
    """Shuffle channels between groups."""
    _, c, h, w = x.shape
    groups = g.divisor(c)
    if groups is None:
        return None
    y = g.transpose(g.reshape(x, 0, groups, c // groups, h, w), 0, 2, 1, 3, 4)
    return Value(g.reshape(y, 0, c, h, w), x.shape)


@block("image")
def channels_and_space(g: Grower, x: Value) -> Made:
    n, c, h, w = x.shape
    if c % 4 == 0 and c > 4 and g.rarely(2):
        out = (n, c // 4, 2 * h, 2 * w)
        if g.rarely(3):
            y = g.transpose(g.reshape(x, 0, c // 4, 2, 2, h, w), 0, 1, 4, 2, 5, 3)
            return Value(g.reshape(y, 0, c // 4, 2 * h, 2 * w), out)
        mode = {"mode": g.pick(("DCR", "CRD"))} if g.opset >= 11 else {}
        return Value(g("DepthToSpace", x, blocksize=2, **mode), out)
    if h % 2 or w % 2 or c > 16:
        return None
    out = (n, c * 4, h // 2, w // 2)
    if g.rarely(3) and g.opset >= 10:
        corners = [g.slice(g.slice(x, 2, i, 99, 2), 3, j, 99, 2) for j in (0, 1) for i in (0, 1)]
        return Value(g("Concat", *corners, axis=1), out)
    return Value(g("SpaceToDepth", x, blocksize=2), out)


@block("image")
def pooled(g: Grower, x: Value) -> Made:
    n, c, h, w = x.shape
    if g.rarely(2) or h % 2 or w % 2:
        return None if min(h, w) < 2 else Value(g("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4), x.shape)
    return Value(g("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), (n, c, h // 2, w // 2))


@block("image")
def enlarged(g: Grower, x: Value) -> Made:
    n, c, h, w = x.shape
    if elements(x.shape) * 4 > MOST or g.opset < 11:
        return None
    mode = g.pick(("nearest", "linear"))
    region = g.net.const(np.zeros(0, np.float32)) if g.opset < 13 else ""
    y = g("Resize", x, region, g.net.const(np.array([1, 1, 2, 2], np.float32)), mode=mode)
    return Value(y, (n, c, 2 * h, 2 * w))


@block("image")
def gated(g: Grower, x: Value) -> Made:
    """Squeeze and excite."""
    c = x.width
    y = g("GlobalAveragePool", x) if g.rarely(2) else g.reduce("ReduceMean", x, [2, 3])
    narrow = g.pick((4, 2, c))
    y = g("Relu", g("Conv", y, g.weight(narrow, c, 1, 1, fan_in=c), g.vector(narrow)))
    y = g("Sigmoid", g("Conv", y, g.weight(c, narrow, 1, 1, fan_in=narrow), g.vector(c)))
    return Value(g("Mul", *g.either(x.name, y)), x.shape)


@block("image")
def image_einsum(g: Grower, x: Value) -> Made:
    if g.opset < 12:
        return None
    out = g.pick(CHANNELS)
    y = g("Einsum", x, g.weight(out, x.width, fan_in=x.width), equation=g.pick(("nchw,oc->nohw", "nchw,oc->nhwo")))
    if g.net.nodes[-1].attribute[0].s.endswith(b"nhwo"):
        y = g.transpose(y, 0, 3, 1, 2)
    return Value(y, resized(x.shape, 1, out))


@block("image")
def channels_last(g: Grower, x: Value) -> Made:
    """A pointwise network on the last axis (ConvNeXt)."""
    c = x.width
    y = g.linear(g("Relu", g.linear(g.transpose(x, 0, 2, 3, 1), c, 2 * c)), 2 * c, c)
    y = g("Mul", y, g.vector(c, 0.5)) if g.rarely(2) else y
    return Value(g("Add", x, g.transpose(y, 0, 3, 1, 2)), x.shape)


@block("image")
@block("image")
def image_bridge(g: Grower, x: Value) -> Made:
    n, c, h, w = x.shape
    way = g.pick(("tokens", "flat", "pool", "columns", "patches"))
    if way == "tokens":
        return Value(g.transpose(g.reshape(x, 0, c, -1), 0, 2, 1), (n, h * w, c))
    if way == "flat":
        flat = g("Flatten", x) if g.rarely(2) else g.reshape(x, 0, c * h * w)
        return Value(g.linear(flat, c * h * w, 12), (n, 12))
    if way == "pool":
        return Value(g.reduce("ReduceMean", x, [2, 3], 0), (n, c))
    if way == "columns":
        y = g.reshape(Value(g.transpose(x, 0, 3, 1, 2), (n, w, c, h)), 0, w, c * h)
        return Value(g.linear(y, c * h, 12), (n, w, 12))
    if h % 2 or w % 2:
        return None
    y = g("Conv", x, g.weight(12, c, 2, 2, fan_in=4 * c), g.vector(12), strides=[2, 2])
    return Value(g.transpose(g.reshape(Value(y, (n, 12, h // 2, w // 2)), 0, 12, -1), 0, 2, 1), (n, h * w // 4, 12))


# ---- vectors ---------------------------------------------------------------------------------------------------------
@block("vector")
@block("vector")
@block("vector")
def dense(g: Grower, x: Value) -> Made:
    out, d = g.pick(CHANNELS), x.width
    if g.rarely(2):
        return Value(g.linear(x, d, out), (x.shape[0], out))
    turned = g.rarely(2)
    weight = g.weight(out, d, fan_in=d) if turned else g.weight(d, out, fan_in=d, axis=1)
    bias = g.net.const(0.2 * g.array(1, out)) if g.rarely(4) else g.vector(out)
    rest = [bias] if g.rarely(2) or g.opset < 11 else []
    return Value(g("Gemm", x, weight, *rest, transB=int(turned), alpha=0.9), (x.shape[0], out))


@block("vector")
def autoencoder(g: Grower, x: Value) -> Made:
    """Encode and decode with one weight and its transpose."""
    weight = g.net.weight(x.width, 12, fan_in=x.width)
    y = g("Relu", g("MatMul", x, weight))
    return Value(g("MatMul", y, g.transpose(weight, 1, 0)), x.shape)


@block("vector")
def vector_norm(g: Grower, x: Value) -> Made:
    d = x.width
    if g.rarely(2) or g.opset < 17:
        return Value(g("BatchNormalization", x, g.vector(d, 1), g.vector(d), g.net.vector(d), g.vector(d, 1)), x.shape)
    return Value(g("LayerNormalization", x, g.vector(d, 1), g.vector(d)), x.shape)


@block("vector")
def modulated(g: Grower, x: Value) -> Made:
    """Scale and shift an image or a sequence by a vector (FiLM)."""
    others = [v for v in g.values if len(v.shape) > 2 and v.shape[0] == x.shape[0]]
    if not others:
        return None
    y = g.pick(others)
    axes = [2, 3] if len(y.shape) == 4 else [1]
    scale = g.with_axes("Unsqueeze", g.linear(x, x.width, y.width), axes)
    return Value(g(g.pick(("Mul", "Add")), y, g("Tanh", scale)), y.shape)


@block("vector")
def vector_bridge(g: Grower, x: Value) -> Made:
    n, d = x.shape
    if g.rarely(2):
        c, side = g.pick((4, 8)), 4
        return Value(g.reshape(g.linear(x, d, c * side * side), 0, c, side, side), (n, c, side, side))
    length = g.divisor(d)
    if length is None:
        return None
    return Value(g.reshape(x, 0, length, d // length), (n, length, d // length))
