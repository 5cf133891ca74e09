"""Records of operators that move, repeat and measure: layout, sizes as values, sequences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rule_table import Record, absent, adder, g, k, w, x

from fixtures.tiny import Net

RECORDS: list[Record] = []
add = adder(RECORDS)


def size(net: Net, value: str, axis: int) -> str:
    """Compute one size at run time, as a tensor of one element."""
    return net("Gather", net("Shape", value), net.const([axis]))


def together(net: Net, *entries: str | int) -> str:
    """Concatenate computed entries and constant ones."""
    return net("Concat", *(net.const([e]) if isinstance(e, int) else e for e in entries), axis=0)


def to(*entries: int | tuple[int, int]) -> Callable[[Net, str], list[str]]:
    """Reshape to constants and to computed quotients (axis, divisor)."""

    def build(net: Net, a: str) -> list[str]:
        parts = [e if isinstance(e, int) else net("Div", size(net, a, e[0]), net.const([e[1]])) for e in entries]
        return [net("Reshape", a, together(net, *parts))]

    return build


def merge_tail(net: Net, a: str) -> list[str]:
    tail = net("ReduceProd", net("Slice", net("Shape", a), net.const([1]), net.const([3])), keepdims=1)
    return [net("Reshape", a, together(net, size(net, a, 0), tail))]


def first_half(net: Net, a: str) -> list[str]:
    return [net("Slice", a, net.const([0]), net("Div", size(net, a, 1), net.const([2])), net.const([1]))]


def second_last(net: Net, a: str) -> str:
    return net("Sub", net("Size", net("Shape", a)), net.const([2]))


def zeros(net: Net, a: str) -> str:
    return net("ConstantOfShape", net("Shape", a))


def fill_two(net: Net, a: str, b: str) -> list[str]:
    fill = zeros(net, a)
    return [net("Add", a, fill), net("Max", fill, b)]


def tile_for_two(net: Net, a: str, b: str, c: str) -> list[str]:
    y = net("Tile", a, net.const([1, 4]))
    return [net("Add", y, b), net("Mul", c, y)]


def tile_and_split(net: Net, a: str) -> list[str]:
    y = net("Tile", a, net.const([1, 2]))
    return [net("Reshape", y, net.const([0, 2, 4])), net("Reshape", y, net.const([0, 4, 2]))]


def positions(net: Net, a: str) -> list[str]:
    count = net("Squeeze", size(net, a, 1))
    numbers = net("Range", net.const(np.array(0)), count, net.const(np.array(1)))
    return [net("Add", a, net("Cast", numbers, to=1))]


def shuffle(net: Net, a: str) -> list[str]:
    y = net("Transpose", net("Reshape", a, net.const([0, 3, 4])), perm=[0, 2, 1])
    return [net("Reshape", y, net.const([0, -1]))]


def joins_copies(net: Net, b: str, k: str, c: str, a: str) -> list[str]:
    copies = net("Expand", b, k)
    return [net("Concat", copies, c, axis=1), net("Mul", a, copies)]


def meets_fixed(op: str, first: bool) -> Callable[..., list[str]]:
    """Copies of one index meet an axis that may shrink, before or after one that cannot."""

    def build(net: Net, a: str, b: str, k: str, c: str) -> list[str]:
        copies = net(op, b, k)
        early = net("Add", c, copies) if first else ""
        free = net("Mul", a, copies)
        return [early or net("Add", c, copies), free]

    return build


def divide_by_copies(net: Net, a: str, b: str, k: str) -> list[str]:
    return [net("Mul", a, net("Expand", b, k))]


def repeat_heads(net: Net, a: str) -> list[str]:
    y = net("Expand", net("Unsqueeze", a, net.const([2])), net.const([1, 1, 2, 1]))
    return [net("Reshape", y, net.const([0, 8, 3]))]


def split_computed(net: Net, a: str) -> list[str]:
    half = net("Div", size(net, a, 1), net.const([2]))
    return net.many("Split", 2, a, together(net, half, half), axis=1)


def pad_to_six(net: Net, a: str) -> list[str]:
    after = net("Sub", net.const([6]), size(net, a, 1))
    return [net("Pad", a, together(net, 0, 1, 0, after))]


def add_padded(net: Net, a: str, b: str) -> list[str]:
    return [net("Add", net("Pad", a, net.const([0, 1, 0, 2])), b)]


def add_padded_by_attribute(net: Net, a: str, b: str) -> list[str]:
    return [net("Add", net("Pad", a, pads=[0, 2, 0, 1]), b)]


def resize_to(net: Net, a: str) -> list[str]:
    kept = net("Slice", net("Shape", a), net.const([0]), net.const([2]))
    return [net("Resize", a, "", "", together(net, kept, 5, 7))]


# ---- sizes as values -------------------------------------------------------------------------------------------------
add("Shape", [x(2, 4, 3)], "abc->_")
add("Shape", [x(2, 4, 3)], "abc->_", start=1, end=-1)
add("Size", [x(2, 4, 3)], "abc->")
add("Shape", [x(2, 4, 3), x(2, 4, 3)], "abc,def->abc", build=lambda net, a, b: [net("Reshape", a, net("Shape", b))])
add("Shape", [x(2, 4, 3, on="1")], "_b_->_b", build=to((0, 1), -1))
add("Shape", [x(2, 4, 3, on="1")], "_b_->_b", build=merge_tail)
add("Shape", [x(2, 12)], "ab->a_b", units=14, build=to((0, 1), 4, (1, 4)))
add("Shape", [x(2, 8)], "ab->a*", build=first_half)
add(
    "Size",
    [x(2, 4, 3, on="1")],
    "_b_->b",
    build=lambda net, a: [net("Reshape", a, net("Unsqueeze", net("Size", a), net.const([0])))],
)
add("ReduceSum", [x(2, 4, 3)], "aBc->a_c", build=lambda net, a: [net("ReduceSum", a, second_last(net, a))])
add("ReduceMax", [x(2, 4, 3)], "aBc->a_c", 18, build=lambda net, a: [net("ReduceMax", a, second_last(net, a))])
add("ConstantOfShape", [x(2, 4, 3)], "abc->abc", build=lambda net, a: [net("Add", a, zeros(net, a))])
add("ConstantOfShape", [x(2, 4, 3)], "abc->abc", build=lambda net, a: [net("Max", zeros(net, a), a)])
add(
    "ConstantOfShape",
    [x(2, 4), x(2, 3)],
    "ab,ac->a*",
    units=9,
    build=lambda net, a, b: [net("Concat", a, net("Add", b, zeros(net, b)), axis=1)],
)
add("ConstantOfShape", [x(2, 4), x(2, 4)], "ab,ab->ab,ab", build=fill_two)
add("ConstantOfShape", [x(2, 4)], "ab->a*", units=6, build=lambda net, a: [net("Concat", a, zeros(net, a), axis=1)])
add("Range", [x(2, 4)], "a_->a_", build=positions)
add(
    "RandomNormal",
    [x(2, 4)],
    "__->__",
    build=lambda net, a: [net("Add", a, net("RandomNormal", shape=[2, 4], seed=1.0))],
)
add(
    "RandomUniform",
    [x(2, 4)],
    "a_->a_",
    build=lambda net, a: [net("Add", a, net("RandomUniform", shape=[4], seed=1.0))],
)
add(
    "Constant",
    [x(2, 4)],
    "a_->a_",
    build=lambda net, a: [net("Add", a, net("Constant", value_floats=[1.0, 2.0, 3.0, 4.0]))],
)

# ---- layout
add("Reshape", [x(2, 4, 3, on="01"), k([2, 12])], "ab_,_->ab")
add("Reshape", [x(2, 4, 3, on="02"), k([2, -1])], "a_c,_->ac")
add("Reshape", [x(2, 4, 3, on="02"), k([0, -1])], "a_c,_->ac")
add("Reshape", [x(2, 4, 3, on="0"), k([-1, 3])], "a__,_->a_")
add("Reshape", [x(2, 4, 3), k([2, 12])], "a__,_->a_", units=2 + 1)
add("Reshape", [x(2, 4, 1, 3), k([0, 0, 3])], "ab_c,_->abc")
add("Reshape", [x(2, 4, 3), k([2, 1, 4, 3])], "abc,_->a_bc")
add("Reshape", [x(2, 4, 3), k([2, 4, 3])], "abc,_->abc", allowzero=1)
add("Reshape", [x(1, 4), k([4])], "_b,_->b")
add("Reshape", [x(2, 12), k([0, 4, 3])], "ab,_->a_b", units=14)
add("Reshape", [x(2, 12), k([0, -1, 3])], "ab,_->a_b", units=14)
add("Reshape", [x(2, 12), k([2, 2, 2, 3])], "ab,_->a__b", units=14)
add("Reshape", [x(2, (4, 3)), k([2, 12])], "a_b,_->ab", units=14)
add("Reshape", [x(2, (4, 6)), k([2, 4, 2, 3])], "a_b,_->a__b", units=26)
add("Reshape", [x(2, (4, 6)), k([2, 8, 3])], "a_b,_->a_b", units=26)
add("Reshape", [x(12), k([4, 3])], "b,_->_b", policy="aligned", units=3)


add("Reshape Transpose", [x(2, 12)], "nc->n*", units=2 + 4, build=shuffle)
add("Flatten", [x(2, 4, 3, on="01")], "ab_->ab")
add("Flatten", [x(2, (4, 3), 5, on="1")], "__d_->_d", units=12)
add("Flatten", [x(2, 4, 3, on="2")], "__c->_c", axis=0)
add("Flatten", [x(2, 4, 3, on="2")], "__c->_c", axis=-1)
add("Flatten", [x(2, 4, 3, on="0")], "a__->a_", axis=2)
add("Squeeze", [x(2, 1, 3)], "a_c->ac", 11, axes=[1])
add("Squeeze", [x(2, 1, 3, 1)], "a_c_->ac")
add("Squeeze", [x(2, 1, 3), k([-2])], "a_c,_->ac")
add("Squeeze", [x(1, (4, 3))], "__c->_c", units=12)
add("Unsqueeze", [x(2, 3)], "ac->a_c_", 11, axes=[1, 3])
add("Unsqueeze", [x(2, 3), k([0, -1])], "ac,_->_ac_")
add("Unsqueeze", [x(2, (4, 3)), k([2])], "a_c,_->a__c", units=14)
add("Transpose", [x(2, 4, 3)], "abc->cba")
add("Transpose", [x(2, 4, 3)], "abc->bac", perm=[1, 0, 2])
add("Transpose", [x(2, (4, 3))], "a_c->_ac", perm=[1, 0, 2], units=14)
add("Transpose", [x(2, (4, 3))], "a_c->ac_", perm=[0, 2, 1], units=5)
add("Concat", [x(2, 4), x(2, 3)], "ab,ac->a*", units=9, axis=1)
add("Concat", [x(2, 4), x(2, 3), x(2, 4)], "ab,ac,ad->a*", units=13, axis=-1)
add("Concat", [x(4), x(3)], "b,c->*", units=7, axis=0)
add("Concat", [x(2, 4), g(2, 3)], "_b,__->_*", units=4, axis=1)
add("Concat", [x(2, 4), w(2, 3)], "ab,a_->a*", units=6, axis=1)
add("Concat", [w(1, 4), x(2, 4)], "_b,ab->*b", axis=0)
add("Concat", [x(2, (4, 3)), x(2, (4, 5))], "a_b,a_c->a_*", units=2 + 12 + 20, axis=2)
add("Concat", [x(2, (4, 3)), x(2, (2, 3))], "a_b,a_c->a_*", units=2 + 12 + 6, axis=1)
add("Concat", [x(2, (4, 3)), g(2, 4, 2)], "__b,___->__*", units=12, axis=2)
add("Concat", [x(2, (4, 3)), g(2, 2, 3)], "___,___->___", axis=1)
add("Concat", [x(2, (4, 3)), x(2, 4, 2)], "ab_,abc->ab*", units=2 + 4 + 2, axis=2)
add("Concat", [x(2, (4, 3)), x(2, 4, 3)], "a_d,abd->a*d", units=2 + 3 + 4, axis=1)
add("Concat", [x(2, 4)], "ab->ab", build=lambda net, a: [net("Concat", a, a, axis=1)])
add("Concat", [x(2, 4, 3), x(2, 5, 3)], "abc,adc->a*c", units=2 + 4 + 3 + 5, axis=1)
add("Split", [x(2, 8)], "ab->a*,a*", 13, units=10, axis=1)
add("Split", [x(2, 9)], "ab->a*,a*,a*", 18, units=11, axis=-1, num_outputs=3)
add("Split", [x(2, 8)], "ab->a*,a*,a*", 18, units=10, axis=1, num_outputs=3)
add("Split", [x(2, 8)], "ab->a*,a*", 11, units=10, axis=1, split=[3, 5])
add("Split", [x(2, 8), k([3, 4, 1])], "ab,_->a*,a*,a_", units=9, axis=1)
add("Split", [x(6, 4)], "ab->*b,*b", 9, units=10)
add("Split", [x(2, (4, 6))], "a_b->a_*,a_*", units=26, axis=2)
add("Split", [x(2, (4, 6)), k([2, 4])], "a_b,_->a_*,a_*", units=26, axis=2)
add("Split", [x(2, (4, 6))], "a_b->a_*,a_*", units=26, axis=1)
add("Split", [x(2, (3, 4, 5))], "a__b->a__*,a__*,a__*", units=62, axis=1)
add("Expand", [x(2, 1, 3), k([2, 4, 3])], "a_c,_->a_c")
add("Expand", [x(4, 1), k([2, 1, 5])], "b_,_->_b_")
add("Expand", [x(2, 4), k([4])], "ab,_->ab")
add("Expand", [x(2, 4)], "ab->_ab", build=lambda net, a: [net("Expand", a, together(net, 5, net("Shape", a)))])
add("Expand", [x(2, 4)], "ab->ab", build=lambda net, a: [net("Mul", a, net("Expand", net.const(1.5), net("Shape", a)))])
add("Tile", [x(2, 1), x(2, 4), x(2, 4)], "a_,ab,ab->ab,ab", build=tile_for_two)
add("Tile Reshape", [x(2, 4)], "ab->a_b,a_b", build=tile_and_split)
add("Tile", [x(2, 4), k([1, 3])], "ab,_->ab")
add("Tile", [x(2, 4), k([2, 1])], "ab,_->ab")
add("Tile", [x(2, 1), k([1, 3])], "a_,_->a_")
add("Tile", [x(2, (4, 3)), k([1, 2, 2])], "a_b,_->a_b", units=14)
for op, sizes in (("Expand", [2, 5, 4]), ("Tile", [1, 1, 4])):  # copies of one index follow what they meet
    more = [x(2, 5, 4), g(2, 5, 1), k(sizes)]
    add(op, [*more, g(2, 5, 4)], "___,___,_,___->___,___", build=meets_fixed(op, first=True))
    add(op, [*more, g(2, 5, 4)], "___,___,_,___->___,___", build=meets_fixed(op, first=False))
    add(op, more, "__c,___,_->__c", build=lambda net, a, b, k, op=op: [net("Mul", a, net(op, b, k))])
add(
    "Expand",
    [g(2, 5, 1), k([2, 5, 4]), w(4)],
    "___,_,_->___",
    build=lambda net, b, k, w: [net("Mul", net("Expand", b, k), w)],
)
add("Expand Concat", [g(2, 5, 1), k([2, 5, 4]), g(2, 3, 4), x(2, 5, 4)], "___,_,___,___->___,___", build=joins_copies)
add("Expand", [x(2, (3, 4)), g(2, 3, 1), k([2, 3, 4])], "__c,___,_->__c", units=12, build=divide_by_copies)
add("Pad", [x(2, 4, 3, 3)], "nchw->nc**", 9, pads=[0, 0, 1, 1, 0, 0, 2, 0])
add("Pad", [x(2, 4, 3, 3), k([0, 0, 1, 1, 0, 0, 2, 0])], "nchw,_->nc**", units=12)
add("Pad", [x(2, 4), k([0, 1, 0, 2]), k(0.5, "float32")], "nc,_,->n*", units=6)
add("Pad", [x(2, 4), k([1, 2]), absent, k([1])], "nc,_,,_->n*", 18, units=6)
add("Pad", [x(2, 4), k([1, 2]), absent, k([-1])], "n_,_,,_->n_", 18, mode="edge")
add("Pad", [x(2, 4), k([0, 1, 0, 1])], "n_,_->n_", mode="reflect")
add("Pad", [x(2, 4), k([0, -1, 0, 1])], "n_,_->n_")
add("Pad", [x(2, 4), g(4, of="one")], "__,_->__")
add("Pad", [x(2, (4, 3)), k([0, 1, 0, 0, 1, 0])], "n_d,_->n_d", units=5)
add("Pad", [x(2, (4, 3)), k([0, 0, 1, 0, 0, 1])], "nh_,_->nh_", units=6)


add("Resize", [x(2, 4, 3, 3), k([1, 1, 2, 2], "float32")], "nc__,_->nc__", 10)
add("Resize", [x(2, 4, 3, 3), absent, k([1, 1, 2, 2], "float32")], "nc__,,_->nc__", mode="linear")
add("Resize", [x(2, 4, 3, 3), absent, absent, k([2, 4, 6, 6])], "nc__,,,_->nc__")
add("Resize", [x(2, 4, 3, 3), absent, absent, k([4, 6, 6])], "nc__,,,_->nc__", 18, axes=[1, 2, 3])
add("Resize", [x(2, 4, 3, 3), absent, absent, k([2, 8, 6, 6])], "n___,,,_->n___")
add("Resize", [x(2, 4, 3), absent, k([1, 1, 2], "float32")], "nc_,,_->nc_")
add("Resize", [x(2, 4, 3, 3)], "nc__->nc__", build=resize_to)
add("Upsample", [x(2, 4, 3, 3)], "nc__->nc__", 7, scales=[1.0, 1.0, 2.0, 2.0])
add("Upsample", [x(2, 4, 3, 3), k([1, 1, 2, 2], "float32")], "nc__,_->nc__", 9)
add("DepthToSpace", [x(2, 16, 3, 3)], "nc__->n*__", units=2 + 4, blocksize=2)
add("DepthToSpace", [x(2, 16, 3, 3)], "nc__->n*__", units=2 + 4, blocksize=2, mode="CRD")
add("Col2Im", [x(2, 12, 9), k([4, 4]), k([2, 2])], "nc_,_,_->nc__", 18, units=2 + 3)
add("SpaceToDepth", [x(2, 4, 4, 4)], "nc__->nc__", blocksize=2)
add(
    "SequenceConstruct",
    [x(2, 4), x(2, 3)],
    "__,__->__",
    barrier="sequences",
    build=lambda net, a, b: [net("ConcatFromSequence", net("SequenceConstruct", a, b), axis=1)],
)
add(
    "ConcatFromSequence",
    [x(2, 4), x(2, 3)],
    "__,__->__",
    barrier="sequences",
    build=lambda net, a, b: [net("ConcatFromSequence", net("SequenceConstruct", a, b), axis=1)],
)
add(
    "SequenceInsert SequenceEmpty",
    [x(2, 4)],
    "__->__",
    barrier="sequences",
    build=lambda net, a: [net("ConcatFromSequence", net("SequenceInsert", net("SequenceEmpty"), a), axis=1)],
)
add(
    "SequenceLength",
    [x(2, 4), x(2, 3)],
    "__,__->",
    barrier="sequences",
    build=lambda net, a, b: [net("SequenceLength", net("SequenceConstruct", a, b))],
)
add(
    "SequenceErase",
    [x(2, 4), x(2, 3)],
    "__,__->__",
    barrier="sequences",
    build=lambda net, a, b: [net("ConcatFromSequence", net("SequenceErase", net("SequenceConstruct", a, b)), axis=1)],
)

# ---- together with others --------------------------------------------------------------------------------------------
add(
    "Concat",
    [x(2, 4, 3), x(2, 6)],
    "a__,ab->a*",
    units=2 + 1 + 6,
    build=lambda net, a, b: [net("Concat", net("Reshape", a, net.const([2, 12])), b, axis=1)],
)
add(
    "Conv",
    [x(2, 4, 3, 5), w(6, 4, 2)],
    "nC__,oC_->no_",
    units=2 + 4 + 6,
    build=lambda net, a, b: [net("Conv", net("Reshape", a, net.const([0, 0, -1])), b)],
)
add(
    "Conv",
    [x(2, 4, 2, 5), w(6, 8, 2)],
    "n___,o__->no_",
    units=2 + 1 + 6,
    build=lambda net, a, b: [net("Conv", net("Reshape", a, net.const([0, 8, 5])), b)],
)
add("Reshape", [x(1, 4, 4), k([4, 0])], "_bc,_->bc")
add("Reshape", [x(2, 3, 8, on="2"), k([6, 8])], "__c,_->_c")
add("Expand Reshape", [x(2, (4, 3))], "n_d->n_d", units=2 + 12, build=repeat_heads)
add("Concat", [x(2, (4, 3)), w(2, 4, 2)], "a_b,a__->a_*", units=2 + 12, axis=2)
add("Split", [x(2, 8)], "ab->a*,a*", units=2 + 8, build=split_computed)
add("Pad", [x(2, 4)], "nc->n*", units=2 + 4, build=pad_to_six)
add("Pad", [x(2, 4), x(2, 7)], "n*,nc->nc", units=2 + 7, build=add_padded)
add("Pad", [x(2, 4), x(2, 7)], "n*,nc->nc", 9, units=2 + 7, build=add_padded_by_attribute)
