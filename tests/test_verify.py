"""The certificate: it passes for a right cut, fails for every wrong one, and tells rounding and near-ties from errors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from textmodels import model, weight

from fixtures import load_graph
from fixtures.tiny import TINY
from prunepass import load, verify
from prunepass.compare import Tally
from prunepass.errors import VerifyError
from prunepass.manager import Context, Facts, Pipeline
from prunepass.verify import certify

MAIN = "canonicalize,select{ratio=0.5 align=1},slice-channels,clean"


def cut(source, text: str = MAIN, **context) -> Facts:
    """Run a pipeline on a model."""
    return Pipeline.parse(text).run(load(source), Context(**context))


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
    (keep_a_wrong_channel, ("conv_chain", "residual", "dense_concat", "squeeze_excite", "flatten_linear", "pixel_shuffle")),
    (undo_a_size, ("depthwise_separable", "channel_shuffle", "attention", "fused_attention", "split_chain")),
    (break_canonicalize, ("conv_chain", "mlp", "attention", "tied_embedding", "unet_skip")),
    (divide_by_zero, ("conv_chain", "mlp", "grouped_query_attention")),
    (lose_an_activation, ("conv_chain", "residual", "mlp", "squeeze_excite")),
    (rename_the_output, ("mlp",)),
]


@pytest.mark.parametrize("name", TINY)
def test_a_right_cut_passes(name: str) -> None:
    facts = cut(TINY[name]()[0])
    found = certificate(facts)
    assert (found.status, found.details, found.notes) == ("passed", (), ())
    assert facts.cuts[0].plan.removed.sum() > 0.4 * len(facts.cuts[0].plan.removed)
    assert (found.inputs, found.outputs) == (3, 1)
    assert found.max_rel < 5e-6 < found.tolerance == 1e-4
    found.raise_if_failed()


@pytest.mark.parametrize(("harm", "name"), [(harm, name) for harm, names in WRONG for name in names])
def test_a_wrong_cut_fails(harm, name: str) -> None:
    facts = cut(TINY[name]()[0])
    harm(facts)
    found = certificate(facts)
    assert found.status == "failed"
    assert found.details
    with pytest.raises(VerifyError, match="verification failed, nothing is written: "):
        found.raise_if_failed()
