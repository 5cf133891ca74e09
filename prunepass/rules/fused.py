"""Operators that onnxruntime makes of several others: norms with a sum in front, activations with a bias, products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunepass.graph import Node
from prunepass.labels import spans
from prunepass.rules.convolution import Roles, convolve
from prunepass.rules.dims import DIMS, broadcast, elementwise, gemm, same
from prunepass.rules.layout import window
from prunepass.rules.masks import MASKS, Masking, conv
from prunepass.rules.masks import gemm as masked_gemm
from prunepass.rules.step import Letter, Operand, Refused, Step

_MS = "com.microsoft::"


# ---- norms -----------------------------------------------------------------------------------------------------------
_SKIP = f"{_MS}SkipLayerNormalization {_MS}SkipSimplifiedLayerNormalization"


@DIMS.row(_SKIP)
def skip_norm(step: Step) -> None:
    """The sum of input, skip and bias, normalised; the fourth output is the sum."""
    operands = [step.operand(i) for i in range(len(step.node.inputs)) if step.has(i)]
    rank = len(operands[0].shape)
    factors = broadcast(step, operands, rank, (rank - 1,))
    step.set(0, factors)
    step.set(3, factors)


@MASKS.row(_SKIP)
def skip_norm_masked(m: Masking) -> None:
    mask = m.mask(0, [m.rank() - 1])
    if mask is None:
        return
    ins = [*m.node.inputs, "", ""]
    simple = m.node.op == f"{_MS}SkipSimplifiedLayerNormalization"
    beta, bias = ("", ins[3]) if simple else (ins[3], ins[4])
    total = m.add("Add", ins[:2])
    total = m.add("Add", [total, bias]) if bias else total
    if any(m.node.outputs[3:]):
        m.before.append(Node.make("Identity", [total], [m.node.outputs[3]], name=m.node.outputs[3]))
    _standardised(m, total, mask, ins[2], beta, centre=not simple)


def _standardised(m: Masking, name: str, mask: np.ndarray, scale: str, shift: str, centre: bool = True) -> None:
    """Normalise the last axis of a value that is computed in front, in the place of the node."""
    y = m.standardise(name, mask, [mask.ndim - 1], m.node.attr("epsilon", 1e-12), centre)
    y = m.add("Mul", [y, scale])
    m.become(m.add("Add", [y, shift]) if shift else y)


@DIMS.row(f"{_MS}EmbedLayerNormalization")
def embed_norm(step: Step) -> None:
    """The sum of rows of two or three tables, normalised; the third output is the sum."""
    tables: list[tuple[Operand, Sequence[Letter]]] = [(step.operand(i), [None, "h"]) for i in (2, 3, 4) if step.has(i)]
    vectors: list[tuple[Operand, Sequence[Letter]]] = [(step.operand(i), ["h"]) for i in (5, 6)]
    factors = step.equate([*tables, *vectors], [None, None, "h"], ["h"])
    for table, _ in tables:
        for factor in factors if table.derived else ():
            step.produce(table, 1, factor)
    step.set(0, factors)
    step.set(1, [])
    step.set(2, factors)


@MASKS.row(f"{_MS}EmbedLayerNormalization")
def embed_norm_masked(m: Masking) -> None:
    """Take the sum from the operator itself, and normalise it apart."""
    mask = m.mask(2, [1])
    if mask is None:
        return
    names = [*m.node.outputs, "", ""][:3]
    whole = [m.graph.fresh_name(names[0]), names[1], names[2] or m.graph.fresh_name(f"{names[0]}_sum")]
    whole[1] = whole[1] or m.graph.fresh_name(f"{names[0]}_lengths")
    m.before.append(Node.make(m.node.op, m.node.inputs, whole, name=whole[0], **m.node.attrs))
    table = Node.make(
        m.node.op, m.node.inputs[2:], m.node.outputs, name=m.node.name, epsilon=m.node.attr("epsilon", 1e-12)
    )
    typed = replace(m, node=table)  # the first input of this one has the type of the sum
    _standardised(typed, whole[2], mask[None], *m.node.inputs[5:7])
    m.replaced = True


# ---- activations -----------------------------------------------------------------------------------------------------
DIMS(f"{_MS}Gelu {_MS}QuickGelu", same)
DIMS(f"{_MS}BiasGelu {_MS}FastGelu {_MS}BiasAdd {_MS}BiasDropout {_MS}GatedAdd", elementwise)


@DIMS.row(f"{_MS}BiasSplitGelu")
def bias_split_gelu(step: Step) -> None:
    """One half of the input (with its bias) times Gelu of the other."""
    x = step.operand(0)
    rank, half = len(x.shape), x.shape[-1] // 2
    halves = []
    for start in (0, half):
        parts = [window(step, f, rank - 1, start, start + half) for f in broadcast(step, [x, step.operand(1)], rank)]
        own = tuple(f for f in parts if f is not None)
        tracked = frozenset(a for f in own for a in spans(f))
        halves.append(Operand("", (*x.shape[:-1], half), own, tracked=tracked))
    step.set(0, broadcast(step, halves, rank))


# ---- products --------------------------------------------------------------------------------------------------------
DIMS(f"{_MS}FusedGemm", gemm)
MASKS(f"{_MS}FusedGemm", masked_gemm)
_MATMUL = f"{_MS}FusedMatMul {_MS}TransposeMatMul {_MS}FusedMatMulActivation"


def _letters(node: Node, rank: int, side: str) -> list[Letter]:
    """Spell one operand: batch axes count from the back; `transBatch` puts the row (or, transposed, column) first."""
    batch: list[Letter] = list(range(2 - rank, 0))
    last: list[Letter] = ["m", "k"] if side == "A" else ["k", "n"]
    if node.attr(f"trans{side}", 0):
        last.reverse()
    return [last[0], *batch, last[1]] if node.attr(f"transBatch{side}", 0) else [*batch, *last]


@DIMS.row(_MATMUL)
def fused_matmul(step: Step) -> None:
    a, b = step.operand(0), step.operand(1)
    if min(len(a.shape), len(b.shape)) < 2:
        raise Refused("a product with a vector")
    rank = max(len(a.shape), len(b.shape))
    pairs = [(a, _letters(step.node, len(a.shape), "A")), (b, _letters(step.node, len(b.shape), "B"))]
    step.set(0, step.equate(pairs, [*range(2 - rank, 0), "m", "n"]))


@MASKS.row(_MATMUL)
def fused_matmul_masked(m: Masking) -> None:
    for position, side in ((0, "A"), (1, "B")):
        if m.fill(position, [_letters(m.node, m.rank(position), side).index("k")], 0.0) is not None:
            return


@DIMS.row(f"{_MS}GemmFastGelu")
def gemm_fast_gelu(step: Step) -> None:
    x = step.operand(0)
    lead: list[Letter] = list(range(len(x.shape) - 1))
    pairs: list[tuple[Operand, Sequence[Letter]]] = [(x, [*lead, "k"]), (step.operand(1), ["k", "n"])]
    if step.has(2):
        pairs.append((step.operand(2), ["n"]))
    step.set(0, step.equate(pairs, [*lead, "n"]))


# ---- convolutions ----------------------------------------------------------------------------------------------------
@DIMS.row(f"{_MS}FusedConv")
def fused_conv(step: Step) -> None:
    """A convolution, perhaps with a value added to its result before the activation."""
    convolve(step, Roles())
    if step.has(3):
        name, shape = step.node.outputs[0], step.out_shape()
        own = step.world.states[name]
        result = Operand(name, shape, own, tracked=frozenset(a for f in own for a in spans(f)))
        step.set(0, broadcast(step, [result, step.operand(3)], len(shape)))


MASKS(f"{_MS}FusedConv", conv)


@DIMS.row(f"{_MS}NhwcConv {_MS}NhwcFusedConv")
def nhwc_conv(step: Step) -> None:
    """Channels last; the filter is (O, I, kernel) in one of the two and (O, kernel, I) in files of the other."""
    x, w = step.operand(0), step.operand(1)
    if step.node.attr("group", 1) != 1:
        raise Refused("groups of channels that come last")
    space: list[Letter] = [None] * (len(x.shape) - 2)
    last = w.shape[-1] == x.shape[-1] and w.shape[1] != x.shape[-1]
    pairs: list[tuple[Operand, Sequence[Letter]]] = [
        (x, ["n", *space, "c"]),
        (w, ["o", *space, "c"] if last else ["o", "c", *space]),
    ]
    if step.has(2):
        pairs.append((step.operand(2), ["o"]))
    if step.has(3):
        pairs.append((step.operand(3), ["n", *space, "o"]))
    step.set(0, step.equate(pairs, ["n", *space, "o"]))


@MASKS.row(f"{_MS}NhwcConv {_MS}NhwcFusedConv {_MS}GemmFastGelu")
def last_axis(m: Masking) -> None:
    m.fill(0, [m.rank() - 1], 0.0)
