"""Print how prunepass stands next to its peers: a row per architecture, then where it is ahead and behind, and why."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from summary import print_table

TOOLS = ("prunepass", "torch-pruning", "onnxsim")
OURS, *PEERS = TOOLS
WHOLE = 0.995
"""A network that keeps more than this share of its parameters was not pruned."""
EQUAL = 0.005
"""Two shares that differ by no more than this are equal: an odd width may be halved up or down."""


@dataclass
class Cell:
    """What one tool made of one architecture.

    Units
        params, macs: kept, after / before; None where the tool gives no working network. seconds: CPU seconds of the
        pruning alone. certified: CPU seconds from file to file with the certificate. checked: the tool itself has
        compared the numbers. counted: by what MACs were counted. held: why axes of weights stay whole, the costliest
        first.
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

    @property
    def smaller(self) -> bool:
        """Whether the network is valid and something was removed."""
        return self.valid and self.params is not None and self.params < WHOLE


def print_results(cells: Sequence[Cell]) -> None:
    """Print the table, what fails and why, and how we stand against each peer."""
    columns = ("params", "MACs", "CPU s", "valid", "checked")
    head = ["", "network", "", OURS, "", "", "", ""]
    for peer in PEERS:
        head += ["", peer, "", "", ""]
    table = [head, ["family", "", "params", "MACs", "CPU s", "certified", "valid", "checked", *columns * len(PEERS)]]
    for group in grouped(cells):
        cell = group[0]
        line = [cell.family, cell.network]
        for cell in group:
            line += [_share(cell.params if cell.valid else None), _share(cell.macs if cell.valid else None)]
            line += [_seconds(cell.seconds), *([_seconds(cell.certified)] if cell.tool == OURS else ())]
            line += ["yes" if cell.valid else "no", "yes" if cell.checked and cell.valid else "no"]
        table.append(line)
    print_table(table)
    for cell in cells:
        if cell.reason:
            print(f"  {cell.network}, {cell.tool}: {cell.reason}")
        elif cell.counted.startswith("by"):
            print(f"  {cell.network}, {cell.tool}: counted {cell.counted}")
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
    for tool, rows in ((OURS, pairs), (peer, [(theirs, ours) for ours, theirs in pairs])):
        alone = [one.family for one, other in rows if one.smaller and not other.smaller]
        print(f"  only {tool} gives a valid smaller network: {len(alone)}{': ' if alone else ''}{', '.join(alone)}")
    both = [(ours, theirs) for ours, theirs in pairs if ours.smaller and theirs.smaller]
    for what in ("params", "macs"):
        _print_gaps(what, [(getattr(o, what), getattr(t, what), o) for o, t in both])
    timed = [(o.seconds, t.seconds, o) for o, t in both if o.seconds and t.seconds]
    slower = [f"{ours.network} {a / b:.1f}x" for a, b, ours in timed if a > b]
    print(f"  CPU seconds, of {len(timed)}: quicker {len(timed) - len(slower)}; slower: {', '.join(slower) or 'none'}")
    print(f"  CPU seconds together: {sum(a for a, _, _ in timed):.1f} and {sum(b for _, b, _ in timed):.1f}")


def _print_gaps(what: str, rows: Sequence[tuple[float | None, float | None, Cell]]) -> None:
    gaps = [(ours - theirs, cell) for ours, theirs, cell in rows if ours is not None and theirs is not None]
    ahead = sum(gap < -EQUAL for gap, _ in gaps)
    behind = [(gap, cell) for gap, cell in gaps if gap > EQUAL]
    equal = len(gaps) - ahead - len(behind)
    print(f"  {what} kept, of {len(gaps)}: ahead {ahead}, equal {equal}, behind {len(behind)}")
    for gap, cell in behind:
        print(f"    behind by {gap:.3f}: {cell.network}; stays whole: {cell.held or 'nothing'}")


def read_cells(paths: Sequence[Path]) -> list[Cell]:
    """Read the cells of earlier runs; of a cell that several have, the last one counts."""
    found: dict[tuple[str, str], Cell] = {}
    for path in paths:
        with path.open(newline="") as f:
            for line in csv.DictReader(f):
                cell = Cell(**{f.name: _value(line[f.name], str(f.type)) for f in fields(Cell)})
                found[cell.network, cell.tool] = cell
    return list(found.values())


def _value(text: str, kind: str) -> Any:
    if kind.startswith("float"):
        return float(text) if text else None
    return text == "True" if kind == "bool" else text
