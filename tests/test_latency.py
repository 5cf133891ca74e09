"""Latency as a budget, with clocks that tell what a made-up machine would take; and one run on this machine."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import DIGITS

from fixtures.tiny import TINY
from prunepass import latency, load, optable, prune, runtime, speedup, stopwatch
from prunepass.cli import main
from prunepass.cost import cost_of
from prunepass.errors import BudgetError, PipelineError
from prunepass.graph import Graph
from prunepass.manager import Context, Facts, Pipeline
from prunepass.optable import Table, cache_folder, kernels
from prunepass.stopwatch import Setting

Machine = Callable[[Graph], float]


def macs_of(graph: Graph) -> list[tuple[int, int]]:
    """Return MACs and the narrowest width of the weight of each node that multiplies."""
    shapes = {name: (1, 1, 8, 8) for name in graph.input_names if name == "image"}
    cost = cost_of(graph, Facts(graph.copy(), Context(shapes=shapes)).get("shapes"))
    rows = zip(cost.nodes, cost.node_macs)
    return [(macs, min(graph.consts.shape(node.inputs[1])[:2])) for node, macs in rows if macs]


def proportional(graph: Graph) -> float:
    return 1e-6 * sum(macs for macs, _ in macs_of(graph)) + 0.05


def concave(graph: Graph) -> float:
    """Take more than the MACs say, the less there is."""
    return 1e-3 * float(sum(macs for macs, _ in macs_of(graph))) ** 0.7


def wide(graph: Graph) -> float:
    """Compute 16 channels at once, whether there are as many or not."""
    return 1e-6 * sum(macs * (-(-width // 16) * 16) / width for macs, width in macs_of(graph))


def constant(graph: Graph) -> float:
    return 3.0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Machine], None]:
    """Let the clock show what a machine takes, for whole models and for single kernels."""
    monkeypatch.setenv("PRUNEPASS_CACHE", str(tmp_path))

    def use(takes: Machine) -> None:
        class Session:
            def __init__(self, model: Graph | bytes) -> None:
                self.ms = takes(Graph(onnx.load_from_string(model)) if isinstance(model, bytes) else model)

        monkeypatch.setattr(Setting, "session", lambda self, model: Session(model))
        monkeypatch.setattr(optable, "quickest_ms", lambda session, *_: session.ms)
        monkeypatch.setattr(latency, "in_turn_ms", lambda sessions, *_: (sessions[0].ms, sessions[1].ms))

    return use


@pytest.mark.parametrize("takes", [proportional, concave, wide])
@pytest.mark.parametrize("share", [0.8, 0.5])
@pytest.mark.parametrize("align", [1, 8])
def test_the_time_is_met(
    takes: Machine, share: float, align: int, machine: Callable[[Machine], None], caplog: pytest.LogCaptureFixture
) -> None:
    machine(takes)
    result = prune(DIGITS, latency=share, align=align, verify=False)
    found = result.report["latency"]
    assert found["after_ms"] == pytest.approx(takes(result.graph), rel=1e-3)
    assert found["before_ms"] == pytest.approx(takes(load(DIGITS)), rel=1e-3)
    assert 0.75 * share < takes(result.graph) / takes(load(DIGITS)) <= share
    assert found["macs_ratio"] == pytest.approx(
        result.report["after"]["macs"] / result.report["before"]["macs"], rel=0.01
    )
    assert found["align"] % align == 0
    if takes is proportional:
        assert not caplog.records


def test_align_is_raised_where_that_helps(machine: Callable[[Machine], None]) -> None:
    machine(wide)
    found = prune(DIGITS, latency=0.6, align=1, verify=False).report["latency"]
    assert found["align"] == 16
    machine(proportional)
    assert prune(DIGITS, latency=0.6, align=1, verify=False).report["latency"]["align"] == 1


def test_a_time_in_milliseconds(machine: Callable[[Machine], None]) -> None:
    machine(proportional)
    result = prune(DIGITS, latency="4ms", macs=0.9, align=1, verify=False)
    assert 3.7 < result.report["latency"]["after_ms"] <= 4.0


def test_what_cannot_get_faster(machine: Callable[[Machine], None]) -> None:
    machine(constant)
    with pytest.raises(
        BudgetError, match=r"latency=0\.6 cannot be reached; the least with align=8 is 1\.0000 \(3 ms\)"
    ):
        prune(DIGITS, latency=0.6)


def test_a_time_that_falls_at_the_very_end(machine: Callable[[Machine], None]) -> None:
    """What is measured falls only when nearly everything is gone, which no prediction says."""

    def cliff(graph: Graph) -> float:
        total = sum(macs for macs, _ in macs_of(graph))
        return 1e-6 * total if total < 300_000 else 3 + 1e-6 * total

    machine(cliff)
    found = prune(DIGITS, latency=0.2, align=1, verify=False).report["latency"]
    assert found["ratio"] <= 0.2


def test_little_speed_up_is_explained(machine: Callable[[Machine], None], caplog: pytest.LogCaptureFixture) -> None:
    """Half of the time is gone only when nearly all MACs are: every kernel takes a while whatever its size."""

    def slow(graph: Graph) -> float:
        return 1e-6 * sum(macs for macs, _ in macs_of(graph)) + 0.9 * len(macs_of(graph))

    machine(slow)
    with caplog.at_level(logging.WARNING):
        found = prune(DIGITS, latency=0.75, verify=False).report["latency"]
    assert found["realised"] < 0.5
    assert any(reason.startswith("overhead:") for reason in found["reasons"])
    assert "of the MACs are gone, but" in caplog.text


def test_steps_end_with_a_measurement(machine: Callable[[Machine], None]) -> None:
    machine(concave)
    text = "canonicalize,select{latency=0.6 steps=3 align=1 schedule=exponential},slice-channels,clean"
    result = prune(DIGITS, pipeline=text, verify=False)
    assert 0.5 < result.report["latency"]["ratio"] <= 0.6


# The table of operators


def test_kernels_hold_what_can_be_fused() -> None:
    graph = Pipeline.parse("canonicalize").run(load(DIGITS)).graph
    found = kernels(graph)
    assert sum(map(len, found)) == len(graph.nodes)
    assert ["Conv", "BatchNormalization", "Relu"] in [[node.op for node in chain] for chain in found]
    assert all(len(chain) == 1 for chain in found if chain[0].op in ("Add", "Concat"))


def entries(folder: Path) -> dict[str, float]:
    known: dict[str, float] = json.loads((folder / "operators.json").read_text())
    return known


ONE = Setting()


def measure(name: str, folder: Path, setting: Setting = ONE) -> Table:
    """Measure the kernels of a small network."""
    facts = Pipeline.parse("canonicalize").run(load(TINY[name]()[0]))
    table, shapes = Table(setting, folder), facts.get("shapes")
    for chain in kernels(facts.graph):
        table.time_ms(facts.graph, chain, shapes.shape, shapes.elem_type)
    table.save()
    return table


@pytest.mark.parametrize("name", ["residual", "attention", "depthwise"] if "depthwise" in TINY else ["residual"])
def test_the_table_is_kept(name: str, tmp_path: Path) -> None:
    first = measure(name, tmp_path)
    assert first.measured == len(entries(tmp_path)) > 3
    assert any(ms for ms in first.times.values())
    again = measure(name, tmp_path)
    assert again.measured == 0
    assert again.times == first.times
    assert measure(name, tmp_path, Setting(threads=2)).measured == first.measured


def test_a_broken_table_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "operators.json").write_text("[1, 2")
    assert measure("residual", tmp_path).measured > 0
    assert "cannot be read and is made anew" in caplog.text
    assert entries(tmp_path)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    measure("residual", tmp_path / "file" / "folder")
    assert "cannot be written" in caplog.text


def test_where_the_table_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PRUNEPASS_CACHE", raising=False)
    assert cache_folder() == tmp_path / "prunepass"
    monkeypatch.setenv("PRUNEPASS_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    assert cache_folder("given") == Path("given")


# The stopwatch, and this machine


class Sleeper:
    """Stand in for a session; its runs take as long as they are told."""

    def __init__(self, *ms: float) -> None:
        self.ms, self.runs = itertools.cycle(ms), 0

    def run(self, feeds: object) -> None:
        self.runs += 1
        Sleeper.now += next(self.ms) / 1e3

    now = 0.0


def test_medians_of_runs_in_turn() -> None:
    a, b = Sleeper(5, 5, 90), Sleeper(2, 3, 2)
    found = stopwatch.in_turn_ms((a, b), {}, lambda: Sleeper.now, 0.5)  # type: ignore[arg-type]
    assert found == (pytest.approx(5), pytest.approx(2))
    assert a.runs == b.runs >= 12
    assert stopwatch.quickest_ms(Sleeper(9, 4, 6), {}, lambda: Sleeper.now, 0.05) == pytest.approx(4)  # type: ignore[arg-type]


def test_settings() -> None:
    with pytest.raises(
        PipelineError, match=r"provider='Nonsense' is not available here; known: .*CPUExecutionProvider"
    ):
        Setting(provider="Nonsense").check()
    graph = load(DIGITS)
    assert latency.input_shapes(graph, {"image": (1, 1, 8, 8)}, 4) == {"image": (4, 1, 8, 8)}
    fixed = load(TINY["residual"]()[0])
    shapes = Facts(fixed).get("shapes").shape
    dims = fixed.inputs[0].type.tensor_type.shape.dim
    expected = 4 if not dims[0].HasField("dim_value") else shapes[fixed.input_names[0]][0]
    assert latency.input_shapes(fixed, shapes, 4)[fixed.input_names[0]][0] == expected
    assert runtime.session(graph, provider=runtime.CPU).input_names == ("image",)


@pytest.mark.parametrize("options", [[], pytest.param(["--threads", "2", "--batch", "4"], marks=pytest.mark.slow)])
def test_on_this_machine(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The time is met to what a busy machine allows; the table stands where it was asked for."""
    monkeypatch.chdir(tmp_path)
    command = [str(DIGITS), "--latency", "0.8", "-o", "out.onnx", "--report", "report.json", "--cache", "times"]
    assert main([*command, *options]) == 0
    found = json.loads(Path("report.json").read_text())["latency"]
    assert found["ratio"] < 1.1 or options, "with several threads the clock on the wall tells more of other work"
    assert 0 < found["after_ms"] < 1000
    assert found["macs_ratio"] <= 1
    assert "% of the time for" in capsys.readouterr().out
    assert len(entries(Path("times"))) > 10


def test_reasons_name_what_is_slow() -> None:
    assert speedup.Speedup(10, 6, 0.5, 8).realised == pytest.approx(0.8)
    assert speedup.Speedup(10, 10, 1.0, 8).realised == 1
    assert json.loads(json.dumps(speedup.Speedup(10, 6, 0.5, 8).to_json()))["ratio"] == 0.6


def test_fit_recovers_a_line() -> None:
    macs, moved = np.array([8e6, 4e6, 2e6, 1e6]), np.array([3e4, 2.5e4, 1e4, 0.9e4])
    a, b, c = latency._fit(macs, moved, 0.02 + 3e-7 * macs + 2e-6 * moved)
    assert (a, b, c) == pytest.approx((0.02, 3e-7, 2e-6), rel=0.05)
    assert min(latency._fit(macs, moved, np.array([1.0, 1.2, 1.1, 0.9]))) >= 0
