"""Multiply-accumulates of each operator (MACs): one row per family, from shapes alone.

Convention: one multiplication with its addition is one MAC; biases, element-wise operators, normalisations, pools,
interpolation and data movement count 0. An operator without a row costs 0.

Source
    fvcore `jit_handles.py` (conv, addmm, matmul, einsum: "only multiplication is counted. Computation for addition and
    bias is ignored") and thop; unlike fvcore, normalisations count 0. ResNet-50 at 224x224 has 4.09 G, VGG-16 15.47 G.

A row takes the node (for attributes that no removal changes), the shapes of its inputs (None = absent) and of its
outputs. A row must use only shapes for what may shrink, so that the cost model can ask it about a plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from prunepass.consts import FLOAT_TYPES, QUANTISED_TYPES
from prunepass.graph import Node
from prunepass.rules.table import Table

Shape: TypeAlias = tuple[int, ...]
InShapes: TypeAlias = Sequence["Shape | None"]
OutShapes: TypeAlias = Sequence[Shape]
Macs: TypeAlias = Callable[[Node, InShapes, OutShapes], int]

MACS: Table[Macs] = Table("multiply-accumulates")


def is_parameter(elem_type: int, rank: int) -> bool:
    """Say whether the elements of a constant are parameters: floats, and short integers of rank 2 or more."""
    return elem_type in FLOAT_TYPES or (elem_type in QUANTISED_TYPES and rank > 1)


def shape_of(shapes: InShapes, position: int) -> Shape:
    """Return the shape of an operand that must be there."""
    shape = shapes[position]
    assert shape is not None, f"operand {position} is absent"
    return shape


def size_of(shapes: InShapes, position: int) -> int:
    """Return the number of elements of an operand, 0 where it is absent."""
    shape = shapes[position] if position < len(shapes) else None
    return 0 if shape is None else math.prod(shape)


def length_of(shapes: InShapes, position: int, axis: int) -> int:
    """Return one axis length of an operand, 0 where it is absent."""
    shape = shapes[position] if position < len(shapes) else None
    return 0 if shape is None else shape[axis]


def conv(weight: int) -> Macs:
    """Count a convolution whose weight (O, I/group, kernel...) is operand `weight`: each output sums a whole filter."""
    return lambda node, ins, outs: math.prod(outs[0]) * math.prod(shape_of(ins, weight)[1:])


def conv_transpose(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count a transposed convolution, weight (I, O/group, kernel...): each input is spread over a whole filter."""
    return math.prod(shape_of(ins, 0)) * math.prod(shape_of(ins, 1)[1:])


def matmul(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count a product over the last axis of the first operand; 1-D operands and batches are in the output shape."""
    return math.prod(outs[0]) * shape_of(ins, 0)[-1]


def gemm(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count a matrix product whose first operand may be transposed."""
    return math.prod(outs[0]) * shape_of(ins, 0)[0 if node.attr("transA", 0) else 1]


def fused_matmul(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count a batched product with `transA`; with `transBatchA` the rows stand before the batch axes."""
    transposed, row_first = node.attr("transA", 0), node.attr("transBatchA", 0)
    axis = -1 if not transposed else 0 if row_first else -2
    return math.prod(outs[0]) * shape_of(ins, 0)[axis]


def recurrent(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count the gates: per time step and sample, every element of W and R (all directions) is used once."""
    steps, samples = shape_of(ins, 0)[:2]
    return steps * samples * (size_of(ins, 1) + size_of(ins, 2))


def einsum(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count the product of the sizes of all letters; an equation of one operand multiplies nothing."""
    equation = node.attr("equation")
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    terms = text.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, ins, strict=True):
        assert shape is not None
        head, _, tail = term.partition("...")
        middle = len(shape) - len(head) - len(tail)
        dots = [f"...{i}" for i in reversed(range(middle))]
        for letter, size in zip([*head, *dots, *tail], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values()) if len(terms) > 1 else 0


def attention(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count Q K^T and P V, heads packed (B, L, H*d) or apart (B, H, L, d): every query element meets every key."""
    keys = shape_of(ins, 1)[-2] + length_of(ins, 4, -2)
    return (math.prod(shape_of(ins, 0)) + math.prod(outs[0])) * keys


def multi_head_attention(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count Q K^T and P V; query, key and value apart, or packed in one operand (B, L, H, 3, d)."""
    query = shape_of(ins, 0)
    packed = len(query) == 5
    key = query if size_of(ins, 1) == 0 else shape_of(ins, 1)
    keys = key[2 if len(key) == 4 else 1] + length_of(ins, 6, 2)
    return (math.prod(query) // (3 if packed else 1) + math.prod(outs[0])) * keys


def group_query_attention(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count Q K^T and P V; the output has the shape of the queries, packed QKV or not."""
    key = shape_of(ins, 0) if size_of(ins, 1) == 0 else shape_of(ins, 1)
    return 2 * math.prod(outs[0]) * (key[1] + length_of(ins, 3, 2))


def projected_attention(past: int) -> Macs:
    """Count an attention that projects its input by one weight (I, Q+K+V) first."""

    def macs(node: Node, ins: InShapes, outs: OutShapes) -> int:
        (batch, length, _), weight, out = shape_of(ins, 0), shape_of(ins, 1), math.prod(outs[0])
        query = batch * length * (weight[1] - outs[0][-1]) // 2
        return batch * length * math.prod(weight) + (query + out) * (length + length_of(ins, past, -2))

    return macs


MACS("Conv ConvInteger DeformConv CausalConvWithState", conv(1))
MACS("com.microsoft::FusedConv com.microsoft::NhwcConv com.microsoft::NhwcFusedConv", conv(1))
MACS("com.microsoft::CausalConvWithState", conv(1))
MACS("QLinearConv com.microsoft::QLinearConv", conv(3))
MACS("ConvTranspose com.microsoft::ConvTransposeWithDynamicPads", conv_transpose)
MACS("MatMul MatMulInteger QLinearMatMul", matmul)
MACS("com.microsoft::MatMulNBits com.microsoft::MatMulBnb4 com.microsoft::MatMulFpQ4", matmul)
MACS("com.microsoft::MatMulInteger16 com.microsoft::MatMulIntegerToFloat com.microsoft::DynamicQuantizeMatMul", matmul)
MACS("com.microsoft::QOrderedMatMul com.microsoft::GemmFastGelu", matmul)
MACS("ai.onnx.ml::LinearRegressor", matmul)
MACS("ai.onnx.ml::LinearClassifier", lambda node, ins, outs: matmul(node, ins, outs[1:]))
MACS("Gemm com.microsoft::FusedGemm com.microsoft::QGemm com.microsoft::GemmFloat8", gemm)
MACS("com.microsoft::FusedMatMul com.microsoft::FusedMatMulActivation com.microsoft::TransposeMatMul", fused_matmul)
MACS("com.microsoft::SparseToDenseMatMul", fused_matmul)
MACS("RNN GRU LSTM com.microsoft::DynamicQuantizeLSTM", recurrent)
MACS("Einsum", einsum)
MACS("Attention ai.onnx.preview::FlexAttention", attention)
MACS("com.microsoft::MultiHeadAttention", multi_head_attention)
MACS("com.microsoft::GroupQueryAttention", group_query_attention)
MACS("com.microsoft::Attention", projected_attention(4))
MACS("com.microsoft::QAttention", projected_attention(8))


def embedded_params(node: Node) -> int:
    """Count the parameters that a node carries itself: tensors of Constant nodes, constants of its subgraphs."""
    tensor, sparse = node.tensor("value"), node.attrs.get("sparse_value")
    count = 0
    if node.op == "Constant":
        count += _elements(tensor.data_type, tensor.dims) if tensor is not None else 0
        count += _elements(sparse.values.data_type, sparse.dims) if sparse is not None else 0
    for body in node.subgraphs:
        count += sum(_elements(t.data_type, t.dims) for t in body.initializer)
        count += sum(_elements(s.values.data_type, s.dims) for s in body.sparse_initializer)
        count += sum(embedded_params(Node(inner)) for inner in body.node)
    return count


def _elements(elem_type: int, dims: Sequence[int]) -> int:
    return math.prod(dims) if is_parameter(elem_type, len(dims)) else 0
