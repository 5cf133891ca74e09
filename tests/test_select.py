"""What is selected: ratios and budgets as promised, alignment, names to keep, scopes, steps; never an empty axis."""

from __future__ import annotations

import functools
import logging
import re

import numpy as np
import pytest
from conftest import DIGITS

from fixtures import INDEX, load_graph
from fixtures.tiny import TINY
from prunepass import load, prune
from prunepass.cost import CostModel, source_cost
from prunepass.criteria import criteria
from prunepass.errors import BudgetError, PipelineError
from prunepass.graph import Graph
from prunepass.kept import kept_masks, new_shape
from prunepass.labels import spans
from prunepass.manager import Context, Facts, Pipeline, build
from prunepass.plan import Plan
from prunepass.selection import unit_floor

CNNS = [
    "custom_mnist_cnn__ts7",
    "hf_bit_hf__ts18-dynb",
    "hf_regnet_hf__dy18",
    "jax_resblock_dw__jx21-dynb",
    "mindspore_resnet__orig",
    "post_custom_mnist_cnn__qop",
    "pytorchcv_resnet20_cifar10__ts11",
    "timm_test_efficientnet__ts13-dynb",
    "torchvision_squeezenet1_0__ts20",
]
ALL_CNNS = [entry.name for entry in INDEX if entry.family == "cnn"]
SLOW_CNNS = [pytest.param(name, marks=pytest.mark.slow) for name in ALL_CNNS if name not in CNNS]
BUDGETS = ("macs", "params", "bytes")
SMALL = {name: {"image": (1, 3, 16, 16)} for name in ("conv_chain", "pixel_shuffle")}
"""Sizes for networks that take images of any size."""


@functools.cache
def canonical(name: str) -> Facts:
    """Return the facts of a canonical model; select does not change it."""
    graph = load(DIGITS) if name == "digits" else load(TINY[name]()[0] if name in TINY else load_graph(name))
    return Pipeline.parse("canonicalize").run(graph)


def select(name: str, named: tuple[str, ...] = (), **options) -> tuple[Facts, Plan]:
    """Return facts and plan of a selection on a model by name."""
    facts = canonical(name)
    facts.context.keep = named
    Pipeline.of(build("select", **{"align": 1, **options})).run_on(facts)
    assert facts.plan is not None
    assert facts.plan.removed is not None
    return facts, facts.plan


def lost(plan: Plan) -> list[float]:
    """Return the share of its units that each group loses."""
    return [group.removed / group.units for group in plan.groups]


def total(plan: Plan) -> float:
    return sum(g.removed for g in plan.groups) / sum(g.units for g in plan.groups)


def shapes_after(facts: Facts, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return what is left of every value, by its labels."""
    assert plan.coupling is not None
    coupling = plan.coupling
    known = {**coupling.shapes, **{name: facts.graph.consts.shape(name) for name in facts.graph.consts}}
    return {n: new_shape(known[n], kept_masks(f, plan.removed)) for n, f in coupling.factors.items() if n in known}


# Ratios


@pytest.mark.parametrize("name", ["digits", *TINY])
@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
def test_a_ratio_is_met_to_half_a_step(name: str, scope: str, ratio: float) -> None:
    facts, plan = select(name, ratio=ratio, scope=scope)
    rows = [len(group.units) for group in facts.get("coupling").groups]
    counts = [group.units for group in plan.groups]
    if scope == "local":
        assert all(abs(g.removed - ratio * g.units) <= r / 2 + 1 for g, r in zip(plan.groups, rows))
    elif scope == "global":
        assert abs(total(plan) - ratio) * sum(counts) <= max(rows) / 2 + 1
    else:
        assert abs(total(plan) - ratio) * sum(counts) <= sum(rows) / 2 + len(rows)
    assert ratio > 0 or not plan.tensors


def test_global_takes_the_least_important_units() -> None:
    facts, plan = select("conv_chain", ratio=0.4)
    scores = facts.get("importance", criterion="l2").scores
    assert scores[1:][plan.removed[1:]].max() <= scores[1:][~plan.removed[1:]].min()
    assert max(lost(plan)) - min(lost(plan)) > 0.05


def test_local_takes_the_same_share_everywhere() -> None:
    _, plan = select("conv_chain", ratio=0.5, scope="local")
    assert lost(plan) == [0.5] * len(plan.groups)


def test_isomorphic_ranks_equal_groups_together() -> None:
    """Twelve equal layers and one that is larger: the small ones share a ranking, the large one is by itself."""
    facts, plan = select("pytorchcv_resnet20_cifar10__ts11", ratio=0.5, scope="isomorphic")
    classes: dict[str, list[int]] = {}
    for i, group in enumerate(facts.get("coupling").groups):
        classes.setdefault(group.signature, []).append(i)
    assert 1 < len(classes) < len(plan.groups)
    for members in classes.values():
        own = [plan.groups[i] for i in members]
        units = sum(group.units for group in own)
        assert abs(sum(group.removed for group in own) - 0.5 * units) <= 1
    assert any(len({plan.groups[i].removed for i in members}) > 1 for members in classes.values())


@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_max_ratio_bounds_each_group(ratio: float) -> None:
    _, plan = select("digits", ratio=ratio, max_ratio=0.5)
    assert max(lost(plan)) <= 0.5
    assert total(plan) == pytest.approx(min(ratio, 0.5), abs=0.05)


# Budgets


@pytest.mark.parametrize("name", ["digits", *CNNS, *SLOW_CNNS])
@pytest.mark.parametrize("macs", [0.5, 0.8])
def test_macs_are_met_within_two_percent(name: str, macs: float) -> None:
    facts, plan = select(name, macs=macs)
    share = facts.get("cost").predict(plan.removed).macs / source_cost(facts).macs
    assert 0.98 * macs <= share <= macs


def source(name: str) -> Graph:
    return load(DIGITS) if name == "digits" else load(TINY[name]()[0] if name in TINY else load_graph(name))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("scope", ["global", "local", "isomorphic"])
@pytest.mark.parametrize("name", ["digits", "residual", "grouped_conv", "channel_shuffle", "attention", "split_chain"])
def test_the_result_keeps_to_the_budget(name: str, scope: str, budget: str) -> None:
    for share in (0.8, 0.55):
        report = prune(source(name), align=1, scope=scope, verify=False, **{budget: share}).report
        left = report["after"][budget] / report["before"][budget]
        assert 0.9 * share <= left <= share


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_and_alignment(budget: str) -> None:
    for align in (1, 2, 4):
        report = prune(DIGITS, align=align, verify=False, **{budget: 0.6}).report
        assert report["after"][budget] <= 0.6 * report["before"][budget]


@pytest.mark.parametrize("name", ["digits", *TINY, *CNNS[:4], "hf_bert_seqcls_eager__ts14", "hf_t5__ts17"])
@pytest.mark.parametrize("ratio", [0.2, 0.7])
def test_the_predicted_cost_is_the_cost(name: str, ratio: float) -> None:
    """MACs and parameters to the last one; bytes but for the nodes that slicing inserts."""
    facts = Pipeline.parse("canonicalize").run(source(name))
    model = facts.get("cost")
    Pipeline.parse(f"select{{ratio={ratio} align=1}}").run_on(facts)
    predicted = model.predict(facts.plan.removed)
    nodes = len(facts.graph.nodes)
    Pipeline.parse("slice-channels").run_on(facts)
    graph = facts.graph
    graph.consts = type(graph.consts)(graph.consts.proto(n) for n in graph.consts if n not in inserted(graph))
    counted = CostModel(facts.graph, Facts(facts.graph).get("shapes").shape, {}).total
    assert counted.macs == predicted.macs
    assert counted.params == predicted.params
    if len(facts.graph.nodes) == nodes:
        assert counted.bytes == pytest.approx(predicted.bytes, rel=0.03, abs=400)


def inserted(graph: Graph) -> set[str]:
    """Return constants that slicing replaced by private copies and left unused."""
    used = {name for node in graph.walk() for name in node.inputs} | set(graph.output_names)
    return {name for name in graph.consts if name not in used and graph.consts.elem_type(name) == 7}


@pytest.mark.parametrize(
    ("name", "budget", "share"), [("digits", "macs", 0.001), ("mlp", "params", 0.005), ("residual", "bytes", 0.02)]
)
def test_an_unreachable_budget_says_the_nearest(name: str, budget: str, share: float) -> None:
    facts = canonical(name)
    with pytest.raises(
        BudgetError, match=rf"select: {budget}={share} cannot be reached; the least with align=1 is "
    ) as caught:
        select(name, **{budget: share})
    nearest = float(re.search(r"is (0\.\d+)", str(caught.value)).group(1))  # type: ignore[union-attr]
    if budget == "bytes":  # predicted only up to what slicing inserts
        return
    _, plan = select(name, **{budget: nearest + 0.02})
    assert (
        getattr(facts.get("cost").predict(plan.removed), budget) / getattr(source_cost(facts), budget) <= nearest + 0.02
    )
    with pytest.raises(BudgetError):
        select(name, **{budget: nearest - 0.001})


# Alignment


@pytest.mark.parametrize("name", ["digits", *TINY, *CNNS[2:8]])
@pytest.mark.parametrize("align", [2, 4, 8])
def test_kept_channels_are_aligned(name: str, align: int) -> None:
    facts, plan = select(name, ratio=0.5, align=align)
    after, coupling = shapes_after(facts, plan), plan.coupling
    assert coupling is not None
    for group in coupling.groups:
        for tensor, axis in group.axes:
            labels = next((f for f in coupling.factors[tensor] if spans(f) == (axis,)), None)
            if (
                labels is not None
                and tensor in after
                and set(labels.flat) == set(group.units.flat)
                and plan.removed[labels].any()
            ):
                assert after[tensor][axis] % unit_floor(labels.size, align) == 0, (tensor, axis)


def test_alignment_costs_little() -> None:
    _, free = select("digits", ratio=0.5)
    _, aligned = select("digits", ratio=0.5, align=8)
    assert total(aligned) == pytest.approx(total(free), abs=0.1)


# Names to keep


@pytest.mark.parametrize("name", ["conv_chain", "residual", "attention", "pytorchcv_resnet20_cifar10__ts11"])
def test_what_is_named_stays_whole(name: str) -> None:
    facts, plan = select(name, ratio=0.7)
    for tensor in list(plan.tensors)[:4]:
        for named, option in (((re.escape(tensor),), ()), ((), (f"^{re.escape(tensor)}$",))):
            _, kept = select(name, named, keep=option, ratio=0.7)
            assert tensor not in kept.tensors
            assert kept.tensors
    node = next(n for n in facts.graph.nodes if n.name and any(i in plan.tensors for i in n.inputs))
    _, kept = select(name, (f"^{re.escape(node.name)}$",), ratio=0.7)
    assert not any(i in kept.tensors for i in node.inputs)
    assert shapes_after(facts, kept).get(node.outputs[0], ()) == facts.get("shapes").shape[node.outputs[0]]


def test_everything_can_be_kept() -> None:
    _, plan = select("conv_chain", (".",), ratio=0.9)
    assert plan.tensors == {}


def test_a_pattern_that_matches_nothing_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        select("conv_chain", ("stem",), ratio=0.5)
        select("conv_chain", ("conv",), ratio=0.5)
    assert [record.getMessage() for record in caplog.records] == [
        "keep: no value and no node has a name that matches 'stem'; nothing is kept for it"
    ]


# Nothing is ever emptied


@pytest.mark.parametrize(
    "name", ["digits", *TINY, *CNNS, "torchvision_shufflenet_v2_x0_5__dy19-dynb-hw", "hf_gpt2__dy19-dynb-seq"]
)
@pytest.mark.parametrize("policy", ["balanced", "whole", "aligned"])
@pytest.mark.parametrize("align", [1, 8])
def test_no_axis_is_emptied(name: str, policy: str, align: int) -> None:
    for scope in ("global", "local"):
        facts, plan = select(name, ratio=0.99, align=align, policy=policy, scope=scope)
        coupling = plan.coupling
        assert coupling is not None
        assert all(0 not in shape for shape in shapes_after(facts, plan).values())
        for group in coupling.groups:
            assert (~plan.removed[group.units]).any(axis=1).all()
        for factors in coupling.factors.values():
            assert all((~plan.removed[factor]).any() for factor in factors)


@pytest.mark.parametrize("name", ["digits", *TINY])
def test_the_extreme_result_is_certified(name: str) -> None:
    report = prune(source(name), ratio=0.99, align=1, shapes=SMALL.get(name)).report
    assert report["certificate"]["status"] == "passed"


# Steps, criteria, options


@pytest.mark.parametrize("options", [{"ratio": 0.6}, {"macs": 0.4}, {"ratio": 0.6, "scope": "local"}])
def test_steps_score_again_and_reach_the_same_goal(options: dict[str, float]) -> None:
    facts, one = select("digits", **options)
    _, many = select("digits", steps=4, **options)
    _, fpgm = select("digits", steps=4, criterion="fpgm", **options)
    assert total(many) == pytest.approx(total(one), abs=0.1)
    assert not np.array_equal(many.removed, one.removed) or not np.array_equal(fpgm.removed, one.removed)
    if "macs" in options:
        for plan in (one, many, fpgm):
            assert 0.98 * 0.4 <= facts.get("cost").predict(plan.removed).macs / source_cost(facts).macs <= 0.4


@pytest.mark.parametrize("criterion", [*criteria(), "random{seed=3}"])
def test_what_one_step_takes_the_next_one_keeps_out(criterion: str) -> None:
    _, half = select("residual", ratio=0.3, criterion=criterion)
    _, both = select("residual", ratio=0.6, steps=2, criterion=criterion)
    assert (both.removed >= half.removed).all()
    assert both.removed.sum() > half.removed.sum()


@pytest.mark.parametrize("criterion", [*criteria(), "random{seed=3}"])
def test_every_criterion_selects(criterion: str) -> None:
    _, plan = select("digits", ratio=0.5, criterion=criterion)
    assert total(plan) == pytest.approx(0.5, abs=0.02)
    assert max(lost(plan)) < 1


@pytest.mark.parametrize("reduce", ["mean", "sum", "max", "first"])
@pytest.mark.parametrize("normalise", ["auto", "mean", "max", "sum", "none", "lamp", "standardise"])
def test_every_way_of_scoring_selects(reduce: str, normalise: str) -> None:
    _, plan = select("residual", ratio=0.5, reduce=reduce, normalise=normalise)
    assert total(plan) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratio=1", "ratio=1.0 must be at least 0 and below 1"),
        ("ratio=-0.1", "ratio=-0.1 must be at least 0 and below 1"),
        ("macs=0", "macs=0.0 must be above 0 and at most 1"),
        ("params=1.5", "params=1.5 must be above 0 and at most 1"),
        ("ratio=0.5 macs=0.5", "ratio and macs do not go together"),
        ("align=0", "align and steps must be at least 1"),
        ("steps=0", "align and steps must be at least 1"),
        ("max_ratio=0", "max_ratio above 0 and at most 1"),
        ("max_ratio=1.1", "max_ratio above 0 and at most 1"),
        ("scope=some", "scope"),
        ("policy=some", "policy"),
        ("criterion=nothing", "nothing"),
        ("ratio=abc", "abc"),
        ("ratio=nan", "nan"),
    ],
)
def test_bad_options_are_refused(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=re.escape(message)) as caught:
        Pipeline.parse(f"select{{{text}}}")
    assert "\n" not in str(caught.value)


def test_a_model_with_nothing_to_select() -> None:
    facts = Pipeline.parse("canonicalize,select{ratio=0.5},slice-channels,clean").run(
        load(TINY["mlp"]()[0]), Context(keep=(".",))
    )
    assert facts.cuts == []
