"""The tables that benchmarks print from their own CSV files, and the one that the README shows."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADER = "family graphs valid certified untouched params_kept body_kept MACs_kept goal CPU_s CPU_s_max".split()
FAMILIES = ("cnn-classifier", "transformer", "recurrent", "detection-segmentation", "other", "all")
KEPT = HEADER.index("params_kept"), HEADER.index("body_kept"), HEADER.index("MACs_kept")


def parsed(text: str) -> tuple[str, list[list[str]]]:
    """Split the generated text into its sentence and the cells of its table."""
    sentence, _, table = text.strip().partition("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [name.replace(" ", "_") for name in lines[0]] == HEADER
    assert set(lines[1]) == {"---"}
    assert {len(line) for line in lines} == {len(HEADER)}
    return sentence, lines[2:]


def test_the_table_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"<!-- coverage -->\n(.*?)<!-- /coverage -->", readme, re.DOTALL)
    assert len(found) == 1, "the markers are missing; .ci/refresh-readme writes between them"
    sentence, table = parsed(found[0])
    assert [line[0] for line in table] == list(FAMILIES)
    graphs = [int(line[1]) for line in table]
    assert sum(graphs[:-1]) == graphs[-1]
    assert sentence.startswith(f"{graphs[-1]:,} graphs: ")
    assert sum(map(int, re.findall(r"(\d+) [a-z]", sentence.partition(":")[2]))) == graphs[-1]
    assert all(0 < float(line[place]) < 1 for line in table for place in KEPT)


ROWS = [  # file, family, status, params kept, macs kept, seconds
    ("a.onnx", "cnn-classifier", "timeout", "", "", ""),
    ("b.onnx", "cnn-classifier", "certified", "0.3", "0.2", "1.5"),
    ("c.onnx", "recurrent", "certified", "0.25", "0.25", "0.5"),
    ("d.onnx", "cnn-classifier", "refused", "", "", "0.25"),
]
AGAIN = [("a.onnx", "cnn-classifier", "certified", "0.4", "0.3", "2.5")]


def write(path: Path, rows: list[tuple[str, ...]]) -> None:
    names = ("file", "family", "status", "params_kept", "macs_kept", "seconds")
    more = {"name": "", "source": "", "params_before": "10", "total_seconds": "1", "wall_seconds": "1", "peak_mb": "1"}
    more |= {"nodes_before": "1", "opset": "17", "sens": "0"}
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, [*names, *more])
        writer.writeheader()
        writer.writerows({**dict(zip(names, row)), **more} for row in rows)


@pytest.mark.parametrize(
    ("again", "told", "certified", "kept"),
    [
        (False, "4 graphs: 2 certified, 1 refused, 1 timeout.", "33.3%", "0.300"),
        (True, "4 graphs: 3 certified, 1 refused.", "66.7%", "0.350"),
    ],
)
def test_later_rows_count(tmp_path: Path, again: bool, told: str, certified: str, kept: str) -> None:
    write(tmp_path / "first.csv", ROWS)
    write(tmp_path / "rest.csv", AGAIN if again else [])
    command = [sys.executable, "benchmarks/coverage.py", "--markdown", "--show"]
    command += [str(tmp_path / "first.csv"), str(tmp_path / "rest.csv")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    sentence, table = parsed(done.stdout)
    assert sentence == told
    assert [line[0] for line in table] == ["cnn-classifier", "recurrent", "all"]
    assert table[0][1:6] == ["3", certified, certified, "0", kept]
