"""What `prunepass inspect --cost` shows: totals, types, the peak of the memory, the costliest nodes and groups."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from prunepass.cli.inspection import distinct, scaled
from prunepass.cli.show import SHOWN_NAME, count, line, short, table

SHOWN_ROWS = 20
COLUMNS = ("macs", "params", "bytes", "ram", "traffic")
TITLES = ("MACs", "parameters", "bytes", "RAM", "traffic")
OTHER_COLUMNS = 58  # characters


def show_costs(console: Console, cost: dict[str, Any]) -> None:
    """Print the cost of a model."""
    total = cost["total"]
    line(console, "MACs", count(total["macs"]))
    line(console, "parameters", count(total["params"]))
    parts = ", ".join(f"{count(row['bytes'])} {row['type']}" for row in cost["types"])
    line(console, "bytes", f"{count(total['bytes'])} in the file" + (f", of which {parts}" if parts else ""))
    peak = cost["peak"]
    line(console, "RAM", f"{count(total['ram'])} bytes at the worst moment, {count(total['ram_int8'])} in int8")
    alive = ", ".join(f"{short(row['value'])} {count(row['bytes'])}" for row in peak["alive"])
    more = f" and {peak['others']} more" if peak["others"] else ""
    line(console, "", f"{peak['node'] or 'before the first node'}: {alive}{more}")
    line(console, "traffic", f"{count(total['traffic'])} bytes read and written")
    for text in cost["uncounted"]:
        line(console, "not counted", text)
    nodes = sorted(cost["nodes"], key=lambda row: (-row["macs"], -row["traffic"]))
    _rows(console, f"nodes: {len(nodes)}", "node", [{**row, "name": f"{row['op']} {row['node']}"} for row in nodes])
    groups = sorted(cost["groups"], key=lambda row: -row["macs"])
    title = f"what the model loses with all units of a coupling group: {len(groups)}"
    _rows(console, title, "group", [{**row, "name": row["group"]} for row in groups])


def _rows(console: Console, title: str, what: str, rows: list[dict[str, Any]]) -> None:
    console.print(f"[bold]{title}[/bold]", highlight=False)
    if not rows:
        return
    shown = table(what, *TITLES)
    names = [row["name"] for row in rows[:SHOWN_ROWS]]
    width = max(console.width - OTHER_COLUMNS, SHOWN_NAME // 2)
    for name, row in zip(distinct(names, width), rows):
        shown.add_row(escape(name), *(scaled(row[column]) for column in COLUMNS))
    console.print(shown)
    if len(rows) > SHOWN_ROWS:
        console.print(f"... and {len(rows) - SHOWN_ROWS} more; --json writes all", highlight=False)
