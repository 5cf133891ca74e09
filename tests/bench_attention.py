"""Networks around attention and rotary embedding, fused in every way that onnx and onnxruntime know."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench_cases import MS, B, Cases, D, L, finish, int_input, project, tokens

from fixtures.tiny import Net

CASES = Cases()
case = CASES.case


def qkv(net: Net, heads: int, few: int, size: int, value: int, length: int = L) -> tuple[str, str, str]:
    x = tokens(net, length=length)
    q = project(net, x, D, heads * size, "wq")
    k = project(net, x, D, few * size, "wk")
    return q, k, project(net, x, D, few * value, "wv")


def as_4d(net: Net, x: str, heads: int, size: int) -> str:
    return net("Transpose", net("Reshape", x, net.const([0, 0, heads, size])), perm=[0, 2, 1, 3])


# ---- opset 23 --------------------------------------------------------------------------------------------------------
@case(
    balanced={"scale": 0.5, "q_num_heads": 3, "wq": (1, 3), "wv": (1, 3), "out": (3, 3)},
    whole={"scale": None, "q_num_heads": 1, "kv_num_heads": 1, "wq": (1, 4), "wv": (1, 5)},
    aligned={"scale": 0.5, "wq": (1, 3), "wv": (1, 3)},
)
def attention(net: Net) -> None:
    y = net("Attention", *qkv(net, 3, 3, 4, 5), q_num_heads=3, kv_num_heads=3)
    finish(net, y, 15)


@case(
    balanced={"scale": 0.25, "wq": (1, 4), "wk": (1, 2), "wv": (1, 2), "out": (4, 3)},
    whole={"q_num_heads": 2, "kv_num_heads": 1, "wq": (1, 8), "wk": (1, 4), "wv": (1, 3), "out": (6, 3)},
)
def attention_grouped(net: Net) -> None:
    mask = net.const(net.rng.normal(size=(4, L, L)), "mask")
    y = net("Attention", *qkv(net, 4, 2, 4, 3), mask, q_num_heads=4, kv_num_heads=2, scale=0.25, softcap=2.0)
    finish(net, y, 12)


@case(
    balanced={"scale": 0.5, "wq": (1, 3), "wk": (1, 1), "wv": (1, 1), "out": (3, 3)},
    whole={"q_num_heads": 1, "kv_num_heads": 1, "wq": (1, 4), "wk": (1, 4), "wv": (1, 5), "out": (5, 3)},
)
def attention_one_key_head(net: Net) -> None:
    y = net("Attention", *qkv(net, 3, 1, 4, 5), q_num_heads=3, kv_num_heads=1, is_causal=1)
    finish(net, y, 15)


@case(balanced={"scale": 0.5, "wq": (1, 2), "wv": (1, 2)}, whole={"scale": None, "wq": (1, 4), "wv": (1, 3)})
def attention_4d(net: Net) -> None:
    q, k, v = qkv(net, 2, 2, 4, 3)
    bias = net.const(net.rng.normal(size=(1, 2, L, L)), "bias")
    y = net("Attention", as_4d(net, q, 2, 4), as_4d(net, k, 2, 4), as_4d(net, v, 2, 3), bias)
    finish(net, net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.const([0, 0, 6])), 6)


@case(balanced={"scale": None, "wq": (1, 8), "wk": (1, 8), "wv": (1, 6)}, whole={"wq": (1, 8), "wv": (1, 6)})
def attention_cache(net: Net) -> None:
    past = [net.input(f"past_{name}", [B, 2, 3, size], (B, 2, 3, size)) for name, size in (("key", 4), ("value", 3))]
    y, *present = net.many("Attention", 3, *qkv(net, 2, 2, 4, 3), "", *past, q_num_heads=2, kv_num_heads=2)
    finish(net, y, 6, more=tuple(present))


# ---- rotary embedding ------------------------------------------------------------------------------------------------
def rotated(net: Net, x: str, size: int, **attrs: Any) -> str:
    tables = [net.const(net.rng.normal(size=(9, size // 2)), stem) for stem in ("cos", "sin")]
    position = net.const(np.tile(np.arange(L, dtype=np.int64), (B, 1)))
    order = [position, *tables] if attrs.get("domain") == MS else [*tables, position]
    return net(attrs.pop("op", "RotaryEmbedding"), x, *order, **attrs)


@case(
    balanced={"wq": (1, 6), "wk": (1, 6), "cos": (9, 1), "scale": 8**-0.5},
    whole={"wq": (1, 8), "cos": (9, 4), "q_num_heads": 1, "kv_num_heads": 1, "num_heads": 1},
)
def rotary(net: Net) -> None:
    q, k, v = qkv(net, 3, 3, 8, 4)
    q, k = (rotated(net, x, 8, num_heads=3) for x in (q, k))
    finish(net, net("Attention", q, k, v, q_num_heads=3, kv_num_heads=3), 12)


@case(balanced={"rotary_embedding_dim": 2, "wq": (1, 4), "cos": (9, 1)}, whole={"rotary_embedding_dim": 4})
def rotary_interleaved_part(net: Net) -> None:
    q, k, v = qkv(net, 2, 2, 10, 4)
    q, k = (as_4d(net, x, 2, 10) for x in (q, k))
    q, k = (rotated(net, x, 4, interleaved=1, rotary_embedding_dim=4) for x in (q, k))
    y = net("Attention", q, k, as_4d(net, v, 2, 4))
    finish(net, net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.const([0, 0, 8])), 8)


@case(balanced={"rotary_embedding_dim": 2, "num_heads": 2, "cos": (9, 1)}, whole={"num_heads": 1})
def rotary_microsoft(net: Net) -> None:
    q, k, v = qkv(net, 2, 2, 10, 4)
    q, k = (rotated(net, x, 4, num_heads=2, rotary_embedding_dim=4, domain=MS) for x in (q, k))
    finish(net, net("MultiHeadAttention", q, k, v, num_heads=2, domain=MS), 8)


@case(balanced={"wq": (1, 4), "cos": (9, 1)}, whole={"wq": (1, 6), "cos": (9, 3)})
def rotary_microsoft_without_heads(net: Net) -> None:
    q, k, v = qkv(net, 2, 2, 6, 4)
    q, k = (rotated(net, x, 6, domain=MS) for x in (q, k))
    finish(net, net("MultiHeadAttention", q, k, v, num_heads=2, domain=MS), 8)


# ---- onnxruntime's attention -----------------------------------------------------------------------------------------
@case(
    balanced={"scale": 0.5, "num_heads": 3, "wq": (1, 3), "wv": (1, 3), "bias": (9,)},
    whole={"scale": None, "num_heads": 1, "wq": (1, 4), "wv": (1, 2), "bias": (10,)},
    aligned={"wq": (1, 3), "wv": (1, 3)},
)
def multi_head(net: Net) -> None:
    bias = net.const(net.rng.normal(size=30), "bias")
    more = net.const(net.rng.normal(size=(1, 3, L, L)), "more")
    y = net("MultiHeadAttention", *qkv(net, 3, 3, 4, 2), bias, "", more, num_heads=3, domain=MS)
    finish(net, y, 6)


@case(balanced={"wq": (1, 3), "wk": (1, 3), "wv": (1, 3)}, whole={"num_heads": 1, "wv": (1, 4)})
def multi_head_4d_keys(net: Net) -> None:
    q, k, v = qkv(net, 3, 3, 4, 4)
    k, v = (as_4d(net, x, 3, 4) for x in (k, v))
    finish(net, net("MultiHeadAttention", q, k, v, num_heads=3, domain=MS), 12)


@case(balanced={"wq": (1, 12), "wv": (1, 12)}, whole={"num_heads": 3, "wv": (1, 12)})
def multi_head_cache(net: Net) -> None:
    past = [net.input(f"past_{name}", [B, 3, 2, 4], (B, 3, 2, 4)) for name in ("key", "value")]
    ins = (*qkv(net, 3, 3, 4, 4), "", "", "", *past)
    y, *present = net.many("MultiHeadAttention", 3, *ins, num_heads=3, domain=MS)
    finish(net, y, 12, more=tuple(present))


@case(
    runs=False,
    balanced={"qkv": (D, 6), "num_heads": 2, "scale": 4**-0.5},
    whole={"qkv": (D, 12), "num_heads": 1, "scale": None},
)
def multi_head_packed(net: Net) -> None:
    x = net.input("x", [B, L, D], (B, L, D))
    packed = net("Reshape", project(net, x, D, 24, "qkv"), net.const([0, 0, 2, 3, 4]))
    finish(net, net("MultiHeadAttention", packed, num_heads=2, domain=MS), 8)


@case(runs=False, balanced={"kv": (D, 4), "wq": (D, 2), "num_heads": 2}, whole={"kv": (D, 8), "wq": (D, 4)})
def multi_head_packed_keys(net: Net) -> None:
    x = net.input("x", [B, L, D], (B, L, D))
    packed = net("Reshape", project(net, x, D, 16, "kv"), net.const([0, 0, 2, 2, 4]))
    y = net("MultiHeadAttention", project(net, x, D, 8, "wq"), packed, num_heads=2, domain=MS)
    finish(net, y, 8)


@case(
    balanced={"wq": (1, 32), "wk": (1, 16), "wv": (1, 16), "scale": 24**-0.5},
    whole={"num_heads": 2, "kv_num_heads": 1, "wq": (1, 48), "wv": (1, 24), "sink": (2,)},
)
def group_query(net: Net) -> None:
    ends, total = net.const(np.full(B, L - 1, np.int32)), net.const(np.array(L, np.int32))
    sink = net.const(net.rng.normal(size=4), "sink")
    ins = (*qkv(net, 4, 2, 24, 24), "", "", ends, total, "", "", "", "", sink)
    y = net("GroupQueryAttention", *ins, num_heads=4, kv_num_heads=2, domain=MS)
    finish(net, y, 96)


@case(
    balanced={"qkv": (1, 128), "cos": (9, 8), "scale": 48**-0.5},
    whole={"num_heads": 2, "kv_num_heads": 1, "qkv": (1, 192), "cos": (9, 24)},
)
def group_query_packed_rotary(net: Net) -> None:
    packed = project(net, tokens(net), D, 8 * 48, "qkv")
    ends, total = net.const(np.full(B, L - 1, np.int32)), net.const(np.array(L, np.int32))
    tables = [net.const(net.rng.normal(size=(9, 24)), stem) for stem in ("cos", "sin")]
    ins = (packed, "", "", "", "", ends, total, *tables)
    y = net("GroupQueryAttention", *ins, num_heads=4, kv_num_heads=2, do_rotary=1, domain=MS)
    finish(net, y, 192)


@case(balanced={"wq": (1, 64), "wv": (1, 32)}, whole={"wq": (1, 64), "wv": (1, 32), "num_heads": 4})
def group_query_cache(net: Net) -> None:
    ends, total = net.const(np.full(B, 2, np.int32)), net.const(np.array(3, np.int32))
    past = [net.input(f"past_{name}", [B, 2, 2, 16], (B, 2, 2, 16)) for name in ("key", "value")]
    ins = (*qkv(net, 4, 2, 16, 16, length=1), *past, ends, total)
    y, *present = net.many("GroupQueryAttention", 3, *ins, num_heads=4, kv_num_heads=2, domain=MS)
    finish(net, y, 64, more=tuple(present))


@case(
    balanced={"qkv": (1, 6), "num_heads": 2, "scale": 0.5},
    whole={"qkv": (1, 12), "num_heads": 1, "scale": None},
)
def fused_weights(net: Net) -> None:
    weight, bias = net.weight(D, 24, fan_in=D, stem="qkv"), net.vector(24)
    bias_table = net.const(net.rng.normal(size=(B, 2, L, L)), "table")
    y = net("Attention", tokens(net), weight, bias, "", "", bias_table, num_heads=2, domain=MS)
    finish(net, y, 8)


@case(
    balanced={"qkv": (1, 6), "qkv_hidden_sizes": [2, 2, 2], "scale": 0.5},
    whole={"qkv": (1, 11), "qkv_hidden_sizes": [4, 4, 3], "num_heads": 1},
)
def fused_weights_of_two_sizes(net: Net) -> None:
    weight, bias = net.weight(D, 22, fan_in=D, stem="qkv"), net.vector(22)
    mask = int_input(net, "mask", np.ones((B, L), np.int32))
    sizes = [8, 8, 6]
    y = net("Attention", tokens(net), weight, bias, mask, num_heads=2, qkv_hidden_sizes=sizes, domain=MS)
    finish(net, y, 6)


@case(balanced={"qkv": (1, 24), "num_heads": 2}, whole={"qkv": (1, 24), "num_heads": 2})
def fused_weights_cache(net: Net) -> None:
    weight, bias = net.weight(D, 24, fan_in=D, stem="qkv"), net.vector(24)
    past = net.input("past", [2, B, 2, 3, 4], (2, B, 2, 3, 4))
    y, present = net.many("Attention", 2, tokens(net), weight, bias, "", past, num_heads=2, domain=MS)
    finish(net, y, 8, more=(present,))


# ---- sequences without padding ---------------------------------------------------------------------------------------
def offsets(net: Net) -> tuple[str, str]:
    """Say where the tokens of two sequences of 5 lie."""
    return net.const(np.arange(B * L, dtype=np.int32).reshape(B, L)), net.const(np.array([0, 5, 10], np.int32))


@case(runs=False, balanced={"qkv": (D, 6), "scale": 0.5}, whole={"qkv": (D, 12), "num_heads": 1})
def packed_fused_weights(net: Net) -> None:
    x = net.input("x", [B * L, D], (B * L, D))
    weight, bias = net.weight(D, 24, fan_in=D, stem="qkv"), net.vector(24)
    y = net("PackedAttention", x, weight, bias, *offsets(net), num_heads=2, domain=MS)
    net.output(net("MatMul", y, net.weight(8, 3, fan_in=8)), "y", [None, 3])


@case(
    runs=False, balanced={"wq": (D, 2), "wv": (D, 2), "bias": (6,)}, whole={"wq": (D, 4), "wv": (D, 3), "num_heads": 1}
)
def packed_multi_head(net: Net) -> None:
    x = net.input("x", [B * L, D], (B * L, D))
    sizes = (("wq", 8), ("wk", 8), ("wv", 6))
    parts = [net("MatMul", x, net.weight(D, width, fan_in=D, stem=stem)) for stem, width in sizes]
    y = net("PackedMultiHeadAttention", *parts, net.vector(22, stem="bias"), *offsets(net), num_heads=2, domain=MS)
    net.output(net("MatMul", y, net.weight(6, 3, fan_in=6)), "y", [None, 3])
