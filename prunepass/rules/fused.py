"""Operators that onnxruntime makes of several others: norms with a sum in front, activations with a bias, products."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace

from prunepass.graph import Node
from prunepass.labels import spans
from prunepass.rules.convolution import Roles, convolve
from prunepass.rules.dims import DIMS, broadcast, elementwise, gemm, same
from prunepass.rules.layout import window
from prunepass.rules.masks import MASKS, Masking, conv, layer_norm
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
    if m.mask(0, [m.rank() - 1]) is None:
        return
    simple = m.node.op.startswith(f"{_MS}SkipSimplified")
    bias = 3 if simple else 4
    total = m.add("Add", m.node.inputs[:2])
    if len(m.node.inputs) > bias and m.node.inputs[bias]:
        total = m.add("Add", [total, m.node.inputs[bias]])
    settings = [x for x in m.node.inputs[2 : 3 if simple else 4] if x]
    op = "SimplifiedLayerNormalization" if simple else "LayerNormalization"
    _normalised(m, op, total, 0, settings, m.node.attr("epsilon", 1e-12))
    if len(m.node.outputs) > 3 and m.node.outputs[3]:
        m.before.append(Node.make("Identity", [total], [m.node.outputs[3]], name=m.node.outputs[3]))


def _normalised(m: Masking, op: str, name: str, like: int, settings: Sequence[str], epsilon: float) -> None:
    """Put a masked norm of a value that was computed in front in the place of the node; `like`: an input of its type."""
    node = Node.make(op, [name, *settings], [m.node.outputs[0]], name=m.node.name, epsilon=epsilon, axis=-1)
    source = m.node.outputs[0]
    inner = replace(
        m,
        node=node,
        shapes=ChainMap({name: m.shapes[source]}, dict(m.shapes)),
        dtypes=ChainMap({name: m.dtype(like)}, dict(m.dtypes)),
        factors=ChainMap({name: m.factors.get(source, ())}, dict(m.factors)),
    )
    layer_norm(inner)
    m.replaced = inner.replaced


@DIMS.row(f"{_MS}EmbedLayerNormalization")
def embed_norm(step: Step) -> None:
    """The sum of rows of two or three tables, normalised; the third output is the sum."""
    tables: list[tuple[Operand, Sequence[Letter]]] = [
        (step.operand(i), [None, "h"]) for i in (2, 3, 4) if step.has(i)
    ]
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
    if m.mask(2, [1]) is None:
        return
    outputs = [m.graph.fresh_name(f"{m.node.outputs[0]}_whole"), *m.node.outputs[1:]]
    outputs += [""] * (3 - len(outputs))
    outputs[1] = outputs[1] or m.graph.fresh_name(f"{m.node.outputs[0]}_lengths")
    outputs[2] = outputs[2] or m.graph.fresh_name(f"{m.node.outputs[0]}_sum")
    m.before.append(Node.make(m.node.op, m.node.inputs, outputs, name=outputs[0], **m.node.attrs))
    _normalised(m, "LayerNormalization", outputs[2], 2, m.node.inputs[5:7], m.node.attr("epsilon", 1e-12))


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


def _letters(step_or_mask: Node, rank: int, side: str) -> list[Letter]:
    """Spell one operand: batch axes count from the back; `transBatch` puts the row (or, transposed, column) first."""
    batch: list[Letter] = list(range(2 - rank, 0))
    last: list[Letter] = ["m", "k"] if side == "A" else ["k", "n"]
    if step_or_mask.attr(f"trans{side}", 0):
        last.reverse()
    return [last[0], *batch, last[1]] if step_or_mask.attr(f"transBatch{side}", 0) else [*batch, *last]


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
