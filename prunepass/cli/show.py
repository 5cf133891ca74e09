"""What the terminal shows: tables on standard output; progress and messages on standard error."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

SHOWN_ROWS = 20
SHOWN_NAME = 36  # characters
QUANTITIES = (("params", "parameters"), ("macs", "MACs"), ("bytes", "bytes"), ("nodes", "nodes"))


class Bar:
    """Show a progress bar for work that takes longer than a second; silent when nobody looks."""

    def __init__(self, console: Console, enabled: bool, delay_s: float = 1.0) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True)
        self.task: TaskID = self.progress.add_task("starting", total=None)
        self.timer = threading.Timer(delay_s, self.progress.start)
        self.timer.daemon = True
        self.enabled = enabled and console.is_terminal

    def __enter__(self) -> Bar:
        if self.enabled:
            self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        if self.timer.ident is not None:
            self.timer.join()  # it may be starting the bar just now
        if self.progress.live.is_started:
            self.progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far the work is."""
        self.progress.update(self.task, description=escape(what), completed=done, total=total or None)


def show_report(console: Console, report: dict[str, Any], output: str, detail: bool) -> None:
    """Print sizes before and after, the certificate and the time per stage."""
    table = _table("", "before", "after", "left")
    for key, title in QUANTITIES:
        before, after = report["before"][key], report["after"][key]
        table.add_row(title, _count(before), _count(after), _share(after, before))
    console.print(table)
    _line(console, "certificate", certificate_text(report["certificate"]))
    _line(console, "barriers", _barriers_text(report["barriers"]))
    _line(console, "time", time_text(report["timing"]))
    if detail:
        show_times(console, report["timing"]["stages"])
    _line(console, "written", output)


def certificate_text(certificate: dict[str, Any]) -> str:
    """Say in one line what the certificate found."""
    if certificate["status"] == "skipped":
        return "skipped, the result was not checked"
    differences = (
        f"largest difference {_small(certificate['max_abs'])} absolute, {_small(certificate['max_rel'])} relative"
    )
    return f"{certificate['status']} on {certificate['inputs']} inputs, {differences}"


def time_text(timing: dict[str, Any]) -> str:
    """Say in one line where the time went."""
    parts = [f"{name} {seconds:.2f}" for name, seconds in _by_name(timing["stages"]) if seconds >= 0.005]
    return f"{timing['total']:.2f} s" + (f" ({', '.join(parts)})" if parts else "")


def show_times(console: Console, stages: list[dict[str, Any]]) -> None:
    """Print one row per run of a pass or analysis."""
    table = _table("stage", "seconds", "changes")
    for stage in stages:
        changes = "" if stage["changes"] is None else _count(stage["changes"])
        table.add_row(escape(stage["name"]), f"{stage['seconds']:.4f}", changes)
    console.print(table)


def show_inspection(console: Console, found: dict[str, Any]) -> None:
    """Print size, groups, tied tensors and barriers."""
    size = found["size"]
    _line(console, "model", ", ".join(f"{_count(size[key])} {title}" for key, title in QUANTITIES))
    _line(console, "inputs", "; ".join(f"{name} {list(shape)}" for name, shape in found["inputs"].items()))
    for name, value in found["assumed"].items():
        _line(console, "assumed", f"{name} = {value} (set it with --shape)")
    groups = sorted(found["groups"], key=lambda g: -g["units"])
    rows = [(_short(g["name"]), _count(g["units"]), str(g["blocks"]), _sites(g["sites"])) for g in groups]
    _rows(console, f"coupling groups: {len(groups)}", ("group", "units", "blocks", "producing tensors"), rows)
    if found["tied"]:
        _line(console, "tied", ", ".join(map(_short, found["tied"])))
    columns = ("node", "operator", "parameters blocked", "reason")
    _rows(
        console,
        f"barriers, operators that no rule could follow: {len(found['barriers'])}",
        columns,
        _why(found["barriers"]),
    )
    _rows(console, f"what keeps axes whole: {len(found['pinned'])}", columns, _why(found["pinned"]))


def _why(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            _short(b["node"]),
            b["op"],
            _count(b["params_blocked"]),
            b["reason"].removeprefix(f"{b['op']} {b['node']!r}: "),
        )
        for b in found
    ]


def _short(name: str) -> str:
    """Leave the middle out of a long name; exporters put what tells names apart at the end."""
    return name if len(name) <= SHOWN_NAME else f"{name[:9]}...{name[12 - SHOWN_NAME :]}"


def _rows(console: Console, title: str, columns: Iterable[str], rows: Sequence[tuple[str, ...]]) -> None:
    console.print(f"[bold]{title}[/bold]")
    if not rows:
        return
    table = _table(*columns)
    for row in rows[:SHOWN_ROWS]:
        table.add_row(*map(escape, row))
    console.print(table)
    if len(rows) > SHOWN_ROWS:
        console.print(f"... and {len(rows) - SHOWN_ROWS} more; --json writes all")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    numeric = {"before", "after", "left", "seconds", "changes", "units", "blocks", "parameters blocked"}
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    return table


def _line(console: Console, title: str, text: str) -> None:
    console.print(f"[bold]{title:<12}[/bold]{escape(text)}", soft_wrap=True, highlight=False)


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _share(after: int | None, before: int | None) -> str:
    return f"{after / before:.1%}" if after is not None and before else ""


def _small(value: float | None) -> str:
    return "?" if value is None else f"{value:.1e}"


def _sites(sites: list[str]) -> str:
    return ", ".join(map(_short, sites[:2])) + (f" and {len(sites) - 2} more" if len(sites) > 2 else "")


def _barriers_text(barriers: list[dict[str, Any]]) -> str:
    return f"{len(barriers)} operators without a rule (prunepass inspect MODEL lists them)" if barriers else "none"


def _by_name(stages: list[dict[str, Any]]) -> list[tuple[str, float]]:
    total: dict[str, float] = {}
    for stage in stages:
        total[stage["name"]] = total.get(stage["name"], 0.0) + float(stage["seconds"])
    return list(total.items())
