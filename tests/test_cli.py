"""The command line: what it writes and prints, and that every mistake gives one line, its exit code, and no file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import prunepass
from prunepass.cli import main, show
from prunepass.cli.arguments import parse_arguments
from prunepass.errors import VerifyError
from prunepass.job import Result

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "fixtures" / "digits.onnx"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder with model.onnx and data.npz to work in."""
    shutil.copy(DIGITS, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", image=np.ones((4, 1, 8, 8), np.float32), labels=np.zeros(4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The main job


def test_the_main_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx", "--report", "report.json", "--plan", "plan.json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for word in (
        "parameters",
        "MACs",
        "bytes",
        "nodes",
        "certificate passed on 3 inputs",
        "written     model.pruned.onnx",
    ):
        assert word in shown.out
    report = json.loads((folder / "report.json").read_text())
    keys = "before after certificate barriers groups options timing versions"
    assert set(keys.split()) <= set(report)
    before, after = report["before"], report["after"]
    assert set(before) == set(after) == {"params", "macs", "bytes", "ram", "nodes"}
    assert before["bytes"] == DIGITS.stat().st_size
    assert after["bytes"] == (folder / "model.pruned.onnx").stat().st_size
    assert after["params"] < 0.6 * before["params"]
    assert after["macs"] < 0.6 * before["macs"]
    assert {"status", "max_abs", "max_rel", "inputs", "tolerance"} <= set(report["certificate"])
    assert report["certificate"]["status"] == "passed"
    assert report["options"]["pipeline"].startswith("canonicalize,select{ratio=0.3 criterion=l2")
    assert sum(g["removed"] for g in report["groups"]) > 0
    assert report["result"]["sha256"] == hashlib.sha256((folder / "model.pruned.onnx").read_bytes()).hexdigest()
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["source_sha256"] == report["source"]["sha256"]
    model = onnx.load("model.pruned.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["image"]


@pytest.mark.parametrize(
    "options", [[], ["--macs", "0.5", "--criterion", "random{seed=3}"], ["--ratio", "0.9", "--align", "1"]]
)
def test_twice_the_same_bytes(options: list[str], folder: Path) -> None:
    for name in ("one", "two"):
        assert main(["model.onnx", "-q", *options, "-o", f"{name}.onnx", "--plan", f"{name}.json"]) == 0
    assert (folder / "one.onnx").read_bytes() == (folder / "two.onnx").read_bytes()
    assert (folder / "one.json").read_bytes() == (folder / "two.json").read_bytes()


def test_quiet_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx", "-q"]) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "on_out", "on_err"),
    [
        (["--time"], "seconds  changes", ""),
        (["-v"], "", "INFO: slice-channels"),
        (["--debug"], "", "INFO: slice-channels"),
        (["--no-verify"], "certificate skipped", ""),
        (["--verify-each", "--time"], "verify           ", ""),
        (["--data", "data.npz", "-v"], "certificate passed on", "no input is called labels"),
        (["-p", "canonicalize,select{ratio=0.5},slice-channels", "--keep", "head"], "certificate passed", ""),
        (["--shape", "image=2,1,8,8", "--seed", "5"], "certificate passed", ""),
        (["--ratio", "0"], "49,679     49,679", ""),
        (["--macs", "3M", "--ram", "60KB", "--params", "0.9"], "certificate passed", ""),
    ],
)
def test_options(
    options: list[str], on_out: str, on_err: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model.onnx", *options]) == 0
    shown = capsys.readouterr()
    assert on_out in shown.out
    assert on_err in shown.err
    assert (folder / "model.pruned.onnx").exists()


def test_keep_keeps(folder: Path) -> None:
    assert main(["model.onnx", "-q", "--keep", "stem", "--plan", "plan.json"]) == 0
    kept = [g["removed"] for g in json.loads((folder / "plan.json").read_text())["groups"] if "stem" in g["name"]]
    assert kept == [0]


def test_a_model_called_like_a_command(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "inspect")
    assert main(["./inspect", "-q"]) == 0
    assert (folder / "inspect.pruned.onnx").exists()


def test_force_overwrites_the_input(folder: Path) -> None:
    before = (folder / "model.onnx").stat().st_size
    assert main(["model.onnx", "-q", "-o", "model.onnx", "--force"]) == 0
    assert (folder / "model.onnx").stat().st_size < before


# The other commands


def test_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "model.onnx", "--json", "found.json", "--dot", "found.dot"]) == 0
    out = capsys.readouterr().out
    assert "49,679 parameters, 6,630,016 MACs" in out
    assert "coupling groups: 7" in out
    assert "graph outputs keep 1 axis whole: 650 parameters, 640 MACs" in out
    found = json.loads((folder / "found.json").read_text())
    assert {"size", "groups", "tied", "barriers", "pinned", "axes", "inputs", "assumed"} <= set(found)
    assert {g["name"] for g in found["groups"]} >= {"stem.conv.weight"}
    dot = (folder / "found.dot").read_text()
    assert dot.startswith("digraph")
    assert dot.count("Conv ") == [node.op_type for node in onnx.load("model.onnx").graph.node].count("Conv")


def test_apply_makes_the_same_file(folder: Path) -> None:
    assert main(["model.onnx", "-q", "--plan", "plan.json"]) == 0
    assert main(["apply", "plan.json", "model.onnx", "-q", "-o", "again.onnx"]) == 0
    assert (folder / "again.onnx").read_bytes() == (folder / "model.pruned.onnx").read_bytes()


def test_apply_ephemeral_keeps_the_shapes(folder: Path) -> None:
    assert main(["model.onnx", "-q", "--plan", "plan.json"]) == 0
    assert main(["apply", "plan.json", "model.onnx", "-q", "-o", "masked.onnx", "--ephemeral"]) == 0
    sizes = {t.name: list(t.dims) for t in onnx.load("model.onnx").graph.initializer}
    masked = {t.name: list(t.dims) for t in onnx.load("masked.onnx").graph.initializer}
    assert {name: masked[name] for name in sizes} == sizes


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for word in ("select", "ratio=none", "slice-channels", "coupling", "lamp"):
        assert word in out


def test_module_and_help() -> None:
    found = subprocess.run([sys.executable, "-m", "prunepass", "--help"], capture_output=True, text=True, check=True)
    assert "prunepass inspect MODEL" in found.stdout
    assert main(["--version"]) == 0


# Mistakes on the command line

USAGE = [
    ([], "the model file is missing"),
    *((["model.onnx", "--ratio", r], f"argument --ratio: '{r}' does not fit") for r in ("1", "nan", "abc", "inf", "")),
    (["model.onnx", "--ratio=-1"], "argument --ratio: '-1' does not fit"),
    (["model.onnx", "--macs", "0"], "argument --macs: '0' does not fit"),
    (["model.onnx", "--params", "1.5"], "argument --params: '1.5' does not fit"),
    (["model.onnx", "--bytes", "nan"], "argument --bytes: 'nan' does not fit"),
    (["model.onnx", "--align", "0"], "argument --align: '0' does not fit: a whole number of at least 1"),
    (["model.onnx", "--seed", "x"], "argument --seed: 'x' does not fit"),
    (["model.onnx", "--scope", "here"], "argument --scope: option 'scope' of 'select': 'here' is not one of global"),
    (["model.onnx", "--criterion", "l22"], "argument --criterion: unknown criterion 'l22'; did you mean 'l2'?"),
    (["model.onnx", "--criterion", "random{sed=1}"], "has no option 'sed'; did you mean 'seed'?"),
    (["model.onnx", "--keep", "("], "argument --keep: '(' is no regular expression"),
    (["model.onnx", "--shape", "image"], "argument --shape: 'image' does not fit: NAME=1,3,224,224"),
    (["model.onnx", "--shape", "image=1,a"], "argument --shape: 'image=1,a' does not fit"),
    (["model.onnx", "--shape", "image=1,0,8,8"], "every size at least 1"),
    (["model.onnx", "--ratio", "0.5", "--macs", "0.5"], "not allowed with argument --ratio"),
    (["model.onnx", "--ram", "8ms"], "must be above 0 and at most 1, or an amount such as 256KB"),
    (["model.onnx", "--latency", "256KB"], "or an amount such as 8ms"),
    (["model.onnx", "--threads", "2"], "--threads says how --latency is measured; give --latency, too"),
    (["model.onnx", "-p", "canonicalize", "--batch", "2"], "--batch does not go with --pipeline"),
    (["model.onnx", "-p", "clean", "--ratio", "0.5"], "--ratio does not go with --pipeline"),
    (["model.onnx", "-p", "clean", "--align", "4"], "write it in the text, as in select{align=...}"),
    (["model.onnx", "-q", "-v"], "not allowed with argument -q"),
    (["model.onnx", "--rato", "0.5"], "unrecognized arguments: --rato"),
    (["model.onnx", "other.onnx"], "unrecognized arguments: other.onnx"),
    (["apply", "plan.json", "model.onnx"], "the following arguments are required: -o/--output"),
    (["inspect"], "the following arguments are required: MODEL"),
]


def fails(arguments: list[str], code: int, message: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Check that a run says one line, returns its code, and changes no file."""
    before = listing(folder)
    assert main(arguments) == code, capfd.readouterr()
    shown = capfd.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1, shown.err
    assert message in shown.err
    assert shown.err.startswith("prunepass")
    assert listing(folder) == before


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_usage_errors(arguments: list[str], message: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fails(arguments, 2, message, folder, capfd)


TWICE = "select{ratio=0.2},slice-channels"
MISTAKES = [
    (["model.onnx", "-o", "model.onnx"], "the output 'model.onnx' is the input; choose another name, or --force"),
    (["model.onnx", "-o", "link.onnx"], "is the input"),
    (["model.onnx", "-o", "nowhere/small.onnx"], "the folder 'nowhere' of the output does not exist"),
    (["model.onnx", "-o", "."], "the output '.' is a folder"),
    (["model.onnx", "--report", "model.onnx"], "the output 'model.onnx' is the input"),
    (["model.onnx", "-o", "x.onnx", "--plan", "x.onnx"], "two outputs would go to 'x.onnx'"),
    (["model.onnx", "--data", "data.npz", "--plan", "data.npz"], "the output 'data.npz' is the input"),
    (["model.onnx", "-p", "canonicalize,selct"], "unknown pass 'selct'; did you mean 'select'? (column 14"),
    (["model.onnx", "-p", "select{ratio=1}"], "ratio=1.0 must be at least 0 and below 1"),
    (["model.onnx", "-p", "slice-channels"], "there is no plan; put a select pass before it"),
    (["model.onnx", "-p", "canonicalize", "--plan", "p.json"], "the pipeline made no plan"),
    (["model.onnx", "-p", f"{TWICE},{TWICE}", "--plan", "p.json"], "the pipeline made no plan, or several"),
    (["model.onnx", "--shape", "imag=1,1,8,8"], "no such input; did you mean 'image'?"),
    (["model.onnx", "--shape", "image=1,8,8"], "has 3 axes, the model says 4"),
    (["model.onnx", "--shape", "image=1,3,8,8"], "has 3 on axis 1, the model 1"),
    (["model.onnx", "--data", "model.onnx"], "'model.onnx' is no .npz file"),
    (["model.onnx", "--data", "missing.npz"], "'missing.npz' cannot be read"),
    (["model.onnx", "--data", "objects.npz"], "'objects.npz' is no .npz file of plain arrays"),
    (["model.onnx", "--data", "other.npz"], "'image'"),
    (["model.onnx", "--data", "wide.npz"], "'image'"),
    (["model.onnx", "--macs", "0.0001"], "cannot be reached"),
    (["inspect", "model.onnx", "--json", "model.onnx"], "is the input"),
    (["apply", "missing.json", "model.onnx", "-o", "x.onnx"], "'missing.json' cannot be read"),
    (["apply", "model.onnx", "model.onnx", "-o", "x.onnx"], "'model.onnx' is no JSON file"),
    (["apply", "list.json", "model.onnx", "-o", "x.onnx"], "holds no JSON object"),
    (["apply", "empty.json", "model.onnx", "-o", "x.onnx"], "not a plan"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_mistakes(arguments: list[str], message: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "link.onnx").symlink_to("model.onnx")
    (folder / "list.json").write_text("[1]")
    (folder / "empty.json").write_text("{}")
    np.savez(folder / "objects.npz", image=np.array([{}], object))
    np.savez(folder / "other.npz", picture=np.ones((1, 1, 8, 8), np.float32))
    np.savez(folder / "wide.npz", image=np.ones((1, 1, 8, 9), np.float32))
    fails(arguments, 1, message, folder, capfd)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom the file system can refuse")
def test_read_only_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder.chmod(0o555)
    try:
        fails(["model.onnx"], 1, "cannot be written to", folder, capfd)
    finally:
        folder.chmod(0o755)


def test_refused_folder(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    fails(["model.onnx"], 1, "the folder '.' cannot be written to; choose another output", folder, capfd)


# Failures inside


def test_a_failed_certificate_is_code_3(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: object) -> None:
        raise VerifyError("output 'logits' differs by 0.3")

    monkeypatch.setattr("prunepass.passes.analysis.verify.certify", differs)
    fails(["model.onnx", "--report", "r.json"], 3, "output 'logits' differs by 0.3", folder, capfd)


def test_a_bug_is_one_line_and_debug_shows_it(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("lost\nvalue")

    monkeypatch.setattr("prunepass.passes.rewrite.slice_channels.slice_graph", broken)
    fails(["model.onnx"], 1, "pass 'slice-channels' broke (KeyError", folder, capfd)
    assert main(["model.onnx", "--debug"]) == 1
    shown = capfd.readouterr().err
    assert "Traceback" in shown
    assert "it fails with -p 'canonicalize,select{" in shown


def test_an_interrupt_leaves_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(bar: object, what: str, done: int, total: int) -> None:
        if what == "slice-channels":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(show.Bar, "__call__", interrupt)
    fails(["model.onnx", "--report", "r.json"], 130, "interrupted; nothing was written", folder, capfd)


def test_an_interrupt_while_writing_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Result.save

    def interrupted(result: Result, path: Path, *, force: bool = False) -> None:
        signal.raise_signal(signal.SIGINT)
        save(result, path, force=force)

    monkeypatch.setattr(Result, "save", interrupted)
    assert main(["model.onnx", "-q", "--report", "report.json"]) == 0
    assert {"model.pruned.onnx", "report.json"} <= set(listing(folder))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_bar_appears_only_when_it_takes_long() -> None:
    from rich.console import Console

    for delay_s, appears in ((0.0, True), (60.0, False)):
        console = Console(force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
        with show.Bar(console, enabled=True, delay_s=delay_s) as bar:
            bar("select", 1, 4)
            if delay_s == 0:
                bar.timer.join()
            bar.progress.refresh()
        assert ("select" in console.export_text()) is appears


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["m.onnx"], {"command": "prune", "model": "m.onnx", "ratio": None, "output": None}),
        (["m", "--ratio", "0", "--keep", "a", "--keep", "b"], {"ratio": 0.0, "keep": ["a", "b"]}),
        (["m", "--shape", "a=b=1,2", "--shape", "s="], {"shape": [("a=b", (1, 2)), ("s", ())]}),
        (["inspect", "m"], {"command": "inspect", "model": "m"}),
        (["./inspect"], {"command": "prune", "model": "./inspect"}),
        (["--list"], {"command": "list"}),
        (["apply", "p", "m", "-o", "x", "--ephemeral"], {"command": "apply", "ephemeral": True, "output": Path("x")}),
    ],
)
def test_arguments(arguments: list[str], expected: dict[str, Any]) -> None:
    found = vars(parse_arguments(arguments))
    assert {key: found[key] for key in expected} == expected


# The Python API


def test_prune_from_memory_equals_the_command_line(folder: Path) -> None:
    assert main(["model.onnx", "-q", "--ratio", "0.4"]) == 0
    model = onnx.load("model.onnx")
    before = model.SerializeToString()
    result = prunepass.prune(model, ratio=0.4)
    assert model.SerializeToString() == before
    assert result.model.SerializeToString() == (folder / "model.pruned.onnx").read_bytes()
    assert result.report["before"]["params"] == 49679
    assert sorted(listing(folder)) == ["data.npz", "model.onnx", "model.pruned.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.5, "macs": 0.5}, "ratio and macs do not go together"),
        ({"ratio": 1.0}, "must be at least 0 and below 1"),
        ({"pipeline": "clean", "ratio": 0.5}, "a pipeline has its own amounts"),
        ({"keep": "("}, "is no regular expression"),
        ({"criterion": "l22"}, "did you mean 'l2'?"),
        ({"output": "model.onnx"}, "is the input"),
    ],
)
def test_prune_refuses(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(prunepass.errors.PruneError) as caught:
        prunepass.prune("model.onnx", **options)
    assert message in str(caught.value)
