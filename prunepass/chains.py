"""Find out who keeps an axis whole, and through which nodes: the graph is run on labels once more, keeping a record.

Before any pin is applied, labels that are equal form classes. A class is *held* by every node that asks for one of its
labels to stay. The chain from a weight to a holder is the shortest way through nodes whose values carry the class.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.coupling import OUTPUT, Coupling, Propagation
from prunepass.graph import Graph, Node
from prunepass.labels import PINNED, Factor, Factors, Labels, Pin, spans
from prunepass.rules.step import Producer

MEETS_PINNED = "goes together with an index that stays"
_UNNAMED = (MEETS_PINNED, "meets an axis that cannot shrink")
"""Reasons that do not say where what cannot shrink comes from."""
UNEVEN = "its blocks cannot all lose the same number of indices"


class _Blocks(list[Factor]):
    """Block structures, and who asked for each."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels = labels
        self.owners: list[int] = []

    def append(self, factor: Factor) -> None:
        """Add a block structure that the current node asks for."""
        super().append(factor)
        self.owners.append(self.labels.owner)

    def clear(self) -> None:
        """Forget all."""
        super().clear()
        self.owners.clear()


class _Recorder(Labels):
    """Labels that keep every pin with its owner; to be equal to a pinned label is a pin, too."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__(coupling.policy)
        self.seen: list[Pin] = []
        self.blocks = self.owned = _Blocks(self)

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


Kind = tuple[str, str]
"""What holds have in common: operator ("" for the graph outputs) and reason."""


@dataclass(frozen=True)
class Hold:
    """One reason why labels stay: the position of the node in the graph (OUTPUT: they are a graph output), and why."""

    owner: int
    op: str
    reason: str

    @property
    def kind(self) -> Kind:
        """What it has in common with others."""
        return self.op, self.reason


class Record:
    """Hold what one run on labels found: classes before pins, who holds them, what carries them.

    Shapes
        classes: for each label, its class. factors: of each value, in classes. For each class: holders, the number of
        kinds that hold it; only, the place in `kinds` of one of them; signature, equal for equal holds; produced, if by
        a weight.
    """

    def __init__(self, graph: Graph, coupling: Coupling) -> None:
        self.graph, self.nodes = graph, list(graph.walk())
        recorder = _Recorder(coupling)
        run = Propagation(graph, coupling.shapes, coupling.values, coupling.elem_types, recorder)
        world, rounds = run.equalities()
        classes, direct = recorder.classes, list(recorder.pins)
        blocks = list(zip(recorder.owned.owners, recorder.owned))
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
        self.blocks = [(owner, self.classes[factor]) for owner, factor in blocks if len(spans(factor)) > 1]
        self.held = self._held(direct, late)
        self.kinds = self._count_holders()
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
            parts.setdefault(self.hold(pin.owner, pin.reason), []).append(pin.labels)
        return {hold: np.unique(self.classes[np.concatenate(labels)]) for hold, labels in parts.items()}

    def hold(self, owner: int, reason: str) -> Hold:
        """Describe a reason, without the name of its node in front; a barrier has one reason for all."""
        if owner < 0:
            return Hold(owner, "", reason)
        node = self.nodes[owner]
        return Hold(owner, node.op, self.barriers.get(owner, reason).removeprefix(f"{node.label}: "))

    def _count_holders(self) -> dict[Kind, np.ndarray]:
        """Count the kinds that hold each class; return the classes of each kind, in the order of the pins."""
        self.signature = np.zeros(self.classes.size, np.int64)
        parts: dict[Kind, list[np.ndarray]] = {}
        for number, (hold, classes) in enumerate(self.held.items()):
            self.signature[classes] = self.signature[classes] * 1_000_003 + number + 1
            parts.setdefault(hold.kind, []).append(classes)
        self.holders = np.zeros(self.classes.size, np.int32)
        self.only = np.zeros(self.classes.size, np.int32)
        kinds = {kind: np.unique(np.concatenate(classes)) for kind, classes in parts.items()}
        for number, classes in enumerate(kinds.values()):
            self.holders[classes] += 1
            self.only[classes] = number
        return kinds

    def holds_of(self, chosen: Sequence[int]) -> dict[int, list[Hold]]:
        """Return what holds each of some classes."""
        place = np.full(self.classes.size, -1, np.int64)
        place[list(chosen)] = np.arange(len(chosen))
        found: dict[int, list[Hold]] = {c: [] for c in chosen}
        for hold, classes in self.held.items():
            for position in place[classes][place[classes] >= 0]:
                found[chosen[position]].append(hold)
        return found


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
