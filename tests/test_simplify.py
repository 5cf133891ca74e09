"""The rewrites of `canonicalize{thorough=true}`: each is exact where it fires, and silent where it must be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from folding import folded
from textmodels import model, weight

from prunepass import load
from prunepass.manager import Pipeline

THOROUGH = "canonicalize{thorough=true}"
ROWS, IMAGE = "g (float[n, 6] x) => (float[n, k] y)", "g (float[n, 4, 6] x) => (float[n, p, q] y)"
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
     "Exp Transpose Transpose Neg Neg"),
    ("two reshapes", IMAGE, "a = Exp(x) b = Reshape(a, s) c = Reshape(b, t) y = Neg(c)",
     {"s": np.array([-1, 24]), "t": np.array([-1, 3, 8])}, "Exp Reshape Neg"),
    ("another axis and a reshape", IMAGE, "a = Exp(x) b = Unsqueeze(a, s) c = Reshape(b, t) y = Neg(c)",
     {"s": np.array([1]), "t": np.array([-1, 3, 8])}, "Exp Reshape Neg"),
    ("a reshape that copies", IMAGE, "a = Exp(x) b = Reshape(a, s) c = Reshape(b, t) y = Neg(c)",
     {"s": np.array([-1, 6]), "t": np.array([0, 2, 3])}, "Exp Reshape Reshape Neg"),
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


def test_a_body_reads_what_was_computed_twice() -> None:
    body = """a = Exp(x) b = Exp(x) z = ReduceSum <keepdims = 0> (x)  on = Greater(z, o)
        c = If (on) <then_branch = t () => (float[n, 6] u) { u = Neg(b) },
                     else_branch = e () => (float[n, 6] v) { v = Abs(b) }>  y = Add(a, c)"""
    facts = folded(model(f"{ROWS} {{ {body} }}", o=np.float32(0)), THOROUGH)
    assert [node.op for node in facts.graph.nodes].count("Exp") == 1
