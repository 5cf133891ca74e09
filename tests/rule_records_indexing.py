"""Records of operators that pick, gather and scatter."""

from __future__ import annotations

import numpy as np
from rule_table import Record, adder, g, k, w, x

RECORDS: list[Record] = []
add = adder(RECORDS)
FAR = 9223372036854775807

add("Slice", [x(2, 8)], "ab->a*", 9, units=10, starts=[1], ends=[4], axes=[1])
add("Slice", [x(2, 8)], "_b->_*", 9, units=9, starts=[0, 2], ends=[1, 9999])
add("Slice", [x(2, 8), k([2]), k([6]), k([1])], "ab,_,_,_->a*", 10, units=10)
add("Slice", [x(2, 8), k([-3]), k([FAR]), k([-1])], "ab,_,_,_->a*", units=10)
add("Slice", [x(2, 8), k([0, 0]), k([2, 8])], "ab,_,_->ab")
add("Slice", [x(2, 8), k([1]), k([8]), k([1]), k([3])], "ab,_,_,_,_->a*", units=10)
add("Slice", [x(2, 8), k([-1]), k([-9999]), k([1]), k([-1])], "ab,_,_,_,_->ab")
add("Slice", [x(2, 8), k([6]), k([1]), k([1]), k([-2])], "ab,_,_,_,_->a*", units=10)
add("Slice", [x(2, 8), k([3]), k([4]), k([1])], "ab,_,_,_->a_", units=9)
add("Slice", [x(2, (4, 6)), k([0]), k([2]), k([2])], "a_b,_,_,_->a_*", units=26)
add("Slice", [x(2, (4, 6)), k([2]), k([5]), k([2])], "a_b,_,_,_->a_*", units=26)
add("Slice", [x(2, (4, 6)), k([0]), k([6]), k([2]), k([2])], "a_b,_,_,_,_->a_*", units=8)
add("Slice", [x(2, (4, 6)), k([1]), k([3]), k([1])], "a_b,_,_,_->a_*", units=26)
add("Slice", [x(2, (4, 6)), k([3]), k([-9]), k([1]), k([-2])], "a_b,_,_,_,_->a_*", units=26)
add("Slice", [x(2, 8), k([0]), g(1, of="one"), k([1])], "a_,_,_,_->a_")
add("Slice", [x(2, 8), k([0]), g(1, of="one")], "__,_,_->__", barrier="bounds are computed")
add("Gather", [x(2, 8), k([1, 5, 2])], "ab,_->a*", units=10, axis=1)
add("Gather", [x(2, 8), k([3, 3, -1])], "ab,_->a*", units=10, axis=1)
add("Gather", [x(2, 8), k(3)], "ab,->a", units=9, axis=1)
add("Gather", [x(2, 8), k([3])], "ab,_->a_", units=9, axis=1)
add("Gather", [x(2, 8), k(-1)], "_b,->b", units=9)
add("Gather", [x(2, 4), g(3, of="index")], "a_,_->a_", axis=1)
add("Gather", [x(3, 4), g(3, 2, of="index")], "_b,__->__b")
add("Gather", [w(9, 8), g(2, 5, of="index")], "_e,__->__e")
add("Gather", [x(2, (4, 3)), g(2, of="index")], "n_d,_->n_d", units=5, axis=1)
add("Gather", [x(2, (4, 3)), g(2, of="index")], "nh_,_->nh_", units=6, axis=2)
add("Gather", [x(2, (4, 3)), k([2, 0])], "n_d,_->n_*", units=14, axis=1)
add("Gather", [x(2, (4, 3)), k([2, 0])], "n_d,_->n_*", units=5, axis=2)
add("Gather", [x(2, (4, 3)), k(1)], "n_d,->n*", units=14, axis=1)
add("Gather", [x(2, (4, 3)), k(1)], "nh_,->nh", units=6, axis=2)
add("Gather", [x(2, (3, 4, 5)), k(1)], "a__b,->a_*", units=62, axis=1)
add("GatherElements", [x(2, 4, 3), x(2, 4, 2, of="index")], "ab_,ab_->ab_", axis=2)
add("GatherElements", [x(2, 4, 3), k(np.arange(16).reshape(2, 4, 2) % 3)], "ab_,ab_->ab_", axis=-1)
add("GatherElements", [x(2, 4, 3), g(2, 4, 2, of="index")], "___,___->___", axis=2)
add("GatherElements", [g(2, 4, 3), x(2, 4, 2, of="index")], "___,___->___", axis=2)
add("GatherElements", [x(2, 4, 3), k(np.zeros((2, 2, 3)))], "a_c,a_c->a_c", axis=1)
add("GatherElements", [x(2, (4, 3)), k(np.zeros((2, 2, 3)))], "a_c,a_c->a_c", units=5, axis=1)
add("GatherElements", [x(2, 4, 3), k(np.zeros((1, 4, 3)))], "_bc,_bc->_bc")
add("GatherND", [x(2, 4, 3), k([[0], [1], [0]])], "_bc,__->_bc")
add("GatherND", [x(2, 4, 3), k([[0, 1], [1, 2], [0, 3]])], "__c,__->_c")
add("GatherND", [x(2, 4, 3), k(np.arange(10).reshape(2, 5, 1) % 4)], "a_c,a__->a_c", batch_dims=1)
add(
    "GatherND",
    [x(2, 4, 3), g(5, 1, of="index")],
    "_bc,__->_bc",
    build=lambda net, a, b: [net("GatherND", a, net("Mod", b, net.const(np.int64(2))))],
)
add("ScatterElements", [x(2, 4, 3), k(np.arange(16).reshape(2, 4, 2) % 3), x(2, 4, 2)], "ab_,ab_,ab_->ab_", axis=2)
add(
    "ScatterElements",
    [x(2, 4, 3), k(np.arange(8).reshape(2, 4, 1) % 3), w(2, 4, 1)],
    "ab_,ab_,ab_->ab_",
    18,
    axis=-1,
    reduction="add",
)
add("ScatterElements", [x(2, 4, 3), k(np.zeros((2, 2, 1))), w(2, 2, 1)], "a__,a__,a__->a__", axis=2)
add("Scatter", [x(2, 4, 3), k(np.arange(8).reshape(2, 4, 1) % 3), x(2, 4, 1)], "ab_,ab_,ab_->ab_", 10, axis=2)
add("ScatterND", [x(4, 3), x(2, 1, of="index"), x(2, 3)], "_c,__,_c->_c")
add("ScatterND", [x(4, 3), k([[0], [2]]), x(2, 3)], "_c,__,_c->_c")
add("ScatterND", [x(4, 3), k([[0], [2]]), w(2, 3)], "_c,__,_c->_c", 16, reduction="add")
add("ScatterND", [w(4, 3), k([[0], [2]]), x(2, 3)], "_c,__,_c->_c")
add("ScatterND", [x(4, 3), k([[0, 1], [2, 2]]), w(2)], "__,__,_->__")
add("Gather", [x(2, 8), k([[1, -2], [0, 1]])], "ab,__->a__", units=10, axis=1)
add("ScatterElements", [w(2, 4, 3), k(np.arange(8).reshape(2, 4, 1) % 3), x(2, 4, 1)], "ab_,ab_,ab_->ab_", axis=2)
