"""What `prunepass inspect` shows: what can be pruned and what hangs on it, then what cannot, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape

from prunepass.cli.show import QUANTITIES, SHOWN_NAME, count, line, short, table

SHOWN_GROUPS = 20
SHOWN_HOLDERS = 8
SHOWN_NAMES = 6
SHOWN_CHAIN = 8  # nodes
OTHER_COLUMNS = 46  # characters


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
    _holders(console, "other reasons why axes of weights stay whole", others, found["axes"])
    for holder in outputs:
        line(console, "outputs", f"graph outputs keep {_axes(holder)} whole: {_weight(holder)}")


def _groups(console: Console, groups: list[dict[str, Any]]) -> None:
    console.print(f"[bold]coupling groups: {len(groups)}[/bold]", highlight=False)
    if not groups:
        return
    rows = table("group", "units", "sites", "parameters", "MACs", "exact")
    shown = sorted(groups, key=lambda g: -g["params"])[:SHOWN_GROUPS]
    names = distinct([group["name"] for group in shown], max(console.width - OTHER_COLUMNS, SHOWN_NAME // 2))
    for group, name in zip(shown, names):
        units = count(group["units"])
        if group["blocks"] > 1:
            units = f"{group['blocks']} x {count(group['units'] // group['blocks'])}"
        numbers = (str(len(group["sites"])), scaled(group["params"]), scaled(group["macs"]))
        rows.add_row(escape(name), units, *numbers, "yes" if group["removal"] == "exact" else "no")
    console.print(rows)
    if len(groups) > SHOWN_GROUPS:
        console.print(f"... and {len(groups) - SHOWN_GROUPS} smaller ones; --json writes all", highlight=False)
    nodes = {node for group in groups for node in group["renormalised_by"]}
    if nodes:
        ops = Counter(sorted(node.partition(" ")[0] for node in nodes))
        text = ", ".join(f"{number} {op}" for op, number in ops.most_common())
        console.print(f"not exact: removal changes the statistics in {escape(text)}", soft_wrap=True, highlight=False)


def _holders(console: Console, title: str, holders: list[dict[str, Any]], axes: list[dict[str, Any]]) -> None:
    """Print two lines per reason: who and why, then what it costs and one way to it."""
    console.print(f"[bold]{title}: {len(holders)}[/bold]", highlight=False)
    for holder in holders[:SHOWN_HOLDERS]:
        console.print(f"  {escape(_who(holder))}", soft_wrap=True, highlight=False)
        way = next((a for a in axes if (a["op"], a["reason"]) == (holder["op"], holder["reason"])), None)
        text = f"{_axes(holder)}, {_weight(holder)}"
        if way is not None:
            text += f"; {short(way['site'])}: {chain_text(way['chain'])}"
        console.print(f"    {escape(text)}", soft_wrap=True, highlight=False, style="dim")
    if len(holders) > SHOWN_HOLDERS:
        console.print(f"  ... and {len(holders) - SHOWN_HOLDERS} more; --json writes all", highlight=False)


def _who(holder: dict[str, Any]) -> str:
    nodes, sources = holder["nodes"], holder["sources"]
    who = f"{holder['op']} {short(nodes[0])!r}" + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else "")
    source = f" ({sources[0]}" + (f" and {len(sources) - 1} more" if len(sources) > 1 else "") + ")" if sources else ""
    return f"{who}: {holder['reason']}{source}"


def distinct(names: list[str], length: int) -> list[str]:
    """Shorten names, except where that makes two alike."""
    found = Counter(short(name, length) for name in names)
    return [name if found[short(name, length)] > 1 else short(name, length) for name in names]


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
    if not any(alone):
        return f"{text}, all of it for other reasons, too"
    return f"{text}, of which {scaled(alone[0])} and {scaled(alone[1])} for no other reason"


def _names(names: list[str], shown: int = SHOWN_NAMES) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(short(name) for name in names[:shown]) + more
