"""Data and metric of a user: how they are given, what the report says of them, and that bad data make nothing worse."""

from __future__ import annotations

import functools
import itertools
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DIGITS, load_digits

import prunepass
from fixtures import accuracy, calibration
from prunepass import load
from prunepass.cli import main
from prunepass.errors import BudgetError, PruneError
from prunepass.graph import Graph
from prunepass.job import Result
from prunepass.manager import Context, Facts, Pipeline
from prunepass.recovery import sequential
from prunepass.recovery.batches import from_arrays
from prunepass.recovery.judging import distances
from prunepass.recovery.ridge import Fit
from prunepass.request import default_pipeline
from prunepass.runtime import session

IMAGES = load_digits()["calibration"]
TEST = [{"image": load_digits()["image"]}]
SOURCE = load(DIGITS)
USER = """
import numpy as np
images = np.load("digits.npz")["calibration"]
number = 7

def data():
    for at in range(0, 64, 16):
        yield {"image": images[at:at + 16]}

def arrays(): return {"image": images[:64]}
def wrong(): return 5
def text(): yield "image"
def broken():
    yield {"image": images[:8]}
    raise KeyError("no more")
def nothing(): return []
def bytes8(): yield {"image": images[:8].astype(np.uint8)}
def quits(): raise SystemExit(3)
def quality(run): return float(run({"image": images[:8]})["logits"].std())
def words(run): return "good"
def fails(run): return run({"picture": images})
def endless(run): return float("nan")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder with model.onnx, digits.npz and functions of a user, which are forgotten afterwards."""
    shutil.copy(DIGITS, tmp_path / "model.onnx")
    shutil.copy(DIGITS.with_suffix(".npz"), tmp_path / "digits.npz")
    (tmp_path / "mine.py").write_text(USER)
    (tmp_path / "torn.py").write_text("import nowhere_to_be_found")
    (tmp_path / "bad.py").write_text("x = (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("mine", "torn", "bad"):
        sys.modules.pop(name, None)


def right(graph: Graph) -> float:
    """Return the share of held-out digits that a model gets right."""
    return accuracy(session(graph).run)


def miss(graph: Graph) -> float:
    """Return the output error of a model on held-out digits."""
    return distances(SOURCE, {"it": graph}, TEST)["it"].error


# Data and metric as functions

FORMS: list[Any] = [
    {"image": IMAGES[:64]},
    lambda: {"image": IMAGES[:64]},
    lambda: ({"image": IMAGES[at : min(64, at + 6)]} for at in range(0, 64, 6)),
    [{"image": IMAGES[at : min(64, at + 6)]} for at in range(0, 64, 6)],
]


@functools.cache
def of_arrays() -> Result:
    """Prune with the data as plain arrays."""
    return prunepass.prune(DIGITS, macs=0.5, data=FORMS[0])


@pytest.mark.parametrize("given", FORMS[1:], ids=["function", "generator", "list"])
def test_all_forms_of_data_give_the_same(given: Any) -> None:
    found, first = prunepass.prune(DIGITS, macs=0.5, data=given), of_arrays()
    assert found.report["result"] == first.report["result"]
    assert found.report["before"] == first.report["before"]
    assert found.report["recovery"][0]["samples"] == 59  # the others judge
    assert right(found.graph) > 0.9


def test_large_batches_are_cut_so_that_some_samples_are_held_back() -> None:
    found = prunepass.prune(DIGITS, macs=0.5, data=lambda: [{"image": IMAGES}], verify=False)
    judged = found.report["quality"]["judged_on"]
    assert 20 <= judged["samples"] <= 30
    assert not judged["drawn"]


@pytest.mark.parametrize("endless", [True, False])
def test_no_more_samples_are_used_than_help(endless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunepass.recovery.batches.MOST_USED", 40)
    given: Any = ({"image": IMAGES[:8]} for _ in itertools.count()) if endless else {"image": IMAGES}
    found = prunepass.prune(DIGITS, macs=0.5, data=given, verify=False)
    used = found.report["recovery"][0]["samples"] + found.report["quality"]["judged_on"]["samples"]
    assert used == 40


def test_apply_verifies_on_the_data_of_a_function(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx", "-q", "--plan", "p.json"]) == 0
    assert main(["apply", "p.json", "model.onnx", "-o", "again.onnx", "--data", "mine:data"]) == 0
    assert "the other 48 samples of the data were not compared" in capsys.readouterr().out
    assert (folder / "again.onnx").read_bytes() == (folder / "model.pruned.onnx").read_bytes()


def test_functions_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model.onnx", "--macs", "0.6", "--data", "mine:data", "--metric", "mine:quality", "--report", "r.json"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for word in ("quality", "dense  pruned  recovered", "output error", "agreement", "held back", "layers refitted"):
        assert word in shown
    report = json.loads((folder / "r.json").read_text())
    assert "criterion=obs" in report["options"]["pipeline"]
    assert "compensate" in report["options"]["pipeline"]
    assert report["quality"]["metric"]["name"] == "quality"
    layers = report["recovery"][0]["layers"]
    assert {"name", "op", "method", "before", "after", "seconds"} <= set(layers[0])
    assert sum(layer["method"] == "ls" for layer in layers) > 5


MISTAKES = [
    (["--data", "absent:data"], "data: there is no module 'absent'; run from its folder"),
    (["--data", "mine.part:data"], "data: there is no module 'mine.part'"),
    (["--data", "torn:data"], "data: module 'torn' cannot be imported: ModuleNotFoundError: No module named 'nowhere"),
    (["--data", "bad:data"], "data: module 'bad' cannot be imported: SyntaxError"),
    (["--data", "mine:dat"], "data: module 'mine' has no 'dat'; did you mean 'data'?"),
    (["--data", "mine:number"], "data: 'mine:number' is a int; a function is needed"),
    (["--data", "mine:wrong"], "data: a int is no data; yield dicts of arrays by input name"),
    (["--data", "mine:text"], "batch 0 of the data is a str; yield dicts"),
    (["--data", "mine:broken"], "data: failed on the way: KeyError: 'no more'"),
    (["--data", "mine:nothing"], "the data hold no batch"),
    (["--data", "mine:quits"], "data: quits failed: SystemExit: 3"),
    (["--data", "mine:bytes8"], "batch 0 of the data: the array 'image' has type uint8, the model needs float32"),
    (["--metric", "quality.py"], "metric: 'quality.py' names no function; give module:function"),
    (["--metric", "mine:words"], "metric: words returned a str; it must return a number"),
    (["--metric", "mine:fails"], "metric: fails failed: onnxruntime fails to run the model on picture [256, 1, 8, 8]"),
    (["--metric", "mine:endless", "--max-drop", "1%"], "metric: endless is nan for the model as it is"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_mistakes_in_functions(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    assert main(["model.onnx", *options]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1
    assert message in shown[0]
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-drop", "1%"], "--max-drop needs --data or --metric"),
        (["--max-drop", "1", "--metric", "mine:quality"], "argument --max-drop: '1' does not fit"),
        (["--max-drop", "x%", "--metric", "mine:quality"], "argument --max-drop: 'x%' does not fit"),
        (["--max-drop", "1%", "--metric", "mine:quality", "-p", "clean"], "--max-drop does not go with --pipeline"),
        (["--no-recover", "-p", "clean"], "--no-recover does not go with --pipeline"),
    ],
)
def test_usage(options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx", *options]) == 2
    assert message in capsys.readouterr().err


# The default pipeline

TEXTS = [
    ({"macs": 0.5}, "macs=0.5 criterion=l2 scope=global align=8},slice-channels,clean"),
    ({"macs": 0.5, "recover": True}, "macs=0.5 allocate=error criterion=obs"),
    ({"recover": True}, "ratio=0.3 criterion=obs scope=global align=8},slice-channels,compensate,clean"),
    ({"params": 0.5, "recover": True, "criterion": "l1"}, "params=0.5 criterion=l1 scope=global"),
    ({"macs": 0.5, "recover": True, "scope": "heads"}, "macs=0.5 criterion=obs scope=heads"),
]


@pytest.mark.parametrize(("options", "text"), TEXTS)
def test_default_pipeline(options: dict[str, Any], text: str) -> None:
    assert text in default_pipeline(**options)
    assert str(Pipeline.parse(default_pipeline(**options))) == default_pipeline(**options)


def test_without_recovery_data_change_nothing() -> None:
    plain = prunepass.prune(DIGITS, macs=0.5)
    found = prunepass.prune(DIGITS, macs=0.5, data={"image": IMAGES}, recover=False)
    assert found.report["result"] == plain.report["result"]
    assert set(found.report["quality"]["output_error"]) == {"pruned"}
    assert found.report["recovery"] == []
    assert plain.report["quality"] is None


# The report


def test_the_report_says_what_the_model_is_worth() -> None:
    found = prunepass.prune(DIGITS, macs=0.5, data=calibration, metric=accuracy)
    quality = found.report["quality"]
    assert quality["metric"] == {
        "name": "accuracy",
        "dense": right(SOURCE),
        "pruned": quality["metric"]["pruned"],
        "recovered": right(found.graph),
    }
    assert quality["metric"]["pruned"] < 0.5 < 0.96 < quality["metric"]["recovered"]
    assert quality["output_error"]["recovered"] < 0.1 < quality["output_error"]["pruned"]
    assert quality["agreement"]["recovered"] > 0.95
    assert quality["judged_on"] == {"samples": 32, "drawn": False}
    assert found.report["certificate"]["inputs"] == 1  # the first batch, of 16 samples
    assert found.report["certificate"]["notes"] == ["the other 240 samples of the data were not compared"]


A = np.array([[1.0, 2.0, 4.0], [3.0, 1.0, 0.0]], np.float32)
OUTPUTS = [
    (A, A, 0.0, 1.0),
    (A, A + 1, 6 / 10.833333, 1.0),
    (A, A[:, ::-1].copy(), 2 * (9 + 9) / 10.833333, 0.0),
    (A, np.full_like(A, np.nan), math.inf, 0.0),
    (A, A[:, :2], math.inf, 0.0),
    (A[:, :1], A[:, :1] + 1, 1.0, None),
    (np.ones_like(A), np.ones_like(A), 0.0, None),  # no single best
    (np.arange(4), np.array([0, 1, 2, 9]), 0.25, None),
]


@pytest.mark.parametrize(("wanted", "found", "error", "agreement"), OUTPUTS)
def test_distances(
    wanted: np.ndarray, found: np.ndarray, error: float, agreement: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Said:
        def __init__(self, value: np.ndarray) -> None:
            self.run = lambda feeds: {"y": value}

    said = iter([Said(wanted), Said(found)])
    monkeypatch.setattr("prunepass.recovery.judging.session", lambda graph, optimise: next(said))
    got = distances(SOURCE, {"it": SOURCE}, [{}])["it"]
    assert got.error == pytest.approx(error, rel=1e-5)
    assert got.agreement == agreement


# Never a worse model than without


def pruned(data: np.ndarray | None, text: str = "macs=0.5") -> Facts:
    """Prune the digits network by the L2 norm, and refit it where there are data."""
    graph, context = load(DIGITS), Context()
    if data is not None:
        context.calibration = from_arrays({"image": data}, graph)
    refit = "" if data is None else "compensate,"
    return Pipeline.parse(f"canonicalize,select{{{text}}},slice-channels,{refit}clean").run(graph, context)


def same(a: Graph, b: Graph) -> bool:
    """Say whether two models are the same, byte by byte."""
    return a.to_proto().SerializeToString() == b.to_proto().SerializeToString()


def test_a_refit_that_hurts_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def boastful(train: Any, held: Any, start: np.ndarray, bias: np.ndarray | None, flat: Any) -> Fit:
        return Fit(-start, np.zeros((start.shape[0], start.shape[2])) if bias is None else bias, 1.0, 1.0, 0.5)

    monkeypatch.setattr(sequential, "fit", boastful)
    facts = pruned(IMAGES[:64])
    assert same(facts.graph, pruned(None).graph)
    entry = facts.recovery[0]
    assert not entry["kept"]
    assert "taken back: on 5 held-back inputs" in entry["note"]
    assert entry["after"] > entry["before"]
    facts.get("verify")


HARMLESS = {
    "one image": IMAGES[:1],
    "another image": IMAGES[7:8],
    "four images": IMAGES[:4],
    "eight images": IMAGES[:8],
    "eight other images": IMAGES[20:28],
    "white images": np.full((64, 1, 8, 8), 7, np.float32),
    "black images": np.zeros((64, 1, 8, 8), np.float32),
    "black images and one": np.concatenate([np.zeros((63, 1, 8, 8), np.float32), IMAGES[:1]]),
    "even images": np.broadcast_to(np.linspace(0, 16, 64, dtype=np.float32)[:, None, None, None], (64, 1, 8, 8)),
    "one image often": np.repeat(IMAGES[:1], 64, axis=0),
    "one image far out": np.concatenate([IMAGES[:63], IMAGES[:1] * 1e8]),
}


@functools.cache
def without_data(amount: str) -> tuple[float, float]:
    """Return output error and accuracy of what a run without data gives."""
    graph = prunepass.prune(DIGITS, **{amount: 0.5}).graph
    return miss(graph), right(graph)


HARD = ("one image", "eight other images", "white images")
CASES = [
    pytest.param(
        data, amount, id=f"{name}-{amount}", marks=() if amount == "macs" or name in HARD else pytest.mark.slow
    )
    for name, data in HARMLESS.items()
    for amount in ("macs", "ratio")
]


@pytest.mark.parametrize(("data", "amount"), CASES)
def test_poor_data_make_nothing_worse(data: np.ndarray, amount: str) -> None:
    without = without_data(amount)
    found = prunepass.prune(DIGITS, **{amount: 0.5}, data={"image": np.array(data)})
    assert found.report["certificate"]["status"] == "passed"
    assert miss(found.graph) <= without[0]
    assert right(found.graph) >= without[1] - 0.01  # chance, where both are at chance


@pytest.mark.parametrize("amount", [{"ratio": 0.0}, {"macs": 1.0}])
def test_where_nothing_goes_nothing_is_refitted(amount: dict[str, float]) -> None:
    found = prunepass.prune(DIGITS, **amount, data={"image": IMAGES[:64]}, metric=accuracy)
    assert same(found.graph, prunepass.prune(DIGITS, **amount).graph)
    assert found.report["recovery"] == []
    assert found.report["quality"]["output_error"]["pruned"] < 1e-9
    assert found.report["quality"]["metric"]["pruned"] == right(SOURCE)


REFUSED = [
    (np.where(IMAGES[:8] > 15, np.nan, IMAGES[:8]), "the array 'image' has values that are not finite; take them out"),
    (np.where(IMAGES[:8] > 15, np.inf, IMAGES[:8]), "not finite"),
    (IMAGES[:8].astype(np.uint8), "has type uint8, the model needs float32; convert it"),
    (IMAGES[:8].astype(np.complex64), "has type complex64"),
    (IMAGES[:8].astype(object), "has type object"),
    (IMAGES[:8].astype(str), "the model needs float32"),
    (IMAGES[:8, 0], "has shape [8, 8, 8], the model needs"),
    (IMAGES[:8].transpose(0, 2, 3, 1), "has shape [8, 8, 8, 1]"),
    (IMAGES[:8, :, :7], "has shape [8, 1, 7, 8]"),
    (IMAGES[:0], "has shape [0, 1, 8, 8]"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
@pytest.mark.parametrize("yielded", [False, True])
def test_data_that_do_not_fit_are_refused(data: np.ndarray, message: str, yielded: bool) -> None:
    given: Any = [{"image": IMAGES[:2]}, {"image": data}] if yielded else {"image": data}
    with pytest.raises(PruneError) as caught:
        prunepass.prune(DIGITS, macs=0.5, data=given)
    assert message in str(caught.value)
    assert ("batch 1 of the data" in str(caught.value)) is yielded


def test_data_without_an_input_are_refused() -> None:
    with pytest.raises(PruneError, match="there is no array for the input 'image'"):
        prunepass.prune(DIGITS, data={"picture": IMAGES})


# The smallest model within a drop


def test_max_drop_by_metric() -> None:
    found = prunepass.prune(DIGITS, data=calibration, metric=accuracy, max_drop=0.02)
    search = found.report["search"]
    best = min(t["kept"] for t in search["trials"] if t["drop"] is not None and t["drop"] <= 0.02)
    assert right(found.graph) >= right(SOURCE) * 0.98
    assert found.report["quality"]["metric"]["recovered"] == right(found.graph)
    assert f"macs={best}" in found.report["options"]["pipeline"]
    assert found.report["after"]["macs"] <= best * found.report["before"]["macs"]
    assert best < 0.5
    assert 2 < len(search["trials"]) <= 6
    assert [stage["name"] for stage in found.report["timing"]["stages"]].count("errors") == 1  # the dear one
    assert found.report["certificate"]["status"] == "passed"


def test_max_drop_by_agreement_down_to_a_goal() -> None:
    found = prunepass.prune(DIGITS, params=0.6, data=calibration, max_drop=0.05)
    search = found.report["search"]
    assert (search["by"], search["quality"], search["dense"]) == ("params", "agreement of the outputs", 1.0)
    assert [trial["kept"] for trial in search["trials"]] == [0.6]
    assert found.report["quality"]["agreement"]["recovered"] >= 0.95


def test_max_drop_by_ratio_without_data() -> None:
    found = prunepass.prune(DIGITS, ratio=0.6, metric=accuracy, max_drop=0.3)
    assert right(found.graph) >= right(SOURCE) * 0.7
    assert found.report["search"]["by"] == "ratio"
    assert found.report["recovery"] == []


def test_max_drop_refuses_what_cannot_be_reached() -> None:
    first: list[float] = []

    def only_the_dense(run: Any) -> float:
        first.append(run(TEST[0])["logits"].sum())
        return 1.0 if first[-1] == first[0] else 0.5

    with pytest.raises(BudgetError, match=r"drops by at most 1.00%; the nearest of \d tries keeps .* drops by 50.00%"):
        prunepass.prune(DIGITS, metric=only_the_dense, max_drop=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": None}, "max_drop needs data or a metric"),
        ({"pipeline": "clean"}, "max_drop chooses the amount; it does not go with a pipeline"),
        ({"max_drop": 1}, "max_drop=1 must be at least 0 and below 1"),
        ({"lossless": True}, "lossless removes what it can"),
        ({"macs": "3M"}, "max_drop searches by one amount, a share of the source"),
        ({"macs": 0.5, "params": 0.5}, "max_drop searches by one amount, a share of the source"),
    ],
)
def test_max_drop_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneError, match=message):
        prunepass.prune(DIGITS, **{"metric": accuracy, "max_drop": 0.01, **options})


# BatchNormalization measured again

RUN = "canonicalize,select{ratio=0.4 criterion=l2},slice-channels"


def test_normalisation_is_measured_again_where_that_helps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model.onnx", "--data", "mine:data", "--report", "report.json", "-p"]
    assert main([*arguments, f"{RUN},recalibrate-batchnorm,clean"]) == 0
    assert "normalisations measured again on" in capsys.readouterr().out
    (entry,) = json.loads(Path("report.json").read_text())["recovery"]
    assert entry["kept"]
    assert entry["nodes"] == 11
    assert entry["after"] < entry["before"]


def test_what_measuring_again_makes_worse_is_taken_back() -> None:
    """Behind a refit the statistics are right: they belong to what the next layer was fitted to."""
    pipeline = f"{RUN},compensate,recalibrate-batchnorm,clean"
    found = prunepass.prune(DIGITS, pipeline=pipeline, data={"image": IMAGES[:64]})
    refit, measured = found.report["recovery"]
    alone = prunepass.prune(DIGITS, pipeline=f"{RUN},compensate,clean", data={"image": IMAGES[:64]})
    assert measured["kept"] == (measured["after"] < measured["before"])
    assert miss(load(found.model)) <= miss(load(alone.model)) or measured["kept"]
    assert refit["after"] == pytest.approx(measured["before"])
