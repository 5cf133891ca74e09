"""Run a graph on labels once more and keep a record: which labels are equal, who asks for which to stay, and why.

Before any pin is applied, labels that are equal form classes. A class is *held* by every node that asks for one of its
labels to stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.coupling import Coupling
from prunepass.graph import Graph
from prunepass.labels import PINNED, Factor, Factors, Labels, Pin, spans
from prunepass.propagation import Propagation
from prunepass.rules.step import Producer

MEETS_PINNED = "goes together with an index that stays"


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
        classes, past = recorder.classes, len(recorder.seen)  # pins of earlier rounds may have come too early
        blocks = list(zip(recorder.owned.owners, recorder.owned))
        run.settle(rounds)
        pins = [*recorder.seen, *recorder.pins][past:]
        self.classes = np.arange(recorder.count, dtype=classes.dtype)
        self.classes[: classes.size] = classes
        self.barriers = world.barriers
        self.producers: list[Producer] = world.producers
        self.factors: dict[str, Factors] = {
            name: tuple(self.classes[f] for f in own) for name, own in world.states.items() if own
        }
        self.blocks = [(owner, self.classes[factor]) for owner, factor in blocks if len(spans(factor)) > 1]
        self.held = self._by_reason(pins)
        self.kinds = self._count_holders()
        self.produced = np.zeros(self.classes.size, bool)
        for producer in self.producers:
            self.produced[self.classes[producer.labels]] = True
        self.produced[PINNED] = False

    def _by_reason(self, pins: Iterable[Pin]) -> dict[Hold, np.ndarray]:
        """Return the classes that each reason holds; one that follows from others holds only what they do not."""
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
