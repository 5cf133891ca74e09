"""Records of quantised and recurrent operators."""

from __future__ import annotations

import numpy as np
from rule_table import Record, Value, absent, adder, g, k, w, x

RECORDS: list[Record] = []
add = adder(RECORDS)
MS = "com.microsoft::"
scale, zero = w(of="unit"), k(7, "uint8")


def zeros(count: int) -> Value:
    return k([i % 5 for i in range(count)], "uint8")


# ---- between float and integer
add("QuantizeLinear", [x(2, 4, 3), scale, zero], "abc,,->abc")
add("QuantizeLinear", [x(2, 4, 3), w(4, of="unit"), zeros(4)], "abc,b,b->abc")
add("QuantizeLinear", [x(2, 4, 3), w(3, of="unit")], "abc,c->abc", axis=-1)
add("QuantizeLinear", [x(2, 4, 3), w(2, 2, 3, of="unit")], "a_c,a_c->a_c", 21, axis=1, block_size=2)
add("DequantizeLinear", [x(2, 4, 3, of="uint8"), scale, zero], "abc,,->abc")
add("DequantizeLinear", [x(2, 4, 3, of="uint8"), w(4, of="unit"), zeros(4)], "abc,b,b->abc", axis=-2)
add("DequantizeLinear", [x(2, 4, 3, of="int32"), w(2, 2, 3, of="unit")], "a_c,a_c->a_c", 21, axis=1, block_size=2)
add(f"{MS}QuantizeLinear", [x(2, 4, 3), w(4, of="unit"), zeros(4)], "abc,b,b->abc", axis=1)
add(f"{MS}DequantizeLinear", [x(2, 4, 3, of="uint8"), w(4, of="unit"), zeros(4)], "abc,b,b->abc", axis=1)
add("DynamicQuantizeLinear", [x(4, 6)], "AB->AB,,")

# ---- convolutions
image, byte = x(2, 4, 5, 5, of="uint8"), w(6, 4, 3, 3, of="int8")
out = [w(of="unit"), k(100, "uint8")]
add("QLinearConv", [image, scale, zero, byte, scale, k(1, "int8"), *out], "nC__,,,oC__,,,,->no__")
add(
    "QLinearConv",
    [image, scale, zero, byte, w(6, of="unit"), k([0] * 6, "int8"), *out, w(6, of="int32")],
    "nC__,,,oC__,o,o,,,o->no__",
)
add(
    "QLinearConv",
    [x(2, 6, 5, 5, of="uint8"), scale, zero, w(6, 1, 3, 3, of="int8"), scale, k(1, "int8"), *out],
    "nc__,,,c___,,,,->nc__",
    group=6,
)
add(
    "QLinearConv",
    [x(2, 8, 5, 5, of="uint8"), scale, zero, byte, scale, k(1, "int8"), *out],
    "nC__,,,oC__,,,,->no__",
    group=2,
)
add("ConvInteger", [x(2, 6, 5, 5, of="uint8"), w(6, 1, 3, 3, of="int8")], "nc__,c___->nc__", group=6)
add("ConvInteger", [image, byte, zero, k(1, "int8")], "nC__,oC__,,->no__")
add("ConvInteger", [image, byte], "nC__,oC__->no__", pads=[1] * 4)

# ---- products
rows, columns = x(2, 5, 8, of="uint8"), w(8, 6, of="int8")
add("MatMulInteger", [rows, columns], "amK,Kn->amn")
add("MatMulInteger", [rows, columns, zero, k([1, 2, 3, 0, 1, 2], "int8")], "amK,Kn,,n->amn")
add("QLinearMatMul", [rows, scale, zero, columns, scale, k(1, "int8"), *out], "amK,,,Kn,,,,->amn")
add("QLinearMatMul", [rows, scale, zero, columns, w(6, of="unit"), k([0] * 6, "int8"), *out], "amK,,,Kn,n,n,,->amn")
add(f"{MS}DynamicQuantizeMatMul", [x(2, 5, 8), columns, w(6, of="unit"), k([0] * 6, "int8"), w(6)], "AMK,Kn,n,n,n->AMn")
add(
    f"{MS}MatMulIntegerToFloat",
    [rows, columns, scale, w(6, of="unit"), zero, k([1] * 6, "int8"), w(6)],
    "amK,Kn,,n,,n,n->amn",
)
add(
    f"{MS}QGemm",
    [x(5, 8, of="uint8"), scale, zero, columns, w(6, of="unit"), k([1] * 6, "int8"), w(6, of="int32"), *out],
    "mK,,,Kn,n,n,n,,->mn",
)
add(
    f"{MS}QGemm", [x(5, 8, of="uint8"), scale, zero, w(6, 8, of="int8"), scale, k(1, "int8")], "mK,,,nK,,->mn", transB=1
)

# ---- element by element
two = [x(2, 4, 3, of="uint8"), scale, zero]
add(f"{MS}QLinearAdd {MS}QLinearMul", [*two, x(4, 3, of="uint8"), scale, zero, *out], "abc,,,bc,,,,->abc")
add(f"{MS}QLinearSigmoid {MS}QLinearLeakyRelu", [*two, *out], "abc,,,,->abc")
add(f"{MS}QLinearAveragePool", [image, scale, zero, *out], "nc__,,,,->nc__", kernel_shape=[2, 2])
add(f"{MS}QLinearGlobalAveragePool", [image, scale, zero, *out], "nc__,,,,->nc__", channels_last=0)
add(f"{MS}QLinearGlobalAveragePool", [x(2, 5, 5, 4, of="uint8"), scale, zero, *out], "n__c,,,,->n__c", channels_last=1)

# ---- recurrent
hidden = 4 + 5
add(
    "LSTM",
    [x(3, 2, 4), w(1, 20, 4), w(1, 20, 5), w(1, 40)],
    "__I,_HI,_HH,_H->___H,__H,__H",
    units=hidden,
    hidden_size=5,
)
add(
    "LSTM",
    [x(3, 2, 4), w(1, 20, 4), w(1, 20, 5), w(1, 40), k([3, 2], "int32"), x(1, 2, 5), w(1, 2, 5), w(1, 15)],
    "__I,_HI,_HH,_H,_,__H,__H,_H->___H,__H,__H",
    units=hidden,
    hidden_size=5,
)
add(
    "LSTM",
    [x(3, 2, 4), w(2, 20, 4), w(2, 20, 5), w(2, 40)],
    "__I,_HI,_HH,_H->___H,__H,__H",
    units=4 + 10,
    hidden_size=5,
    direction="bidirectional",
)
add(
    "LSTM", [x(3, 2, 4), w(1, 20, 4), w(1, 20, 5), absent, absent, g(1, 2, 5)], "__I,__I,___,,,___->____", hidden_size=5
)
add(
    "GRU",
    [x(3, 2, 4), w(1, 15, 4), w(1, 15, 5), w(1, 30)],
    "__I,_HI,_HH,_H->___H,__H",
    units=hidden,
    hidden_size=5,
    linear_before_reset=1,
)
add(
    "GRU", [x(3, 2, 4), w(1, 15, 4), w(1, 15, 5)], "__I,_HI,_HH->___H", units=hidden, hidden_size=5, direction="reverse"
)
add("RNN", [x(3, 2, 4), w(1, 5, 4), w(1, 5, 5), w(1, 10)], "__I,_HI,_HH,_H->___H,__H", units=hidden, hidden_size=5)
add("RNN", [x(3, 2, 4), x(1, 5, 4), w(1, 5, 5)], "___,___,___->____", hidden_size=5, barrier="weights are computed")
add("GridSample", [x(2, 4, 5, 5), k(np.linspace(-1, 1, 36).reshape(2, 3, 3, 2), "float32")], "nc__,n___->nc__", 20)
add(
    "RoiAlign",
    [x(1, 4, 8, 8), k([[0, 0, 4, 4], [1, 1, 6, 6]], "float32"), k([0, 0])],
    "_c__,__,_->_c__",
    output_height=2,
)
add("MaxRoiPool", [x(1, 4, 8, 8), k([[0, 0, 0, 4, 4]], "float32")], "_c__,__->_c__", pooled_shape=[2, 2])
