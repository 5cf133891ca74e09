"""Read the zoo: its index, its graphs with weights filled in, and their inputs."""

from __future__ import annotations

import csv
import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One line of the zoo's `index.tsv`."""

    file: str
    name: str
    source: str
    exporter: str
    variant: str
    opset: int
    nodes: int
    params: int
    inputs: str
    ops: dict[str, int]
    finite: bool
    sens: float
    random: bool


def read_index(zoo: Path) -> list[Entry]:
    with (zoo / "index.tsv").open(newline="") as f:
        return [_entry(row) for row in csv.DictReader(f, delimiter="\t")]


def _entry(row: dict[str, str]) -> Entry:
    pairs = (pair.rpartition(":") for pair in row["ops"].split(",") if pair)
    return Entry(
        file=row["file"],
        name=row["name"],
        source=row["source"],
        exporter=row["exporter"],
        variant=row["variant"],
        opset=int(row["opset"] or 0),
        nodes=int(row["nodes"] or 0),
        params=int(row["params"] or 0),
        inputs=row["inputs"],
        ops={op: int(count) for op, _, count in pairs},
        finite=row["finite"] == "1",
        sens=float(row["sens"] or 0),
        random=row["random"] == "1",
    )


def load_module(path: Path) -> ModuleType:
    """Import one file that is not in a package, under its own name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def filler(zoo: Path) -> Any:
    """Import the zoo's own `weightless.py`: `load(path)` fills the weights, `make_inputs(model)` makes feeds."""
    return load_module(zoo / "weightless.py")
