"""List the axes of weights that look prunable and are not, why, and what could be gained; who holds them, and what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from prunepass.chains import Chains
from prunepass.cost import CostModel
from prunepass.coupling import Coupling
from prunepass.graph import Graph
from prunepass.labels import PINNED
from prunepass.record import Hold, Kind, Record
from prunepass.rules.cost import is_parameter

FEWEST = 8
"""Indices that an axis has at least to be worth a line."""


@dataclass(frozen=True)
class PinnedAxis:
    """One axis of a weight that looks prunable and is not.

    Units
        length, indices: of the axis, and how many of them stay. params, macs: what hangs on those; it could go if
        nothing held them. others: further reasons that would have to go, too.

    `chain`: the nodes from the weight to the one that holds it. `source`: what that one meets, where it says no more.
    """

    tensor: str
    axis: int
    length: int
    indices: int
    node: str
    op: str
    reason: str
    source: str
    chain: tuple[str, ...]
    others: int
    params: int
    macs: int


@dataclass(frozen=True)
class Holder:
    """Nodes of one operator (or the graph outputs, `op` is empty) that keep axes of weights whole for one reason.

    Units
        axes: of weights. params, macs: what hangs on everything that they hold, alone or with others. gain_params,
        gain_macs: what could go if only they let go.

    `no_rule`: no rule could follow labels through the nodes; what lies behind them is unknown and not counted.
    """

    op: str
    reason: str
    nodes: tuple[str, ...]
    sources: tuple[str, ...]
    no_rule: bool
    axes: int
    params: int
    macs: int
    gain_params: int
    gain_macs: int


@dataclass(frozen=True)
class _Axis:
    """A pinned axis with the classes of labels that stay on it, and one of them that stands for most."""

    tensor: str
    axis: int
    length: int
    indices: int
    classes: np.ndarray
    sample: int


@dataclass
class _Found:
    """What was found out about one kind of holds, graph order kept."""

    owners: dict[int, None] = field(default_factory=dict)
    sources: dict[str, None] = field(default_factory=dict)
    classes: list[np.ndarray] = field(default_factory=list)
    axes: int = 0


class Stays:
    """Turn a record into pinned axes and their holders."""

    def __init__(self, graph: Graph, coupling: Coupling, record: Record) -> None:
        self.graph, self.coupling, self.record = graph, coupling, record
        self.cost = CostModel(graph, coupling.shapes, record.factors)
        self.known: dict[bytes, tuple[int, int]] = {}
        self.found: dict[Kind, _Found] = {}
        for hold, classes in record.held.items():
            self._note(hold).classes.append(classes)
        for owner, reason in record.barriers.items():
            self._note(record.hold(owner, reason))

    def _note(self, hold: Hold) -> _Found:
        found = self.found.setdefault(hold.kind, _Found())
        found.owners[hold.owner] = None
        return found

    def read(self) -> tuple[tuple[PinnedAxis, ...], tuple[Holder, ...]]:
        """Return the pinned axes and the holders, each the costliest first."""
        axes = [*self._tracked(), *self._untracked()]
        holders = [self._holder(kind, found) for kind, found in self.found.items()]
        worth = [h for h in holders if h.axes or h.params or h.no_rule]
        worth.sort(key=lambda h: (-h.gain_params, -h.params))
        return tuple(sorted((a for a in axes if a.length >= FEWEST), key=lambda a: -a.params)), tuple(worth)

    # ---- axes ----------------------------------------------------------------------------------------------------
    def _tracked(self) -> list[PinnedAxis]:
        """Axes with labels of which some or all stay."""
        found = self._candidates()
        self.chains = Chains(self.record, sorted({a.sample for a in found}))
        return [self._row(axis) for axis in found]

    def _candidates(self) -> list[_Axis]:
        labels: dict[tuple[str, int], list[np.ndarray]] = {}
        for producer in self.record.producers:
            labels.setdefault((producer.tensor, producer.axis), []).append(producer.labels.reshape(-1))
        found = []
        for (tensor, axis), parts in labels.items():
            shape = self._shape(tensor)
            stay = shape[axis] - self._live(tensor, axis) if _is_matrix(shape) else 0
            if stay:
                classes = np.unique(self.record.classes[np.concatenate(parts)])
                held = classes[self.record.holders[classes] > 0]
                classes = held if held.size else classes[classes != PINNED]
                found.append(_Axis(tensor, axis, shape[axis], stay, classes, self._sample(classes)))
        return self._distinct(found)

    def _distinct(self, found: list[_Axis]) -> list[_Axis]:
        """Leave out what is computed from weights, where a stored tensor says the same."""
        stored = {a.classes.tobytes() for a in found if a.tensor in self.graph.consts}
        return [a for a in found if a.tensor in self.graph.consts or a.classes.tobytes() not in stored]

    def _sample(self, classes: np.ndarray) -> int:
        """Return a class that is held by what holds most of them."""
        _, first, counts = np.unique(self.record.signature[classes], return_index=True, return_counts=True)
        return int(classes[first[counts.argmax()]])

    def _shape(self, name: str) -> tuple[int, ...]:
        consts = self.graph.consts
        return consts.shape(name) if name in consts else self.coupling.shapes.get(name, ())

    def _live(self, tensor: str, axis: int) -> int:
        """Count the indices of an axis that can go."""
        live = np.zeros(self._shape(tensor)[axis], bool)
        for units in self.coupling.factors.get(tensor, ()):
            if units.shape[axis] > 1:
                live |= np.moveaxis(units, axis, 0).reshape(units.shape[axis], -1).any(axis=1)
        return int(live.sum())

    def _row(self, axis: _Axis) -> PinnedAxis:
        kinds = {hold.kind for hold in self.chains.holds[axis.sample]}
        if kinds:
            chain = self.chains.find(axis.tensor, axis.sample)
        else:
            chain = self.chains.find_blocks(axis.tensor, axis.sample, axis.classes)
            self._note(chain.hold).classes.append(axis.classes)
            kinds = {chain.hold.kind}
        for kind in kinds:
            self.found[kind].axes += 1
        if chain.source:
            self.found[chain.hold.kind].sources[chain.source] = None
        return PinnedAxis(
            axis.tensor,
            axis.axis,
            axis.length,
            axis.indices,
            node=self._name(chain.hold.owner),
            op=chain.hold.op,
            reason=chain.hold.reason,
            source=chain.source,
            chain=tuple(self.record.nodes[index].label for index in chain.nodes),
            others=len(kinds) - 1,
            params=self.saved(axis.classes)[0],
            macs=self.saved(axis.classes)[1],
        )

    def _untracked(self) -> Iterator[PinnedAxis]:
        """Axes of weights that nodes without a rule read themselves, nobody knows how."""
        for owner, reason in self.record.barriers.items():
            node, hold = self.record.nodes[owner], self.record.hold(owner, reason)
            for name in self._own_weights(owner):
                shape, size = self._shape(name), math.prod(self._shape(name))
                for axis, length in enumerate(shape):
                    place = (name, axis, length, length, self._name(owner), node.op, hold.reason, "")
                    yield PinnedAxis(*place, (node.label,), 0, size, self.cost.node_macs[owner])
                    self.found[hold.kind].axes += length >= FEWEST

    def _own_weights(self, owner: int) -> list[str]:
        consts = self.graph.consts
        names = (name for name in dict.fromkeys(self.record.nodes[owner].inputs) if name in consts)
        return [
            name
            for name in names
            if _is_matrix(consts.shape(name))
            and is_parameter(consts.elem_type(name), len(consts.shape(name)))
            and name not in self.record.factors
        ]

    def _name(self, owner: int) -> str:
        if owner < 0:
            return "graph"
        node = self.record.nodes[owner]
        return node.name or node.outputs[0]

    # ---- holders -------------------------------------------------------------------------------------------------
    def _holder(self, kind: Kind, found: _Found) -> Holder:
        record = self.record
        classes = np.unique(np.concatenate([np.zeros(0, np.int64), *found.classes]))
        produced = classes[record.produced[classes]]
        alone = produced
        if kind in record.kinds:
            place = list(record.kinds).index(kind)
            alone = produced[(record.holders[produced] == 1) & (record.only[produced] == place)]
        barriers = [owner for owner in found.owners if owner in record.barriers]
        own = {owner: sum(math.prod(self._shape(name)) for name in self._own_weights(owner)) for owner in barriers}
        more = np.array((sum(own.values()), sum(self.cost.node_macs[owner] for owner in barriers if own[owner])))
        return Holder(
            *kind,
            tuple(map(self._name, found.owners)),
            tuple(found.sources),
            bool(barriers),
            found.axes,
            *(more + self.saved(produced)).tolist(),
            *(more + self.saved(alone)).tolist(),
        )

    def saved(self, classes: np.ndarray) -> tuple[int, int]:
        """Return parameters and MACs that hang on classes of labels."""
        removed = np.zeros(self.record.classes.size, bool)
        removed[classes] = True
        removed[PINNED] = False
        key = classes.tobytes()
        if key not in self.known:
            left, total = self.cost.predict(removed), self.cost.total
            self.known[key] = (total.params - left.params, total.macs - left.macs)
        return self.known[key]


def _is_matrix(shape: tuple[int, ...]) -> bool:
    """Say whether a tensor has several axes, and elements."""
    return 0 not in shape and sum(size > 1 for size in shape) > 1
