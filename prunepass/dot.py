"""Draw a graph with its coupling groups as DOT text, for Graphviz: one box per layer, one colour per group.

Boxes of one group have one colour, a pale one where a single layer makes the group; grey ones stay whole. A long
drawing goes on in further columns.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from prunepass.boxes import Box, boxes, columns
from prunepass.explain import groups_of_values
from prunepass.labels import spans

if TYPE_CHECKING:
    from prunepass.api import Inspection

HUE_STEP = 0.618034  # golden ratio: neighbouring groups get colours that are far apart
GREY, RED = "#e4e4e4", "#c00000"
MOST_OPS = 4  # named in one box
MOST_STRIPES = 6
LEGEND = (
    "A colour is a coupling group: its channels go together; a strong one is shared by several layers.\\n"
    "Grey: no channels that can go. Dashed: joins at the operator named."
)
HEAD = f"""digraph model {{
  graph [fontname=Helvetica, fontsize=10, nodesep=0.25, ranksep=0.3, newrank=true, label="{LEGEND}"];
  node [shape=box, style=filled, fontname=Helvetica, fontsize=11, margin="0.1,0.04", penwidth=0.7];
  edge [fontname=Helvetica, fontsize=9, arrowsize=0.6];
"""


@dataclass(frozen=True)
class Sign:
    """Two ends of an arrow that leads from one column to another."""

    source: str
    leaves: int
    column: int
    value: str
    name: str
    targets: list[str]

    @property
    def exit(self) -> str:
        """Key of the end at the source."""
        return f"to {self.column} {self.value}"

    @property
    def entry(self) -> str:
        """Key of the end at the targets."""
        return f"from {self.leaves} to {self.column} {self.value}"

    def lines(self, number: int) -> Iterator[str]:
        """Yield the ends that stand in a column."""
        more = f" and {len(self.targets) - 1} more" if len(self.targets) > 1 else ""
        if number == self.leaves:
            yield f"{_quote(self.exit)} [shape=plaintext, style=solid, label={_quote(f'to {self.targets[0]}{more}')}];"
        if number == self.column:
            yield f"{_quote(self.entry)} [shape=plaintext, style=solid, label={_quote(f'from {self.name}')}];"


def to_dot(found: Inspection, removed: np.ndarray | None = None) -> str:
    """Return the DOT text, the same for the same model.

    Shapes
        removed: boolean, one entry per unit: what a plan removes; boxes then say how many channels are kept.
    """
    return HEAD + "".join(f"  {line}\n" for line in _Drawing(found, removed).lines()) + "}\n"


class _Drawing:
    """The labels and colours of boxes and arrows."""

    def __init__(self, found: Inspection, removed: np.ndarray | None) -> None:
        self.found, self.removed = found, removed
        self.graph, self.coupling = found.graph, found.coupling
        self.groups = groups_of_values(self.coupling)
        self.network = boxes(found.graph, found.coupling)
        self.titles = self._titles()
        shared = [len(group.axes) > 1 for group in self.coupling.groups]
        self.shared = {number for number, several in enumerate(shared) if several}
        self.hues = [sum(shared[:i]) if several else i - sum(shared[:i]) for i, several in enumerate(shared)]

    def lines(self) -> Iterator[str]:
        """Yield the boxes column by column, then the arrows."""
        column = columns(self.network, self._streams())
        count = max(column.values(), default=-1) + 1
        crossing = self._crossing(column)
        for number in range(count):
            yield f"subgraph cluster_{number} {{ peripheries=0; label={_quote('')};"
            for key, box in self.network.nodes(data="box"):
                if column[key] == number:
                    yield f"  {_quote(key)} [{self._end(key) if box is None else self._box(box)}];"
            yield from (f"  {line}" for sign in crossing for line in sign.lines(number))
            yield "}"
        yield from _side_by_side(self.network, column, crossing)
        for source, target, data in self.network.edges(data=True):
            joins = f", label={_quote(data['joins'])}, style=dashed" if data["joins"] else ""
            arrow = self._arrow(data["value"])
            if column[source] == column[target]:
                yield f"{_quote(source)} -> {_quote(target)} [{arrow}{joins}];"
            else:
                sign = next(s for s in crossing if (s.source, s.column) == (source, column[target]))
                yield f"{_quote(sign.entry)} -> {_quote(target)} [{arrow}{joins}];"
        for sign in crossing:
            yield f"{_quote(sign.source)} -> {_quote(sign.exit)} [{self._arrow(sign.value)}];"

    def _crossing(self, column: Mapping[str, int]) -> list[Sign]:
        """Return one pair of signs for each box and column to which arrows lead from another column."""
        found: dict[tuple[str, int], list[str]] = {}
        value = {}
        for source, target, name in self.network.edges(data="value"):
            if column[source] != column[target]:
                found.setdefault((source, column[target]), []).append(self._name(target))
                value[source] = name
        return [
            Sign(source, column[source], to, value[source], self._name(source), list(dict.fromkeys(names)))
            for (source, to), names in found.items()
        ]

    def _name(self, key: str) -> str:
        box = self.network.nodes[key].get("box")
        return key if box is None else self._title(box)

    def _streams(self) -> dict[str, set[int]]:
        """Return the shared groups that each box carries."""
        found = self.network.nodes(data="box")
        return {key: self.shared & {n for v in box.values for n in self.groups.get(v, ())} for key, box in found if box}

    def _titles(self) -> dict[str, str]:
        """Name each stored weight after the first box that reads it."""
        found: dict[str, str] = {}
        for _, box in self.network.nodes(data="box"):
            for node in box.nodes if box is not None else ():
                for name in node.inputs:
                    found.setdefault(name, self._title(box))
        return found

    def _title(self, box: Box) -> str:
        """Choose a name that says where in the model a box is: of its weight, or of its node where that is a number."""
        weight, node = re.sub(r"[._/]weight$", "", self._weight(box)), box.nodes[0]
        named = re.sub(r"^/|/[^/]*$", "", node.name) if "/" in node.name[1:] else node.name
        return next((name for name in (weight, named) if re.search(r"[./]", name)), weight or named or node.outputs[0])

    def _weight(self, box: Box) -> str:
        stored = (name for node in box.nodes for name in node.inputs if name in self.graph.consts)
        return next((name for name in stored if sum(size > 1 for size in self.graph.consts.shape(name)) > 1), "")

    # ---- what stands in DOT --------------------------------------------------------------------------------------
    def _end(self, name: str) -> str:
        shape = self.coupling.shapes.get(name, ()) if name in self.graph.input_names else ()
        return f"shape=ellipse, fillcolor=white, label={_quote(f'{name} {_by(shape)}'.strip())}"

    def _box(self, box: Box) -> str:
        numbers = next((self.groups[name] for name in box.values if name in self.groups), ())[:MOST_STRIPES]
        colours = ":".join(self._colour(number) for number in numbers) or GREY
        style = ", style=striped" if len(numbers) > 1 else ""
        border = f', color="{RED}", penwidth=3' if box.barrier else ""
        return f'fillcolor="{colours}"{style}{border}, label=<{self._label(box)}>'

    def _colour(self, number: int, dark: bool = False) -> str:
        saturation, value = (0.8, 0.6) if dark else (0.45, 0.98) if number in self.shared else (0.13, 1.0)
        return f"{self.hues[number] * HUE_STEP % 1:.3f} {saturation} {value}"

    def _arrow(self, value: str) -> str:
        numbers = self.groups.get(value, ())
        if not numbers:
            return 'color="#909090"'
        return f'color="{self._colour(numbers[0], dark=True)}"' + (", penwidth=2" if numbers[0] in self.shared else "")

    def _label(self, box: Box) -> str:
        title, weight = self._title(box), self._weight(box)
        ops = list(dict.fromkeys(node.op.rpartition("::")[2] for node in box.nodes))
        rest = f" + {len(ops) - MOST_OPS} more" if len(ops) > MOST_OPS else ""
        if weight:
            ops[0] += f" {_by(self.graph.consts.shape(weight))}"
        texts = [html.escape(" + ".join(ops[:MOST_OPS]) + rest), html.escape(self._channels(box, title))]
        return "<br/>".join(
            [f"<b>{html.escape(title)}</b>", *(f'<font point-size="9">{text}</font>' for text in texts)]
        )

    def _channels(self, box: Box, title: str) -> str:
        """Say how many channels of the result can go, or stay under a plan, and with which other layer."""
        if box.barrier:
            return "no rule"
        units = next((f for name in box.values for f in self.coupling.factors.get(name, ())), None)
        if units is None:
            return "fixed"
        total, free = units.size, int(np.count_nonzero(units))
        if self.removed is not None:
            return f"{total - int(self.removed[units].sum())} of {total} kept"
        blocks = f"{' x '.join(str(units.shape[axis]) for axis in spans(units))}, " if len(spans(units)) > 1 else ""
        text = f"{blocks}{free} free" if free == total else f"{blocks}{free} of {total} free"
        numbers = [number for number in self.groups.get(box.values[0], ()) if number in self.shared]
        first = self.titles.get(self.coupling.groups[numbers[0]].name, "") if len(numbers) == 1 else ""
        return f"{text}, with {first}" if first not in ("", title) else text


def _side_by_side(network: nx.MultiDiGraph, column: Mapping[str, int], crossing: Iterable[Sign]) -> Iterator[str]:
    """Put the columns in order, by invisible arrows between their first boxes."""
    entry = {sign.column: sign.entry for sign in crossing}
    first = {number: key for key, number in reversed(list(column.items())) if not any(network.predecessors(key))}
    heads = [_quote(entry.get(number) or first[number]) for number in range(max(column.values(), default=-1) + 1)]
    if len(heads) > 1:
        yield f"{{ rank=same; {' -> '.join(heads)} [style=invis]; }}"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
