"""Folding by rule: what goes, what must stay, and that nothing is left that could go."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from folding import FOLD, folded, units
from textmodels import model, weight
from zeroing import with_zeros

from fixtures.tiny import TINY
from prunepass import load, prune
from prunepass.cli import main
from prunepass.ephemeral import mask_graph
from prunepass.errors import PipelineError, VerifyError
from prunepass.feeds import random_inputs
from prunepass.manager import Facts, Pipeline
from prunepass.runtime import session
from prunepass.verify import certify

SMALL = {name: {"image": (1, 3, 16, 16)} for name in ("conv_chain", "pixel_shuffle")}
ZERO = (1, 4)
"""Channels that get zeros in the tables below, of six or more."""


def zeroed(array: np.ndarray, axis: int = 0, channels: tuple[int, ...] = ZERO, value: float = 0.0) -> np.ndarray:
    """Return a copy with a number in the place of some channels."""
    array = array.copy()
    np.moveaxis(array, axis, 0)[list(channels)] = value
    return array


def filters(outs: int, ins: int, size: int = 1, channels: tuple[int, ...] = ZERO) -> np.ndarray:
    """Return a Conv weight, some filters of which are zero."""
    return zeroed(weight(outs, ins, size, size), 0, channels)


IMAGE = "g (float[n, 3, 5, 5] x) => (float[n, 4, 5, 5] y) {{ {0} }}"
ROWS = "g (float[n, 6] x) => (float[n, 4] y) {{ {0} }}"
FIRST, LAST = "h = Conv(x, w, b)", "y = Conv(r, v, c)"
PADDED = "y = Conv <pads = [1, 1, 1, 1]> (r, v, c)"
POINT: dict[str, Any] = {"w": filters(6, 3), "b": weight(6), "v": weight(4, 6, 1, 1), "c": weight(4)}
WIDE = {**POINT, "v": weight(4, 6, 3, 3)}
NO_BIAS = {**POINT, "b": zeroed(weight(6))}
BELOW = {**POINT, "b": zeroed(weight(6), value=-0.5)}
NORM = {"s": np.abs(weight(6)), "t": weight(6), "m": weight(6), "u": np.abs(weight(6))}
DENSE: dict[str, Any] = {"w": zeroed(weight(6, 8), 1), "b": weight(8), "v": weight(8, 4), "c": weight(4)}
APART = (np.isin(np.arange(6), ZERO)[:, None] != np.isin(np.arange(6), ZERO))[..., None, None]
LOOPED = np.where(APART, np.float32(0), weight(6, 6, 1, 1))
NEGATIVE = -np.abs(weight(5, 6, 1, 1))

GOES = [  # name, body, constants, units that go
    ("a bias", IMAGE, f"{FIRST} r = Relu(h) {LAST}", POINT, 2),
    ("no bias", IMAGE, f"h = Conv(x, w) r = Relu(h) {LAST}", POINT, 2),
    ("a reader without bias", IMAGE, f"{FIRST} r = Relu(h) y = Conv(r, v)", POINT, 2),
    ("sigmoid", IMAGE, f"{FIRST} r = Sigmoid(h) {LAST}", POINT, 2),
    ("hard swish", IMAGE, f"{FIRST} r = HardSwish(h) {LAST}", POINT, 2),
    ("elu", IMAGE, f"{FIRST} r = Elu <alpha = 0.7> (h) {LAST}", POINT, 2),
    ("silu", IMAGE, f"{FIRST} g = Sigmoid(h) r = Mul(h, g) {LAST}", POINT, 2),
    ("gelu", IMAGE, f"{FIRST} a = Div(h, q) e = Erf(a) f = Add(e, q) r = Mul(h, f) {LAST}",
     {**POINT, "q": np.float32(1.4)}, 2),
    ("batch norm", IMAGE, f"{FIRST} a = BatchNormalization(h, s, t, m, u) r = Relu(a) {LAST}", {**POINT, **NORM}, 2),
    ("a scale of zero", IMAGE, f"{FIRST} a = BatchNormalization(h, s, t, m, u) r = Relu(a) {LAST}",
     {**POINT, **NORM, "w": weight(6, 3, 1, 1), "s": zeroed(np.abs(weight(6)))}, 2),
    ("slopes", IMAGE, f"{FIRST} r = PRelu(h, p) {LAST}", {**BELOW, "p": weight(6, 1, 1)}, 2),
    ("clip", IMAGE, f"{FIRST} r = Clip(h, lo, hi) {LAST}", {**POINT, "lo": np.float32(0), "hi": np.float32(6)}, 2),
    ("a shorter type that holds it", IMAGE, f"{FIRST} a = Cast <to = 10> (h) r = Cast <to = 1> (a) {LAST}",
     {**POINT, "b": zeroed(weight(6), value=0.5)}, 2),
    ("zero behind padding", IMAGE, f"{FIRST} r = Relu(h) {PADDED}", {**WIDE, "b": NO_BIAS["b"]}, 2),
    ("cut off behind padding", IMAGE, f"{FIRST} r = Relu(h) {PADDED}", {**WIDE, "b": BELOW["b"]}, 2),
    ("no padding but a window", IMAGE.replace("y) ", "y0) ").replace("5, 5] y", "3, 3] y"),
     f"{FIRST} r = Relu(h) y0 = Conv(r, v, c)", WIDE, 2),
    ("nobody reads", IMAGE, f"{FIRST} r = Relu(h) {LAST}",
     {**POINT, "w": weight(6, 3, 1, 1), "v": zeroed(weight(4, 6, 1, 1), 1)}, 2),
    ("nobody reads behind padding", IMAGE, f"{FIRST} r = Relu(h) {PADDED}",
     {**WIDE, "w": weight(6, 3, 1, 1), "v": zeroed(weight(4, 6, 3, 3), 1)}, 2),
    ("times zero", IMAGE, f"{FIRST} r = Mul(h, k) {LAST}",
     {**POINT, "w": weight(6, 3, 1, 1), "k": zeroed(weight(6, 1, 1))}, 2),
    ("a relu kills", IMAGE, f"a = Conv(x, w, b) p = Relu(a) h = Conv(p, z, d) r = Relu(h) {LAST}",
     {"w": weight(6, 3, 1, 1), "b": weight(6), "z": np.concatenate([NEGATIVE[:2], weight(3, 6, 1, 1)]),
      "d": -np.abs(weight(5)), "v": weight(4, 5, 1, 1), "c": weight(4)}, 2),
    ("both sides of a sum", IMAGE, f"{FIRST} f = Conv(x, w2) a = Add(h, f) r = Relu(a) {LAST}",
     {**POINT, "w2": filters(6, 3)}, 2),
    ("one of two readers is padded, the constant zero", IMAGE, (f"{FIRST} r = Relu(h) y1 = Conv(r, v, c) "
     "y2 = Conv <pads = [1, 1, 1, 1]> (r, v2) y = Add(y1, y2)"), {**NO_BIAS, "v2": weight(4, 6, 3, 3)}, 2),
    ("concat", IMAGE, f"{FIRST} f = Conv(x, w2) a = Concat <axis = 1> (h, f) r = Relu(a) {LAST}",
     {**POINT, "w2": filters(5, 3, 1, (0,)), "v": weight(4, 11, 1, 1)}, 3),
    ("depthwise", IMAGE, f"{FIRST} d = Conv <group = 6> (h, k) r = Relu(d) {LAST}",
     {**POINT, "k": weight(6, 1, 1, 1)}, 2),
    ("depthwise of zero", IMAGE, f"{FIRST} d = Conv <group = 6, pads = [1, 1, 1, 1]> (h, k, e) r = Relu(d) {LAST}",
     {**NO_BIAS, "k": weight(6, 1, 3, 3), "e": weight(6)}, 2),
    ("a depthwise filter of zeros", IMAGE, (f"{FIRST} d = Conv <group = 6, pads = [1, 1, 1, 1]> (h, k, e) r = Relu(d) "
     f"{LAST}"), {**POINT, "w": weight(6, 3, 1, 1), "k": filters(6, 1, 3), "e": weight(6)}, 2),
    ("a gate", IMAGE, f"{FIRST} p = GlobalAveragePool(h) q = Conv(p, k) o = Sigmoid(q) r = Mul(h, o) {LAST}",
     {**NO_BIAS, "k": weight(6, 6, 1, 1)}, 2),
    ("a gate that is constant", IMAGE, (f"{FIRST} p = GlobalAveragePool(h) q = Conv(p, k) o = Sigmoid(q) r = Mul(h, o) "
     f"{LAST}"), {**POINT, "k": filters(6, 6)}, 2),
    ("max pool", IMAGE, f"{FIRST} r = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (h) {LAST}", POINT, 2),
    ("average pool", IMAGE, f"{FIRST} r = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (h) {LAST}",
     POINT, 2),
    ("upsampling", IMAGE.replace("5, 5] y", "10, 10] y"), f"{FIRST} r = Resize(h, , q) {LAST}",
     {**POINT, "q": np.array([1, 1, 2, 2], np.float32)}, 2),
    ("flatten", "g (float[n, 3, 5, 5] x) => (float[n, 4] y) {{ {0} }}",
     f"{FIRST} r = Flatten(h) y = Gemm(r, v, c)", {**POINT, "v": weight(150, 4)}, 2),
    ("gemm", ROWS, "h = Gemm(x, w, b) r = Sigmoid(h) y = Gemm(r, v, c)", DENSE, 2),
    ("gemm with factors", ROWS, ("h = Gemm <alpha = 2.0> (x, w, b) r = Tanh(h) "
     "y = Gemm <alpha = 0.5, beta = 2.0> (r, v, c)"), DENSE, 2),
    ("gemm, turned", ROWS, "h = Gemm <transB = 1> (x, w, b) r = Tanh(h) y = Gemm <transB = 1> (r, v)",
     {**DENSE, "w": DENSE["w"].T.copy(), "v": DENSE["v"].T.copy()}, 2),
    ("matmul and add", ROWS, "a = MatMul(x, w) h = Add(a, b) r = Tanh(h) e = MatMul(r, v) y = Add(c, e)", DENSE, 2),
    ("matmul alone", ROWS, "a = MatMul(x, w) h = Add(a, b) r = Tanh(h) y = MatMul(r, v)", DENSE, 2),
    ("a sum of zeros", ROWS.replace("4] y", "1] y"), "h = MatMul(x, w) r = Relu(h) y = ReduceSum(r, q)",
     {"w": DENSE["w"], "q": np.array([1])}, 2),
    ("transposed convolution of zero", IMAGE, f"{FIRST} r = Relu(h) y = ConvTranspose(r, v, c)",
     {**NO_BIAS, "v": weight(6, 4, 1, 1)}, 2),
    ("a filter of a transposed convolution", IMAGE, f"h = ConvTranspose(x, w, b) r = Sigmoid(h) {LAST}",
     {**POINT, "w": zeroed(weight(3, 6, 1, 1), 1)}, 2),
    ("all filters", IMAGE, f"{FIRST} r = Relu(h) {LAST}", {**POINT, "w": np.zeros((6, 3, 1, 1), np.float32)}, 5),
    ("dead ends of dead ends", IMAGE, f"{FIRST} r = Relu(h) e = Conv(r, k) f = Relu(e) y = Conv(f, v, c)",
     {**POINT, "w": weight(6, 3, 1, 1), "k": zeroed(zeroed(weight(6, 6, 1, 1), 1, (2,)), 0, ()),
      "v": zeroed(weight(4, 6, 1, 1), 1)}, 2 + 1),
    ("a loop of dead ends", IMAGE, (f"{FIRST} r = Relu(h) e = Conv(r, k) f = Relu(e) a = Conv(f, l) s = Add(h, a) "
     "y = Conv(s, v, c)"), {
         **POINT, "w": weight(6, 3, 1, 1), "v": zeroed(weight(4, 6, 1, 1), 1),
         "k": LOOPED, "l": LOOPED}, 4),
    ("constants behind padding, but one", IMAGE, f"{FIRST} r = Sigmoid(h) {PADDED}", WIDE, 1),
    ("a constant behind padding and a zero", IMAGE, f"{FIRST} r = Relu(h) {PADDED}",
     {**WIDE, "b": zeroed(np.abs(weight(6)), 0, (1,))}, 1),
    ("two readers with different borders", IMAGE, (f"{FIRST} r = Sigmoid(h) y1 = Conv <pads = [0, 1, 2, 1]> (r, v, c) "
     "y2 = Conv <pads = [1, 1, 1, 1]> (r, v2) y = Add(y1, y2)"), {**WIDE, "v2": weight(4, 6, 3, 3)}, 1),
    ("a border and none", IMAGE, (f"{FIRST} r = Sigmoid(h) y1 = Conv <pads = [1, 1, 1, 1]> (r, v, c) "
     "y2 = Conv(r, v2) y = Add(y1, y2)"), {**WIDE, "v2": weight(4, 6, 1, 1)}, 1),
    ("three constants behind padding", IMAGE, f"{FIRST} r = Sigmoid(h) {PADDED}",
     {**WIDE, "w": filters(6, 3, 1, (0, 1, 4))}, 2),
]  # fmt: skip
STAYS = [
    ("a constant behind padding", IMAGE, f"{FIRST} r = Sigmoid(h) {PADDED}", {**WIDE, "w": filters(6, 3, 1, (2,))}),
    ("same padding", IMAGE, f'{FIRST} r = Relu(h) y = Conv <auto_pad = "SAME_UPPER"> (r, v, c)',
     {**WIDE, "w": filters(6, 3, 1, (2,)), "b": np.abs(weight(6))}),
    ("constants behind padding in different groups", IMAGE,
     f"{FIRST} r = Sigmoid(h) y = Conv <group = 2, pads = [1, 1, 1, 1]> (r, v, c)",
     {**WIDE, "v": weight(4, 3, 3, 3)}),
    ("constants behind padding, a shared weight", IMAGE,
     (f"{FIRST} r = Sigmoid(h) y1 = Conv <pads = [1, 1, 1, 1]> (r, v) "
     "o = Conv(x, w2) y2 = Conv <pads = [1, 1, 1, 1]> (o, v) y = Add(y1, y2)"), {**WIDE, "w2": weight(6, 3, 1, 1)}),
    ("a pad of other numbers", IMAGE.replace("5, 5] y", "7, 7] y"),
     f"{FIRST} r = Pad(h, q, z) {LAST}", {**POINT, "q": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "z": np.float32(9)}),
    ("one side of a sum", IMAGE, f"{FIRST} f = Conv(x, w2) a = Add(h, f) r = Relu(a) {LAST}",
     {**POINT, "w2": weight(6, 3, 1, 1)}),
    ("an average that counts the border", IMAGE,
     f"{FIRST} r = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (h) {LAST}", POINT),
    ("a gate that varies", IMAGE, (f"{FIRST} p = GlobalAveragePool(h) q = Conv(p, k) o = Sigmoid(q) r = Mul(h, o) "
     f"{LAST}"), {**POINT, "k": weight(6, 6, 1, 1)}),
    ("a softmax counts all", ROWS.replace("4] y", "8] y"), "h = MatMul(x, w) y = Softmax(h)", {"w": DENSE["w"]}),
    ("a norm counts all", ROWS, "h = MatMul(x, w) r = LayerNormalization(h, b, b2) y = MatMul(r, v)",
     {**DENSE, "b2": weight(8)}),
    ("an output", IMAGE.replace("y) ", "y, float[n, 6, 5, 5] h) "), f"{FIRST} r = Relu(h) {LAST}", POINT),
    ("a mean over channels", ROWS.replace("4] y", "1] y"), "h = MatMul(x, w) y = ReduceMean <axes = [1]> (h)",
     {"w": DENSE["w"]}),
    ("a transposed convolution overlaps", IMAGE.replace("5, 5] y", "7, 7] y"),
     f"{FIRST} r = Sigmoid(h) y = ConvTranspose(r, v, c)", {**POINT, "v": weight(6, 4, 3, 3)}),
    ("a step that rounding decides", IMAGE, f"{FIRST} r = Floor(h) {LAST}", POINT),
    ("a shorter type that rounds", IMAGE, f"{FIRST} a = Cast <to = 10> (h) r = Cast <to = 1> (a) {LAST}", POINT),
    ("not quite zero", IMAGE, f"{FIRST} r = Relu(h) {LAST}", {**POINT, "w": zeroed(weight(6, 3, 1, 1), value=1e-30)}),
    ("a relu that may let through", IMAGE, f"a = Conv(x, w, b) h = Conv(a, z, d) r = Relu(h) {LAST}",
     {"w": weight(6, 3, 1, 1), "b": weight(6), "z": NEGATIVE, "d": -np.abs(weight(5)), "v": weight(4, 5, 1, 1),
      "c": weight(4)}),
]  # fmt: skip


def build(frame: str, body: str, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    return model(frame.format(body), **{k: v for k, v in constants.items() if k in body.replace("(", " ")})


@pytest.mark.parametrize("case", GOES, ids=[case[0] for case in GOES])
def test_what_goes(case: tuple[str, str, str, dict[str, np.ndarray], int]) -> None:
    _, frame, body, constants, expected = case
    facts = folded(build(frame, body, constants))
    assert units(facts) == expected
    assert Pipeline.parse(FOLD).run(facts.graph.copy()).cuts == []


@pytest.mark.parametrize("case", STAYS, ids=[case[0] for case in STAYS])
def test_what_stays(case: tuple[str, str, str, dict[str, np.ndarray]]) -> None:
    _, frame, body, constants = case
    assert units(folded(build(frame, body, constants))) == 0


def test_what_a_caller_may_feed_is_no_constant() -> None:
    source = build(IMAGE, f"{FIRST} r = Relu(h) {LAST}", POINT)
    source.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [6, 3, 1, 1]))
    assert units(folded(source)) == 0


def test_names_that_are_kept_stay() -> None:
    source = build(IMAGE, f"{FIRST} r = Relu(h) {LAST}", POINT)
    assert units(folded(source, keep=("^w$",))) == 0


# Nothing is left that could go


def effects(facts: Facts) -> list[str]:
    """Name the groups of which one more unit could be masked without changing any output."""
    graph, coupling, found = facts.graph, facts.get("coupling"), []
    sizes = {name: facts.get("shapes").shape[name] for name in graph.input_names}
    feeds = [{k: scale * x for k, x in random_inputs(graph, sizes, 7).items()} for scale in (1, -9, 30)]
    whole = [session(graph, optimise="off").run(given) for given in feeds]
    for group in coupling.groups:
        for unit in group.units.reshape(-1) if group.units.size > len(group.units) == 1 else ():
            removed = np.arange(coupling.n_units) == unit
            masked = mask_graph(graph, coupling.shapes, coupling.elem_types, coupling.factors, removed, coupling.values)
            running = session(masked, optimise="off")
            parts = [running.run(given) for given in feeds]
            if all(np.array_equal(a[name], b[name]) for a, b in zip(whole, parts) for name in a):
                found.append(group.name)
    return found


@pytest.mark.parametrize("name", ["conv_chain", "residual", "dense_concat", "depthwise_separable", "squeeze_excite"])
@pytest.mark.parametrize("ways", ["wb", "wbnrc"])
def test_no_unit_without_effect_is_left(name: str, ways: str) -> None:
    """Each unit that stays can be seen in some output, but for the last one of a group.

    Activations that cut off are replaced, so that no channel is off by chance.
    """
    source = TINY[name]()[0]
    for node in source.graph.node:
        smooth = {"Relu": "LeakyRelu", "Clip": "LeakyRelu", "HardSigmoid": "Sigmoid"}.get(node.op_type)
        if smooth:
            made = onnx.helper.make_node(smooth, node.input[:1], node.output, node.name)
            node.CopyFrom(made)
    assert with_zeros(source, random.Random(3), ways=ways) > 5
    facts = folded(source, shapes=SMALL.get(name, {}))
    assert units(facts) > 3
    assert effects(facts) == []


# The whole job


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("ways", ["w", "wb", "wbnrc"])
def test_small_networks_compute_the_same(name: str, ways: str) -> None:
    source = TINY[name]()[0]
    with_zeros(source, random.Random(len(name)), ways=ways)
    result = prune(source, lossless=True, shapes=SMALL.get(name))
    assert result.report["certificate"]["status"] == "passed"
    assert result.report["after"]["params"] <= result.report["before"]["params"]
    again = prune(result.model, lossless=True, shapes=SMALL.get(name))
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_after_pruning_it_certifies_both_cuts() -> None:
    source = TINY["residual"]()[0]
    with_zeros(source, random.Random(1), ways="w")
    text = "canonicalize,select{ratio=0.3 align=1 criterion=random{seed=1}},slice-channels,fold-zero-filters,clean"
    result = prune(source, pipeline=text, verify_each=True)
    assert result.plan is not None
    assert result.report["certificate"]["status"] == "passed"


def test_lossless_goes_alone() -> None:
    for options in ({"ratio": 0.3}, {"pipeline": "clean"}):
        with pytest.raises(PipelineError, match="lossless"):
            prune(TINY["mlp"]()[0], lossless=True, **options)


def test_lossless_on_the_command_line(tmp_path: Path) -> None:
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(build(IMAGE, f"{FIRST} r = Relu(h) {LAST}", POINT), source)
    assert main([str(source), "--lossless", "-q", "-o", str(target)]) == 0
    sizes = {tuple(t.dims) for t in onnx.load(target).graph.initializer}
    assert sizes == {(4, 3, 1, 1), (4,), (4, 4, 1, 1)}
    assert main([str(source), "--lossless", "--align", "4", "-o", str(tmp_path / "c.onnx")]) == 2


def test_a_wrong_bias_is_found() -> None:
    job = Pipeline.parse(FOLD).run(load(build(IMAGE, f"{FIRST} r = Relu(h) {LAST}", POINT)))
    bias = job.graph.producers()["y"].inputs[2]
    job.graph.consts[bias] = job.graph.consts[bias] * np.float32(1.001)
    with pytest.raises(VerifyError):
        certify(job.source, job.cuts, job.graph, job.context).raise_if_failed()
