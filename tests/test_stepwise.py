"""Near-ties and amplified rounding are told from errors, whatever a model returns."""

from __future__ import annotations

import numpy as np
import pytest
from certified import certificate, corrupt_a_weight, cut, layers, permute_kept_indices
from textmodels import model, weight

from fixtures import load_graph
from prunepass import verify
from prunepass.manager import Facts

TWICE = """a = MatMul(x, w)  h = Relu(a)  one = MatMul(h, v)
    h3 = Unsqueeze(h, axis)  product = Mul(h3, v)  two = ReduceSum <keepdims = 0> (product, axis1)
    both = Concat <axis = 1> (one, two)"""
"""Compute the same eight numbers in two ways, so that rounding decides which ones are larger."""
SAMPLES = 64
CONSTANTS = {
    "w": weight(8, 48) / 3,
    "v": np.abs(weight(48, 8)),
    "axis": np.array([2]),
    "axis1": np.array([1]),
    "table": weight(16, 5),
    "k": np.array([3]),
    "half": np.float32(0.5),
}
DECIDED = {
    "ArgMax": ("int64[n]", "y = ArgMax <axis = 1, keepdims = 0> (both)"),
    "TopK": ("int64[n, 3]", "values, y = TopK <axis = 1> (both, k)"),
    "ArgMax and lookup": ("float[n, 5]", "i = ArgMax <axis = 1, keepdims = 0> (both)  y = Gather(table, i)"),
    "comparison": ("bool[n, 8]", "y = Greater(one, two)"),
    "NonZero": ("int64[2, m]", "more = Greater(one, two)  y = NonZero(more)"),
    "Floor": ("float[n, 8]", "d = Sub(one, two)  y = Floor(d)"),
    "cast": ("int64[n, 8]", "d = Sub(one, two)  s = Sign(d)  y = Cast <to = 7> (s)"),
}


def tied(kind: str, output: str, decision: str, **changes) -> Facts:
    source = model(f"g (float[n, 8] x) => ({output} y) {{ {TWICE} {decision} }}", **{**CONSTANTS, **changes})
    data = {"x": np.random.default_rng(3).standard_normal((SAMPLES, 8)).astype(np.float32)}
    return cut(source, data=data)


@pytest.mark.parametrize("kind", DECIDED)
def test_a_near_tie_is_told_from_an_error(kind: str) -> None:
    facts = tied(kind, *DECIDED[kind])
    found = certificate(facts)
    assert (found.status, found.details) == ("passed", ())
    assert len(found.notes) == 1
    assert "near-tie, as each of " in found.notes[0]
    for name in ("w", "v"):
        wrong = tied(kind, *DECIDED[kind])
        wrong.graph.consts[name] = wrong.graph.consts[name] * np.float32(1.001)
        assert certificate(wrong).status == "failed"


def test_a_discrete_output_without_ties_is_exact() -> None:
    facts = cut(layers("int64[n] y", "y = ArgMax <axis = 1, keepdims = 0> (z)"))
    found = certificate(facts)
    assert (found.status, found.notes) == ("passed", ())
    facts.graph.consts["v"] = -facts.graph.consts["v"]
    assert certificate(facts).status == "failed"


def chaotic() -> Facts:
    """Cut a layer whose result goes through the logistic map forty times: the last bit decides everything."""
    steps = [f"t{i} = Sub(one, s{i})  u{i} = Mul(s{i}, t{i})  s{i + 1} = Mul(four, u{i})" for i in range(40)]
    constants = {"w": weight(8, 700), "v": weight(700, 4) / 30, "one": np.float32(1), "four": np.float32(4)}
    source = layers("float[n, 4] s40", f"s0 = Sigmoid(z)  {'  '.join(steps)}", **constants)
    return cut(source, data={"x": np.random.default_rng(3).standard_normal((SAMPLES, 8)).astype(np.float32)})


def test_amplified_rounding_is_told_from_an_error() -> None:
    found = certificate(chaotic())
    assert found.status == "passed"
    assert "amplified rounding" in found.notes[0]
    assert found.max_rel < found.tolerance
    wrong = chaotic()
    wrong.graph.consts["v"] = wrong.graph.consts["v"] * np.float32(1.0001)
    assert certificate(wrong).status == "failed"


def test_a_deep_network_that_amplifies_rounding() -> None:
    facts = cut(load_graph("torchvision_mobilenet_v2__ts8"))
    assert certificate(facts).status == "passed"
    corrupt_a_weight(facts)
    assert certificate(facts).status == "failed"


# What else a model may do

HALF = {"w": weight(8, 16).astype(np.float16), "v": weight(16, 4).astype(np.float16)}
NAMES = {"names": np.array(["a", "b", "c", "d"], object)}
DROPOUT = {"ratio": np.float32(0.5), "on": np.array(True)}
OTHERS = {
    "random numbers": layers("float[n, 4] y", "r = RandomNormalLike(z)  y = Sub(z, r)"),
    "a random scalar": layers("float[n, 4] y", "r = RandomUniform <shape = [1]> ()  y = Mul(z, r)"),
    "dropout while training": layers("float[n, 4] y", "y = Dropout <seed = 5> (z, ratio, on)", **DROPOUT),
    "infinity in places": layers("float[n, 4] y", "y = Log(z)"),
    "a sequence": layers("seq(float[n, 4]) y", "y = SequenceConstruct(z, z)"),
    "double": layers("double[n, 4] y", "y = Cast <to = 11> (z)"),
    "half": layers("float16[n, 4] y", "y = MatMul(h, v)", "c = Cast <to = 10> (x)  h = MatMul(c, w)", **HALF),
    "text": layers("string[n] y", "i = ArgMax <axis = 1, keepdims = 0> (z)  y = Gather(names, i)", **NAMES),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_values(kind: str) -> None:
    facts = cut(OTHERS[kind])
    assert facts.cuts[0].plan.removed.any()
    assert certificate(facts).status == "passed"
    permute_kept_indices(facts)
    assert certificate(facts).status == "failed"


def never_finite() -> Facts:
    return cut(layers("float[n, 4] y", "a = Abs(z)  m = Neg(a)  o = Sub(m, one)  y = Log(o)", one=np.float32(1)))


def test_outputs_that_are_never_finite_are_checked_by_what_feeds_them() -> None:
    found = certificate(never_finite())
    assert found.status == "passed"
    assert "outputs are empty or not finite, 6 values agree instead" in found.notes[0]
    wrong = never_finite()
    permute_kept_indices(wrong)
    assert certificate(wrong).status == "failed"


def test_a_division_by_what_is_left_is_noted() -> None:
    """All channels that are left are 0 where one that went was not: 0 / 0."""
    weights = {"w": np.eye(8, 16, dtype=np.float32), "v": weight(16, 4)}
    weights["w"][:, 8:] = -10  # the more important ones are dead behind Relu
    rest = "r = Relu(h)  s = ReduceSum <keepdims = 1> (r, last)  d = Div(r, s)  y = MatMul(d, v)"
    source = layers("float[n, 4] y", rest, "p = Abs(x)  h = MatMul(p, w)", last=np.array([1]), **weights)
    (note, *_) = [n for n in certificate(cut(source)).notes if "finite" in n and "agree" not in n]
    assert note.startswith("output 'y' is no longer finite: the cut is right")


def test_nothing_to_compare_is_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "compare_nodes", lambda pair, trials, where: None)
    found = certificate(never_finite())
    assert found.status == "failed"
    assert "no output is finite" in found.details[0]


def test_a_dead_network_is_noted() -> None:
    found = certificate(cut(layers("float[n, 4] y", "a = Abs(z)  m = Neg(a)  y = Relu(m)")))
    assert found.status == "passed"
    assert "all outputs are zero" in found.notes[0]
