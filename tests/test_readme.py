"""Every example in README.md runs as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunepass import registry
from prunepass.cli import main
from prunepass.criteria.base import CRITERIA
from prunepass.rules import DIMS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = dict(re.findall(r"<!-- python (\S+) -->\n```python\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder with model.onnx, test.npz, and forget what an example registers."""
    registry.discover()
    tables = [(table, dict(table)) for table in (registry.REGISTRY, CRITERIA, DIMS)]
    shutil.copy(ROOT / "fixtures" / "digits.onnx", tmp_path / "model.onnx")
    shutil.copy(ROOT / "fixtures" / "digits.npz", tmp_path / "test.npz")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for table, before in tables:
        table.clear()
        table.update(before)


def test_all_python_examples_are_found() -> None:
    assert set(PYTHON) == {"prune", "pipeline", "inspect", "pass", "criterion", "rule"}


@pytest.mark.parametrize("name", PYTHON)
def test_python_example(name: str, folder: Path) -> None:
    exec(compile(PYTHON[name], f"README {name}", "exec", dont_inherit=True), {"__name__": "__main__"})
    if name in ("prune", "pipeline"):
        assert 0 < (folder / "small.onnx").stat().st_size < (folder / "model.onnx").stat().st_size


def usage() -> list[str]:
    """Return the command lines of the usage block, without comments."""
    found = re.search(r"<!-- usage -->\n```bash\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return [line.split("  #")[0].strip() for line in found.group(1).splitlines()]


def test_command_line_examples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(usage()) > 10
    for line in usage():
        program, *arguments = shlex.split(line)
        assert program == "prunepass"
        assert main(arguments) == 0, f"{line}\n{capsys.readouterr().err}"
    written = {path.name for path in folder.iterdir()}
    wanted = {"model.pruned.onnx", "small.onnx", "report.json", "plan.json", "model.json", "model.dot", "again.onnx"}
    assert written == {"model.onnx", "test.npz", "masked.onnx", *wanted}


def test_the_session_at_the_top_is_real(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model.onnx"]) == 0
    shown = capsys.readouterr().out.splitlines()[:5]
    found = re.search(r"<!-- session -->\n```console\n(.*?)```", TEXT, re.DOTALL)
    assert found
    assert [line.rstrip() for line in shown] == found.group(1).splitlines()[1:6], "run .ci/refresh-readme"
