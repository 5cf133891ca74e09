"""Explain a coupling: what each group weighs, what its removal changes, and why other axes have to stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prunepass.cost import CostModel
from prunepass.coupling import Coupling
from prunepass.ephemeral import Dtypes
from prunepass.graph import Graph, Node
from prunepass.labels import PINNED
from prunepass.pinned import Holder, PinnedAxis, Stays
from prunepass.record import Record
from prunepass.rules.masks import MASKS, Masking


@dataclass(frozen=True)
class GroupFacts:
    """What hangs on one coupling group.

    Units
        params, macs: what the model would lose with all units of the group.

    `renormalised_by`: the nodes whose result depends on how many indices there are. Without any, removal is exact: it
    equals writing zeros wherever a removed index is read.
    """

    params: int
    macs: int
    renormalised_by: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether removal equals zeroing."""
        return not self.renormalised_by


@dataclass(frozen=True)
class Explanation:
    """Facts about every group, in the order of the coupling; every pinned axis; who holds them, the costliest first."""

    groups: tuple[GroupFacts, ...]
    axes: tuple[PinnedAxis, ...]
    holders: tuple[Holder, ...]


def explain(graph: Graph, coupling: Coupling, cost: CostModel) -> Explanation:
    """Explain the coupling of a graph; `cost` is the cost model of its units."""
    groups = _groups(graph, coupling, cost)
    return Explanation(groups, *Stays(graph, coupling, Record(graph, coupling)).read())


def groups_of_values(coupling: Coupling) -> dict[str, tuple[int, ...]]:
    """Return the numbers of the groups whose units each value carries."""
    owner = np.full(coupling.n_units, -1)
    for number, group in enumerate(coupling.groups):
        owner[group.units] = number
    owner[PINNED] = -1
    known: dict[int, tuple[int, ...]] = {}
    found = {}
    for name, factors in coupling.factors.items():
        for factor in factors:
            if id(factor) not in known:
                known[id(factor)] = tuple(n for n in np.unique(owner[factor]).tolist() if n >= 0)
        numbers = tuple(sorted({n for factor in factors for n in known[id(factor)]}))
        if numbers:
            found[name] = numbers
    return found


def _groups(graph: Graph, coupling: Coupling, cost: CostModel) -> tuple[GroupFacts, ...]:
    changed = renormalised(graph, coupling)
    found = []
    for number, group in enumerate(coupling.groups):
        removed = np.zeros(coupling.n_units, bool)
        removed[group.units] = True
        left = cost.predict(removed)
        params, macs = cost.total.params - left.params, cost.total.macs - left.macs
        found.append(GroupFacts(params, macs, tuple(changed.get(number, ()))))
    return tuple(found)


def renormalised(graph: Graph, coupling: Coupling) -> dict[int, list[str]]:
    """Return the nodes at which the removal of each group is more than zeroing: their masked form says so."""
    carried, scratch = groups_of_values(coupling), graph.copy()
    dtypes = Dtypes(coupling.elem_types, graph)
    found: dict[int, list[str]] = {}
    for node in graph.walk():
        numbers = sorted({n for name in node.inputs for n in carried.get(name, ())})
        if not numbers or node.op not in MASKS or node.inputs[0] not in coupling.shapes:
            continue

        def changes(chosen: Sequence[int], node: Node = node) -> bool:
            removed = np.zeros(coupling.n_units, bool)
            for number in chosen:
                removed[coupling.groups[number].units] = True
            return _Probe(
                scratch, node.copy(), coupling.shapes, dtypes, coupling.factors, removed, coupling.values
            ).run()

        if changes(numbers):
            for number in numbers:
                if len(numbers) == 1 or changes([number]):
                    found.setdefault(number, []).append(node.label)
    return found


@dataclass
class _Probe(Masking):
    """Run the mask rule of a node to see whether it does more than put zeros."""

    fills: list[float] = field(default_factory=list)

    def run(self) -> bool:
        """Say whether it does."""
        MASKS[self.node.op](self)
        return self.replaced or bool(self.after) or any(self.fills)

    def where(self, name: str, mask: np.ndarray, fill: float, position: int = 0) -> str:
        """Note the constant that takes the place of what is removed."""
        self.fills.append(fill)
        return name

    def mask(self, position: int, axes: object) -> np.ndarray | None:
        """Return which elements stay; never none at all, which no plan allows."""
        found = super().mask(position, axes)  # type: ignore[arg-type]
        if found is not None and not found.any():
            found = found.copy()
            found.flat[0] = True
        return found
