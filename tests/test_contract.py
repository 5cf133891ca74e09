"""What every rewrite promises, on every small graph and a sample of the exporter graphs; and the whole main job."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import onnx
import pytest

from fixtures import GRAPHS, load_graph
from fixtures.tiny import TINY
from prunepass import load, prune
from prunepass.cost import CostModel
from prunepass.graph import Graph
from prunepass.manager import Context, Facts, Pipeline, Rewrite, build, passes
from prunepass.recovery.batches import calibration
from prunepass.wire import encode

SAMPLE = (
    "custom_bigru_seqfirst__ts17-dynb-seq",
    "custom_crnn_ocr__ts16-bn",
    "custom_espcn__dy22-fp16",
    "custom_mnist_cnn__ts7",
    "custom_siamrpn_dwxcorr__dy18",
    "custom_tied_autoencoder__ts13-nocf",
    "custom_viewflat_cnn__ts13-train",
    "diffusers_dit__dy20-noopt",
    "hf_albert__dy18-noopt",
    "hf_bert_seqcls_eager__ts14",
    "hf_gpt2__dy19-dynb-seq",
    "hf_llama_gqa__dy19-dynb-seq",
    "hf_qwen3_moe__dy18",
    "hf_regnet_hf__dy18",
    "hf_t5__ts17",
    "jax_resblock_dw__jx21-dynb",
    "keras_gru_cls__tf18-b2",
    "keras_transformer_mha__tf18-nchw",
    "mindspore_resnet__orig",
    "post_custom_mnist_cnn__qop",
    "pytorchcv_resnet20_cifar10__ts11",
    "sklearn_mlp_cls_relu__sk17",
    "timm_test_convnext__ts17-kin",
    "torchvision_shufflenet_v2_x0_5__dy19-dynb-hw",
    "vit_pytorch_vp_cct__dy20-dynb",
    "wheel_silero_silero_vad_16k_op15__orig",
)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in GRAPHS if name not in SAMPLE]
MODELS = [*TINY, *SAMPLE, *SLOW]
CHOICE = "select{ratio=0.5 align=1}"
PRIOR = {
    "select": "canonicalize",
    "slice-channels": f"canonicalize,{CHOICE}",
    "compensate": f"canonicalize,{CHOICE},slice-channels",
    "recalibrate-batchnorm": f"canonicalize,{CHOICE},slice-channels",
}
"""What must run before a pass."""
RECOVERY = ("compensate", "recalibrate-batchnorm")
OPTIONS = {"select": {"ratio": 0.5, "align": 1}}
SMALL = {name: {"image": (1, 3, 16, 16)} for name in ("conv_chain", "pixel_shuffle")}
"""Sizes for networks that take images of any size."""
REWRITES = [name for name, cls in passes().items() if issubclass(cls, Rewrite)]


@functools.lru_cache(maxsize=4)
def source(name: str) -> Graph:
    return load(TINY[name]()[0] if name in TINY else load_graph(name))


def prepared(name: str, step: str) -> Facts:
    """Return the facts of a model just before a pass."""
    facts = Facts(source(name).copy(), Context())
    if step in RECOVERY:
        facts.context.calibration = calibration(facts).first(6)
    return Pipeline.parse(PRIOR[step]).run_on(facts) if step in PRIOR else facts


def run(facts: Facts, step: str) -> int:
    """Run one pass; return the number of changes that it reports."""
    Pipeline.of(build(step, **OPTIONS.get(step, {}))).run_on(facts)
    changes = facts.timing[-1].changes
    assert changes is not None
    return changes


def data(graph: Graph) -> bytes:
    return b"".join(map(bytes, encode(graph)))


def is_valid(graph: Graph) -> bool:
    try:
        onnx.checker.check_model(graph.skeleton(), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def same(a: object, b: object) -> bool:
    """Compare facts by their contents."""
    if isinstance(a, CostModel) and isinstance(b, CostModel):
        return (a.total, a.node_macs, a.uncounted) == (b.total, b.node_macs, b.uncounted)
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a) if f.repr)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("step", REWRITES)
def test_contract(step: str, name: str) -> None:
    facts = prepared(name, step)
    before, text, was_valid = facts.graph.copy(), data(facts.graph), is_valid(facts.graph)
    changes = run(facts, step)
    assert is_valid(facts.graph) or not was_valid
    assert facts.graph.inputs == before.inputs
    assert facts.graph.outputs == before.outputs
    assert (data(facts.graph) == text) or changes > 0
    assert data(before) == text, "the pass changed what it shares with a copy"
    again = prepared(name, step)
    assert run(again, step) == changes
    assert data(again.graph) == data(facts.graph), "the same input gives other bytes"
    if passes()[step].idempotent:
        once = data(facts.graph)
        assert run(facts, step) == 0
        assert data(facts.graph) == once


@pytest.mark.parametrize("step", [name for name in REWRITES if passes()[name].keeps])
@pytest.mark.parametrize("name", [*TINY, *SAMPLE[:6]])
def test_keeps_is_true(step: str, name: str) -> None:
    facts = prepared(name, step)
    known = {analysis: facts.get(analysis) for analysis in passes()[step].keeps}
    run(facts, step)
    fresh = Facts(facts.graph, Context())
    for analysis, fact in known.items():
        assert facts.get(analysis) is fact
        assert same(fact, fresh.get(analysis)), analysis


def test_same_sees_differences() -> None:
    """The comparison above must be able to fail: after a cut nothing is the same."""
    facts = prepared("residual", "select")
    known = {name: facts.get(name) for name in ("shapes", "coupling", "importance", "cost")}
    assert all(same(fact, Facts(facts.graph).get(name)) for name, fact in known.items())
    Pipeline.parse(f"{CHOICE},slice-channels").run_on(facts)
    assert not any(same(fact, facts.get(name)) for name, fact in known.items())


@pytest.mark.parametrize("name", passes())
def test_text_round_trip(name: str) -> None:
    text = str(build(name, **OPTIONS.get(name, {})))
    assert str(Pipeline.parse(text)) == text
    assert Pipeline.parse(text).steps[0].run == build(name, **OPTIONS.get(name, {}))


# The main job


def zero_sizes(graph: Graph) -> set[str]:
    """Return the values that have an axis of size 0."""
    shapes = Facts(graph).get("shapes").shape
    return {name for name in (*shapes, *graph.consts) if 0 in shapes.get(name, ())}


@pytest.mark.parametrize("name", MODELS)
def test_main_job(name: str) -> None:
    result = prune(source(name), ratio=0.5, align=1, shapes=SMALL.get(name))
    report, plan = result.report, result.plan
    assert report["certificate"]["status"] == "passed"
    assert plan is not None
    assert zero_sizes(result.graph) <= zero_sizes(Pipeline.parse("canonicalize").run(source(name).copy()).graph)
    removed = sum(group.removed for group in plan.groups)
    units = sum(group.units for group in plan.groups)
    assert (removed > 0) == (units > len(plan.groups))
    if removed:
        assert all(report["after"][key] < report["before"][key] for key in ("params", "bytes"))
        assert report["after"]["macs"] < report["before"]["macs"] or not report["before"]["macs"]
    assert [(o.name, o.type) for o in result.graph.outputs] == [(o.name, o.type) for o in source(name).outputs]
    assert math.prod(len(group.sites) for group in plan.groups) > 0
    again = prune(source(name), ratio=0.5, align=1, shapes=SMALL.get(name), verify=False)
    assert data(again.graph) == data(result.graph)
    assert again.plan is not None and again.plan.to_json() == plan.to_json()
