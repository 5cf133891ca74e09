"""Budgets of every kind, alone and together; what an amount may look like; nothing goes that no budget asks for."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from conftest import DIGITS

from fixtures import load_graph
from fixtures.tiny import TINY
from prunepass import load, prune
from prunepass.budgets import Budget, Budgets
from prunepass.cost import CostModel, cost_of, source_cost
from prunepass.errors import BudgetError, PipelineError
from prunepass.graph import Graph
from prunepass.manager import Facts, Pipeline
from prunepass.plan import Plan

NETWORKS = (
    "digits",
    "pytorchcv_resnet20_cifar10__ts11",
    "timm_test_efficientnet__ts13-dynb",
    "torchvision_squeezenet1_0__ts20",
    "torchvision_shufflenet_v2_x0_5__dy19-dynb-hw",
    "hf_bert_seqcls_eager__ts14",
    "hf_gpt2__dy19-dynb-seq",
)
COUNTED = ("macs", "params", "ram")


@functools.cache
def source(name: str) -> Graph:
    return load(DIGITS) if name == "digits" else load(TINY[name]()[0] if name in TINY else load_graph(name))


@functools.cache
def canonical(name: str) -> Facts:
    return Pipeline.parse("canonicalize").run(source(name).copy())


def select(name: str, text: str) -> tuple[CostModel, Plan, dict[str, float]]:
    """Return the cost model, the plan, and what it leaves of each kind as a share of the source."""
    facts = canonical(name)
    Pipeline.parse(f"select{{{text}}}").run_on(facts)
    plan, model, whole = facts.plan, facts.get("cost"), source_cost(facts)
    assert plan is not None
    assert plan.removed is not None
    left = model.predict(plan.removed)
    return model, plan, {kind: getattr(left, kind) / getattr(whole, kind) for kind in (*COUNTED, "bytes")}


AMOUNTS = [
    ("macs", 0.5, (0.5, 0)),
    ("macs", 1, (1, 0)),
    ("macs", "120M", (0, 120e6)),
    ("macs", "1.5G", (0, 1.5e9)),
    ("macs", 3000000.0, (0, 3e6)),
    ("params", "800k", (0, 8e5)),
    ("params", "123456", (0, 123456)),
    ("bytes", "256KB", (0, 256e3)),
    ("bytes", "256 KiB", (0, 256 * 1024)),
    ("bytes", "1.5mb", (0, 1.5e6)),
    ("ram", "4096B", (0, 4096)),
    ("latency", "8ms", (0, 8)),
    ("latency", "500us", (0, 0.5)),
    ("latency", ".5s", (0, 500)),
]


@pytest.mark.parametrize(("kind", "value", "expected"), AMOUNTS)
def test_amounts(kind: str, value: float | str, expected: tuple[float, float]) -> None:
    found = Budget.parse(kind, value)
    assert (found.share, found.amount) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("macs", 0), ("macs", -1), ("macs", 1.5), ("macs", "8ms"), ("params", "2x"), ("bytes", "KB"), ("ram", "1e6B"),
     ("ram", 2.5), ("latency", 8.0), ("latency", "8"), ("latency", "8MB"), ("macs", ""), ("macs", "0M"),
     ("macs", float("nan"))],
)  # fmt: skip
def test_what_is_no_amount(kind: str, value: float | str) -> None:
    with pytest.raises(PipelineError, match=f"{kind}=.* must be above 0 and at most 1, or an amount such as"):
        Budget.parse(kind, value)


@pytest.mark.parametrize(
    ("exponential", "expected"), [(False, [100, 82, 64, 46, 28]), (True, [100, 72.7, 52.9, 38.5, 28])]
)
def test_schedules(exponential: bool, expected: list[float]) -> None:
    budget = Budget("macs", share=0.28)
    assert [budget.limit(100, i / 4, exponential) for i in range(5)] == pytest.approx(expected, abs=0.05)
    assert Budget("macs", amount=28).limit(100, 0.5, exponential) == pytest.approx(expected[2], abs=0.05)
    assert Budget("macs", amount=280).limit(100, 0.5, exponential) == 280


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", COUNTED)
@pytest.mark.parametrize("share", [pytest.param(0.7, marks=pytest.mark.slow), 0.45])
def test_each_kind_is_met(name: str, kind: str, share: float) -> None:
    """At the least reachable amount where the share is below it: the error says which."""
    for align, near in ((1, 0.05 if kind == "ram" else 0.02), (8, 0.25)):
        try:
            model, plan, left = select(name, f"{kind}={share} align={align}")
        except BudgetError as error:
            least = float(re.search(r"is (\d\.\d+)", str(error)).group(1))  # type: ignore[union-attr]
            assert least > share
            model, plan, left = select(name, f"{kind}={least} align={align}")
            assert left[kind] <= least
            continue
        assert left[kind] <= share
        assert left[kind] >= (1 - near) * share, align
        assert plan.coupling is not None
    assert isinstance(model, CostModel)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_prediction_is_the_recount(name: str) -> None:
    facts = Facts(canonical(name).graph.copy(), canonical(name).context)
    Pipeline.parse("select{macs=0.6 ram=0.9 align=1}").run_on(facts)
    assert facts.plan is not None
    predicted = facts.get("cost").predict(facts.plan.removed)
    Pipeline.parse("slice-channels").run_on(facts)
    counted = cost_of(facts.graph, facts.get("shapes")).total
    assert (predicted.macs, predicted.ram) == (counted.macs, counted.ram)


@pytest.mark.parametrize("name", ["digits", "pytorchcv_resnet20_cifar10__ts11", "hf_bert_seqcls_eager__ts14"])
def test_several_at_once(name: str) -> None:
    shares = {"macs": 0.6, "params": 0.8, "ram": 0.9, "bytes": 0.85}
    text = " ".join(f"{kind}={share}" for kind, share in shares.items())
    _, _, left = select(name, f"{text} align=1")
    assert all(left[kind] <= share for kind, share in shares.items())
    assert max(left[kind] / share for kind, share in shares.items()) > 0.98
    report = prune(source(name), **shares, align=1, verify=False).report
    assert all(report["after"][kind] <= share * report["before"][kind] for kind, share in shares.items())


def test_amounts_and_shares_agree() -> None:
    whole = source_cost(canonical("digits"))
    for kind in (*COUNTED, "bytes"):
        _, one, _ = select("digits", f"{kind}=0.5 align=1")
        _, two, _ = select("digits", f"{kind}={round(0.5 * getattr(whole, kind))} align=1")
        assert np.array_equal(one.removed, two.removed)


def test_a_budget_above_the_model_removes_nothing() -> None:
    _, plan, _ = select("digits", "macs=999G ram=1GB align=1")
    assert plan.removed is not None
    assert not plan.removed.any()


def test_ram_takes_only_what_is_alive_at_the_peak() -> None:
    """The late layers of the network are small: they have no part in its peak."""
    facts = canonical("digits")
    _, plan, left = select("digits", "ram=0.7 align=1")
    lost = {group.name: group.removed for group in plan.groups}
    assert left["ram"] == pytest.approx(0.7, abs=0.01)
    assert lost["stem.conv.weight"] + lost["block1.conv1.weight"] > 0
    assert lost["head.conv.weight"] == lost["block2.conv1.weight"] == 0
    _, naive, _ = select("digits", "params=0.5 align=1")
    assert sum(lost.values()) < sum(group.removed for group in naive.groups)
    assert facts.get("cost").predict(plan.removed).params > 0.8 * facts.get("cost").total.params


def test_nothing_is_removed_in_vain() -> None:
    """Every last event of a group is needed: to take it back breaks a budget."""
    model, plan, _ = select("digits", "ram=0.5 macs=0.8 align=8")
    whole, removed, coupling = source_cost(canonical("digits")), plan.removed, plan.coupling
    assert removed is not None
    assert coupling is not None
    budgets = Budgets(model, {"ram": 0.5 * whole.ram, "macs": 0.8 * whole.macs})
    assert budgets.used(removed) <= 1
    for group in coupling.groups:
        gone = group.units[removed[group.units]]
        if gone.size:
            trial = removed.copy()
            trial[gone] = False
            assert budgets.used(trial) > 1 or budgets.used(removed) > 0.99, group.name


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ram=0.01", ["ram=0.01 cannot be reached", "bytes): while ", "are alive; see `prunepass inspect`"]),
        ("ram=1KB", ["ram=1,000 bytes cannot be reached", "while "]),
        ("macs=1k", ["macs=1,000 cannot be reached", "most MACs are left in Conv"]),
        ("params=0.001", ["params=0.001 cannot be reached", "most params are left in"]),
        ("macs=0.9 params=0.001", ["params=0.001 cannot be reached"]),
        ("bytes=1000", ["bytes=1,000 bytes cannot be reached"]),
    ],
)
def test_what_cannot_be_reached(text: str, parts: list[str]) -> None:
    with pytest.raises(BudgetError) as caught:
        select("digits", f"{text} align=1")
    assert all(part in str(caught.value) for part in parts), str(caught.value)


# Schedules, and ratios by name


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
@pytest.mark.parametrize("text", ["ratio=0.6", "macs=0.4", "ram=0.5", "params=0.5 ram=0.8"])
def test_steps_reach_the_goal(schedule: str, text: str) -> None:
    _, one, _ = select("digits", f"{text} align=1")
    _, many, left = select("digits", f"{text} align=1 steps=3 schedule={schedule} criterion=fpgm")
    for option in text.split() if "ratio" not in text else ():
        kind, _, share = option.partition("=")
        assert left[kind] <= float(share)
    if "ratio" in text:
        assert sum(g.removed for g in many.groups) == pytest.approx(sum(g.removed for g in one.groups), abs=3)


def test_ratios_by_name() -> None:
    _, plan, _ = select("digits", "ratio=0.5 align=1 ratios=block1:0.25,head.conv:0")
    lost = {group.name: group.removed / group.units for group in plan.groups}
    assert lost["block1.conv1.weight"] == 0.25
    assert lost["head.conv.weight"] == 0
    assert max(lost.values()) > 0.3


def test_ratios_by_name_with_a_budget() -> None:
    _, plan, left = select("digits", "macs=0.6 align=1 ratios=^stem:0.5")
    lost = {group.name: group.removed / group.units for group in plan.groups}
    assert lost["stem.conv.weight"] == 0.5
    assert 0.58 < left["macs"] <= 0.6


def test_max_ratios_by_name() -> None:
    _, plan, _ = select("digits", "ratio=0.8 align=1 max_ratios=block2:0.25,stem:0.5")
    lost = {group.name: group.removed / group.units for group in plan.groups}
    assert lost["block2.conv1.weight"] <= 0.25
    assert lost["stem.conv.weight"] <= 0.5
    assert lost["head.conv.weight"] > 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratios=stem", "must be REGEX:RATIO"),
        ("ratios=stem:2", "must be REGEX:RATIO"),
        ("max_ratios=(:0.5", "must be REGEX:RATIO"),
        ("schedule=cubic", "schedule"),
        ("ratio=0.5 ram=0.5", "ratio and ram do not go together"),
        ("latency=3", "latency=3.0 must be above 0 and at most 1, or an amount such as 8ms"),
        ("threads=0", "threads and batch must be at least 1"),
    ],
)
def test_bad_options(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=re.escape(message)):
        Pipeline.parse(f"select{{{text}}}")
