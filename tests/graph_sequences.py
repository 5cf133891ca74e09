"""Blocks for sequences (N, L, D) of random graphs: attention in its forms, recurrent layers, experts, windows."""

from __future__ import annotations

from graphs import CHANNELS, Grower, Value, block, resized

Made = Value | list[Value] | None


# ---- layers ----------------------------------------------------------------------------------------------------------
@block("sequence")
@block("sequence")
def dense_tokens(g: Grower, x: Value) -> Made:
    n, length, d = x.shape
    out = g.pick(CHANNELS)
    if g.rarely(3) and length:
        rows = g("Gemm", g.reshape(x, -1, d), g.weight(d, out, fan_in=d, axis=1), g.vector(out))
        return Value(g("Reshape", rows, g.ints(-1, length, out)), (n, length, out))
    return Value(g.linear(x, d, out), (n, length, out))


@block("sequence")
def feed_forward(g: Grower, x: Value) -> Made:
    d, wide = x.width, g.pick((16, 24))
    way = g.pick(("mlp", "swiglu", "glu"))
    if way == "mlp":
        y = g("Relu", g.linear(x, d, wide))
    elif way == "swiglu":
        gate = g.linear(x, d, wide, bias=False)
        y = g("Mul", g("Mul", gate, g("Sigmoid", gate)), g.linear(x, d, wide, bias=False))
    else:
        a, b = g.split(g.linear(x, d, 2 * wide), 2, [wide, wide])
        y = g("Mul", a, g("Sigmoid", b))
    return Value(g("Add", x, g.linear(y, wide, d)), x.shape)


@block("sequence")
@block("sequence")
def token_norm(g: Grower, x: Value) -> Made:
    d = x.width
    way = g.pick(("op", "layer", "rms", "rms op"))
    if way == "op" and g.opset >= 17:
        return Value(g("LayerNormalization", x, g.vector(d, 1), g.vector(d), axis=g.pick((-1, 2))), x.shape)
    if way == "rms op" and g.opset >= 23:
        return Value(g("RMSNormalization", x, g.vector(d, 1)), x.shape)
    if way == "rms":
        mean = g.reduce("ReduceMean", g("Pow", x, g.scalar(2)), [-1] if g.opset >= 11 else [2])
        y = g("Div", x, g("Sqrt", g("Add", mean, g.scalar(1e-3))))
        return Value(g("Mul", *g.either(y, g.vector(d, 1))), x.shape)
    centred = g("Sub", x, g.reduce("ReduceMean", x, [2]))
    variance = g.reduce("ReduceMean", g("Mul", centred, centred), [2])
    y = g("Div", centred, g("Sqrt", g("Add", variance, g.scalar(1e-3))))
    return Value(g("Add", g("Mul", y, g.vector(d, 1)), g.vector(d)), x.shape)


@block("sequence")
def positions(g: Grower, x: Value) -> Made:
    if not x.static:
        return None
    return Value(g("Add", x, g.net.const(0.3 * g.array(*g.pick(((1, *x.shape[1:]), x.shape[1:]))))), x.shape)


@block("sequence")
def class_token(g: Grower, x: Value) -> Made:
    """Put a learnt token in front, expanded to the batch."""
    n, length, d = x.shape
    if not length:
        return None
    token = g.net.const(g.array(1, 1, d))
    shape = g("Concat", g.size_of(x, 0), g.ints(-1, -1) if g.rarely(2) and g.opset >= 13 else g.ints(1, 1), axis=0)
    if g.net.consts[g.net.nodes[-1].input[1]][0] < 0:
        shape = g("Where", g("Equal", shape, g.ints(-1, -1, -1)), g.ints(1, 1, 1), shape)
    return Value(g("Concat", g("Expand", token, shape), x, axis=1), (n, length + 1, d))


@block("sequence")
def convolution_1d(g: Grower, x: Value) -> Made:
    """A convolution along the sequence; depthwise at times."""
    d = x.width
    y = g.transpose(x, 0, 2, 1)
    group = d if g.rarely(2) else 1
    y = g("Conv", y, g.weight(d, d // group, 3, fan_in=3 * d // group), g.vector(d), pads=[1, 1], group=group)
    return Value(g.transpose(y, 0, 2, 1), x.shape)


@block("sequence")
def recurrent(g: Grower, x: Value) -> Made:
    n, length, d = x.shape
    op, gates = g.pick((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    both = g.rarely(2)
    ways, hidden = 1 + both, g.pick((6, 8))
    names = [
        g.net.weight(ways, gates * hidden, d, fan_in=d),
        g.net.weight(ways, gates * hidden, hidden, fan_in=hidden),
        g.net.const(0.2 * g.array(ways, 2 * gates * hidden)),
    ]
    attrs = {"linear_before_reset": 1} if op == "GRU" and g.rarely(2) else {}
    direction = "bidirectional" if both else g.pick(("forward", "reverse"))
    y = g.many(op, 2, g.transpose(x, 1, 0, 2), *names, hidden_size=hidden, direction=direction, **attrs)
    if g.rarely(3):
        last = Value(g.transpose(y[1], 1, 0, 2), (n, ways, hidden))
        return Value(g.reshape(last, 0, ways * hidden), (n, ways * hidden))
    if both:
        moved = Value(g.transpose(y[0], 2, 0, 1, 3), (n, length, 2, hidden))
        return Value(g.reshape(moved, 0, 0, 2 * hidden), (n, length, 2 * hidden))
    return Value(g.transpose(g.with_axes("Squeeze", y[0], [1]), 1, 0, 2), (n, length, hidden))


@block("sequence")
def experts(g: Grower, x: Value) -> Made:
    """All experts in one weight (E, D, F), mixed by a router."""
    d, count, wide = x.width, 3, 8
    y = g("MatMul", g.with_axes("Unsqueeze", x, [1]), g.net.weight(count, d, wide, fan_in=d))
    y = g("MatMul", g("Relu", y), g.net.weight(count, wide, d, fan_in=wide))
    route = g("Softmax", g.linear(x, d, count), axis=2)
    route = g.with_axes("Unsqueeze", g.transpose(route, 0, 2, 1), [3])
    return Value(g.reduce("ReduceSum", g("Mul", y, route), [1], 0), x.shape)


@block("sequence")
def rolled(g: Grower, x: Value) -> Made:
    """Roll along the sequence, then see it as windows and back."""
    length, d = x.shape[1:]
    if length < 2:
        return None
    y = Value(g("Concat", g.slice(x, 1, 1, 2**31), g.slice(x, 1, 0, 1), axis=1), x.shape)
    if length % 2:
        return y
    windows = g.linear(g.reshape(y, -1, 2, d), d, d)
    return Value(g("Reshape", windows, g.ints(-1, length, d)), x.shape)


@block("sequence")
@block("sequence")
def sequence_bridge(g: Grower, x: Value) -> Made:
    n, length, d = x.shape
    way = g.pick(("mean", "first", "image", "flat"))
    if way == "mean":
        return Value(g.reduce(g.pick(("ReduceMean", "ReduceMax")), x, [1], 0), (n, d))
    if way == "first":
        return Value(g.gather(x, 0, 1), (n, d))
    if way == "flat" and length:
        flat = g.reshape(x, 0, length * d) if g.rarely(2) else g("Flatten", x)
        return Value(g.linear(flat, length * d, 12), (n, 12))
    side = {4: 2, 9: 3, 16: 4, 36: 6, 64: 8}.get(length)
    if way == "image" and side:
        return Value(g.reshape(Value(g.transpose(x, 0, 2, 1), (n, d, length)), 0, d, side, side), (n, d, side, side))
    return None


# ---- attention -------------------------------------------------------------------------------------------------------
@block("sequence")
@block("sequence")
@block("sequence")
def attention(g: Grower, x: Value) -> Made:
    d, heads, size = x.width, g.pick((2, 4)), g.pick((4, 6, 3))
    source = x
    if g.rarely(4):  # cross-attention
        others = [v for v in g.values if len(v.shape) == 3 and v.shape[0] == x.shape[0]]
        source = g.pick(others)
    way = g.pick(("apart", "apart", "fused", "interleaved", "grouped", "op"))
    if way == "op" and g.opset < 23:
        way = "apart"
    if way == "op":
        y = _attention_op(g, x, source, heads, size)
    else:
        q, k, v = _projections(g, x, source, heads, size, way if source is x else "apart")
        y = _attend(g, x, source, q, k, v, heads, size)
    y = g.linear(y, heads * size, d, bias=not g.rarely(2))
    return Value(g("Add", x, y) if not g.rarely(4) else y, x.shape)


def _attention_op(g: Grower, x: Value, source: Value, heads: int, size: int) -> str:
    pairs = heads // 2 if g.rarely(2) else heads
    q = g.linear(x, x.width, heads * size)
    k, v = (g.linear(source, source.width, pairs * size) for _ in range(2))
    return g("Attention", q, k, v, q_num_heads=heads, kv_num_heads=pairs)


def _projections(g: Grower, x: Value, source: Value, heads: int, size: int, way: str) -> list[str]:
    """Queries, keys and values as (N, heads, L, size)."""
    n, length, d = x.shape
    inner = heads * size
    if way in ("apart", "grouped"):
        pairs = heads // 2 if way == "grouped" else heads
        q = _split(g, x, heads, size)
        k, v = (_repeat(g, _split(g, source, pairs, size), pairs, heads, source.shape[1], size) for _ in range(2))
        return [q, k, v]
    fused = Value(g.linear(x, d, 3 * inner), (n, length, 3 * inner))
    if way == "interleaved":  # (heads, 3 x size)
        y = g.transpose(g.reshape(fused, 0, 0, heads, 3 * size), 0, 2, 1, 3)
        return g.split(y, 3, [size] * 3)
    if g.rarely(2):
        parts = g.split(fused, 2, [inner] * 3)
        return [g.transpose(g.reshape(Value(p, (n, length, inner)), 0, 0, heads, size), 0, 2, 1, 3) for p in parts]
    y = g.transpose(g.reshape(fused, 0, 0, 3, heads, size), 2, 0, 3, 1, 4)
    if g.rarely(2):
        return [g.gather(y, i, 0) for i in range(3)]
    return [g.with_axes("Squeeze", p, [0]) for p in g.split(y, 0, [1, 1, 1])]


def _split(g: Grower, x: Value, heads: int, size: int) -> str:
    y = Value(g.linear(x, x.width, heads * size), resized(x.shape, 2, heads * size))
    return g.transpose(g.reshape(y, 0, 0, heads, size), 0, 2, 1, 3)


def _repeat(g: Grower, y: str, pairs: int, heads: int, length: int, size: int) -> str:
    """Give each query head its key head."""
    if pairs == heads:
        return y
    wide = g("Expand", g.with_axes("Unsqueeze", y, [2]), g.ints(1, 1, heads // pairs, 1, 1))
    if length:
        return g.reshape(wide, 0, heads, length, size)
    return g("Reshape", wide, g("Concat", g.size_of(y, 0), g.ints(heads), g.size_of(y, 2), g.ints(size), axis=0))


def _attend(g: Grower, x: Value, source: Value, q: str, k: str, v: str, heads: int, size: int) -> str:
    n, length, _ = x.shape
    if g.rarely(4):
        gain = g.net.const(1 + 0.2 * g.array(*g.pick(((size,), (heads, 1, 1), (heads, 1, size), (1, 1, 1, size)))))
        q = g("Mul", *g.either(q, gain))
    if g.rarely(5) and g.opset >= 17:
        q, k = (g("LayerNormalization", y, g.vector(size, 1), g.vector(size)) for y in (q, k))
    if g.rarely(4) and size % 2 == 0 and source is x and length:
        q, k = _rotate(g, [q, k], length, size)
    if g.rarely(6):  # cross-covariance: over the features
        scores = g("Softmax", g("MatMul", g.transpose(q, 0, 1, 3, 2), k), axis=3) if source.shape == x.shape else ""
        if scores:
            y = g.transpose(g("MatMul", v, g.transpose(scores, 0, 1, 3, 2)), 0, 2, 1, 3)
            return g.reshape(Value(y, (n, length, heads, size)), 0, 0, heads * size)
    if g.rarely(4) and g.opset >= 12:
        scores = g("Einsum", q, k, equation="bhid,bhjd->bhij")
    else:
        scores = g("MatMul", q, g.transpose(k, 0, 1, 3, 2))
    scores = g("Mul", scores, g.scalar(size**-0.5)) if g.rarely(2) else g("Div", scores, g.scalar(size**0.5))
    if g.rarely(4) and length and source.shape[1]:
        shape = g.pick(((1, heads), (heads,), (1, 1)))
        scores = g("Add", scores, g.net.const(0.5 * g.array(*shape, length, source.shape[1])))
    scores = g("Softmax", scores, axis=3)
    if g.rarely(6):  # heads talk
        scores = g("Conv", scores, g.weight(heads, heads, 1, 1, fan_in=heads))
    y = g.transpose(g("MatMul", scores, v), 0, 2, 1, 3)
    return g.reshape(Value(y, (n, length, heads, size)), 0, 0, heads * size)


def _rotate(g: Grower, values: list[str], length: int, size: int) -> list[str]:
    """Rotary embedding by halves."""
    cos, sin = (g.net.const(g.array(*lead, length, size)) for lead in ((1, 1), ()))
    turned = []
    for y in values:
        low, high = g.slice(y, 3, 0, size // 2), g.slice(y, 3, size // 2, 2**31)
        other = g("Concat", g("Neg", high), low, axis=3)
        turned.append(g("Add", g("Mul", y, cos), g("Mul", other, sin)))
    return turned
