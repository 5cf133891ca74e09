"""Prune one network per torchvision family with prunepass, Torch-Pruning and onnxsim, and check all three alike.

python benchmarks/compare.py ../shared/zoo --peer-python PATH/bin/python
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PRUNEPASS_THREADS"):
    os.environ.setdefault(_variable, "1")  # before numpy, and for every cell
HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

from architectures import ARCHITECTURES, Architecture  # noqa: E402
from contenders import import_prunepass  # noqa: E402
from judge import Case, judge  # noqa: E402
from pool import Limits, Outcome, run_command, run_forked  # noqa: E402
from summary import print_table  # noqa: E402
from zoo import filler  # noqa: E402

TOOLS = ("prunepass", "torch-pruning", "onnxsim")
OURS, *PEERS = TOOLS
EQUAL = 0.005
"""Two shares that differ by no more than this are equal: an odd width may be halved up or down."""


@dataclass
class Cell:
    """What one tool made of one architecture.

    Units
        params, macs: kept, after / before; None where the tool gives no working network. seconds: CPU seconds of the
        pruning alone. certified: CPU seconds from file to file with the certificate. checked: the tool itself has
        compared the numbers. counted: by what MACs were counted. held: why axes of weights stay whole, the costliest first.
    """

    family: str
    network: str
    tool: str
    params: float | None = None
    macs: float | None = None
    seconds: float | None = None
    certified: float | None = None
    valid: bool = False
    checked: bool = False
    counted: str = ""
    reason: str = ""
    held: str = ""
    version: str = ""


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
    """Return what one cell may use."""
    return Limits(args.timeout, int(args.memory_gb * 2**30))


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
    if found.get("unexported"):
        cell.params, cell.macs, cell.valid = found["params"], found.get("macs"), True
        cell.counted = f"Torch-Pruning's own count, as the export fails: {found['unexported']}"
        return cell
    own = folder / "dense.onnx"
    case = Case(own, folder / "pruned.onnx", None) if own.exists() else None
    case = case or Case(folder / "source.onnx", folder / "pruned.onnx", folder / "inputs.npz")
    (judged,) = run_forked(judge, [case], 1, limits(args))
    verdict = dict(judged.value or {})
    cell.reason = verdict.get("invalid", "") or ended(judged)
    cell.params, cell.macs = verdict.get("params"), verdict.get("macs")
    cell.valid, cell.counted = not cell.reason, "prunepass's cost model on ONNX"
    return cell


def ended(outcome: Outcome) -> str:
    """Say how a process ended that did not end well, "" for one that did."""
    if outcome.ended == "done":
        return ""
    said = outcome.detail.strip().splitlines()[-1] if outcome.detail else f"after {outcome.wall_s:.0f} s"
    return f"{outcome.ended}: {said}"


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


def print_results(cells: Sequence[Cell]) -> None:
    """Print the table, what fails and why, and how we stand against each peer."""
    columns = ("params", "MACs", "CPU s", "valid", "checked")
    head = ["", "network", "", OURS, "", "", "", ""]
    for peer in PEERS:
        head += ["", peer, "", "", ""]
    table = [tuple(head), ("family", "", "params", "MACs", "CPU s", "certified", "valid", "checked", *columns * len(PEERS))]
    for group in grouped(cells):
        cell = group[0]
        line = [cell.family, cell.network]
        for cell in group:
            line += [_share(cell.params if cell.valid else None), _share(cell.macs if cell.valid else None)]
            line += [_seconds(cell.seconds), *([_seconds(cell.certified)] if cell.tool == OURS else ())]
            line += ["yes" if cell.valid else "no", "yes" if cell.checked and cell.valid else "no"]
        table.append(tuple(line))
    print_table(table)
    for cell in cells:
        if cell.reason:
            print(f"  {cell.network}, {cell.tool}: {cell.reason}")
        elif cell.counted.startswith("Torch"):
            print(f"  {cell.network}, {cell.tool}: {cell.counted}")
    for number, peer in enumerate(PEERS, 1):
        _print_standing(peer, [(group[0], group[number]) for group in grouped(cells)])


def grouped(cells: Sequence[Cell]) -> list[Sequence[Cell]]:
    """Return the cells of each row, a last unfinished one left out."""
    whole = len(cells) // len(TOOLS) * len(TOOLS)
    return [cells[i : i + len(TOOLS)] for i in range(0, whole, len(TOOLS))]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _print_standing(peer: str, pairs: Sequence[tuple[Cell, Cell]]) -> None:
    """Print in how many rows we are ahead of one peer, equal and behind, and why where we are behind."""
    print(f"\n{OURS} against {peer}, {len(pairs)} rows:")
    alone = [ours for ours, theirs in pairs if ours.valid and not theirs.valid]
    behind = [ours for ours, theirs in pairs if theirs.valid and not ours.valid]
    print(f"  only {OURS} gives a valid network: {len(alone)} ({', '.join(c.family for c in alone)})")
    print(f"  only {peer} gives a valid network: {len(behind)} ({', '.join(c.family for c in behind)})")
    both = [(ours, theirs) for ours, theirs in pairs if ours.valid and theirs.valid]
    for what in ("params", "macs"):
        gaps = [(getattr(o, what) - getattr(t, what), o) for o, t in both if None not in (getattr(o, what), getattr(t, what))]
        ahead, after = sum(gap < -EQUAL for gap, _ in gaps), [(gap, o) for gap, o in gaps if gap > EQUAL]
        print(f"  {what} kept, of {len(gaps)}: ahead {ahead}, equal {len(gaps) - ahead - len(after)}, behind {len(after)}")
        for gap, ours in after:
            print(f"    behind by {gap:.3f}: {ours.network}; kept whole: {ours.held or 'nothing'}")
    timed = [(o.seconds, t.seconds, o) for o, t in both if o.seconds and t.seconds]
    slower = [f"{ours.network} {a / b:.1f}x" for a, b, ours in timed if a > b]
    print(f"  CPU seconds, of {len(timed)}: quicker {len(timed) - len(slower)}; slower: {', '.join(slower) or 'none'}")
    total = [sum(column) for column in zip(*((a, b) for a, b, _ in timed))] or [0.0, 0.0]
    print(f"  CPU seconds together: {total[0]:.1f} and {total[1]:.1f}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("zoo", nargs="?", type=Path, default=Path("../shared/zoo"), help="folder with weightless.py")
    add("--peer-python", default=sys.executable, help="interpreter with torch-pruning and onnxsim (default: this one)")
    add("--only", action="append", metavar="GLOB", help="only networks or families that match (may be repeated)")
    add("--ratio", type=float, default=0.5, help="fraction of the channels of every group to remove (default 0.5)")
    add("--timeout", type=float, default=180.0, help="wall-clock seconds per cell (default 180)")
    add("--memory-gb", type=float, default=10.0, help="resident memory per cell (default 10)")
    add("--csv", type=Path, help="write a line per cell here")
    add("--show", type=Path, metavar="CSV", help="only print the table of an earlier run")
    return parser.parse_args(argv)


def read_cells(path: Path) -> list[Cell]:
    """Read the cells of an earlier run."""
    with path.open(newline="") as f:
        return [Cell(**{f.name: _value(line[f.name], str(f.type)) for f in fields(Cell)}) for line in csv.DictReader(f)]


def _value(text: str, kind: str) -> Any:
    if kind.startswith("float"):
        return float(text) if text else None
    return text == "True" if kind == "bool" else text


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
    cells = []
    for cell in run(rows, args):
        cells.append(cell)
        print(f"{cell.network}, {cell.tool}: {cell.reason or 'done'}"[:118], file=sys.stderr, flush=True)
    if args.csv:
        with args.csv.open("w", newline="") as f:
            writer = csv.DictWriter(f, [f.name for f in fields(Cell)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(cell) for cell in cells)
    print_results(cells)
    return int(any(cell.tool == OURS and not (cell.valid and cell.checked) for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
