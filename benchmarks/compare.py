"""Prune one network per torchvision family with prunepass, Torch-Pruning and onnxsim, and check all three alike.

python benchmarks/compare.py ../shared/zoo --peer-python PATH/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fnmatch
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

from architectures import ARCHITECTURES, Architecture  # noqa: E402
from contenders import import_prunepass  # noqa: E402 - sets one thread, for every cell too
from judge import Case, judge  # noqa: E402
from pool import Limits, Outcome, run_command, run_forked  # noqa: E402
from standing import OURS, TOOLS, Cell, print_results, read_cells  # noqa: E402
from zoo import filler  # noqa: E402


def prepare(row: Architecture, args: argparse.Namespace, folder: Path) -> str:
    """Put `source.onnx`, `inputs.npz` and `order.json` into a folder; return why that fails, or ""."""
    import numpy as np
    import onnx

    order = {"network": row.network, "shape": row.shape, "ratio": args.ratio}
    weightless = filler(args.zoo)
    if row.file:
        model = weightless.load(str(args.zoo / "torchvision" / f"{row.file}.onnx.gz"))
        onnx.save(model, folder / "source.onnx")
    else:
        (folder / "order.json").write_text(json.dumps(order))
        outcome = run_command(cell_command("export", folder, args), limits(args))
        if not (folder / "source.onnx").exists():
            return str((outcome.value or {}).get("reason", outcome.detail or outcome.ended))
        model = onnx.load(folder / "source.onnx")
    inputs = weightless.make_inputs(model)
    np.savez(folder / "inputs.npz", **inputs)
    order["shape"] = next(iter(inputs.values())).shape
    (folder / "order.json").write_text(json.dumps(order))
    return ""


def cell_command(tool: str, folder: Path, args: argparse.Namespace) -> list[str]:
    """Return the command line that does one cell."""
    python = sys.executable if tool == OURS else args.peer_python
    return [python, "-W", "ignore", str(HERE / "cells.py"), tool, str(folder)]


def limits(args: argparse.Namespace) -> Limits:
    """Return what one cell may use: CPU seconds, and ten times as many on the clock."""
    return Limits(10 * args.timeout, int(args.memory_gb * 2**30), args.timeout)


def fill(row: Architecture, tool: str, folder: Path, args: argparse.Namespace) -> Cell:
    """Let one tool prune, then measure what it wrote."""
    cell = Cell(row.family, row.network, tool)
    outcome = run_command(cell_command(tool, folder, args), limits(args))
    found = dict(outcome.value or {})
    cell.version, cell.reason = found.get("version", ""), found.get("reason", "") or ended(outcome)
    seconds: dict[str, float] = found.get("seconds", {})
    cell.certified = seconds.pop("certified", None)
    cell.seconds = sum(seconds.values()) if seconds else None
    cell.held = "; ".join(found.get("held", ()))
    if cell.reason:
        return cell
    cell.checked = bool(found.get("checked"))
    own = (folder / "dense.onnx").exists()
    source, inputs = ("dense.onnx", None) if own else ("source.onnx", folder / "inputs.npz")
    verdict = {} if found.get("unexported") else measure(Case(folder / source, folder / "pruned.onnx", inputs), args)
    unusable = found.get("unexported") or verdict.get("invalid before")
    if unusable:  # by the exporter, not by the tool, which has run the network
        cell.params, cell.macs, cell.valid = found["params"], found["macs"], True
        cell.counted = f"by Torch-Pruning, as the export of the dense network is of no use: {unusable}"
        return cell
    cell.reason = verdict.get("invalid", "")
    cell.params, cell.macs = verdict.get("params"), verdict.get("macs")
    cell.valid, cell.counted = not cell.reason, "on ONNX, with prunepass's cost model"
    return cell


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Judge one pruned file in a process of its own."""
    (outcome,) = run_forked(judge, [case], 1, limits(args))
    return dict(outcome.value or {"invalid": f"cannot be measured: {ended(outcome)}"})


def ended(outcome: Outcome) -> str:
    """Say how a process ended that did not end well, "" for one that did."""
    if outcome.ended == "done":
        return ""
    lines = outcome.detail.strip().splitlines() or [f"killed after {outcome.cpu_s:.0f} CPU seconds"]
    return f"{outcome.ended}: {lines[-1]}"


def run(rows: Sequence[Architecture], args: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells row by row."""
    for row in rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            trouble = prepare(row, args, folder)
            for tool in TOOLS:
                yield Cell(row.family, row.network, tool, reason=trouble) if trouble else fill(row, tool, folder, args)
                for stale in (folder / "pruned.onnx", folder / "dense.onnx"):
                    stale.unlink(missing_ok=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("zoo", nargs="?", type=Path, default=Path("../shared/zoo"), help="folder with weightless.py")
    add("--peer-python", default=sys.executable, help="interpreter with torch-pruning and onnxsim (default: this one)")
    add("--only", action="append", metavar="GLOB", help="only networks or families that match (may be repeated)")
    add("--ratio", type=float, default=0.5, help="fraction of the channels of every group to remove (default 0.5)")
    add("--timeout", type=float, default=120.0, help="CPU seconds per cell, everything included (default 120)")
    add("--memory-gb", type=float, default=10.0, help="resident memory per cell (default 10)")
    add("--csv", type=Path, help="write a line per cell here")
    add(
        "--show", type=Path, nargs="+", metavar="CSV", help="only print the table of earlier runs, the last cell counts"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the table and print it; exit with 1 where prunepass gives no valid and checked network."""
    args = parse(argv)
    if args.show:
        print_results(read_cells(args.show))
        return 0
    globs = args.only or ["*"]
    rows = [r for r in ARCHITECTURES if any(fnmatch.fnmatch(n, g) for g in globs for n in (r.network, r.family))]
    args.peer_python = shutil.which(args.peer_python) or args.peer_python
    import_prunepass()
    cells: list[Cell] = []
    with contextlib.ExitStack() as files, contextlib.suppress(KeyboardInterrupt):
        out = files.enter_context(args.csv.open("w", newline="")) if args.csv else None
        writer = csv.DictWriter(out, [f.name for f in fields(Cell)], lineterminator="\n") if out else None
        if writer:
            writer.writeheader()
        for cell in run(rows, args):
            cells.append(cell)
            print(f"{cell.network}, {cell.tool}: {cell.reason or 'done'}"[:118], file=sys.stderr, flush=True)
            if writer and out:
                writer.writerow(asdict(cell))
                out.flush()
    print_results(cells)
    return int(any(cell.tool == OURS and not (cell.valid and cell.checked) for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
