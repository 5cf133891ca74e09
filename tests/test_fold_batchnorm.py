"""BatchNormalization folds where that is exact, and stays where it is not."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.parser
import pytest
from folding import folded
from textmodels import model, weight

import prunepass
from fixtures.tiny import TINY
from prunepass import load
from prunepass.manager import Facts, Pipeline

FOLD = "canonicalize,fold-batchnorm,clean"
NORM = "BatchNormalization({}, s, t, m, u)"


def norm(size: int) -> dict[str, np.ndarray]:
    """Return the four vectors of a BatchNormalization."""
    rng = np.random.default_rng(size)
    s, t, m = rng.normal(0, 1, (3, size)).astype(np.float32)
    return {"s": s, "t": t, "m": m, "u": rng.uniform(0.5, 2, size).astype(np.float32)}


IMAGE = "g (float[n, 4, 5, 5] x) => (float[n, 6, 5, 5] y) {{ {0} }}"
BARE = "g (float[n, 4, 5, 5] x) => (float[n, c, i, j] y) {{ {0} }}"
ROWS = "g (float[n, 4] x) => (float[n, 6] y) {{ {0} }}"
W1, W3, D = weight(6, 4, 1, 1), weight(6, 4, 3, 3), weight(4, 6)
UNSHIFTED = {**norm(4), "t": np.zeros(4, np.float32), "m": np.zeros(4, np.float32)}
A, B = f"y = {NORM.format('h')}", f"h = {NORM.format('x')}"

FOLDS = [  # name, frame, body, constants, operators that are left
    ("a convolution", IMAGE, f"h = Conv(x, w, b) {A}", {"w": W1, "b": weight(6), **norm(6)}, "Conv"),
    ("without bias", IMAGE, f"h = Conv(x, w) {A}", {"w": W1, **norm(6)}, "Conv"),
    ("with padding", IMAGE, f"h = Conv <pads = [1, 1, 1, 1]> (x, w) {A}", {"w": W3, **norm(6)}, "Conv"),
    ("grouped", IMAGE, f"h = Conv <group = 2> (x, w) {A}", {"w": weight(6, 2, 1, 1), **norm(6)}, "Conv"),
    ("transposed", BARE, f"h = ConvTranspose(x, w, b) {A}", {"w": weight(4, 6, 3, 3), "b": weight(6), **norm(6)},
     "ConvTranspose"),
    ("transposed and grouped", BARE, f"h = ConvTranspose <group = 2> (x, w) {A}",
     {"w": weight(4, 3, 3, 3), **norm(6)}, "ConvTranspose"),
    ("gemm", ROWS, f"h = Gemm(x, w, b) {A}", {"w": D, "b": weight(6), **norm(6)}, "Gemm"),
    ("gemm with factors", ROWS, f"h = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, b) {A}",
     {"w": D.T.copy(), "b": weight(1, 6), **norm(6)}, "Gemm"),
    ("gemm, one number for all", ROWS, f"h = Gemm(x, w, b) {A}", {"w": D, "b": weight(1), **norm(6)}, "Gemm"),
    ("gemm without bias", ROWS, f"h = Gemm <beta = 3.0> (x, w) {A}", {"w": D, **norm(6)}, "Gemm"),
    ("matmul", ROWS, f"h = MatMul(x, w) {A}", {"w": D, **norm(6)}, "Gemm"),
    ("matmul and add", ROWS, f"a = MatMul(x, w) h = Add(b, a) {A}", {"w": D, "b": weight(6), **norm(6)}, "Gemm"),
    ("in front of a convolution", IMAGE, f"{B} y = Conv(h, w, b)", {"w": W1, "b": weight(6), **norm(4)}, "Conv"),
    ("in front, a window without padding", BARE, f"{B} y = Conv(h, w)", {"w": W3, **norm(4)}, "Conv"),
    ("in front, grouped", IMAGE, f"{B} y = Conv <group = 2> (h, w)", {"w": weight(6, 2, 1, 1), **norm(4)}, "Conv"),
    ("in front, padding, no shift", IMAGE, f"{B} y = Conv <pads = [1, 1, 1, 1]> (h, w)",
     {"w": W3, **UNSHIFTED}, "Conv"),
    ("in front of a transposed one, no shift", BARE, f"{B} y = ConvTranspose(h, w)",
     {"w": weight(4, 6, 3, 3), **UNSHIFTED}, "ConvTranspose"),
    ("in front of gemm", ROWS, f"{B} y = Gemm <alpha = 0.5, beta = 2.0> (h, w, b)",
     {"w": D, "b": weight(6), **norm(4)}, "Gemm"),
    ("in front of gemm, turned", ROWS, f"{B} y = Gemm <transB = 1> (h, w)", {"w": D.T.copy(), **norm(4)}, "Gemm"),
    ("in front of matmul", ROWS, f"{B} y = MatMul(h, w)", {"w": D, **norm(4)}, "Gemm"),
    ("a scale for each channel", IMAGE, "h = Conv(x, w, b) y = Mul(s, h)",
     {"w": W1, "b": weight(6), "s": weight(6, 1, 1)}, "Conv"),
    ("a shift for each channel", IMAGE, "h = Conv(x, w) y = Add(h, s)", {"w": W1, "s": weight(1, 6, 1, 1)}, "Conv"),
    ("one scale", IMAGE, "h = Conv(x, w) y = Div(h, s)", {"w": W1, "s": np.float32(3)}, "Conv"),
    ("one shift", IMAGE, "h = Conv(x, w, b) y = Sub(h, s)", {"w": W1, "b": weight(6), "s": weight(1)}, "Conv"),
    ("in parts", IMAGE, "a = Conv <pads = [1, 1, 1, 1]> (x, w) h = Mul(a, s) y = Add(h, t)",
     {"w": W3, "s": weight(6, 1, 1), "t": weight(6, 1, 1)}, "Conv"),
    ("a scale in front", IMAGE, "h = Mul(x, s) y = Conv <pads = [1, 1, 1, 1]> (h, w)", {"w": W3, "s": weight(4, 1, 1)},
     "Conv"),
    ("a shift in front", IMAGE, "h = Add(s, x) y = Conv(h, w, b)", {"w": W1, "b": weight(6), "s": weight(4, 1, 1)},
     "Conv"),
    ("a shift of gemm", ROWS, "h = Gemm(x, w) y = Add(h, s)", {"w": D, "s": weight(6)}, "Gemm"),
    ("a shared weight, and the same behind it", BARE, (f"h = Conv(x, w) a = {NORM.format('h')} r = Relu(x) "
     f"k = Conv(r, w) b = {NORM.format('k')} y = Add(a, b)"), {"w": W1, **norm(6)}, "Conv Relu Conv Add"),
    ("in front of matmul and add", ROWS, f"{B} a = MatMul(h, w) y = Add(a, b)", {"w": D, "b": weight(6), **norm(4)},
     "Gemm"),
]  # fmt: skip
STAYS = [
    ("padding and a shift", IMAGE, f"{B} y = Conv <pads = [1, 1, 1, 1]> (h, w)", {"w": W3, **norm(4)}),
    ("same padding and a shift", IMAGE, f'{B} y = Conv <auto_pad = "SAME_UPPER"> (h, w)', {"w": W3, **norm(4)}),
    ("in front of a transposed one", BARE, f"{B} y = ConvTranspose(h, w)", {"w": weight(4, 6, 3, 3), **norm(4)}),
    ("somebody else reads the input", BARE, f"h = Conv(x, w) a = {NORM.format('h')} y = Add(a, h)",
     {"w": W1, **norm(6)}),
    ("somebody else reads the output", BARE, f"{B} a = Conv(h, w) y = Add(a, h)", {"w": weight(4, 4, 1, 1), **norm(4)}),
    ("the input is an output", IMAGE.replace("y) ", "y, float[n, 6, 5, 5] h) "), f"h = Conv(x, w) {A}",
     {"w": W1, **norm(6)}),
    ("the output is an output", IMAGE.replace("y) ", "y, float[n, 4, 5, 5] h) "), f"{B} y = Conv(h, w)",
     {"w": W1, **norm(4)}),
    ("a shared weight", BARE, f"h = Conv(x, w) a = {NORM.format('h')} r = Relu(x) b = Conv(r, w) y = Add(a, b)",
     {"w": W1, **norm(6)}),
    ("a shared weight, and something else behind it", BARE, (f"h = Conv(x, w) a = {NORM.format('h')} r = Relu(x) "
     f"k = Conv(r, w) b = {NORM.format('k').replace('s, t', 't, s')} y = Add(a, b)"), {"w": W1, **norm(6)}),
    (
        "a shared weight, and a scale out of range behind it",
        BARE,
        f"h = Conv(x, w) a = {NORM.format('h')} r = Relu(x) k = Conv(r, w) b = {NORM.format('k')} y = Add(a, b)",
        {"w": W1, **norm(6), "s": np.full(6, 1e38, np.float32), "u": np.full(6, 1e-6, np.float32)},
    ),
    ("a computed weight", BARE, f"f = ReduceMax <keepdims = 0> (x) v = Mul(w, f) h = Conv(x, v) {A}",
     {"w": W1, **norm(6)}),
    ("training", IMAGE.replace("y) ", "y, float[6] p, float[6] q) "),
     "h = Conv(x, w) y, p, q = BatchNormalization <training_mode = 1> (h, s, t, m, u)", {"w": W1, **norm(6)}),
    ("another axis", "g (float[n, 6, 4] x) => (float[n, 6, 6] y) {{ {0} }}", f"h = MatMul(x, w) {A}",
     {"w": D, **norm(6)}),
    ("a relu between", IMAGE, f"a = Conv(x, w) h = Relu(a) {A}", {"w": W1, **norm(6)}),
    ("nothing linear", BARE, f"h = Relu(x) {A}", norm(4)),
    ("a shift in front of a border", IMAGE, "h = Add(x, s) y = Conv <pads = [1, 1, 1, 1]> (h, w)",
     {"w": W3, "s": weight(4, 1, 1)}),
    ("a number for each column", IMAGE, "h = Conv(x, w) y = Mul(h, s)", {"w": W1, "s": weight(5)}),
    ("a number for each element", IMAGE, "h = Conv(x, w) y = Mul(h, s)", {"w": W1, "s": weight(6, 5, 5)}),
    ("a number for each sample", IMAGE, "h = Conv(x, w) y = Mul(h, s)", {"w": W1, "s": weight(2, 1, 1, 1)}),
    ("one by it", IMAGE, "h = Conv(x, w) y = Div(s, h)", {"w": W1, "s": weight(6, 1, 1)}),
    ("that minus it", IMAGE, "h = Conv(x, w) y = Sub(s, h)", {"w": W1, "s": weight(6, 1, 1)}),
    ("one shift that would become a vector", IMAGE, "h = Conv(x, w) y = Sub(h, s)", {"w": W1, "s": weight(1)}),
    ("a shift in front that would become a longer one", IMAGE, "h = Add(s, x) y = Conv(h, w)",
     {"w": W1, "s": weight(4, 1, 1)}),
    ("a scale out of range", IMAGE, f"h = Conv(x, w) {A}",
     {"w": W1, **norm(6), "s": np.full(6, 1e38, np.float32), "u": np.full(6, 1e-6, np.float32)}),
]  # fmt: skip


def build(frame: str, body: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    return model(frame.format(body), **constants)


def ops(facts: Facts) -> str:
    return " ".join(node.op for node in facts.graph.nodes)


@pytest.mark.parametrize("case", FOLDS, ids=[case[0] for case in FOLDS])
def test_it_folds(case: tuple[str, str, str, dict[str, np.ndarray], str]) -> None:
    _, frame, body, constants, left = case
    facts = folded(build(frame, body, constants), FOLD)
    assert ops(facts) == left


@pytest.mark.parametrize("case", STAYS, ids=[case[0] for case in STAYS])
def test_it_stays(case: tuple[str, str, str, dict[str, np.ndarray]]) -> None:
    _, frame, body, constants = case
    before = Pipeline.parse("canonicalize").run(load(build(frame, body, constants)))
    facts = Pipeline.parse(FOLD).run(load(build(frame, body, constants)))
    assert ops(facts) == ops(before)


@pytest.mark.parametrize("position", range(5))
def test_what_a_caller_may_feed_stays(position: int) -> None:
    name, shape = [("w", [6, 4, 1, 1]), *((v, [6]) for v in "stmu")][position]
    source = build(IMAGE, f"h = Conv(x, w) {A}", {"w": W1, **norm(6)})
    source.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, shape))
    assert ops(Pipeline.parse(FOLD).run(load(source))) == "Conv BatchNormalization"


def test_both_sides_and_chains() -> None:
    """Two norms behind one convolution, and one between two."""
    body = f"a = Conv(x, w) h = {NORM.format('a')} k = {NORM.format('h')} y = Conv(k, v)"
    facts = folded(build(IMAGE, body, {"w": W1, "v": weight(6, 6, 1, 1), **norm(6)}), FOLD)
    assert ops(facts) == "Conv Conv"


@pytest.mark.parametrize(("keep", "left"), [(".*", 3), ("2$", 1), ("", 3)])
def test_named_ones_stay(keep: str, left: int) -> None:
    source = TINY["conv_chain"]()[0]
    facts = Pipeline.parse(f'canonicalize,fold-batchnorm{{keep="{keep}"}},clean').run(load(source))
    assert ops(facts).count("BatchNormalization") == left


def test_half_precision_stays_in_its_type() -> None:
    constants = {"w": W1, **norm(6)}
    halves = {name: array.astype(np.float16) for name, array in constants.items()}
    frame = "g (float16[n, 4, 5, 5] x) => (float16[n, 6, 5, 5] y) {{ {0} }}"
    facts = folded(build(frame, f"h = Conv(x, w) {A}", halves), FOLD)
    assert {facts.graph.consts[name].dtype for name in facts.graph.consts} == {np.dtype(np.float16)}


def test_nothing_is_folded_twice() -> None:
    names = list(itertools.islice(TINY, 4))
    for name in names:
        facts = Pipeline.parse(FOLD).run(load(TINY[name]()[0]))
        assert Pipeline.parse("fold-batchnorm").run(facts.graph).timing[-1].changes == 0


def test_a_sum_in_a_body_keeps_its_place() -> None:
    """What a body reads may be made outside, and must not become its result."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[5, 6] x) => (float[m, 5, 4] y)
    <int64 turns = {2}, float[6, 4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}, float[4] b = {1,2,3,4}> {
        h = MatMul(x, w)
        y = Loop(turns, "") <body = body (int64 turn, bool go) => (bool on, float[] s) {
            s = Add(h, b)
            on = Identity(go)
        }>
    }"""
    report = prunepass.prune(onnx.parser.parse_model(text), pipeline="canonicalize,fold-batchnorm,clean").report
    assert report["certificate"]["status"] == "passed"
