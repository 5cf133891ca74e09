"""Fused attention, rotary embedding, fused norms and products, packed weights, experts: sliced equals masked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fixtures.tiny import Net
from prunepass import runtime
from prunepass.api import Job
from prunepass.coupling import Coupling
from prunepass.ephemeral import mask_graph
from prunepass.graph import Graph
from prunepass.manager import Pipeline
from prunepass.plan import Plan
from prunepass.selection import ladder, protected_units, removed_by
from prunepass.slicing import slice_graph

MS = "com.microsoft"
B, L, D = 2, 5, 6
POLICIES = ("balanced", "whole", "aligned")


# ---- networks around one operator ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """A network; `left`: what the operator has when as much is gone as may go, for each policy."""

    build: Callable[[Net], None]
    left: dict[str, dict[str, Any]]
    runs: bool
    opset: int


CASES: dict[str, Case] = {}


def case(runs: bool = True, opset: int = 23, **left: dict[str, Any]) -> Callable[[Callable[[Net], None]], None]:
    """Register a network: `balanced`, `whole`, `aligned` say which attributes and weight shapes must come out."""

    def register(build: Callable[[Net], None]) -> None:
        CASES[build.__name__] = Case(build, left, runs, opset)

    return register


def tokens(net: Net, width: int = D, name: str = "x", length: int = L) -> str:
    """Declare an input, and put a layer behind it whose outputs are free."""
    x = net.input(name, [B, length, D], (B, length, D))
    return net("MatMul", x, net.weight(D, width, fan_in=D, stem="into"))


def project(net: Net, x: str, into: int, width: int, stem: str) -> str:
    return net("Add", net("MatMul", x, net.weight(into, width, fan_in=into, stem=stem)), net.vector(width))


def finish(net: Net, y: str, width: int, *, more: tuple[str, ...] = ()) -> None:
    net.output(net("MatMul", y, net.weight(width, 3, fan_in=width, stem="out")), "y", [None, None, 3])
    for name in more:
        net.outputs.append(helper.make_value_info(name, helper.make_tensor_type_proto(TensorProto.FLOAT, None)))


def int_input(net: Net, name: str, value: np.ndarray) -> str:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    net.inputs.append(helper.make_tensor_value_info(name, kind, value.shape))
    net.feeds[name] = value
    return name


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


# ---- norms and activations -------------------------------------------------------------------------------------------
@case(balanced={"into": (D, 1), "gamma": (1,), "out": (1, 3)})
def skip_norm(net: Net) -> None:
    a, b = tokens(net, 7), tokens(net, 7, "z")
    gamma, beta, bias = (net.vector(7, 1.0, "gamma") for _ in range(3))
    y, _, _, total = net.many("SkipLayerNormalization", 4, a, b, gamma, beta, bias, epsilon=1e-5, domain=MS)
    finish(net, net("Add", y, total), 7)


@case(balanced={"into": (D, 1), "gamma": (1,), "out": (1, 3)})
def skip_rms_norm(net: Net) -> None:
    a, b = tokens(net, 7), tokens(net, 7, "z")
    gamma, bias = (net.vector(7, 1.0, "gamma") for _ in range(2))
    y, _, _, total = net.many("SkipSimplifiedLayerNormalization", 4, a, b, gamma, bias, epsilon=1e-5, domain=MS)
    finish(net, net("Add", y, total), 7)


@case(balanced={"words": (9, 1), "places": (8, 1), "parts": (2, 1), "gamma": (1,)})
def embed_norm(net: Net) -> None:
    ids = int_input(net, "ids", np.arange(B * L, dtype=np.int32).reshape(B, L) % 9)
    parts = int_input(net, "types", np.ones((B, L), np.int32))
    tables = [net.weight(n, 7, fan_in=1, stem=stem) for n, stem in ((9, "words"), (8, "places"), (2, "parts"))]
    gamma, beta = (net.vector(7, 1.0, "gamma") for _ in range(2))
    y, _, total = net.many("EmbedLayerNormalization", 3, ids, parts, *tables, gamma, beta, domain=MS)
    finish(net, net("Add", y, total), 7)


@case(balanced={"into": (D, 1), "gamma": (1,)})
def simplified_norm(net: Net) -> None:
    finish(net, net("SimplifiedLayerNormalization", tokens(net, 7), net.vector(7, 1.0, "gamma"), axis=-1), 7)


@case(balanced={"into": (D, 1), "bias": (1,), "out": (1, 3)})
def activations(net: Net) -> None:
    y = net("BiasGelu", tokens(net, 7), net.vector(7, stem="bias"), domain=MS)
    y = net("FastGelu", y, net.vector(7, stem="bias"), domain=MS)
    finish(net, net("Gelu", net("QuickGelu", y, alpha=1.7, domain=MS), domain=MS), 7)


@case(runs=False, balanced={"into": (D, 2), "bias": (2,), "out": (1, 3)})
def bias_split_gelu(net: Net) -> None:
    finish(net, net("BiasSplitGelu", tokens(net, 8), net.vector(8, stem="bias"), domain=MS), 4)


# ---- products --------------------------------------------------------------------------------------------------------
def product(name: str, a: tuple[int, ...], b: tuple[int, ...], **attrs: Any) -> None:
    """Register a fused product of two activations, of which every axis but the batch is free."""

    def build(net: Net) -> None:
        ins = []
        for stem, shape in (("a", a), ("b", b)):
            turn = stem == "a" and attrs.get("transA", 0)  # the free axis is the one that is summed over
            shape = (*shape[:-2], shape[-1], shape[-2]) if turn else shape
            x = net.input(stem, [*shape[:-1], D], (*shape[:-1], D))
            x = net("MatMul", x, net.weight(D, shape[-1], fan_in=D, stem=f"into_{stem}"))
            ins.append(net("Transpose", x, perm=[0, 2, 1]) if turn else x)
        y = net("FusedMatMul", *ins, alpha=0.5, domain=MS, **attrs)
        finish(net, y, 4 if attrs.get("transB") else b[-1])

    build.__name__ = name
    free = {"into_a": (D, 1), "into_b": (D, 1)} if attrs.get("transB") else {"into_b": (D, 1), "out": (1, 3)}
    case(balanced=free)(build)


product("product", (2, 3, 4), (4, 5))
product("product_batched", (2, 3, 4), (2, 4, 5))
product("product_trans_b", (2, 3, 4), (2, 4, 4), transB=1)
product("product_trans_both", (2, 4, 3), (2, 4, 4), transA=1, transB=1)
product("product_trans_batch", (3, 2, 6, 4), (2, 6, 4, 5), transBatchA=1)
product("product_trans_batch_b", (2, 6, 3, 4), (4, 2, 6, 5), transBatchB=1)


@case(balanced={"into": (D, 1), "gemm": (1, 1), "b": (1,)})
def fused_gemm(net: Net) -> None:
    x = net("Reshape", tokens(net, 4), net.const([-1, 4]))
    x = net(
        "FusedGemm", x, net.weight(7, 4, fan_in=4, stem="gemm"), net.vector(7), transB=1, activation="Relu", domain=MS
    )
    net.output(net("MatMul", x, net.weight(7, 3, fan_in=7)), "y", [B * L, 3])


def image(net: Net, channels: int, name: str = "image") -> str:
    x = net.input(name, [B, 3, 6, 6], (B, 3, 6, 6))
    return net("Conv", x, net.weight(channels, 3, 1, 1, fan_in=3, stem=name))


@case(balanced={"image": (1, 3, 1, 1), "z": (1, 3, 1, 1), "filter": (1, 1, 3, 3)})
def fused_conv(net: Net) -> None:
    attrs = {"activation": "Relu", "pads": [1, 1, 1, 1], "domain": MS}
    weight = net.weight(8, 4, 3, 3, fan_in=36, stem="filter")
    net.head(net("FusedConv", image(net, 4), weight, net.vector(8), image(net, 8, "z"), **attrs), 8, 3)


@case(balanced={"filter": (2, 1, 3, 3), "group": 2}, whole={"filter": (4, 2, 3, 3), "group": 1})
def fused_conv_in_groups(net: Net) -> None:
    attrs = {"activation": "LeakyRelu", "activation_params": [0.1], "group": 2, "domain": MS}
    weight = net.weight(8, 2, 3, 3, fan_in=18, stem="filter")
    net.head(net("FusedConv", image(net, 4), weight, net.vector(8), **attrs), 8, 3)


# ---- packed weights and experts --------------------------------------------------------------------------------------
def packed(net: Net, *shape: int, stem: str) -> str:
    return net.const(net.rng.integers(0, 256, shape).astype(np.uint8), stem)


def scales(net: Net, *shape: int, stem: str = "scales") -> str:
    return net.const(0.05 * net.rng.uniform(0.5, 1.5, shape), stem)


def bits(name: str, wide: int, width: int, count: int, form: str, left: dict[str, Any]) -> None:
    """Register a product with a quantised weight; `form`: of the zero points."""

    def build(net: Net) -> None:
        blocks = -(-width // 16)
        weight = packed(net, count, blocks, 2 * wide, stem="packed")
        flat = (count * blocks,) if form == "flat" else (count, blocks)
        ins = [weight, scales(net, *flat), "", "", net.vector(count, stem="bias")]
        if form == "packed":
            ins[2] = packed(net, count, -(-blocks * wide // 8), stem="zero")
        elif form == "real":
            ins[2] = net.const(net.rng.uniform(6, 9, (count, blocks)), "zero")
        attrs = {"K": width, "N": count, "bits": wide, "block_size": 16, "domain": MS}
        finish(net, net("MatMulNBits", tokens(net, width), *ins, **attrs), count)

    build.__name__ = name
    case(balanced=left)(build)


FOUR = {"N": 1, "K": 16, "packed": (1, 1, 8), "scales": (1, 1), "bias": (1,), "into": (D, 16), "out": (1, 3)}
bits("bits", 4, 64, 6, "none", FOUR)
bits("bits_real_zero", 4, 64, 6, "real", FOUR)
bits(
    "bits_zero",
    4,
    64,
    6,
    "packed",
    FOUR | {"K": 32, "packed": (1, 2, 8), "scales": (1, 2), "zero": (1, 1), "into": (D, 32)},
)
bits("bits_flat", 4, 64, 6, "flat", FOUR | {"scales": (1,)})
bits("bits_eight_ragged", 8, 56, 6, "packed", {"N": 1, "scales": (1, 1), "zero": (1, 1)})


@case(
    balanced={"first": (3, 1, 1), "bias_a": (3, 1), "second": (3, 1, 1), "bias_b": (3, 1)}, whole={"first": (3, 1, 1)}
)
def experts(net: Net) -> None:
    x = net("Reshape", tokens(net, 8), net.const([-1, 8]))
    router = net.input("router", [B * L, 3], (B * L, 3))
    first, second = net.weight(3, 7, 8, fan_in=8, stem="first"), net.weight(3, 8, 7, fan_in=7, stem="second")
    ins = (x, router, first, net.const(net.rng.normal(size=(3, 7)), "bias_a"), second)
    y = net("MoE", *ins, net.const(net.rng.normal(size=(3, 8)), "bias_b"), k=2, activation_type="gelu", domain=MS)
    y = net("Concat", y, x, axis=1)  # with a second reader of its input, onnxruntime does not overwrite it
    net.output(net("MatMul", y, net.weight(16, 3, fan_in=8)), "y", [B * L, 3])


@case(balanced={"first": (3, 2, 1), "second": (3, 1, 1)})
def experts_gated(net: Net) -> None:
    x = tokens(net, 8)
    router = net.input("router", [B * L, 3], (B * L, 3))
    first, second = net.weight(3, 14, 8, fan_in=8, stem="first"), net.weight(3, 8, 7, fan_in=7, stem="second")
    attrs = {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1, "domain": MS}
    y = net("MoE", net("Reshape", x, net.const([-1, 8])), router, first, "", second, **attrs)
    net.output(
        net("MatMul", net("Add", y, net("Reshape", x, net.const([-1, 8]))), net.weight(8, 3, fan_in=8)), "y", [B * L, 3]
    )


@case(balanced={"first": (3, 4, 1), "second": (3, 2, 1), "scales_a": (3, 4), "scales_b": (3, 2)})
def experts_quantised(net: Net) -> None:
    x = net("Reshape", tokens(net, 8), net.const([-1, 8]))
    router = net.input("router", [B * L, 3], (B * L, 3))
    ins = [
        packed(net, 3, 16, 4, stem="first"),
        scales(net, 3, 16, stem="scales_a"),
        net.const(net.rng.normal(size=(3, 16))),
    ]
    ins += [
        packed(net, 3, 8, 4, stem="second"),
        scales(net, 3, 8, stem="scales_b"),
        net.const(net.rng.normal(size=(3, 8))),
    ]
    attrs = {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1, "expert_weight_bits": 4, "domain": MS}
    y = net("QMoE", x, router, *ins, **attrs)
    net.output(net("MatMul", y, net.weight(8, 3, fan_in=8)), "y", [B * L, 3])


@case(balanced={"first": (3, 16, 8), "second": (3, 16, 8), "scales_a": (3, 16, 1), "scales_b": (3, 16, 1)})
def experts_quantised_in_blocks(net: Net) -> None:
    x = net("Reshape", tokens(net, 32), net.const([-1, 32]))
    router = net.input("router", [B * L, 3], (B * L, 3))
    ins = [packed(net, 3, 48, 16, stem="first"), scales(net, 3, 48, 2, stem="scales_a"), ""]
    ins += [packed(net, 3, 32, 24, stem="second"), scales(net, 3, 32, 3, stem="scales_b"), ""]
    attrs = {"k": 2, "activation_type": "silu", "expert_weight_bits": 4, "block_size": 16, "domain": MS}
    y = net("QMoE", x, router, *ins, **attrs)
    net.output(net("MatMul", y, net.weight(32, 3, fan_in=32)), "y", [B * L, 3])


# ---- the law ---------------------------------------------------------------------------------------------------------
@functools.cache
def built(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    net = Net(name, CASES[name].opset)
    CASES[name].build(net)
    model, feeds = net.finish()
    model.ir_version = 10
    model.opset_import.append(helper.make_opsetid(MS, 1))
    return model, feeds


class Trial:
    """The analysis of one network under one policy."""

    def __init__(self, name: str, policy: str) -> None:
        model, self.feeds = built(name)
        job = Job.open(model, (), {k: v.shape for k, v in self.feeds.items()}, None, 0, None)
        Pipeline.parse("canonicalize").run_on(job.facts)
        self.graph: Graph = job.facts.graph
        self.coupling: Coupling = job.facts.get("coupling", policy=policy)
        self.rng = np.random.default_rng(len(name))

    def plan(self, all_of_it: bool) -> np.ndarray:
        scores = self.rng.random(self.coupling.n_units)
        held, chosen = protected_units(self.coupling, scores), []
        for events in ladder(self.coupling, self.coupling.groups, scores, held, align=1):
            chosen += events[: len(events) if all_of_it else (len(events) + 1) // 2]
        return removed_by(chosen, self.coupling.n_units)

    def sliced(self, removed: np.ndarray) -> Graph:
        twin = self.graph.copy()
        slice_graph(twin, Plan.of(twin, self.coupling, removed))
        return twin

    def check(self, removed: np.ndarray) -> None:
        """Sliced equals masked."""
        c = self.coupling
        masked = mask_graph(self.graph, c.shapes, c.elem_types, c.factors, removed)
        expected = runtime.session(masked, optimise="basic", threads=1).run(self.feeds)
        found = runtime.session(self.sliced(removed), threads=1).run(self.feeds)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


def check_left(graph: Graph, left: dict[str, Any]) -> None:
    """Compare attributes of any node, and shapes of constants by the stem of their name."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for name in graph.consts:
        shapes.setdefault(name.rstrip("0123456789"), set()).add(graph.consts.shape(name))
    for key, expected in left.items():
        if isinstance(expected, tuple):
            assert shapes[key] == {expected}, f"{key}: {shapes[key]} instead of {expected}"
            continue
        found = [node.attrs[key] for node in graph.nodes if key in node.attrs]
        if expected is None:
            assert not found, key
        else:
            assert found and all(value == pytest.approx(expected) for value in found), f"{key}: {found}"


RUNNING = [name for name in CASES if CASES[name].runs]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", RUNNING)
def test_sliced_equals_masked(name: str, policy: str) -> None:
    trial = Trial(name, policy)
    for all_of_it in (True, False):
        removed = trial.plan(all_of_it)
        assert removed.any()
        trial.check(removed)


@pytest.mark.parametrize(("name", "policy"), [(n, p) for n in CASES if CASES[n].runs for p in CASES[n].left])
def test_what_is_left(name: str, policy: str) -> None:
    trial = Trial(name, policy)
    check_left(trial.sliced(trial.plan(all_of_it=True)), CASES[name].left[policy])
