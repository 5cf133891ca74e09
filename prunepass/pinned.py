"""List the axes of weights that look prunable and are not, why, and what could be gained; who holds them, and what."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prunepass.chains import Chains, Hold, Record
from prunepass.cost import CostModel
from prunepass.coupling import Coupling
from prunepass.graph import Graph, Node
from prunepass.labels import PINNED
from prunepass.rules.cost import is_parameter

FEWEST = 8
"""Indices that an axis has at least to be worth a line."""


@dataclass(frozen=True)
class PinnedAxis:
    """One axis of a weight that looks prunable and is not.

    Units
        indices: those that stay for this reason. params, macs: what hangs on them. others: further nodes that hold
        them.

    `chain`: the nodes from the weight to the one that holds it.
    """

    tensor: str
    axis: int
    length: int
    indices: int
    node: str
    op: str
    reason: str
    chain: tuple[str, ...]
    others: int
    params: int
    macs: int


@dataclass(frozen=True)
class Holder:
    """One node (or, all together, the graph outputs) that keeps axes of weights whole.

    Units
        axes: of weights. params, macs: what hangs on everything that it holds, alone or with others. gain_params,
        gain_macs: what could go if only this one let go.

    `no_rule`: no rule could follow labels through the node; what lies behind it is unknown and not counted.
    """

    node: str
    op: str
    reason: str
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


class Stays:
    """Turn a record into pinned axes and their holders."""

    def __init__(self, graph: Graph, coupling: Coupling, record: Record) -> None:
        self.graph, self.coupling, self.record = graph, coupling, record
        self.cost = CostModel(graph, coupling.shapes, record.factors)
        self.known: dict[bytes, tuple[int, int]] = {}
        self.axes_of: dict[int, int] = {}

    def read(self) -> tuple[tuple[PinnedAxis, ...], tuple[Holder, ...]]:
        """Return the pinned axes and the holders, each the costliest first."""
        axes = [*self._tracked(), *(row for owner in self.record.barriers for row in self._untracked(owner))]
        holders = [self._holder(owner, classes) for owner, classes in self._owners().items()]
        holders = [h for h in holders if h.axes or h.params or h.no_rule]
        holders.sort(key=lambda h: (-h.gain_params, -h.params))
        return tuple(sorted(axes, key=lambda a: -a.params)), tuple(holders)

    def _owners(self) -> dict[int, np.ndarray]:
        """Classes that each node holds; nodes without a rule are there even if they hold none."""
        nothing = np.zeros(0, np.int64)
        return {**self.record.by_owner(), **{o: nothing for o in self.record.barriers}, **self.record.by_owner()}

    # ---- axes ----------------------------------------------------------------------------------------------------
    def _tracked(self) -> list[PinnedAxis]:
        """Axes with labels of which some or all stay."""
        found = self._candidates()
        samples = sorted({a.sample for a in found if a.sample != PINNED})
        self.chains = Chains(self.record, samples)
        return [self._row(axis) for axis in found]

    def _candidates(self) -> list[_Axis]:
        labels: dict[tuple[str, int], list[np.ndarray]] = {}
        for producer in self.record.producers:
            labels.setdefault((producer.tensor, producer.axis), []).append(producer.labels.reshape(-1))
        found = []
        for (tensor, axis), parts in labels.items():
            shape = self._shape(tensor)
            if sum(size > 1 for size in shape) < 2 or shape[axis] < FEWEST:
                continue
            stay = shape[axis] - self._live(tensor, axis)
            if stay:
                classes = np.unique(self.record.classes[np.concatenate(parts)])
                held = classes[self.record.holders[classes] > 0]
                chosen = held if held.size else classes[classes != PINNED]
                found.append(_Axis(tensor, axis, shape[axis], stay, chosen, self._sample(held)))
        return self._distinct(found)

    def _distinct(self, found: list[_Axis]) -> list[_Axis]:
        """Leave out what is computed from weights, where a stored tensor says the same."""
        stored = {a.classes.tobytes() for a in found if a.tensor in self.graph.consts}
        return [a for a in found if a.tensor in self.graph.consts or a.classes.tobytes() not in stored]

    def _sample(self, held: np.ndarray) -> int:
        """Return a class that is held by what holds most of them."""
        if not held.size:
            return PINNED
        kinds, first, counts = np.unique(self.record.signature[held], return_index=True, return_counts=True)
        return int(held[first[counts.argmax()]]) if kinds.size else PINNED

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
        params, macs = self.saved(axis.classes)
        if axis.sample == PINNED:
            return PinnedAxis(axis.tensor, axis.axis, axis.length, axis.indices, "", "", UNEVEN, (), 0, params, macs)
        chain, hold = self.chains.find(axis.tensor, axis.sample)
        owners = {h.owner for h in self.chains.holds[axis.sample]}
        for owner in owners:
            self.axes_of[owner] = self.axes_of.get(owner, 0) + 1
        node = self._node(hold.owner)
        return PinnedAxis(
            axis.tensor,
            axis.axis,
            axis.length,
            axis.indices,
            node=_name(node),
            op=node.op if node else "",
            reason=self._reason(hold),
            chain=tuple(self.graph.nodes[index].label for index in chain),
            others=len(owners) - 1,
            params=params,
            macs=macs,
        )

    def _reason(self, hold: Hold) -> str:
        """Return the reason without the node, and with what stands behind it."""
        node, source = self._node(hold.owner), self.chains.source(hold)
        text = hold.reason if node is None else hold.reason.removeprefix(f"{node.label}: ")
        return f"{text} ({source})" if source else text

    def _node(self, owner: int) -> Node | None:
        return self.graph.nodes[owner] if owner >= 0 else None

    def _untracked(self, owner: int) -> list[PinnedAxis]:
        """Axes of the weights of a node without a rule: it reads them itself, and nobody knows how."""
        node, reason = self.graph.nodes[owner], self.record.barriers[owner]
        rows = []
        for name in self._own_weights(owner):
            shape, size = self._shape(name), math.prod(self._shape(name))
            for axis in (a for a, length in enumerate(shape) if length >= FEWEST):
                rows.append(
                    PinnedAxis(
                        name,
                        axis,
                        shape[axis],
                        shape[axis],
                        _name(node),
                        node.op,
                        reason,
                        (node.label,),
                        0,
                        size,
                        self.cost.node_macs[owner],
                    )
                )
        self.axes_of[owner] = self.axes_of.get(owner, 0) + len(rows)
        return rows

    def _own_weights(self, owner: int) -> list[str]:
        consts = self.graph.consts
        names = (name for name in dict.fromkeys(self.graph.nodes[owner].inputs) if name in consts)
        matrices = (name for name in names if sum(size > 1 for size in consts.shape(name)) > 1)
        return [
            name
            for name in matrices
            if is_parameter(consts.elem_type(name), len(consts.shape(name))) and name not in self.record.factors
        ]

    # ---- holders -------------------------------------------------------------------------------------------------
    def _holder(self, owner: int, classes: np.ndarray) -> Holder:
        record, node = self.record, self._node(owner)
        hold = next((h for h in record.held if h.owner == owner), Hold(owner, record.barriers.get(owner, "")))
        produced = classes[record.produced[classes]]
        alone = produced[(record.holders[produced] == 1) & (record.only[produced] == owner)]
        params, macs = self.saved(produced)
        gain_params, gain_macs = self.saved(alone)
        own, own_macs = 0, 0
        if owner in record.barriers:
            own = sum(math.prod(self._shape(name)) for name in self._own_weights(owner))
            own_macs = self.cost.node_macs[owner] if own else 0
        return Holder(
            _name(node),
            node.op if node else "",
            self._reason(hold),
            owner in record.barriers,
            self.axes_of.get(owner, 0),
            params + own,
            macs + own_macs,
            gain_params + own,
            gain_macs + own_macs,
        )

    def saved(self, classes: np.ndarray) -> tuple[int, int]:
        """Return parameters and MACs that hang on classes of labels."""
        removed = np.zeros(self.record.classes.size, bool)
        removed[classes] = True
        removed[PINNED] = False
        key = np.packbits(removed).tobytes()
        if key not in self.known:
            left, total = self.cost.predict(removed), self.cost.total
            self.known[key] = (total.params - left.params, total.macs - left.macs)
        return self.known[key]


def _name(node: Node | None) -> str:
    return "graph" if node is None else node.name or node.outputs[0]
