"""What the terminal shows: tables on standard output; progress and messages on standard error."""

from __future__ import annotations

import threading
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

SHOWN_NAME = 36  # characters
NUMERIC = frozenset(
    "before after left seconds changes units sites parameters MACs bytes RAM traffic dense pruned recovered".split()
)
QUANTITIES = (
    ("params", "parameters"),
    ("macs", "MACs"),
    ("bytes", "bytes"),
    ("ram", "bytes of RAM"),
    ("nodes", "nodes"),
)


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
    rows = table("", "before", "after", "left")
    for key, title in QUANTITIES:
        before, after = report["before"][key], report["after"][key]
        rows.add_row(title, count(before), count(after), _share(after, before))
    console.print(rows)
    if report["quality"] is not None:
        show_quality(console, report["quality"])
    for entry in report["recovery"]:
        line(console, "recovery", recovery_text(entry))
    if "search" in report:
        line(console, "search", search_text(report["search"]))
    if "latency" in report:
        line(console, "latency", latency_text(report["latency"]))
    line(console, "certificate", certificate_text(report["certificate"]))
    for note in report["certificate"].get("notes", ()):
        line(console, "note", note)
    line(console, "barriers", _barriers_text(report["barriers"]))
    line(console, "time", time_text(report["timing"]))
    if detail:
        show_times(console, report["timing"]["stages"])
    line(console, "written", output)


def show_quality(console: Console, quality: dict[str, Any]) -> None:
    """Print what the model is worth, next to the dense one."""
    columns = [name for name in ("pruned", "recovered") if name in quality["output_error"]]
    rows = table("quality", "dense", *columns)
    rows.add_row("output error", "0", *(_number(quality["output_error"][name]) for name in columns))
    if quality["agreement"] is not None:
        rows.add_row("agreement", "100.0%", *(f"{quality['agreement'][name]:.1%}" for name in columns))
    if (metric := quality["metric"]) is not None:
        rows.add_row(escape(metric["name"]), *(_number(metric[name]) for name in ("dense", *columns)))
    console.print(rows)
    judged = quality["judged_on"]
    kind = "drawn inputs, for want of others" if judged["drawn"] else "samples that were held back"
    line(console, "judged on", f"{judged['samples']} {kind}")


def recovery_text(entry: dict[str, Any]) -> str:
    """Say in one line what was refitted."""
    if entry["note"]:
        return str(entry["note"])
    if "nodes" in entry:
        return f"{entry['nodes']} normalisations measured again on {entry['samples']} samples"
    done = sum(layer["method"] != "kept" for layer in entry["layers"])
    return f"{done} of {len(entry['layers'])} layers refitted to {entry['samples']} samples"


def search_text(search: dict[str, Any]) -> str:
    """Say in one line what was found within the drop that is allowed."""
    good = [t for t in search["trials"] if t["drop"] is not None and t["drop"] <= search["most_drop"]]
    best = min(good, key=lambda trial: trial["kept"])
    amount = f"{search['by']} {1 - best['kept'] if search['by'] == 'ratio' else best['kept']:.4g}"
    found = f"{search['quality']} {best['quality']:.4f}, {_drop(best['drop'])}"
    return f"{amount} after {len(search['trials'])} tries: {found}"


def certificate_text(certificate: dict[str, Any]) -> str:
    """Say in one line what the certificate found."""
    if certificate["status"] == "skipped":
        return "skipped, the result was not checked"
    differences = (
        f"largest difference {_small(certificate['max_abs'])} absolute, {_small(certificate['max_rel'])} relative"
    )
    return f"{certificate['status']} on {certificate['inputs']} inputs, {differences}"


def latency_text(found: dict[str, Any]) -> str:
    """Say in one line what was measured, and why it is not more."""
    text = f"{found['before_ms']:.3g} ms before, {found['after_ms']:.3g} ms after: {found['ratio']:.1%} of the time"
    text += f" for {found['macs_ratio']:.1%} of the MACs, align={found['align']}"
    return "; ".join([text, *found["reasons"]])


def time_text(timing: dict[str, Any]) -> str:
    """Say in one line where the time went."""
    parts = [f"{name} {seconds:.2f}" for name, seconds in _by_name(timing["stages"]) if seconds >= 0.005]
    return f"{timing['total']:.2f} s" + (f" ({', '.join(parts)})" if parts else "")


def show_times(console: Console, stages: list[dict[str, Any]]) -> None:
    """Print one row per run of a pass or analysis."""
    rows = table("stage", "seconds", "changes")
    for stage in stages:
        changes = "" if stage["changes"] is None else count(stage["changes"])
        rows.add_row(escape(stage["name"]), f"{stage['seconds']:.4f}", changes)
    console.print(rows)


def short(name: str, length: int = SHOWN_NAME) -> str:
    """Leave the middle out of a long name; exporters put what tells names apart at the end."""
    return name if len(name) <= length else f"{name[: length // 4]}...{name[length // 4 + 3 - length :]}"


def table(*columns: str) -> Table:
    """Return an empty table; columns of numbers are aligned on the right."""
    rows = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        rows.add_column(column, justify="right" if column in NUMERIC else "left", overflow="fold")
    return rows


def line(console: Console, title: str, text: str) -> None:
    """Print a title and what belongs to it."""
    console.print(f"[bold]{title:<12}[/bold]{escape(text)}", soft_wrap=True, highlight=False)


def count(value: int | None) -> str:
    """Write a whole number with separators."""
    return "?" if value is None else f"{value:,}"


def _share(after: int | None, before: int | None) -> str:
    return f"{after / before:.1%}" if after is not None and before else ""


def _drop(drop: float) -> str:
    return f"{drop:.2%} lost" if drop > 0 else "nothing lost"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _small(value: float | None) -> str:
    return "?" if value is None else f"{value:.1e}"


def _barriers_text(barriers: list[dict[str, Any]]) -> str:
    return f"{len(barriers)} operators without a rule (prunepass inspect MODEL lists them)" if barriers else "none"


def _by_name(stages: list[dict[str, Any]]) -> list[tuple[str, float]]:
    total: dict[str, float] = {}
    for stage in stages:
        total[stage["name"]] = total.get(stage["name"], 0.0) + float(stage["seconds"])
    return list(total.items())
