"""Fused attention, rotary embedding, fused norms and products, packed weights, experts: sliced equals masked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import bench_attention
import bench_fused
import numpy as np
import onnx
import pytest
from bench_cases import MS
from onnx import TensorProto, helper

import prunepass
from fixtures.tiny import Net
from prunepass import runtime
from prunepass.api import Job
from prunepass.coupling import Coupling, analyse
from prunepass.ephemeral import mask_graph
from prunepass.errors import PruneError
from prunepass.graph import Graph, Node
from prunepass.inference import infer
from prunepass.kept import kept_masks, new_shape
from prunepass.manager import Pipeline
from prunepass.plan import Plan
from prunepass.rules.cost import MACS
from prunepass.rules.dims import DIMS, same
from prunepass.rules.masks import MASKS
from prunepass.rules.sizes import SIZES
from prunepass.selection import ladder, protected_units, removed_by
from prunepass.slicing import slice_graph

CASES = {**bench_attention.CASES, **bench_fused.CASES}
POLICIES = ("balanced", "whole", "aligned")


# ---- the law ---------------------------------------------------------------------------------------------------------
@functools.cache
def built(name: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    net = Net(name, CASES[name].opset)
    CASES[name].build(net)
    model, feeds = net.finish()
    model.ir_version = 10
    model.opset_import.append(helper.make_opsetid(MS, 1))
    return model, feeds


class Trial:
    """The analysis of one network under one policy."""

    def __init__(self, name: str, policy: str) -> None:
        model, self.feeds = built(name)
        job = Job.open(model, (), {k: v.shape for k, v in self.feeds.items()}, None, 0, None)
        Pipeline.parse("canonicalize").run_on(job.facts)
        self.graph: Graph = job.facts.graph
        self.coupling: Coupling = job.facts.get("coupling", policy=policy)
        self.rng = np.random.default_rng(len(name))

    def plan(self, all_of_it: bool) -> np.ndarray:
        scores = self.rng.random(self.coupling.n_units)
        held, chosen = protected_units(self.coupling, scores), []
        for events in ladder(self.coupling, self.coupling.groups, scores, held, align=1):
            chosen += events[: len(events) if all_of_it else (len(events) + 1) // 2]
        return removed_by(chosen, self.coupling.n_units)

    def sliced(self, removed: np.ndarray) -> Graph:
        twin = self.graph.copy()
        slice_graph(twin, Plan.of(twin, self.coupling, removed))
        return twin

    def check(self, removed: np.ndarray) -> None:
        """Sliced equals masked."""
        c = self.coupling
        masked = mask_graph(self.graph, c.shapes, c.elem_types, c.factors, removed)
        expected = runtime.session(masked, optimise="basic", threads=1).run(self.feeds)
        found = runtime.session(self.sliced(removed), threads=1).run(self.feeds)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


def check_left(graph: Graph, left: dict[str, Any]) -> None:
    """Compare attributes of any node, and shapes of constants by the stem of their name."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for name in graph.consts:
        shapes.setdefault(name.rstrip("0123456789"), set()).add(graph.consts.shape(name))
    for key, expected in left.items():
        if isinstance(expected, tuple):
            assert shapes[key] == {expected}, f"{key}: {shapes[key]} instead of {expected}"
            continue
        found = [node.attrs[key] for node in graph.nodes if key in node.attrs]
        if expected is None:
            assert not found, key
        else:
            assert found and all(value == pytest.approx(expected) for value in found), f"{key}: {found}"


RUNNING = [name for name in CASES if CASES[name].runs]


def obey(name: str, policy: str) -> None:
    """Remove all that may go, and half of it; there must be something, and sliced must equal masked."""
    trial = Trial(name, policy)
    for all_of_it in (True, False):
        removed = trial.plan(all_of_it)
        assert removed.any()
        trial.check(removed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", RUNNING)
def test_sliced_equals_masked(name: str, policy: str) -> None:
    obey(name, policy)


@pytest.mark.parametrize(("name", "policy"), [(n, p) for n in RUNNING for p in CASES[n].left])
def test_what_is_left(name: str, policy: str) -> None:
    trial = Trial(name, policy)
    check_left(trial.sliced(trial.plan(all_of_it=True)), CASES[name].left[policy])


@pytest.mark.parametrize(("name", "policy"), [(n, p) for n in CASES if not CASES[n].runs for p in CASES[n].left])
def test_what_is_left_where_there_is_no_kernel(name: str, policy: str) -> None:
    trial = Trial(name, policy)
    removed = trial.plan(all_of_it=True)
    small = trial.sliced(removed)
    check_left(small, CASES[name].left[policy])
    inferred = infer(small, {info.name: trial.coupling.shapes[info.name] for info in small.inputs})
    assert not inferred.misfits
    for node in small.nodes:
        expected = new_shape(
            trial.coupling.shapes[node.outputs[0]],
            kept_masks(trial.coupling.factors.get(node.outputs[0], ()), removed),
        )
        assert inferred.shape[node.outputs[0]] == expected, node.label


@pytest.mark.parametrize("name", RUNNING)
def test_shapes_are_inferred_as_they_are(name: str) -> None:
    trial = Trial(name, "balanced")
    scope = infer(trial.graph, {info.name: trial.coupling.shapes[info.name] for info in trial.graph.inputs})
    outs = [out for node in trial.graph.nodes for out in node.outputs if out]
    found = runtime.session(trial.graph, optimise="off", threads=1, taps=outs).run(trial.feeds)
    for out in outs:
        if out in scope.shape or not set(out) & set("0123"):
            assert scope.shape[out] == found[out].shape, out
            assert scope.types[out].tensor_type.elem_type == helper.np_dtype_to_tensor_dtype(found[out].dtype), out


@pytest.mark.parametrize("kernel", [(3, 3, 4), (4, 3, 3)], ids=["kernel first", "channels first"])
def test_convolutions_with_channels_last_are_followed(kernel: tuple[int, ...]) -> None:
    net = Net("nhwc")
    x = net("MatMul", net.input("x", [1, 5, 5, 3], (1, 5, 5, 3)), net.weight(3, 4, fan_in=3, stem="into"))
    z = net("MatMul", net.input("z", [1, 3, 3, 3], (1, 3, 3, 3)), net.weight(3, 6, fan_in=3, stem="beside"))
    y = net("NhwcFusedConv", x, net.weight(6, *kernel, fan_in=36, stem="filter"), net.vector(6), z, domain=MS)
    net.output(net("MatMul", y, net.weight(6, 2, fan_in=6, stem="out")), "y", [1, 3, 3, 2])
    graph = Graph(net.finish()[0])
    wide = {"matmul1": 4, "x": 3, "matmul2": 6, "z": 3, "nhwcfusedconv1": 6, "y": 2}
    shapes = {name: (1, 5, 5, size) if name in ("x", "matmul1") else (1, 3, 3, size) for name, size in wide.items()}
    shapes |= {name: graph.consts.shape(name) for name in graph.consts}
    coupling = analyse(graph, shapes, {}, dict.fromkeys(shapes, TensorProto.FLOAT))
    assert sorted(group.units.size for group in coupling.groups) == [4, 6]
    assert sorted(f.size for f in coupling.factors["filter1"]) == [4, 6]
    assert coupling.factors["beside1"][0].shape == (1, 6)
    assert not coupling.barriers


def held_by(name: str) -> str:
    """Join the reasons for which axes of a case are pinned."""
    return " ".join(entry.reason for entry in Trial(name, "balanced").coupling.pinned)


@pytest.mark.parametrize("name", ["attention_cache", "multi_head_cache", "group_query_cache", "fused_weights_cache"])
def test_a_cache_says_that_it_fixes_heads(name: str) -> None:
    assert "the KV cache 'past" in held_by(name)
    assert "fixes the heads and their size" in held_by(name)


# ---- wrong rows are caught -------------------------------------------------------------------------------------------
def nothing(_: Any) -> None:
    """Stand for a row that does nothing."""


def untied(step: Any) -> None:
    """Let the two indices of a rotated pair go apart."""
    step.read.update(range(len(step.node.inputs)))
    same(step)


def only_scale(r: Any) -> None:
    """Keep the number of heads."""
    r.node.set_attr("scale", 0.5)


WRONG: list[tuple[str, dict[str, Any], str, Callable[..., None], str]] = [
    ("attention", SIZES, "Attention", nothing, "balanced"),  # the scale follows the head size
    ("attention", SIZES, "Attention", only_scale, "whole"),
    ("attention", MASKS, "Attention", nothing, "balanced"),
    ("attention", DIMS, "Attention", same, "balanced"),
    ("multi_head", SIZES, f"{MS}::MultiHeadAttention", only_scale, "whole"),
    ("multi_head", MASKS, f"{MS}::MultiHeadAttention", nothing, "balanced"),
    ("group_query", SIZES, f"{MS}::GroupQueryAttention", nothing, "whole"),
    ("group_query", MASKS, f"{MS}::GroupQueryAttention", nothing, "balanced"),
    ("fused_weights", SIZES, f"{MS}::Attention", nothing, "whole"),
    ("fused_weights", MASKS, f"{MS}::Attention", nothing, "balanced"),
    ("rotary", DIMS, "RotaryEmbedding", untied, "balanced"),
    ("rotary", SIZES, "RotaryEmbedding", nothing, "whole"),
    ("rotary_interleaved_part", SIZES, "RotaryEmbedding", nothing, "balanced"),
    ("skip_norm", MASKS, f"{MS}::SkipLayerNormalization", nothing, "balanced"),
    ("embed_norm", MASKS, f"{MS}::EmbedLayerNormalization", nothing, "balanced"),
    ("product_trans_both", MASKS, f"{MS}::FusedMatMul", nothing, "balanced"),
    ("fused_conv", MASKS, f"{MS}::FusedConv", nothing, "balanced"),
    ("bits", SIZES, f"{MS}::MatMulNBits", nothing, "balanced"),
    ("bits", MASKS, f"{MS}::MatMulNBits", nothing, "balanced"),
    ("lstm_bytes", SIZES, f"{MS}::DynamicQuantizeLSTM", nothing, "balanced"),
    ("lstm_bytes", MASKS, f"{MS}::DynamicQuantizeLSTM", nothing, "balanced"),
    ("experts", MASKS, f"{MS}::MoE", nothing, "balanced"),
    ("experts_quantised", MASKS, f"{MS}::QMoE", nothing, "balanced"),
]


@pytest.mark.parametrize(("name", "table", "op", "row", "policy"), WRONG, ids=[f"{w[0]}-{w[2]}-{w[4]}" for w in WRONG])
def test_a_wrong_row_is_caught(
    name: str, table: dict[str, Any], op: str, row: Callable[..., None], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(table, op, row)
    with pytest.raises((AssertionError, PruneError)):
        obey(name, policy)


# ---- the main job ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["attention_grouped", "rotary", "multi_head", "group_query", "fused_weights"])
def test_heads_go_and_the_rest_is_thinned(name: str) -> None:
    model, _ = built(name)
    steps = "select{scope=heads ratio=0.4},slice-channels,select{ratio=0.4 align=1},slice-channels,clean"
    result = prunepass.prune(model, pipeline=f"canonicalize,{steps}")
    assert result.report["certificate"]["status"] == "passed"
    heads = [
        node.attrs[key] for node in result.graph.nodes for key in ("q_num_heads", "num_heads") if key in node.attrs
    ]
    before = [a.i for node in model.graph.node for a in node.attribute if a.name in ("q_num_heads", "num_heads")]
    assert max(heads) < max(before)
    assert result.report["after"]["params"] < 0.6 * result.report["before"]["params"]


def test_experts_count_the_products_of_those_that_are_chosen() -> None:
    node = Node.make(f"{MS}::MoE", ["x"], ["y"], k=2, activation_type="swiglu", swiglu_fusion=1)
    shapes = [(10, 8), (10, 3), (3, 14, 8), None, (3, 8, 7)]
    assert MACS[node.op](node, shapes, [(10, 8)]) == 10 * 2 * (14 * 8 + 8 * 7)
    node = Node.make(f"{MS}::QMoE", ["x"], ["y"], k=1)
    shapes = [(10, 8), (10, 3), (3, 7, 4), (3, 7), None, (3, 8, 4), (3, 8), None, (3, 7, 4)]
    assert MACS[node.op](node, shapes, [(10, 8)]) == 10 * 3 * 7 * 8
