"""The certificate: it passes for a right cut, fails for a wrong one, and tells rounding and near-ties from errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from textmodels import model, weight

from fixtures import load_graph
from fixtures.tiny import TINY
from prunepass import load, verify
from prunepass.cli import main
from prunepass.compare import Tally
from prunepass.errors import ModelError, VerifyError
from prunepass.manager import Context, Facts, Pipeline
from prunepass.verify import certify

SMALL = {name: {"image": (1, 3, 16, 16)} for name in ("conv_chain", "pixel_shuffle")}
"""Sizes for networks that take images of any size."""
MAIN = "canonicalize,select{ratio=0.5 align=1},slice-channels,clean"


def cut(source, text: str = MAIN, **context) -> Facts:
    """Run a pipeline on a model."""
    return Pipeline.parse(text).run(load(source), Context(**context))


def cut_tiny(name: str) -> Facts:
    """Run the main passes on a small network."""
    return cut(TINY[name]()[0], shapes=SMALL.get(name, {}))


def certificate(facts: Facts) -> verify.Certificate:
    return certify(facts.source, facts.cuts, facts.graph, facts.context)


def sliced(facts: Facts, axes: int = 1) -> list[str]:
    """Return the sliced float constants that the result reads, with at least so many axes."""
    graph, tensors = facts.graph, facts.cuts[-1].plan.tensors
    return [n for n in graph.consts if n in tensors and len(graph.consts.shape(n)) >= axes]


def change(facts: Facts, name: str, array: np.ndarray) -> None:
    facts.graph.consts[name] = np.ascontiguousarray(array)


# Ways to get a cut wrong


def corrupt_a_weight(facts: Facts) -> None:
    name = sliced(facts)[0]
    array = facts.graph.consts[name].copy()
    array.flat[array.size // 2] += 2 * np.abs(array).max()
    change(facts, name, array)


def permute_kept_indices(facts: Facts) -> None:
    """Give a weight the right channels in the wrong order."""
    name = max(sliced(facts, 2), key=lambda n: facts.graph.consts.shape(n)[0])
    change(facts, name, facts.graph.consts[name][::-1])


def keep_a_wrong_channel(facts: Facts) -> None:
    """Take the next index instead of the right one, in one tensor only."""
    before, plan = facts.cuts[-1].before, facts.cuts[-1].plan
    name = next(n for n in sliced(facts, 2) if [axes for axes, _ in plan.tensors[n].kept] == [(0,)])
    ((_, kept),) = plan.tensors[name].kept
    gone = np.setdiff1d(np.arange(plan.tensors[name].shape[0]), kept)
    change(facts, name, before.consts[name][np.concatenate([kept[:-1], gone[:1]])])


def undo_a_size(facts: Facts) -> None:
    """Let one node read the integers that it read before the cut, or have the attributes that it had."""
    before, graph = facts.cuts[-1].before, facts.graph
    old = {node.outputs[0]: node for node in before.nodes}
    for node in graph.nodes:
        was = old.get(node.outputs[0], node)
        if "group" in was.attrs and was.attrs != node.attrs:
            return node.set_attr("group", was.attrs["group"])
        for position, (name, new) in enumerate(zip(was.inputs, node.inputs)):
            if new.startswith(name) and new != name:  # x_pruned, x_resized
                graph.consts.update({name: before.consts[name]} if name in before.consts else {})
                node.inputs[position] = name
                return None
    pytest.fail("no size was rewritten")


def break_canonicalize(facts: Facts) -> None:
    """Change one number before the cut, so that masked and sliced model still agree."""
    graph = facts.cuts[0].before
    name = next(n for n in graph.consts if graph.consts[n].dtype == np.float32 and n not in facts.cuts[0].plan.tensors)
    for one in (graph, facts.graph):
        one.consts[name] = one.consts[name] * np.float32(1.5)


def divide_by_zero(facts: Facts) -> None:
    name = sliced(facts)[-1]
    change(facts, name, np.full_like(facts.graph.consts[name], np.nan))


def lose_an_activation(facts: Facts) -> None:
    node = next(node for node in facts.graph.nodes if node.op == "Relu")
    facts.graph.nodes.remove(node)
    for other in facts.graph.nodes:
        other.inputs = [node.inputs[0] if name == node.outputs[0] else name for name in other.inputs]


def rename_the_output(facts: Facts) -> None:
    node = next(node for node in facts.graph.nodes if facts.graph.output_names[0] in node.outputs)
    node.outputs = ["another"]
    facts.graph.outputs = [onnx.ValueInfoProto(name="another")]


WRONG = [
    (corrupt_a_weight, tuple(TINY)),
    (permute_kept_indices, tuple(TINY)),
    (
        keep_a_wrong_channel,
        ("conv_chain", "residual", "dense_concat", "squeeze_excite", "flatten_linear", "pixel_shuffle"),
    ),
    (undo_a_size, ("depthwise_separable", "channel_shuffle", "attention", "fused_attention", "split_chain")),
    (break_canonicalize, ("conv_chain", "mlp", "attention", "tied_embedding", "unet_skip")),
    (divide_by_zero, ("conv_chain", "mlp", "grouped_query_attention")),
    (lose_an_activation, ("conv_chain", "residual", "mlp", "squeeze_excite")),
    (rename_the_output, ("mlp",)),
]


@pytest.mark.parametrize("name", TINY)
def test_a_right_cut_passes(name: str) -> None:
    facts = cut_tiny(name)
    found = certificate(facts)
    assert (found.status, found.details, found.notes) == ("passed", (), ())
    assert facts.cuts[0].plan.removed.sum() > 0.4 * len(facts.cuts[0].plan.removed)
    assert (found.inputs, found.outputs) == (3, 1)
    assert found.max_rel < 5e-6 < found.tolerance == 1e-4
    found.raise_if_failed()


@pytest.mark.parametrize(("harm", "name"), [(harm, name) for harm, names in WRONG for name in names])
def test_a_wrong_cut_fails(harm, name: str) -> None:
    facts = cut_tiny(name)
    harm(facts)
    found = certificate(facts)
    assert found.status == "failed"
    assert found.details
    with pytest.raises(VerifyError, match="verification failed, nothing is written: "):
        found.raise_if_failed()


def test_the_message_names_the_node() -> None:
    facts = cut_tiny("conv_chain")
    name = sliced(facts, 2)[1]
    facts.graph.consts[name] = facts.graph.consts[name] * np.float32(1.01)
    node = next(node for node in facts.graph.nodes if name in node.inputs)
    assert certificate(facts).details[0].startswith(f"masked and sliced graph: {node.label} from equal inputs: differs")


def test_a_fixed_batch_is_found() -> None:
    """A size that is right for one sample only: the last trial has two."""
    facts = cut(TINY["fused_attention"]()[0])
    node = next(n for n in facts.graph.nodes if n.op == "Reshape" and facts.graph.consts[n.inputs[1]][0] == 0)
    target = facts.graph.consts[node.inputs[1]].copy()
    target[0] = 1
    facts.graph.consts["target"] = target
    node.inputs[1] = "target"
    assert "onnxruntime fails to run the model on image [2, 3, 8, 8]" in certificate(facts).details[0]


def test_a_source_for_one_sample_needs_one_only() -> None:
    body = "g (float[n, 8] x) => (float[n, 4] y) { h = MatMul(x, w)  r = Reshape(h, s)  y = MatMul(r, v) }"
    source = model(body, w=weight(8, 16), s=np.array([1, 16]), v=weight(16, 4))
    assert certificate(cut(source)).status == "passed"


# Rounding and near-ties

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


def layers(output: str, rest: str, first: str = "h = MatMul(x, w)  z = MatMul(h, v)", **constants):
    """Return a model of two linear layers with something behind them."""
    constants = {"w": weight(8, 16), "v": weight(16, 4), **constants}
    return model(f"g (float[n, 8] x) => ({output}) {{ {first}  {rest} }}", **constants)


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


def test_nothing_to_compare_is_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "compare_nodes", lambda pair, trials: None)
    found = certificate(never_finite())
    assert found.status == "failed"
    assert "no output is finite" in found.details[0]


def test_a_dead_network_is_noted() -> None:
    found = certificate(cut(layers("float[n, 4] y", "a = Abs(z)  m = Neg(a)  y = Relu(m)")))
    assert found.status == "passed"
    assert "all outputs are zero" in found.notes[0]


def test_without_a_cut_the_source_is_compared() -> None:
    facts = cut(TINY["squeeze_excite"]()[0], "canonicalize,clean")
    assert certificate(facts).status == "passed"
    name = next(n for n in facts.graph.consts if len(facts.graph.consts.shape(n)) == 4)
    facts.graph.consts[name] = facts.graph.consts[name] + np.float32(0.01)
    assert certificate(facts).details[0].startswith("source and result: ")


def test_each_of_two_cuts_is_checked() -> None:
    twice = f"{MAIN},canonicalize,select{{ratio=0.4 align=1 criterion=l1}},slice-channels,clean"
    facts = cut(TINY["residual"]()[0], twice)
    assert len(facts.cuts) == 2
    assert certificate(facts).status == "passed"
    graph = facts.cuts[1].before
    name = next(n for n in graph.consts if len(graph.consts.shape(n)) == 4)
    graph.consts[name] = graph.consts[name][:, ::-1].copy()
    assert certificate(facts).status == "failed"


def test_given_data_is_used() -> None:
    build = TINY["conv_chain"]
    data = {"image": np.random.default_rng(0).standard_normal((5, 3, 16, 16)).astype(np.float32)}
    facts = cut(build()[0], data=data)
    assert certificate(facts).inputs == 1
    fixed = TINY["residual"]()[0]
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    many = {"image": np.zeros((20, 3, 8, 8), np.float32)}
    found = certificate(cut(fixed, data=many))
    assert (found.inputs, found.notes) == (16, ("4 more samples of the data were not run",))


def test_a_source_that_cannot_run_is_not_a_failed_certificate() -> None:
    facts = cut(layers("float[n, 4] y", "y = Reshape(z, s)", s=np.array([1, 4])))
    facts.context.data = {"x": np.ones((3, 8), np.float32)}
    with pytest.raises(ModelError, match="onnxruntime fails to run the model on x \\[3, 8\\]"):
        certificate(facts)


@pytest.mark.parametrize(
    ("expected", "found", "message"),
    [
        (np.ones(3, np.float32), np.ones(3, np.float32), ""),
        (np.ones(3, np.float32), np.ones(3), "float64[3] instead of float32[3]"),
        (np.ones(3, np.float32), np.ones((3, 1), np.float32), "float32[3, 1] instead of float32[3]"),
        (np.ones(3, np.float32), None, "only one of the models has it"),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), ""),
        (np.float32([1, np.nan]), np.float32([np.nan, 1]), "NaN or infinity in other places"),
        (np.float32([1, np.inf]), np.float32([1, -np.inf]), "NaN or infinity in other places"),
        (np.float32([1, np.inf]), np.float32([1, 2]), "NaN or infinity in other places"),
        (np.float32([1, 2]), np.float32([1.00009, 2]), ""),
        (np.float32([1, 2]), np.float32([1.0002, 2]), "differs by 0.0002, relative 0.0002 > 0.0001"),
        (np.float32([0, 0]), np.float32([0, 1e-12]), ""),
        (np.float32([0, 0]), np.float32([0, 1e-9]), "relative 0.001 > 0.0001"),
        (np.float64([1, 2]), np.float64([1.00002, 2]), "relative 2e-05 > 1e-05"),
        (np.float16([1, 2]), np.float16([1.01, 2]), ""),
        (np.complex64([1j, 2]), np.complex64([-1j, 2]), "differs by 2, "),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 entries differ"),
        (np.array([True]), np.array([False]), "1 of 1 entries differ"),
        ([np.ones(2)], [np.ones(2), np.ones(2)], "another number of elements"),
        ([np.ones(2)], [np.zeros(2)], "differs by 1"),
        ([{1: 0.5}], [{1: 0.25}], "differs by 0.25"),
        ([{1: 0.5}], [{2: 0.5}], "another number of elements"),
        # boxes up to 640 beside scores up to 1, in rows of their own: the scores are measured by themselves
        (np.float32([[640, 320], [0.5, 1]]), np.float32([[640, 320], [0.5, 1.005]]), ""),
        (np.float32([[640, 320], [0.5, 1]]), np.float32([[640, 320], [0.49, 1]]), "relative 0.000156"),
        (np.float32([[640, 320], [0.5, 1]]), np.float32([[640, 320.03], [0.5, 1]]), ""),
    ],
)  # fmt: skip
def test_comparison(expected: object, found: object, message: str) -> None:
    tally = Tally()
    assert tally.agree("y", expected, found) == (message == "")
    assert [message in fault for fault in tally.faults] == [True] * bool(message)


def test_notes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(layers("float[n, 4] y", "a = Abs(z)  m = Neg(a)  y = Relu(m)"), tmp_path / "dead.onnx")
    assert main([str(tmp_path / "dead.onnx"), "--align", "1"]) == 0
    assert "all outputs are zero on the inputs tried" in " ".join(capsys.readouterr().out.split())


def test_certificates_are_reproducible() -> None:
    assert certificate(cut(TINY["unet_skip"]()[0])) == certificate(cut(TINY["unet_skip"]()[0]))
    seeds = {certificate(cut(TINY["unet_skip"]()[0], seed=seed)).max_abs for seed in range(3)}
    assert len(seeds) == 3
