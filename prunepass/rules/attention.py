"""Fused attention: opset-23 Attention and RotaryEmbedding, and the operators of onnxruntime's `com.microsoft` domain.

What these operators read as attributes (numbers of heads, hidden sizes, how many indices are rotated) shrinks with the
plan. A scale that is left out means 1 / sqrt(head size): it is written down before the head size changes.
"""

from __future__ import annotations

import math

import numpy as np

from prunepass.labels import Factors
from prunepass.rules.dims import DIMS
from prunepass.rules.heads import (
    apart,
    attend,
    cache,
    heads_of,
    in_chunks,
    joined,
    matrix,
    of_one_size,
    packed_heads,
    rotate,
    split_heads,
    vector,
)
from prunepass.rules.layout import window
from prunepass.rules.masks import MASKS, Masking
from prunepass.rules.resize import Resizing
from prunepass.rules.sizes import SIZES
from prunepass.rules.step import Letter, Operand, Refused, Step

_MS = "com.microsoft::"
_MULTI_HEAD = f"{_MS}MultiHeadAttention {_MS}PackedMultiHeadAttention"
_FUSED_WEIGHTS = f"{_MS}Attention {_MS}PackedAttention"


def _result(step: Step, out: Factors, query: Operand, value: Operand) -> None:
    """Store the result with its heads joined, with as many leading axes as the output has."""
    shape = (query.shape[0], value.shape[1])
    step.set(0, joined(step, out, shape, len(step.out_shape()) - 1))


# ---- opset 23 --------------------------------------------------------------------------------------------------------
@DIMS.row("Attention")
def attention(step: Step) -> None:
    query = heads_of(step, 0, step.node.attr("q_num_heads", 1))
    key = cache(step, heads_of(step, 1, step.node.attr("kv_num_heads", 1)), 4, 1)
    value = cache(step, heads_of(step, 2, step.node.attr("kv_num_heads", 1)), 5, 2)
    out, scores = attend(step, query, key, value, bias=3)
    if len(step.shape(0)) == 4:
        step.set(0, apart(out))
    else:
        _result(step, out, query, value)
    step.set(3, apart(scores))


@SIZES.row("Attention")
def attention_heads(r: Resizing) -> None:
    before = r.change.shapes[r.node.inputs[0]]
    heads = before[1] if len(before) == 4 else r.node.attr("q_num_heads", 1)
    _keep_scale(r, 0, heads)
    if len(before) == 3:
        r.node.set_attr("q_num_heads", _heads_left(r, 0, heads))
        r.node.set_attr("kv_num_heads", _heads_left(r, 1, r.node.attr("kv_num_heads", 1)))


def _heads_left(r: Resizing, position: int, heads: int, part: slice = slice(None)) -> int:
    """Count the heads of an input (..., heads x size) that keep anything; `part`: where they lie on the last axis."""
    name = r.node.inputs[position]
    kept = r.change.axis_mask(name, len(r.change.shapes[name]) - 1)
    return heads if kept is None else int(kept[part].reshape(heads, -1).any(axis=1).sum())


def _head_sizes(r: Resizing, position: int, heads: int, part: slice = slice(None)) -> tuple[int, int]:
    """Return the head size of an input before and after."""
    name = r.node.inputs[position]
    before, after = r.change.shapes[name], r.change.shape(name)
    if len(before) >= 4:
        return before[-1], after[-1]
    kept = r.change.axis_mask(name, len(before) - 1)
    whole = np.ones(before[-1], bool)[part]
    left = whole if kept is None else kept[part]
    return whole.size // heads, int(left.reshape(heads, -1).sum(axis=1).max())


def _keep_scale(r: Resizing, position: int, heads: int, part: slice = slice(None)) -> None:
    before, after = _head_sizes(r, position, heads, part)
    if before != after and not r.node.attr("scale", 0.0):
        r.node.set_attr("scale", 1 / math.sqrt(before))


def _has(m: Masking, position: int) -> bool:
    return position < len(m.node.inputs) and bool(m.node.inputs[position])


@MASKS.row("Attention")
def masked(m: Masking) -> None:
    """What queries lose adds nothing to the scores; what values lose is taken out behind."""
    m.fill(0, [m.rank() - 1], 0.0)


# ---- queries, keys and values apart ----------------------------------------------------------------------------------
@DIMS.row(_MULTI_HEAD)
def multi_head(step: Step) -> None:
    heads = int(step.node.attr("num_heads"))
    query, key, value = _three(step, heads)
    if step.has(3):
        labels = np.concatenate([matrix(step, part).reshape(-1) for part in (query, key, value)])
        step.equate([(vector(labels, labels.size), ["c"]), (step.operand(3), ["c"])], ["c"])
    if step.node.op.startswith(f"{_MS}Packed"):
        return _result(step, attend(step, query, key, value, bias=6)[0], query, value)
    if step.has(6) or (step.has(1) and len(step.shape(1)) == 4):
        of_one_size(step, key, value)
    key, value = cache(step, key, 6, 1), cache(step, value, 7, 2)
    out, scores = attend(step, query, key, value, bias=5)
    _result(step, out, query, value)
    step.set(3, apart(scores))


def _three(step: Step, heads: int) -> tuple[Operand, Operand, Operand]:
    """Read queries, keys and values: apart, all packed in one (.., heads, 3, size), or keys and values in another."""
    if not step.has(1):
        query, key, value = (packed_heads(step, 0, part) for part in range(3))
        return query, key, value
    query = heads_of(step, 0, heads)
    if not step.has(2):
        return query, packed_heads(step, 1, 0), packed_heads(step, 1, 1)
    return query, heads_of(step, 1, heads), heads_of(step, 2, heads)


@SIZES.row(_MULTI_HEAD)
def multi_head_sizes(r: Resizing) -> None:
    heads = int(r.node.attr("num_heads"))
    _keep_scale(r, 0, heads)
    packed = not any(r.node.inputs[1:2])
    left = r.change.shape(r.node.inputs[0])[-3] if packed else _heads_left(r, 0, heads)
    r.node.set_attr("num_heads", left)


@MASKS.row(_MULTI_HEAD)
def multi_head_masked(m: Masking) -> None:
    m.fill(0, [m.rank() - 1], 0.0)
    if _has(m, 3):
        m.fill(3, [0], 0.0)


# ---- grouped queries -------------------------------------------------------------------------------------------------
_Q, _K, _V, _COS, _SIN = 0, 1, 2, 7, 8


@DIMS.row(f"{_MS}GroupQueryAttention")
def group_query(step: Step) -> None:
    heads, few = int(step.node.attr("num_heads")), int(step.node.attr("kv_num_heads"))
    for position, what in ((12, "a quantised KV cache"), (13, "a quantised KV cache"), (14, "normalised queries")):
        if step.has(position):
            raise Refused(f"{what} inside the attention")
    query, key, value = _grouped(step, heads, few)
    rotary = bool(step.node.attr("do_rotary", 0))
    interleaved = bool(step.node.attr("rotary_interleaved", 0))
    if rotary:
        for part in (query, key):
            rotate(step, part, 2 * step.shape(_COS)[-1], interleaved, (_COS, _SIN))
    # the kernels take head sizes that are multiples of 8, with rotary embedding of 16
    for part in (query, key, value):
        in_chunks(step, part, 16 if rotary else 8, halves=rotary and not interleaved)
    of_one_size(step, key, value)
    key, value = cache(step, key, 3, 1), cache(step, value, 4, 2)
    out, scores = attend(step, query, key, value, bias=10, sink=11)
    _result(step, out, query, value)
    step.set(3, apart(scores))


def _grouped(step: Step, heads: int, few: int) -> tuple[Operand, Operand, Operand]:
    """Read queries, keys and values: apart, or side by side on the last axis of one input."""
    if step.has(_K):
        return heads_of(step, _Q, heads), heads_of(step, _K, few), heads_of(step, _V, few)
    size = step.shape(_Q)[-1] // (heads + 2 * few)
    query, key, value = _side_by_side(step, step.factors(_Q), step.shape(_Q), (heads, few, few), (size,) * 3)
    return query, key, value


def _side_by_side(
    step: Step, factors: Factors, shape: tuple[int, ...], heads: tuple[int, ...], sizes: tuple[int, ...]
) -> list[Operand]:
    """Split the last axis into parts of heads."""
    found, start = [], 0
    for own, size in zip(heads, sizes):
        stop = start + own * size
        part = [window(step, f, len(shape) - 1, start, stop) for f in factors]
        found.append(split_heads(step, tuple(f for f in part if f is not None), (*shape[:-1], own * size), own))
        start = stop
    return found


@SIZES.row(f"{_MS}GroupQueryAttention")
def group_query_heads(r: Resizing) -> None:
    heads, few = int(r.node.attr("num_heads")), int(r.node.attr("kv_num_heads"))
    width = r.change.shapes[r.node.inputs[_Q]][-1]
    apart_ = bool(r.node.inputs[_K])
    size = width // (heads if apart_ else heads + 2 * few)
    query = slice(0, heads * size)
    _keep_scale(r, _Q, heads, query)
    r.node.set_attr("num_heads", _heads_left(r, _Q, heads, query))
    key = _heads_left(r, _K, few) if apart_ else _heads_left(r, _Q, few, slice(heads * size, (heads + few) * size))
    r.node.set_attr("kv_num_heads", key)


@MASKS.row(f"{_MS}GroupQueryAttention")
def group_query_masked(m: Masking) -> None:
    m.fill(0, [2], 0.0)


# ---- with the projection inside --------------------------------------------------------------------------------------
def _hidden_sizes(node_sizes: list[int] | None, width: int) -> list[int]:
    return list(node_sizes) if node_sizes else [width // 3] * 3


@DIMS.row(_FUSED_WEIGHTS)
def fused_weights(step: Step) -> None:
    if step.node.attr("do_rotary", 0):
        raise Refused("rotary embedding inside the projection")
    heads = int(step.node.attr("num_heads"))
    x, weight = step.operand(0), step.operand(1)
    lead: list[Letter] = [None] * (len(x.shape) - 1)
    pairs: list[tuple[Operand, list[Letter]]] = [(x, [*lead, "i"]), (weight, ["i", "o"])]
    if step.has(2):
        pairs.append((step.operand(2), ["o"]))
    projected = step.equate(pairs, [*lead, "o"])
    sizes = _hidden_sizes(step.node.attr("qkv_hidden_sizes"), weight.shape[1])
    wide = (*[1] * len(lead), weight.shape[1])
    each = tuple(size // heads for size in sizes)
    query, key, value = _side_by_side(step, projected, wide, (heads,) * 3, each)
    for part in (query, key, value):  # no value of the graph has the labels of one part alone
        if step.labels.policy != "whole":
            step.labels.blocks.append(matrix(step, part))
    if step.node.op == f"{_MS}Attention" and (step.has(4) or any(step.node.outputs[1:])):
        _one_cache(step, key, value)
    _result(step, attend(step, query, key, value, bias=5)[0], query, value)


def _one_cache(step: Step, key: Operand, value: Operand) -> None:
    """Relate keys and values with a cache of both, (2, B, heads, length, size)."""
    of_one_size(step, key, value)
    both = step.labels.tidy(np.stack([matrix(step, part) for part in (key, value)]))
    if step.has(4):
        reason = f"{step.node.label}: the KV cache {step.node.inputs[4]!r} fixes the heads and their size"
        for part in (key, value):
            step.labels.pin_axes(part.factors, (0, 1), reason)
    step.set(1, [] if both is None else [both[:, None, :, None, :]])


@SIZES.row(_FUSED_WEIGHTS)
def hidden_sizes(r: Resizing) -> None:
    heads, weight = int(r.node.attr("num_heads")), r.node.inputs[1]
    width = r.change.shapes[weight][1]
    sizes = _hidden_sizes(r.node.attr("qkv_hidden_sizes"), width)
    kept = r.change.axis_mask(weight, 1)
    if kept is None:
        return
    _keep_scale(r, 1, heads, slice(0, sizes[0]))
    parts = np.split(kept, np.cumsum(sizes)[:-1])
    left = [int(part.sum()) for part in parts]
    r.node.set_attr("num_heads", int(parts[0].reshape(heads, -1).any(axis=1).sum()))
    if "qkv_hidden_sizes" in r.node.attrs or len(set(left)) > 1:
        r.node.set_attr("qkv_hidden_sizes", left)


@MASKS.row(_FUSED_WEIGHTS)
def fused_weights_masked(m: Masking) -> None:
    m.fill(0, [m.rank() - 1], 0.0)
    m.fill(1, [1], 0.0)
    if _has(m, 2):
        m.fill(2, [0], 0.0)


# ---- rotary embedding ------------------------------------------------------------------------------------------------
_ROTARY = f"RotaryEmbedding {_MS}RotaryEmbedding"


@DIMS.row(_ROTARY)
def rotary(step: Step) -> None:
    tables = (1, 2) if step.node.op == "RotaryEmbedding" else (2, 3)
    size = 2 * step.shape(tables[0])[-1]
    heads = int(step.node.attr("num_heads", 0)) or step.shape()[-1] // size
    rotate(step, heads_of(step, 0, heads), size, bool(step.node.attr("interleaved", 0)), tables)
    step.set(0, step.factors(0))


@SIZES.row(_ROTARY)
def rotary_sizes(r: Resizing) -> None:
    shape, heads = r.change.shapes[r.node.inputs[0]], int(r.node.attr("num_heads", 0))
    table = r.node.inputs[1 if r.node.op == "RotaryEmbedding" else 2]
    if heads:
        flat = len(shape) == 3
        r.node.set_attr("num_heads", _heads_left(r, 0, heads) if flat else r.change.shape(r.node.inputs[0])[1])
    if r.node.attr("rotary_embedding_dim", 0):
        r.node.set_attr("rotary_embedding_dim", 2 * r.change.shape(table)[-1])
