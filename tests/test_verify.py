"""The certificate passes for a right cut and fails for a wrong one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from certified import (
    MAIN,
    certificate,
    change,
    corrupt_a_weight,
    cut,
    cut_tiny,
    layers,
    permute_kept_indices,
    sliced,
)
from textmodels import model, weight

from fixtures.tiny import TINY
from prunepass.cli import main
from prunepass.errors import ModelError, VerifyError
from prunepass.manager import Facts

# Ways to get a cut wrong


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
    assert (found.inputs, found.notes) == (16, ("the other 4 samples of the data were not compared",))


def test_a_source_that_cannot_run_is_not_a_failed_certificate() -> None:
    facts = cut(layers("float[n, 4] y", "y = Reshape(z, s)", s=np.array([1, 4])))
    facts.context.data = {"x": np.ones((3, 8), np.float32)}
    with pytest.raises(ModelError, match="onnxruntime fails to run the model on x \\[3, 8\\]"):
        certificate(facts)


def test_notes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(layers("float[n, 4] y", "a = Abs(z)  m = Neg(a)  y = Relu(m)"), tmp_path / "dead.onnx")
    assert main([str(tmp_path / "dead.onnx"), "--align", "1"]) == 0
    assert "all outputs are zero on the inputs tried" in " ".join(capsys.readouterr().out.split())


def test_certificates_are_reproducible() -> None:
    assert certificate(cut(TINY["unet_skip"]()[0])) == certificate(cut(TINY["unet_skip"]()[0]))
    seeds = {certificate(cut(TINY["unet_skip"]()[0], seed=seed)).max_abs for seed in range(3)}
    assert len(seeds) == 3
