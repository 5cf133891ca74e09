"""Every row of the rule tables against onnxruntime: cutting commutes with the operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rule_bench import RECORDS, Trial, bench
from rule_table import Record

import prunepass
from fixtures.tiny import Net
from prunepass import runtime
from prunepass.coupling import analyse
from prunepass.ephemeral import mask_graph
from prunepass.errors import PruneError
from prunepass.graph import Graph
from prunepass.labels import Policy
from prunepass.plan import Plan
from prunepass.rules import DIMS, attention, control, experts, fused
from prunepass.rules.masks import MASKS
from prunepass.rules.sizes import SIZES
from prunepass.slicing import slice_graph

POLICIES: tuple[Policy, ...] = ("balanced", "whole", "aligned")


@pytest.mark.parametrize("number", range(len(RECORDS)), ids=[f"{i} {r}" for i, r in enumerate(RECORDS)])
def test_record(number: int) -> None:
    trial = Trial(number)
    trial.check()
    if trial.has_blocks or trial.record.policy != "balanced":
        for policy in POLICIES:
            if policy != trial.record.policy:
                Trial(number, policy).check_masked(1.0)


def test_computed_sizes_stay_dynamic() -> None:
    """A size that is computed from dynamic axes is right for others than those of the analysis, too."""
    net = Net("dynamic")
    y = net("Conv", net.input("x", ["n", 3, "h"], (2, 3, 4)), net.weight(8, 3, 1, fan_in=3))
    n, c, h = net.sizes_of(y, 3)
    y = net("Mul", y, net("Expand", net.const(2.0), net("Shape", y)))
    y = net("Reshape", y, net("Concat", n, net("Mul", c, h), axis=0))
    y = net("Reshape", y, net("Concat", n, net.const([8]), h, axis=0))
    net.output(net("Conv", y, net.weight(2, 8, 1, fan_in=8)), "y", ["n", 2, "h"])
    model, feeds = net.finish()
    result = prunepass.prune(model, 0.5, align=1, shapes={"x": feeds["x"].shape})
    plan = result.plan
    assert plan is not None and plan.coupling is not None and plan.removed is not None and plan.removed.sum() == 4
    known = plan.coupling
    masked = mask_graph(Graph(model), known.shapes, known.elem_types, known.factors, plan.removed)
    larger = {"x": net.rng.standard_normal((3, 3, 7), np.float32)}
    expected, found = (runtime.session(g, threads=1).run(larger)["y"] for g in (masked, result.graph))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# ---- the tables as such ----------------------------------------------------------------------------------------------
TABLES: dict[str, dict[str, Any]] = {"dims": DIMS, "sizes": SIZES, "masks": MASKS}
ELSEWHERE = {
    attention: "test_attention",
    experts: "test_attention",
    fused: "test_attention",
    control: "test_control_flow",
}
"""Rules that need networks of their own, and where these are."""
UNREACHED = set("Constant Range RandomNormal RandomUniform SequenceEmpty SequenceErase SequenceLength".split())
UNREACHED.add("ConcatFromSequence")
"""Operators that no label reaches: a row says that they are known, and changes nothing."""

NUMBERS: dict[str, list[int]] = {}
for _number, _record in enumerate(RECORDS):
    NUMBERS.setdefault(_record.op, []).append(_number)
ROWS = [
    (name, op)
    for name, table in TABLES.items()
    for op, row in table.items()
    if row.__module__ not in {module.__name__ for module in ELSEWHERE}
    and (op in NUMBERS or not op.startswith("com.microsoft::"))
]


def failing(op: str) -> list[Record]:
    """Return the first record of an operator that does not hold."""
    for number in NUMBERS[op]:
        try:
            Trial(number).check()
        except (AssertionError, PruneError):
            return [RECORDS[number]]
    return []


def test_every_row_has_a_record() -> None:
    assert sorted({op for _, op in ROWS} - NUMBERS.keys()) == []
    assert sorted(NUMBERS.keys() - DIMS.keys()) == []
    for other in ELSEWHERE.values():
        assert Path(__file__).with_name(f"{other}.py").exists(), other


@pytest.mark.parametrize(("table", "op"), ROWS)
def test_records_miss_a_missing_row(table: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TABLES[table], op)
    assert bool(failing(op)) == (op not in UNREACHED)


def test_every_operator_exists() -> None:
    known = {(schema.name, schema.domain) for schema in onnx.defs.get_all_schemas_with_history()}
    for op in {op for table in TABLES.values() for op in table}:
        domain, _, name = op.rpartition("::")
        assert (name, domain) in known or runtime.has_operator(name, domain, 99), op


@pytest.fixture
def documented() -> Iterator[None]:
    """Register the rules of docs/labels.md."""
    before = {name: set(table) for name, table in TABLES.items()}
    text = (Path(__file__).parents[1] / "docs" / "labels.md").read_text(encoding="utf-8")
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), {})
    yield
    for name, table in TABLES.items():
        for op in set(table) - before[name]:
            del table[op]


@pytest.mark.usefixtures("documented")
def test_documented_rules_do_what_the_text_says() -> None:
    net = Net("documented")
    left, right = (
        net("MatMul", net.input(name, [2, 3], (2, 3)), net.weight(3, size, fan_in=3))
        for name, size in (("a", 4), ("b", 5))
    )
    y = net("Bilinear", left, right, net.weight(6, 4, 5, fan_in=20), domain="my.ops", out_features=6)
    y = net("RunningMax", net("Squareplus", y, domain="my.ops"), domain="my.ops", axis=0)
    net.output(net("MatMul", y, net.weight(6, 2, fan_in=6)), "y", [2, 2])
    graph = Graph(net.finish()[0])
    widths = {"bilinear1": 6, "squareplus1": 6, "runningmax1": 6, "matmul1": 4, "matmul2": 5, "y": 2, "a": 3, "b": 3}
    shapes = {name: (2, width) for name, width in widths.items()} | {n: graph.consts.shape(n) for n in graph.consts}
    coupling = analyse(graph, shapes, {}, {})
    assert sorted(g.units.size for g in coupling.groups) == [4, 5, 6]
    bilinear = next(n for n in graph.nodes if n.op == "my.ops::Bilinear")
    removed = np.zeros(coupling.n_units, bool)
    removed[coupling.factors["bilinear1"][0].reshape(-1)[:2]] = True
    slice_graph(graph, Plan.of(graph, coupling, removed))
    assert bilinear.attr("out_features") == 4
    assert graph.consts.shape(bilinear.inputs[2]) == (4, 4, 5)


SAMPLE = {DIMS[r.op]: number for number, r in enumerate(RECORDS) if r.op in DIMS and any(map(str.isalpha, r.spec))}


@pytest.mark.parametrize("number", SAMPLE.values(), ids=[str(RECORDS[n]) for n in SAMPLE.values()])
def test_select_removes_what_a_record_says_may_go(number: int) -> None:
    shapes = {name: feed.shape for name, feed in bench(number).feeds.items()}
    result = prunepass.prune(bench(number).model, 0.5, align=1, shapes=shapes)
    assert result.plan is not None
    assert any(group.removed for group in result.plan.groups)
    assert result.report["certificate"]["status"] == "passed"
