"""Print what a coverage run found, per family and per reason."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from families import FAMILIES

if TYPE_CHECKING:
    from coverage import Row

STATUSES = ("certified", "valid-only", "refused", "invalid", "mismatch", "traceback", "timeout", "memory")
DEPTH_GOALS = {"cnn-classifier": 0.36, "transformer": 0.45}
KEPT = {"params kept": "params_kept", "body kept": "body_kept", "MACs kept": "macs_kept"}
HEADER = ("family", "graphs", "valid", "certified", "untouched", *KEPT, "goal", "CPU s", "CPU s max")


def print_summary(rows: Sequence[Row], total: int, wall_s: float, macs: float | None) -> None:
    """Print the tables of one run.

    Units
        untouched: valid graphs that keep over 99.5% of their parameters. kept: medians over the valid graphs. goal:
        share of all graphs of the family that keep at most so much of their parameters. CPU s: median and largest,
        `prunepass.prune` alone.
    """
    lines = [_family_line(name, [r for r in rows if r.family == name]) for name in FAMILIES]
    lines = [line for line in lines if line[1] != "0"]
    print_table([HEADER, *lines, _family_line("all", rows)])
    counts = {status: sum(r.status == status for r in rows) for status in STATUSES}
    print(
        f"\n{len(rows)} of {total} graphs in {wall_s:.0f} s: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    )
    spent, whole = sum(r.seconds or 0 for r in rows), sum(r.total_seconds for r in rows)
    print(f"CPU seconds: {spent:.0f} in prunepass, {whole:.0f} with filling weights and checking results")
    if macs is not None:
        _print_macs_target([r for r in rows if r.family == "cnn-classifier" and r.macs_kept is not None], macs)
    _print_slowest(rows)
    _print_failures([r for r in rows if r.status != "certified"])


def _family_line(name: str, rows: Sequence[Row]) -> tuple[str, ...]:
    certified = [r for r in rows if r.status == "certified"]
    valid = [r for r in rows if r.status in ("certified", "valid-only")]
    goal = DEPTH_GOALS.get(name)
    reached = [r for r in valid if goal is not None and r.params_kept is not None and r.params_kept <= goal]
    seconds = [r.seconds for r in rows if r.seconds is not None]
    untouched = sum(r.params_kept is not None and r.params_kept > 0.995 for r in valid)
    return (
        name,
        str(len(rows)),
        share(len(valid), len(rows)),
        share(len(certified), len(rows)),
        str(untouched),
        *(_median(getattr(r, column) for r in valid) for column in KEPT.values()),
        f"{share(len(reached), len(rows))} <= {goal}" if goal is not None else "",
        _median(seconds, 2),
        f"{max(seconds):.2f}" if seconds else "-",
    )


def markdown(rows: Sequence[Row]) -> str:
    """Return the table per family for a README, with a line about the whole run above it."""
    counts = {status: sum(r.status == status for r in rows) for status in STATUSES}
    told = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    lines = [_family_line(name, [r for r in rows if r.family == name]) for name in FAMILIES]
    table = [HEADER, ["---"] * len(HEADER), *(line for line in lines if line[1] != "0"), _family_line("all", rows)]
    text = "\n".join(f"| {' | '.join(cell or '-' for cell in line)} |" for line in table)
    return f"{len(rows):,} graphs: {told}.\n\n{text}\n"


def _median(values: Iterable[float | None], digits: int = 3) -> str:
    known = [v for v in values if v is not None]
    return f"{statistics.median(known):.{digits}f}" if known else "-"


def share(part: int, whole: int) -> str:
    """Return a percentage, never rounded up to 100%."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    return f"{min(percent, 99.9):.1f}%" if part < whole else "100%"


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Print rows of cells: the first column to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [f"{cell!s:>{width}}" for cell, width in zip(row, widths, strict=True)]
        print("  ".join([f"{row[0]!s:<{widths[0]}}", *cells[1:]]).rstrip())


def _print_macs_target(rows: Sequence[Row], macs: float) -> None:
    near = [r for r in rows if r.macs_kept is not None and 0.98 * macs <= r.macs_kept <= macs + 1e-6]
    over = [r for r in rows if r.macs_kept is not None and r.macs_kept > macs + 1e-6]
    print(
        f"MACs target {macs}: {share(len(near), len(rows))} of the CNN classifiers within 2% below, {len(over)} above"
    )


def _print_slowest(rows: Sequence[Row]) -> None:
    print("\nSlowest five (CPU seconds of prunepass, MB at the peak):")
    for r in sorted(rows, key=lambda r: -(r.seconds if r.seconds is not None else r.wall_seconds))[:5]:
        seconds = r.seconds if r.seconds is not None else r.wall_seconds
        print(f"  {seconds:7.2f}  {r.peak_mb:5d}  {r.status:10s} {r.file}")


def _print_failures(rows: Sequence[Row]) -> None:
    """Print every graph that is not certified, grouped by status and by reason without names and numbers."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for r in rows:
        groups[r.status, _shape_of(r.reason)].append(r)
    print("\nNot certified:" if groups else "\nEvery graph is certified.")
    order = sorted(groups.items(), key=lambda item: (STATUSES.index(item[0][0]), -len(item[1])))
    for (status, _), members in order:
        print(f"  {len(members):4d} x {status}: {members[0].reason[:240]}")
        for r in members:
            print(f"           {r.file}")


def _shape_of(reason: str) -> str:
    """Blank out what differs between two instances of one problem: quoted names, paths, numbers, lists."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^()]*\)", "_", reason)
    return re.sub(r"[\w./:-]*[\d/][\w./:-]*", "_", text)[:160]
