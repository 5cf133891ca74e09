"""What `prunepass inspect` shows: what can be pruned and what hangs on it, then what cannot, and why."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from prunepass.cli.show import QUANTITIES, count, line, short, table

SHOWN_GROUPS = 20
SHOWN_HOLDERS = 8
SHOWN_NAMES = 6
SHOWN_CHAIN = 8  # nodes
NAME = 30  # characters


def show_inspection(console: Console, found: dict[str, Any]) -> None:
    """Print size, groups, tied tensors, barriers, and what else keeps axes whole."""
    size = found["size"]
    line(console, "model", ", ".join(f"{count(size[key])} {title}" for key, title in QUANTITIES))
    line(console, "inputs", "; ".join(f"{name} {list(shape)}" for name, shape in found["inputs"].items()))
    for name, value in found["assumed"].items():
        line(console, "assumed", f"{name} = {value} (set it with --shape)")
    _groups(console, found["groups"])
    if found["tied"]:
        line(console, "tied", _names(found["tied"]))
    outputs = [holder for holder in found["pinned"] if not holder["op"]]
    others = [holder for holder in found["pinned"] if holder["op"]]
    _holders(console, "barriers, operators that no rule could follow", found["barriers"], found["axes"])
    _holders(console, "other nodes that keep axes of weights whole", others, found["axes"])
    for holder in outputs:
        line(console, "outputs", f"the graph outputs keep {_axes(holder)} whole: {_weight(holder)}")


def _groups(console: Console, groups: list[dict[str, Any]]) -> None:
    console.print(f"[bold]coupling groups: {len(groups)}[/bold]", highlight=False)
    if not groups:
        return
    rows = table("group", "units", "sites", "parameters", "MACs", "removal")
    for group in sorted(groups, key=lambda g: -g["params"])[:SHOWN_GROUPS]:
        units = count(group["units"])
        if group["blocks"] > 1:
            units = f"{group['blocks']} x {count(group['units'] // group['blocks'])}"
        numbers = (str(len(group["sites"])), scaled(group["params"]), scaled(group["macs"]))
        rows.add_row(escape(short(group["name"], NAME)), units, *numbers, group["removal"])
    console.print(rows)
    if len(groups) > SHOWN_GROUPS:
        console.print(f"... and {len(groups) - SHOWN_GROUPS} smaller ones; --json writes all", highlight=False)
    nodes = list(dict.fromkeys(node for group in groups for node in group["renormalised_by"]))
    if nodes:
        line(console, "renormalised", f"by {_names(nodes, 2)}")


def _holders(console: Console, title: str, holders: list[dict[str, Any]], axes: list[dict[str, Any]]) -> None:
    """Print two lines per node: why, and one way to it."""
    console.print(f"[bold]{title}: {len(holders)}[/bold]", highlight=False)
    for holder in holders[:SHOWN_HOLDERS]:
        reason = escape(f"{holder['op']} {short(holder['node'])!r}: {holder['reason']}")
        console.print(f"  {reason}", soft_wrap=True, highlight=False)
        way = next((a for a in axes if (a["node"], a["op"]) == (holder["node"], holder["op"])), None)
        text = f"{_axes(holder)}, {_weight(holder)}"
        if way is not None:
            text += f"; {short(way['site'])}: {chain_text(way['chain'])}"
        console.print(f"    {escape(text)}", soft_wrap=True, highlight=False, style="dim")
    if len(holders) > SHOWN_HOLDERS:
        console.print(f"  ... and {len(holders) - SHOWN_HOLDERS} more; --json writes all", highlight=False)


def chain_text(chain: list[str]) -> str:
    """Write the nodes from a weight to the reason: the ends with their names, the others as operators."""
    shown = [label if i in (0, len(chain) - 1) else label.partition(" ")[0] for i, label in enumerate(chain)]
    if len(shown) > SHOWN_CHAIN:
        half = SHOWN_CHAIN // 2
        shown = [*shown[:half], f"{len(shown) - 2 * half + 1} more", *shown[1 - half :]]
    return " -> ".join(shown)


def scaled(value: int) -> str:
    """Write a large number with three digits: 25.5 M."""
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}" if value < 999.5 * size else f"{value / size:.0f} {letter}"
    return str(value)


def _axes(holder: dict[str, Any]) -> str:
    return f"{count(holder['axes'])} {'axis' if holder['axes'] == 1 else 'axes'}"


def _weight(holder: dict[str, Any]) -> str:
    """Say what hangs on what a node holds, and what of it could go if only this node let go."""
    whole = (holder["params_blocked"], holder["macs_blocked"])
    alone = (holder["gain"]["params"], holder["gain"]["macs"])
    text = f"{scaled(whole[0])} parameters, {scaled(whole[1])} MACs"
    if alone == whole:
        return text
    return f"{text}, of which {scaled(alone[0])} and {scaled(alone[1])} by nothing else"


def _names(names: list[str], shown: int = SHOWN_NAMES) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(short(name) for name in names[:shown]) + more
