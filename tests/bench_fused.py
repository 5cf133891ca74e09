"""Networks around fused norms, activations and products, packed weights, and mixtures of experts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from bench_cases import MS, B, Cases, D, L, finish, int_input, tokens

from fixtures.tiny import Net

CASES = Cases()
case = CASES.case


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


def table(
    name: str, stored: np.ndarray, width: int, zero: np.ndarray | None, left: dict[str, Any], **attrs: int
) -> None:
    """Register a lookup in a quantised table of 9 rows."""

    def build(net: Net) -> None:
        ids = int_input(net, "ids", np.arange(B * L).reshape(B, L) % 9)
        ins = [net.const(stored, "table"), ids, scales(net, 9, width // 16)]
        ins += [] if zero is None else [net.const(zero, "zero")]
        finish(net, net("GatherBlockQuantized", *ins, block_size=16, quantize_axis=1, domain=MS, **attrs), width)

    build.__name__ = name
    case(balanced=left)(build)


def noise(high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(high).integers(0, high, shape)


table("table_bytes", noise(256, 9, 64).astype(np.uint8), 64, None, {"table": (9, 16), "scales": (9, 1)}, bits=8)
table("table_nibbles", noise(256, 9, 32).astype(np.uint8), 64, None, {"table": (9, 8), "scales": (9, 1)}, bits=4)
ZEROS = {"table": (9, 16), "scales": (9, 2), "zero": (9, 1), "out": (32, 3)}
table("table_zero", noise(256, 9, 32).astype(np.uint8), 64, noise(256, 9, 2).astype(np.uint8), ZEROS, bits=4)


@case(balanced={"table": (9, 1), "out": (1, 3)})
def table_dequantised_behind(net: Net) -> None:
    ids = int_input(net, "ids", np.arange(B * L).reshape(B, L) % 9)
    rows = net("Gather", net.const(noise(128, 9, 7).astype(np.int8), "table"), ids)
    finish(net, net("DequantizeLinear", rows, net.const(np.float32(0.02)), net.const(np.int8(3))), 7)


FOURS = noise(8, 9, 64).astype(ml_dtypes.int4)
table("table_int4", FOURS, 64, FOURS[:, :4], {"table": (9, 16), "zero": (9, 1), "out": (16, 3)})


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


def quantised_lstm(name: str, directions: int, per_column: bool, kind: type, left: dict[str, Any]) -> None:
    """Register an LSTM whose weights are stored as integers."""

    def build(net: Net) -> None:
        hidden, zero = 5, 0 if kind is np.int8 else 128
        sizes = (directions, 4 * hidden) if per_column else (directions,)
        low = -128 + zero

        def matrix(rows: int, stem: str) -> str:
            return net.const(net.rng.integers(low, low + 256, (directions, rows, 4 * hidden)).astype(kind), stem)

        def scale(stem: str) -> str:
            return net.const(0.01 * net.rng.uniform(0.5, 1.5, sizes), stem)

        x = net("Transpose", tokens(net, 4), perm=[1, 0, 2])
        bias = net.const(net.rng.normal(size=(directions, 8 * hidden)), "bias")
        zeros = [net.const(np.full(sizes, zero, kind), stem) for stem in ("zero_w", "zero_r")]
        ins = (x, matrix(4, "w"), matrix(hidden, "r"), bias, "", "", "", "")
        attrs = {"direction": "bidirectional" if directions == 2 else "forward", "hidden_size": hidden, "domain": MS}
        y = net("DynamicQuantizeLSTM", *ins, scale("scale_w"), zeros[0], scale("scale_r"), zeros[1], **attrs)
        y = net("Reshape", net("Transpose", y, perm=[2, 0, 1, 3]), net.const([B, L, -1]))
        finish(net, y, directions * hidden)

    build.__name__ = name
    case(balanced=left)(build)


ONE = {"into": (D, 1), "w": (1, 1, 4), "r": (1, 1, 4), "bias": (1, 8), "hidden_size": 1, "out": (1, 3)}
quantised_lstm("lstm_bytes", 1, False, np.uint8, {**ONE, "scale_w": (1,)})
quantised_lstm("lstm_by_column", 1, True, np.int8, {**ONE, "scale_w": (1, 4), "zero_r": (1, 4)})
TWO = {"w": (2, 1, 4), "r": (2, 1, 4), "bias": (2, 8), "scale_r": (2, 4), "hidden_size": 1, "out": (2, 3)}
quantised_lstm("lstm_both_ways", 2, True, np.int8, TWO)
quantised_lstm("lstm_both_ways_bytes", 2, False, np.uint8, {**TWO, "scale_r": (2,)})
