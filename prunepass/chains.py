"""Find out who keeps an axis whole, and through which nodes: the graph is run on labels once more, keeping a record.

Before any pin is applied, labels that are equal form classes. A class is *held* by every node that asks for one of its
labels to stay. The chain from a weight to a holder is the shortest way through nodes whose values carry the class.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.coupling import OUTPUT, Coupling, Propagation
from prunepass.graph import Graph
from prunepass.labels import PINNED, Factor, Factors, Labels, Pin
from prunepass.rules.step import Producer

MEETS_PINNED = "goes together with an index that stays"
_UNNAMED = (MEETS_PINNED, "meets an axis that cannot shrink")
"""Reasons that do not say where what cannot shrink comes from."""


class _Recorder(Labels):
    """Labels that keep every pin with its owner; to be equal to a pinned label is a pin, too."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__(coupling.policy)
        self.seen: list[Pin] = []

    def unify(self, a: Factor, b: Factor) -> None:
        """Make two factors equal, index by index."""
        if not (a.all() and b.all()):
            a, b = np.broadcast_arrays(a, b)
            self.pin(a[b == PINNED], MEETS_PINNED)
            self.pin(b[a == PINNED], MEETS_PINNED)
            both = (a != PINNED) & (b != PINNED)
            a, b = a[both], b[both]
        super().unify(a, b)

    def begin_round(self) -> None:
        """Put the pins of the round before aside."""
        self.seen.extend(self.pins)
        super().begin_round()


@dataclass(frozen=True)
class Hold:
    """One reason why labels stay: the position of the node in the graph (OUTPUT: they are a graph output), and why."""

    owner: int
    reason: str


class Record:
    """Hold what one run on labels found: classes before pins, who holds them, what carries them.

    Shapes
        classes: for each label, its class. factors: of each value, in classes. holders: number of nodes that hold a
        class. only: the holder of a class that has one. signature: equal for classes with the same holds. produced: whether a
        weight produces a class.
    """

    def __init__(self, graph: Graph, coupling: Coupling) -> None:
        self.graph = graph
        recorder = _Recorder(coupling)
        run = Propagation(graph, coupling.shapes, coupling.values, coupling.elem_types, recorder)
        world, rounds = run.equalities()
        classes, direct = recorder.classes, list(recorder.pins)
        past = len(recorder.seen) + len(direct)
        run.settle(rounds)
        late = [*recorder.seen, *recorder.pins][past:]
        self.classes = np.arange(recorder.count, dtype=classes.dtype)
        self.classes[: classes.size] = classes
        self.barriers = world.barriers
        self.producers: list[Producer] = world.producers
        self.factors: dict[str, Factors] = {
            name: tuple(self.classes[f] for f in own) for name, own in world.states.items() if own
        }
        self.held = self._held(direct, late)
        self._count_holders()
        self.produced = np.zeros(self.classes.size, bool)
        for producer in self.producers:
            self.produced[self.classes[producer.labels]] = True
        self.produced[PINNED] = False

    def _held(self, direct: Iterable[Pin], late: Iterable[Pin]) -> dict[Hold, np.ndarray]:
        """Return the classes that each reason holds; pins that follow from other pins count where there is no other."""
        found = self._by_reason(direct)
        explained = np.zeros(self.classes.size, bool)
        for classes in found.values():
            explained[classes] = True
        for hold, classes in self._by_reason(late).items():
            rest = classes[~explained[classes]]
            if rest.size:
                found[hold] = np.union1d(found[hold], rest) if hold in found else rest
        return found

    def _by_reason(self, pins: Iterable[Pin]) -> dict[Hold, np.ndarray]:
        parts: dict[Hold, list[np.ndarray]] = {}
        for pin in pins:
            parts.setdefault(Hold(pin.owner, pin.reason), []).append(pin.labels)
        return {hold: np.unique(self.classes[np.concatenate(labels)]) for hold, labels in parts.items()}

    def _count_holders(self) -> None:
        self.holders = np.zeros(self.classes.size, np.int32)
        self.only = np.zeros(self.classes.size, np.int32)
        self.signature = np.zeros(self.classes.size, np.int64)
        for number, classes in enumerate(self.held.values()):
            self.signature[classes] = self.signature[classes] * 1_000_003 + number + 1
        for owner, classes in self.by_owner().items():
            self.holders[classes] += 1
            self.only[classes] = owner

    def by_owner(self) -> dict[int, np.ndarray]:
        """Return the classes that each node holds, whatever its reasons, in the order in which they turned up."""
        parts: dict[int, list[np.ndarray]] = {}
        for hold, classes in self.held.items():
            parts.setdefault(hold.owner, []).append(classes)
        return {owner: np.unique(np.concatenate(classes)) for owner, classes in parts.items()}

    def holds_of(self, chosen: Sequence[int]) -> dict[int, list[Hold]]:
        """Return what holds each of some classes."""
        place = np.full(self.classes.size, -1, np.int64)
        place[list(chosen)] = np.arange(len(chosen))
        found: dict[int, list[Hold]] = {c: [] for c in chosen}
        for hold, classes in self.held.items():
            for position in place[classes][place[classes] >= 0]:
                found[chosen[position]].append(hold)
        return found


class Chains:
    """Find the shortest way from a weight to what holds it."""

    def __init__(self, record: Record, chosen: Sequence[int]) -> None:
        self.record = record
        self.outputs = set(record.graph.output_names)
        self.carriers = self._carriers(chosen)
        self.held_by: dict[int, list[int]] = {}
        self.holds = record.holds_of(chosen)
        for c, found in self.holds.items():
            for hold in found:
                self.held_by.setdefault(hold.owner, []).append(c)
        self.named = {hold.owner: hold.reason for hold in record.held if not hold.reason.endswith(_UNNAMED)}
        self.made_by: dict[str, int] = {}
        self.touching: dict[str, list[int]] = {}
        for index, node in enumerate(record.graph.nodes):
            self.made_by.update(dict.fromkeys(node.outputs, index))
            for name in dict.fromkeys((*node.inputs, *node.captured, *node.outputs)):
                self.touching.setdefault(name, []).append(index)

    def _carriers(self, chosen: Sequence[int]) -> Mapping[int, set[str]]:
        """Return the values that carry each of some classes."""
        mark = np.zeros(self.record.classes.size, bool)
        mark[list(chosen)] = True
        found: dict[int, set[str]] = {c: set() for c in chosen}
        for name, factors in self.record.factors.items():
            for factor in factors:
                hit = factor[mark[factor]]
                for c in np.unique(hit).tolist() if hit.size else ():
                    found[c].add(name)
        return found

    def find(self, tensor: str, carried: int) -> tuple[tuple[int, ...], Hold]:
        """Return the nodes from a tensor to the nearest hold of a class that it carries, that one included."""
        holds = self.holds[carried]
        by_owner = {hold.owner: hold for hold in reversed(holds)}
        values, nodes = self.carriers[carried], self.record.graph.nodes
        came_from: dict[int, int] = {}
        queue: deque[tuple[str, int]] = deque([(tensor, -1)])
        reached = {tensor}
        while queue:
            name, before = queue.popleft()
            if name in self.outputs and OUTPUT in by_owner:
                return self._way(came_from, before), by_owner[OUTPUT]
            for index in self.touching.get(name, ()):
                if index in came_from:
                    continue
                came_from[index] = before
                if index in by_owner:
                    return self._way(came_from, index), by_owner[index]
                node = nodes[index]
                for value in (*node.outputs, *node.inputs):
                    if value in values and value not in reached:
                        reached.add(value)
                        queue.append((value, index))
        return self._short_cut(tensor, holds[0]), holds[0]

    def source(self, hold: Hold) -> str:
        """Say where that comes from which a held axis meets: the nearest graph input, barrier or other reason."""
        if hold.owner < 0 or not hold.reason.endswith(_UNNAMED):
            return ""
        nodes, inputs = self.record.graph.nodes, set(self.record.graph.input_names)
        mine = {name for held in self.held_by.get(hold.owner, ()) for name in self.carriers.get(held, ())}
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
                return f"{nodes[index].label}: {reason.removeprefix(f'{nodes[index].label}: ')}"
            fresh = [
                value for value in (*nodes[index].inputs, *nodes[index].captured) if value and value not in reached
            ]
            reached.update(fresh)
            queue.extend(fresh)
        return ""

    def _way(self, came_from: Mapping[int, int], last: int) -> tuple[int, ...]:
        way: list[int] = []
        while last >= 0:
            way.append(last)
            last = came_from[last]
        return tuple(reversed(way))

    def _short_cut(self, tensor: str, hold: Hold) -> tuple[int, ...]:
        """Name the first user and the holder, where no value between them carries the class."""
        ends = [*self.touching.get(tensor, ())[:1], *([hold.owner] if hold.owner >= 0 else [])]
        return tuple(dict.fromkeys(ends))
