"""Shapes of the results of operators of which onnx has no schema.

A row takes a node and the shapes of its inputs (None = absent), and returns for each output its shape and the input
that has its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from prunepass.graph import Node
from prunepass.rules.table import Table

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Sequence["Shape | None"]
Results: TypeAlias = list[tuple[Shape, int]]

EXTENTS: Table[Callable[[Node, Shapes], Results]] = Table("shapes")
_MS = "com.microsoft::"


def _at(shapes: Shapes, position: int) -> Shape:
    """Return the shape of an operand, () where it is absent."""
    return (shapes[position] if position < len(shapes) else None) or ()


def _like_first(node: Node, shapes: Shapes) -> Results:
    return [(_at(shapes, 0), 0)]


EXTENTS(f"{_MS}MoE {_MS}QMoE {_MS}BiasAdd {_MS}GatedAdd", _like_first)


@EXTENTS.row(f"{_MS}BiasSplitGelu")
def half(node: Node, shapes: Shapes) -> Results:
    x = _at(shapes, 0)
    return [((*x[:-1], x[-1] // 2), 0)]


@EXTENTS.row(f"{_MS}MatMulNBits")
def bits(node: Node, shapes: Shapes) -> Results:
    return [((*_at(shapes, 0)[:-1], int(node.attr("N"))), 0)]


@EXTENTS.row(f"{_MS}GatherBlockQuantized")
def gather_blocks(node: Node, shapes: Shapes) -> Results:
    """Give the width of a table whose bytes hold several entries, or one, as the number of its blocks says."""
    table, blocks = _at(shapes, 0), _at(shapes, 2)[-1] * int(node.attr("block_size", 128))
    wide = table[-1] * 8 // int(node.attr("bits", 4))
    return [((*_at(shapes, 1), wide if table[-1] < wide <= blocks else table[-1]), 2)]


@EXTENTS.row(f"{_MS}DynamicQuantizeLSTM")
def lstm(node: Node, shapes: Shapes) -> Results:
    (steps, samples, _), (directions, size, _) = _at(shapes, 0), _at(shapes, 2)
    state = (directions, samples, size)
    return [((steps, directions, samples, size), 0), (state, 0), (state, 0)]


@EXTENTS.row(f"{_MS}GemmFastGelu")
def gemm(node: Node, shapes: Shapes) -> Results:
    return [((*_at(shapes, 0)[:-1], _at(shapes, 1)[-1]), 0)]


@EXTENTS.row(f"{_MS}FusedMatMul {_MS}TransposeMatMul {_MS}FusedMatMulActivation")
def matmul(node: Node, shapes: Shapes) -> Results:
    sides = []
    for side, shape in zip("AB", (_at(shapes, 0), _at(shapes, 1))):
        if node.attr(f"transBatch{side}", 0):
            shape = (*shape[1:-1], shape[0], shape[-1])
        flipped = node.attr(f"trans{side}", 0)
        sides.append((*shape[:-2], shape[-1], shape[-2]) if flipped else shape)
    a, b = sides
    return [((*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1]), 0)]


@EXTENTS.row(f"{_MS}EmbedLayerNormalization")
def embedding(node: Node, shapes: Shapes) -> Results:
    ids = _at(shapes, 0)
    rows = (*ids, _at(shapes, 2)[1])
    return [(rows, 2), (ids[:1], 0), (rows, 2)]


@EXTENTS.row(f"{_MS}MultiHeadAttention {_MS}PackedMultiHeadAttention")
def multi_head(node: Node, shapes: Shapes) -> Results:
    query, key, value = (_at(shapes, i) for i in range(3))
    heads = int(node.attr("num_heads"))
    if not key:  # (.., heads, 3, size)
        return [((*query[:-3], heads * query[-1]), 0)]
    by_head = value if len(value) == 4 else key if not value else ()  # sizes of one head are last
    size = by_head[-1] if by_head else value[-1] // heads
    length = key[2] if len(key) == 4 else key[1]
    total = length + (_at(shapes, 6)[2] if _at(shapes, 6) else 0)
    first = (query[0], heads, total)
    out = (*query[:-1], heads * size)
    return [(out, 0), ((*first, query[-1] // heads), 0), ((*first, size), 0)]


@EXTENTS.row(f"{_MS}GroupQueryAttention")
def group_query(node: Node, shapes: Shapes) -> Results:
    query, key = _at(shapes, 0), _at(shapes, 1)
    heads, few = int(node.attr("num_heads")), int(node.attr("kv_num_heads"))
    size = query[-1] // (heads if key else heads + 2 * few)
    past = _at(shapes, 3)[2] if _at(shapes, 3) else 0
    cache = (query[0], few, query[1] + past, size)
    return [((*query[:-1], heads * size), 0), (cache, 0), (cache, 0)]


@EXTENTS.row(f"{_MS}Attention {_MS}PackedAttention")
def fused_weights(node: Node, shapes: Shapes) -> Results:
    x, width = _at(shapes, 0), _at(shapes, 1)[1]
    sizes = node.attr("qkv_hidden_sizes") or [width // 3] * 3
    heads, past = int(node.attr("num_heads")), _at(shapes, 4)
    found = [((*x[:-1], int(sizes[2])), 0)]
    if node.op == f"{_MS}Attention":
        length = x[1] + (past[3] if past else 0)
        found.append(((2, x[0], heads, length, int(sizes[1]) // heads), 0))
    return found


def results(node: Node, shapes: Shapes) -> Results:
    """Return shape and type of each output; nothing where the shapes of the inputs do not fit."""
    try:
        found = EXTENTS[node.op](node, shapes)
    except (IndexError, TypeError, ValueError, ZeroDivisionError):
        return []
    return found if all(min(shape, default=1) >= 0 and math.prod(shape) >= 0 for shape, _ in found) else []
