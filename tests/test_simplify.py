"""The rewrites of `canonicalize{thorough=true}`: each is exact where it fires, and silent where it must be."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from folding import folded
from textmodels import model, weight

from prunepass import load
from prunepass.manager import Pipeline

THOROUGH = "canonicalize{thorough=true}"
ROWS, IMAGE = "g (float[n, 6] x) => (float[n, k] y)", "g (float[n, 4, 6] x) => (float[n, p, q] y)"
FLAT = "g (float[n, 4, 6] x) => (float[n, q] y)"
PIXELS = "g (float[n, 3, 5, 6] x) => (float[n, 4, p, q] y)"
W, V = weight(6, 6), weight(6)

CASES = [  # what, frame, body, constants, operators that are left
    # equal nodes
    ("equal nodes", ROWS, "a = Exp(x) b = Exp(x) y = Add(a, b)", {}, "Exp Add"),
    ("equal constants", ROWS, "a = Mul(x, w) b = Mul(x, v) y = Add(a, b)", {"w": V, "v": V.copy()}, "Mul Add"),
    ("equal chains", ROWS, "a = Exp(x) c = Abs(a) b = Exp(x) d = Abs(b) y = Add(c, d)", {}, "Exp Abs Add"),
    ("other attributes", ROWS, "a = Elu <alpha = 0.5> (x) b = Elu(x) y = Add(a, b)", {}, "Elu Elu Add"),
    ("other constants", ROWS, "a = Mul(x, w) b = Mul(x, v) y = Add(a, b)", {"w": V, "v": 2 * V}, "Mul Mul Add"),
    ("zeros of either sign", ROWS, "a = Mul(x, w) b = Mul(x, v) c = Add(a, b) y = Add(c, x)",
     {"w": np.zeros(6, np.float32), "v": np.negative(np.zeros(6, np.float32))}, "Mul Mul Add Add"),
    ("random numbers", ROWS,
     "a = RandomNormalLike(x) b = RandomNormalLike(x) c = Sub(a, b) d = Mul(c, z) y = Add(d, x)",
     {"z": np.zeros(6, np.float32)}, "RandomNormalLike RandomNormalLike Sub Mul Add"),
    ("an output keeps its node", "g (float[n, 6] x) => (float[n, 6] y, float[n, 6] z)", "y = Exp(x) z = Exp(x)", {},
     "Exp Exp"),
    # nothing changes at these shapes
    ("reshape to its own shape", IMAGE, "a = Exp(x) y0 = Reshape(a, s) y = Neg(y0)", {"s": np.array([-1, 4, 6])},
     "Exp Neg"),
    ("reshape to another one", IMAGE, "a = Exp(x) y0 = Reshape(a, s) y = Neg(y0)", {"s": np.array([-1, 6, 4])},
     "Exp Reshape Neg"),
    ("reshape that may merge", IMAGE.replace("[n, 4,", "[n, m,"), "a = Exp(x) y0 = Reshape(a, s) y = Neg(y0)",
     {"s": np.array([-1, 4, 6])}, "Exp Reshape Neg"),
    ("expand to its own shape", IMAGE, "a = Exp(x) y0 = Expand(a, s) y = Neg(y0)", {"s": np.array([1, 4, 1])},
     "Exp Neg"),
    ("expand that grows", IMAGE.replace("n, p, q", "o, n, p, q"),
     "a = Exp(x) y0 = Expand(a, s) y = Neg(y0)", {"s": np.array([3, 1, 1, 1])},
     "Exp Expand Neg"),
    ("a slice of all", IMAGE, "a = Exp(x) y0 = Slice(a, s, e, d) y = Neg(y0)",
     {"s": np.array([0]), "e": np.array([2**63 - 1]), "d": np.array([0])}, "Exp Neg"),
    ("a slice of all that is fixed", "g (float[2, 6] x) => (float[2, 6] y)",
     "a = Exp(x) y0 = Slice(a, s, e) y = Neg(y0)",
     {"s": np.array([0, 0]), "e": np.array([2, 9])}, "Exp Neg"),
    ("a slice of a part", IMAGE, "a = Exp(x) y0 = Slice(a, s, e, d) y = Neg(y0)",
     {"s": np.array([0]), "e": np.array([4]), "d": np.array([2])}, "Exp Slice Neg"),
    ("a slice of what is dynamic", ROWS, "a = Exp(x) y0 = Slice(a, s, e) y = Neg(y0)",
     {"s": np.array([0]), "e": np.array([4])}, "Exp Slice Neg"),
    ("a slice that turns", ROWS, "a = Exp(x) y0 = Slice(a, s, e, d, t) y = Neg(y0)",
     {"s": np.array([-1]), "e": np.array([-99]), "d": np.array([1]), "t": np.array([-1])}, "Exp Slice Neg"),
    ("pad by nothing", ROWS, "a = Exp(x) y0 = Pad(a, s) y = Neg(y0)", {"s": np.array([0, 0, 0, 0])}, "Exp Neg"),
    ("pad by one", ROWS, "a = Exp(x) y0 = Pad(a, s) y = Neg(y0)", {"s": np.array([0, 0, 0, 1])}, "Exp Pad Neg"),
    ("cast to the same", ROWS, "a = Exp(x) y0 = Cast <to = 1> (a) y = Neg(y0)", {}, "Exp Neg"),
    ("cast there and back", ROWS, "a = Exp(x) b = Cast <to = 10> (a) y0 = Cast <to = 1> (b) y = Neg(y0)", {},
     "Exp Cast Cast Neg"),
    ("times one", ROWS, "a = Exp(x) b = Mul(o, a) y0 = Div(b, o) y = Neg(y0)", {"o": np.float32(1)}, "Exp Neg"),
    ("plus zero", ROWS, "a = Exp(x) b = Add(a, o) y0 = Sub(b, o) y = Neg(y0)", {"o": np.float32(0)}, "Exp Neg"),
    ("to the power of one", ROWS, "a = Exp(x) y0 = Pow(a, o) y = Neg(y0)", {"o": np.float32(1)}, "Exp Neg"),
    ("one by it", ROWS, "a = Exp(x) y0 = Div(o, a) y = Neg(y0)", {"o": np.float32(1)}, "Exp Div Neg"),
    ("zero minus it", ROWS, "a = Exp(x) y0 = Sub(o, a) y = Neg(y0)", {"o": np.float32(0)}, "Exp Sub Neg"),
    ("ones that grow it", "g (float[n, 6] x) => (float[a, b, c] y)", "a = Exp(x) y0 = Mul(a, o) y = Neg(y0)",
     {"o": np.ones((3, 1, 1), np.float32)}, "Exp Mul Neg"),
    # pairs
    ("two transposes", IMAGE, ("a = Exp(x) b = Transpose <perm = [1, 2, 0]> (a) c = Transpose <perm = [0, 2, 1]> (b) "
     "y = Neg(c)"), {}, "Exp Transpose Neg"),
    ("there and back", IMAGE, ("a = Exp(x) b = Transpose <perm = [1, 2, 0]> (a) c = Transpose <perm = [2, 0, 1]> (b) "
     "y = Neg(c)"), {}, "Exp Neg"),
    ("somebody reads between", "g (float[n, 4, 6] x) => (float[n, 4, 6] y, float[n, 6, 4] z)",
     "a = Exp(x) b = Transpose <perm = [0, 2, 1]> (a) c = Transpose <perm = [0, 2, 1]> (b) y = Neg(c) z = Neg(b)", {},
     "Exp Transpose Neg Neg"),
    ("two reshapes", IMAGE, "a = Exp(x) b = Reshape(a, s) c = Reshape(b, t) y = Neg(c)",
     {"s": np.array([-1, 24]), "t": np.array([-1, 3, 8])}, "Exp Reshape Neg"),
    ("another axis and a reshape", IMAGE, "a = Exp(x) b = Unsqueeze(a, s) c = Reshape(b, t) y = Neg(c)",
     {"s": np.array([1]), "t": np.array([-1, 3, 8])}, "Exp Reshape Neg"),
    ("a reshape that copies", IMAGE, "a = Exp(x) b = Reshape(a, s) c = Reshape(b, t) y = Neg(c)",
     {"s": np.array([-1, 6]), "t": np.array([0, 2, 3])}, "Exp Reshape Neg"),
    ("a reshape that copies what is not fixed", IMAGE.replace("[n, 4,", "[n, m,").replace("n, p, q", "a, b, c, d"),
     "a = Exp(x) b = Transpose <perm = [2, 0, 1]> (a) c = Reshape(b, s) d = Reshape(c, t) y = Neg(d)",
     {"s": np.array([2, 3, 0, -1]), "t": np.array([3, 2, 0, -1])}, "Exp Transpose Reshape Reshape Neg"),
    ("a squeeze of a reshape", FLAT,
     "a = Exp(x) b = Reshape(a, s) c = Squeeze(b, t) y = Neg(c)",
     {"s": np.array([-1, 1, 24]), "t": np.array([1])}, "Exp Reshape Neg"),
    ("a concat in a concat", IMAGE, ("a = Exp(x) c = Abs(x) b = Concat <axis = 1> (a, c) "
     "d = Concat <axis = 1> (c, b, a) y = Neg(d)"), {}, "Exp Abs Concat Neg"),
    ("a concat along another axis", IMAGE, ("a = Exp(x) c = Abs(x) b = Concat <axis = 1> (a, c) "
     "d = Concat <axis = 2> (b, b) y = Neg(d)"), {}, "Exp Abs Concat Concat Neg"),
    ("a concat that is read twice", IMAGE, ("a = Exp(x) c = Abs(x) b = Concat <axis = 1> (a, c) "
     "d = Concat <axis = 1> (c, b) e = ReduceMax <axes = [1], keepdims = 1> (b) y = Add(d, e)"), {},
     "Exp Abs Concat Concat ReduceMax Add"),
    ("a part that is all", IMAGE, "a = Exp(x) b = Split <axis = 1> (a) y = Neg(b)", {}, "Exp Neg"),
    ("two parts", IMAGE, "a = Exp(x) b, c = Split <axis = 1> (a) y = Sub(b, c)", {}, "Exp Split Sub"),
    ("slices of slices", IMAGE, ("a = Exp(x) b = Slice(a, o, m, o, t) c = Slice(b, o, m, t, t) d = Slice(b, o, e, t) "
     "f = Neg(c) y = Add(f, d)"), {"o": np.array([1]), "m": np.array([2**62]), "t": np.array([2]), "e": np.array([4])},
     "Exp Slice Slice Neg Add"),
    ("slices along one axis", IMAGE, "a = Exp(x) b = Slice(a, o, m, t, t) c = Slice(b, o, m, t) y = Neg(c)",
     {"o": np.array([1]), "m": np.array([2**62]), "t": np.array([2])}, "Exp Slice Slice Neg"),
    ("a slice that somebody else reads", IMAGE, ("a = Exp(x) b = Slice(a, o, m, o, t) c = Slice(b, o, e, t) "
     "d = ReduceMax <axes = [2], keepdims = 1> (b) y = Mul(c, d)"),
     {"o": np.array([1]), "m": np.array([2**62]), "t": np.array([2]), "e": np.array([4])},
     "Exp Slice Slice ReduceMax Mul"),
    ("zeros around an image", PIXELS, "a = Exp(x) b = Pad(a, s) y = Conv <pads = [1, 0, 0, 0]> (b, w)",
     {"s": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "w": weight(4, 3, 3, 3)}, "Exp Conv"),
    ("ones around an image", PIXELS, "a = Exp(x) b = Pad(a, s, o) y = Conv(b, w)",
     {"s": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "w": weight(4, 3, 3, 3), "o": np.float32(1)}, "Exp Pad Conv"),
    ("zeros around channels", PIXELS, "a = Exp(x) b = Pad(a, s) y = Conv(b, w)",
     {"s": np.array([0, 1, 1, 2, 0, 0, 0, 1]), "w": weight(4, 4, 3, 3)}, "Exp Pad Conv"),
    ("less than nothing around an image", PIXELS, "a = Exp(x) b = Pad(a, s) y = Conv(b, w)",
     {"s": np.array([0, 0, 0, 0, 0, 0, -1, 0]), "w": weight(4, 3, 3, 3)}, "Exp Pad Conv"),
    ("a mirror around an image", PIXELS, 'a = Exp(x) b = Pad <mode = "reflect"> (a, s) y = Conv(b, w)',
     {"s": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": weight(4, 3, 3, 3)}, "Exp Pad Conv"),
    # weights
    ("a large weight that is computed", ROWS, "m = ReduceMean(k) c = Sub(k, m) y = MatMul(x, c)",
     {"k": weight(6, 900)}, "MatMul"),
    ("a large weight that grows", ROWS, "c = Add(k, r) y = MatMul(x, c)", {"k": weight(1, 4200), "r": weight(6, 1)},
     "Add MatMul"),
    ("a large weight that others read", ROWS, "c = Neg(k) a = MatMul(x, c) b = MatMul(x, k) y = Sub(a, b)",
     {"k": weight(6, 900)}, "Neg MatMul MatMul Sub"),
    # dense layers
    ("a dense layer", ROWS, "a = MatMul(x, w) y = Add(a, b)", {"w": W, "b": V}, "Gemm"),
    ("the other way round", ROWS, "a = MatMul(x, w) y = Add(b, a)", {"w": W, "b": V[None]}, "Gemm"),
    ("more axes", IMAGE, "a = MatMul(x, w) y = Add(a, b)", {"w": W, "b": V}, "MatMul Add"),
    ("a bias for each row", "g (float[3, 6] x) => (float[3, 6] y)", "a = MatMul(x, w) y = Add(a, b)",
     {"w": W, "b": weight(3, 6)}, "MatMul Add"),
    ("one number", ROWS, "a = MatMul(x, w) y = Add(a, b)", {"w": W, "b": np.float32(2)}, "MatMul Add"),
    ("the product is read twice", ROWS, "a = MatMul(x, w) c = Add(a, b) y = Mul(c, a)", {"w": W, "b": V},
     "MatMul Add Mul"),
    # sizes
    ("a target with one size that is not fixed", FLAT, ("s = Shape(x) c = Gather(s, i) k = Concat <axis = 0> (c, j) "
     "y0 = Reshape(x, k) y = Neg(y0)"), {"i": np.array([0]), "j": np.array([24])}, "Reshape Neg"),
    ("a target in another type", IMAGE, ("s = Shape(x) z = Cast <to = 6> (s) c = Slice(z, i, j) u = Squeeze(c) "
     "v = Unsqueeze(u, i) k = Concat <axis = 0> (v, t) w = Cast <to = 7> (k) y0 = Reshape(x, w) y = Neg(y0)"),
     {"i": np.array([0]), "j": np.array([1]), "t": np.array([3, 8], np.int32)}, "Reshape Neg"),
    ("a target with two, one copied", "g (float[n, m, 6] x) => (float[a, b, c, d] y)",
     ("s = Shape(x) c = Slice(s, i, j) k = Concat <axis = 0> (c, t) y0 = Reshape(x, k) y = Neg(y0)"),
     {"i": np.array([0]), "j": np.array([2]), "t": np.array([2, 3])}, "Reshape Neg"),
    ("a target with two elsewhere", IMAGE.replace("4, 6", "m, 6").replace("n, p, q", "a, b, c, d"),
     ("z = Transpose <perm = [2, 1, 0]> (x) s = Shape(z) c = Slice(s, i, j) k = Concat <axis = 0> (t, c) "
      "y0 = Reshape(z, k) y = Neg(y0)"),
     {"i": np.array([1]), "j": np.array([3]), "t": np.array([2, 3])},
     "Transpose Shape Slice Concat Reshape Neg"),
    ("a target that is computed", IMAGE.replace("n, p, q", "a, b"), ("m = ReduceMax <keepdims = 0> (x) "
     "d = Sub(m, m) i = Cast <to = 7> (d) j = Add(i, t) k = Concat <axis = 0> (j, e) y0 = Reshape(x, k) y = Neg(y0)"),
     {"t": np.array([2]), "e": np.array([-1])}, "ReduceMax Sub Cast Add Concat Reshape Neg"),
    # shapes that do not matter
    ("a reshape through what works by element", IMAGE, ("a = Reshape(x, s) b = Sigmoid(a) c = Mul(b, o) d = Mul(a, c) "
     "e = Reshape(d, t) y = Exp(e)"), {"s": np.array([-1, 24]), "t": np.array([-1, 4, 6]), "o": np.float32(2)},
     "Sigmoid Mul Mul Exp"),
    ("a reshape to a row of numbers", IMAGE, "a = Reshape(x, s) b = Mul(a, o) e = Reshape(b, t) y = Exp(e)",
     {"s": np.array([-1, 24]), "t": np.array([-1, 4, 6]), "o": weight(24)}, "Reshape Mul Reshape Exp"),
    ("a reshape and a number of more axes", ROWS.replace("[n, k]", "[a, b, c, d]"),
     "a = Reshape(x, s) b = Mul(a, o) e = Reshape(b, t) y = Exp(e)",
     {"s": np.array([-1, 3, 2]), "t": np.array([1, -1, 2, 3]), "o": np.ones((1, 1, 1), np.float32) * 3},
     "Reshape Mul Reshape Exp"),
    ("a reshape and a sum", IMAGE, "a = Reshape(x, s) b = Softmax(a) e = Reshape(b, t) y = Exp(e)",
     {"s": np.array([-1, 24]), "t": np.array([-1, 4, 6])}, "Reshape Softmax Reshape Exp"),
    ("a reshape that is an output", "g (float[n, 4, 6] x) => (float[n, p, q] y, float[n, 24] z)",
     "z = Reshape(x, s) b = Exp(z) e = Reshape(b, t) y = Neg(e)", {"s": np.array([-1, 24]), "t": np.array([-1, 4, 6])},
     "Reshape Exp Reshape Neg"),
    ("stretched twice", IMAGE, ("a = ReduceMax <axes = [2], keepdims = 1> (x) b = Expand(a, s) y = Div(x, b)"),
     {"s": np.array([1, 1, 6])}, "ReduceMax Div"),
    ("stretched once", IMAGE, ("a = ReduceMax <axes = [2], keepdims = 1> (x) b = Expand(a, s) y = Mul(b, o)"),
     {"s": np.array([1, 1, 6]), "o": np.float32(2)}, "ReduceMax Expand Mul"),
    ("stretched differently", IMAGE, ("a = ReduceMax <axes = [2], keepdims = 1> (x) b = Expand(a, s) "
     "c = ReduceMin <axes = [1], keepdims = 1> (x) d = Expand(c, t) y = Sub(b, d)"),
     {"s": np.array([1, 1, 6]), "t": np.array([1, 4, 1])}, "ReduceMax ReduceMin Sub"),
    ("leading axes", IMAGE, ("a = ReduceMax <axes = [0], keepdims = 0> (x) b = Unsqueeze(a, s) y = Sub(x, b)"),
     {"s": np.array([0])}, "ReduceMax Sub"),
    ("leading axes that nobody else has", IMAGE.replace("n, p, q", "a, b, c, d"),
     ("a = ReduceMax <axes = [0], keepdims = 1> (x) b = Unsqueeze(a, s) y = Sub(x, b)"),
     {"s": np.array([0])}, "ReduceMax Unsqueeze Sub"),
    ("axes that do not lead", IMAGE, ("a = ReduceMax <axes = [2], keepdims = 0> (x) b = Unsqueeze(a, s) y = Sub(x, b)"),
     {"s": np.array([2])}, "ReduceMax Unsqueeze Sub"),
    # operands that are assumed
    ("a bias of zeros", PIXELS, "y = Conv(x, w, b)", {"w": weight(4, 3, 3, 3), "b": np.zeros(4, np.float32)}, "Conv"),
    ("the type of something", ROWS, "a = CastLike(o, x) y = Max(x, a)", {"o": np.int64(1)}, "Max"),
    ("a choice that is none", IMAGE, "a = Where(c, z, m) b = Add(x, a) y = Neg(b)",
     {"c": np.ones((1, 4, 6), bool), "z": np.float32(0), "m": np.float32(-9)}, "Neg"),
    ("a choice that is one", IMAGE, "a = Where(c, z, m) y = Add(x, a)",
     {"c": np.eye(4, 6, dtype=bool), "z": np.float32(0), "m": np.float32(-9)}, "Where Add"),
    ("a choice of what is not fixed", IMAGE, "a = Where(c, x, m) y = Exp(a)",
     {"c": np.ones((1, 1, 1), bool), "m": np.float32(-9)}, "Where Exp"),
    # what makes an output
    ("plus zero at the end", IMAGE, "a = Exp(x) b = Neg(a) c = Add(a, o) d = Mul(b, c) e = Add(d, d) y = Add(d, o)",
     {"o": np.float32(0)}, "Exp Neg Mul"),
    ("an output of an input", ROWS, "y = Mul(x, o)", {"o": np.float32(1)}, "Mul"),
    ("an output of an output", "g (float[n, 6] x) => (float[n, 6] y, float[n, 6] z)", "y = Exp(x) z = Mul(y, o)",
     {"o": np.float32(1)}, "Exp Mul"),
    ("the same output twice", "g (float[n, 6] x) => (float[n, 6] y, float[n, 6] z)",
     "a = Exp(x) b = Neg(a) y = Mul(b, o) z = Add(b, y)", {"o": np.float32(1)}, "Exp Neg Add"),
    # stored tensors
    ("a small one makes two", ROWS, "a = Cos(k) b = Sin(k) c = MatMul(x, a) d = MatMul(x, b) y = Sub(c, d)",
     {"k": weight(6, 40)}, "Cos Sin MatMul MatMul Sub"),
    ("two make a small one", ROWS, "a = MatMul(k, v) b = LayerNormalization(a, s) y = MatMul(x, b)",
     {"k": weight(6, 40), "v": weight(40, 3), "s": weight(3)}, "MatMul"),
    ("a large one on the way", ROWS, "a = MatMul(k, v) b = ReduceMean(a) y = Mul(x, b)",
     {"k": weight(400, 2), "v": weight(2, 400)}, "Mul"),
    ("a few numbers", ROWS, "a = Cast <to = 1> (k) b = Sqrt(a) y = Mul(x, b)", {"k": np.array([64])}, "Mul"),
    ("many of a few", ROWS, "a = ConstantOfShape(k) b = Cos(a) y = MatMul(x, b)", {"k": np.array([6, 70])},
     "ConstantOfShape Cos MatMul"),
    ("what others read all the same", ROWS, "a = Exp(k) b = MatMul(x, k) c = MatMul(x, a) y = Add(b, c)",
     {"k": weight(6, 40)}, "Exp MatMul MatMul Add"),
    ("a size that the file fixes", "g (float[n, 4, 6] x) => (float[n, p, q] y)", ("s = Shape(x) c = Slice(s, i, j) "
     "k = Cast <to = 1> (c) y = Mul(x, k)"), {"i": np.array([2]), "j": np.array([3])}, "Mul"),
    ("a size that it does not", "g (float[n, 4, 6] x) => (float[n, p, q] y)", ("s = Shape(x) c = Slice(s, i, j) "
     "k = Cast <to = 1> (c) y = Mul(x, k)"), {"i": np.array([0]), "j": np.array([1])}, "Shape Slice Cast Mul"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_rule(case: tuple[str, str, str, dict[str, np.ndarray], str]) -> None:
    _, frame, body, constants, left = case
    facts = folded(model(f"{frame} {{ {body} }}", **constants), THOROUGH)
    assert [node.op for node in facts.graph.nodes] == left.split()
    again = Pipeline.parse(THOROUGH).run(facts.graph)
    assert again.timing[-1].changes == 0


def test_what_a_caller_may_feed_is_not_fixed() -> None:
    source = model(f"{ROWS} {{ a = Exp(x) y0 = Mul(a, o) y = Neg(y0) }}", o=np.float32(1))
    source.graph.input.append(onnx.helper.make_tensor_value_info("o", 1, []))
    facts = Pipeline.parse(THOROUGH).run(load(source))
    assert [node.op for node in facts.graph.nodes] == ["Exp", "Mul", "Neg"]


def test_what_a_caller_may_feed_is_fixed_on_demand() -> None:
    source = model(f"{ROWS} {{ a = Exp(x) y0 = Mul(a, o) y = Neg(y0) }}", o=np.float32(1))
    source.graph.input.append(onnx.helper.make_tensor_value_info("o", 1, []))
    graph = Pipeline.parse("canonicalize{thorough=true fixed=true}").run(load(source)).graph
    assert [node.op for node in graph.nodes] == ["Exp", "Neg"]
    assert [info.name for info in graph.to_proto().graph.input] == ["x"]


@pytest.mark.parametrize(("value", "bias", "states"), [(0.0, 2, 3), (1.0, 3, 7)])
def test_biases_and_first_states_of_zeros_go(value: float, bias: int, states: int) -> None:
    text = """g (float[4, n, 5] x) => (float[n, 3] y) {
        s = Shape(x) m = Slice(s, o, t) j = Concat <axis = 0> (o, m, e) f = Expand(z, j)
        a, h, c = LSTM <hidden_size = 6> (x, w, r, , , f, f) q = Squeeze(h, i) y = Gemm(q, k, b) }"""
    numbers = {"z": np.full((), value, np.float32), "b": np.full(3, value, np.float32), "k": weight(6, 3)}
    sizes = {"i": np.array([0]), "o": np.array([1]), "t": np.array([2]), "e": np.array([6])}
    facts = folded(model(text, w=weight(1, 24, 5), r=weight(1, 24, 6), **numbers, **sizes), THOROUGH)
    found = {node.op: len(node.inputs) for node in facts.graph.nodes}
    assert (found["Gemm"], found["LSTM"]) == (bias, states)


BODY = """<ir_version: 8, opset_import: ["" : 17]>
g (float[5, 6] x) => (float[m, 5, 4] y)
<int64 turns = {2}, float[6, 4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}, float[4] b = {1,2,3,4},
 int64[2] s = {5, 4}, int64[3] t = {4, 5, 1}, int64[2] f = {20, 1}> {
    %s
    y = Loop(turns, "") <body = body (int64 turn, bool go) => (bool on, float[] r) { %s on = Identity(go) }>
}"""
BODIES = [  # in front of the loop, in it, operators of the graph, operators of the body
    ("h = MatMul(x, w)", "a = Add(h, b) r = Neg(a)", "MatMul Loop", "Add Neg Identity"),
    ("", "h = MatMul(x, w) a = Add(h, b) r = Neg(a)", "Loop", "Gemm Neg Identity"),
    ("h = MatMul(x, w)", "a = Reshape(h, f) c = Tanh(a) d = Reshape(c, s) r = Neg(d)", "MatMul Loop",
     "Tanh Neg Identity"),
    ("h = MatMul(x, w) a = Reshape(h, f)", "c = Tanh(a) d = Reshape(c, s) r = Neg(d)", "MatMul Reshape Loop",
     "Tanh Reshape Neg Identity"),
    ("h = MatMul(x, w) a = Tanh(h)", "c = Tanh(h) r = Sub(c, a)", "MatMul Tanh Loop", "Tanh Sub Identity"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "within", "outside", "inside"), BODIES)
def test_nothing_moves_into_or_out_of_a_body(before: str, within: str, outside: str, inside: str) -> None:
    text = "canonicalize{thorough=true},fold-batchnorm,fold-zero-filters,clean"
    graph = folded(onnx.parser.parse_model(BODY % (before, within)), text).graph
    assert [node.op for node in graph.nodes] == outside.split()
    assert [node.op for node in graph.nodes[-1].bodies[0].nodes] == inside.split()


def test_a_body_reads_what_was_computed_twice() -> None:
    body = """a = Exp(x) b = Exp(x) z = ReduceSum <keepdims = 0> (x)  on = Greater(z, o)
        c = If (on) <then_branch = t () => (float[n, 6] u) { u = Neg(b) },
                     else_branch = e () => (float[n, 6] v) { v = Abs(b) }>  y = Add(a, c)"""
    facts = folded(model(f"{ROWS} {{ {body} }}", o=np.float32(0)), THOROUGH)
    assert [node.op for node in facts.graph.nodes].count("Exp") == 1
