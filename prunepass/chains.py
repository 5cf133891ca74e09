"""Find the shortest way from a weight to what keeps an axis of it whole, along values that carry its labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Node
from prunepass.labels import spans
from prunepass.propagation import OUTPUT
from prunepass.record import MEETS_PINNED, Hold, Record

_UNNAMED = (MEETS_PINNED, "meets an axis that cannot shrink")
"""Reasons that do not say where what cannot shrink comes from."""
UNEVEN = "its blocks cannot all lose the same number of indices"


@dataclass(frozen=True)
class Chain:
    """The way from a weight to a hold: positions of nodes, and what the last one meets or makes where that helps."""

    nodes: tuple[int, ...]
    hold: Hold
    source: str


class Chains:
    """Find the shortest way from a weight to what holds it."""

    def __init__(self, record: Record, chosen: Sequence[int]) -> None:
        self.record = record
        self.holds = record.holds_of(chosen)
        self.carriers: dict[int, set[str]] = {c: set() for c in chosen}
        self._find_carriers(chosen)
        self.held_by: dict[int, list[int]] = {}
        for c, found in self.holds.items():
            for hold in found:
                self.held_by.setdefault(hold.owner, []).append(c)
        self.named = {hold.owner: hold.reason for hold in record.held if not hold.reason.endswith(_UNNAMED)}
        self.made_by: dict[str, int] = {}
        self.touching: dict[str, list[int]] = {}
        self.values = [_values(node) for node in record.nodes]
        for index, node in enumerate(record.nodes):
            self.made_by.update(dict.fromkeys(node.outputs, index))
            for name in self.values[index]:
                self.touching.setdefault(name, []).append(index)

    def _find_carriers(self, chosen: Sequence[int]) -> None:
        """Find the values that carry each of some classes."""
        mark = np.zeros(self.record.classes.size, bool)
        mark[list(chosen)] = True
        for name, factors in self.record.factors.items():
            for factor in factors:
                hit = factor[mark[factor]]
                for c in np.unique(hit).tolist() if hit.size else ():
                    self.carriers[c].add(name)

    def find(self, tensor: str, carried: int) -> Chain:
        """Return the nodes from a tensor to the nearest hold of a class that it carries, that one included."""
        holds, outputs = {hold.owner: hold for hold in reversed(self.holds[carried])}, self.record.graph.output_names
        for way, name in self._ways(tensor, carried):
            if way and way[-1] in holds:
                return Chain(way, holds[way[-1]], self._source(holds[way[-1]]))
            if OUTPUT in holds and name in outputs:
                return Chain(way, holds[OUTPUT], repr(name))
        hold = self.holds[carried][0]
        return Chain(self._ends(tensor, hold.owner), hold, self._source(hold))

    def find_blocks(self, tensor: str, carried: int, classes: np.ndarray) -> Chain:
        """Return the nodes from a tensor to the nearest one whose blocks have unequal shares of some classes."""
        chosen = np.zeros(self.record.classes.size, bool)
        chosen[classes] = True
        uneven = {owner for owner, table in self._tables() if np.ptp(chosen[table].sum(axis=-1))}
        for way, _ in self._ways(tensor, carried):
            if way and way[-1] in uneven:
                return Chain(way, self.record.hold(way[-1], UNEVEN), "")
        ends = self._ends(tensor, OUTPUT)
        return Chain(ends, self.record.hold(ends[0] if ends else OUTPUT, UNEVEN), "")

    def _tables(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield block structures as (blocks, inner) arrays, with the node that asks for each or makes the value."""
        made = [
            (self.made_by[name], f) for name, own in self.record.factors.items() if name in self.made_by for f in own
        ]
        for owner, factor in (*self.record.blocks, *made):
            axes = spans(factor)
            if len(axes) > 1:
                yield owner, factor.reshape(-1, factor.shape[axes[-1]])

    def _ends(self, tensor: str, owner: int) -> tuple[int, ...]:
        """Name the first user of a tensor and the holder, where no value between them carries the class."""
        return tuple(dict.fromkeys([*self.touching.get(tensor, [])[:1], *([owner] if owner >= 0 else [])]))

    def _ways(self, tensor: str, carried: int) -> Iterator[tuple[tuple[int, ...], str]]:
        """Yield every node that a class reaches with the shortest way to it, and every value, nearest first."""
        carriers = self.carriers[carried]
        came_from: dict[int, int] = {}
        queue: deque[tuple[str, int]] = deque([(tensor, -1)])
        reached = {tensor}
        while queue:
            name, before = queue.popleft()
            yield _way(came_from, before), name
            for index in self.touching.get(name, ()):
                if index in came_from:
                    continue
                came_from[index] = before
                yield _way(came_from, index), ""
                for value in self.values[index]:
                    if value in carriers and value not in reached:
                        reached.add(value)
                        queue.append((value, index))

    def _source(self, hold: Hold) -> str:
        """Say where that comes from which a held axis meets: the nearest graph input, barrier or other reason."""
        if hold.owner < 0 or not hold.reason.endswith(_UNNAMED):
            return ""
        nodes, inputs = self.record.nodes, set(self.record.graph.input_names)
        mine = {name for held in self.held_by.get(hold.owner, ()) for name in self.carriers[held]}
        queue = deque(name for name in nodes[hold.owner].inputs if name and name not in mine)
        reached = {*queue, *mine}
        while queue:
            name = queue.popleft()
            if name in inputs:
                return f"graph input {name!r}"
            index = self.made_by.get(name)
            if index is None:
                continue
            reason = self.record.barriers.get(index) or self.named.get(index)
            if reason is not None:
                return f"{nodes[index].label}: {reason}"
            fresh = [value for value in (*nodes[index].inputs, *nodes[index].captured) if value not in reached]
            reached.update(fresh)
            queue.extend(fresh)
        return ""


def _way(came_from: Mapping[int, int], last: int) -> tuple[int, ...]:
    way: list[int] = []
    while last >= 0:
        way.append(last)
        last = came_from[last]
    return tuple(reversed(way))


def _values(node: Node) -> tuple[str, ...]:
    """Return the values that meet in a node: what it makes and reads, and what open bodies take and return."""
    inner = [name for body in node.bodies for name in (*body.inputs, *body.outputs)]
    captured = () if node.bodies else node.captured
    return tuple(dict.fromkeys(name for name in (*node.outputs, *node.inputs, *captured, *inner) if name))
