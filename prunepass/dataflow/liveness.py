"""Find the units that can go without changing the result: constant or unread wherever an index is summed over.

A removed index disappears without a trace where it stands for itself. It leaves one only where indices are mixed: in
contractions, reductions, normalisations. There, it must be a constant that moves into a bias, or be read only by what
goes, too, or not be read at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from prunepass.coupling import Coupling
from prunepass.dataflow.forward import view
from prunepass.dataflow.ranges import Range, Unknown
from prunepass.ephemeral import Dtypes
from prunepass.graph import Graph, Node
from prunepass.labels import Factor, spans
from prunepass.rules.contractions import ASKED, CONTRACTIONS, UNHARMED, Contraction
from prunepass.rules.masks import MASKS, Masking
from prunepass.selection import protected_units


@dataclass(frozen=True)
class Site:
    """One contraction whose inputs are units.

    Shapes
        units: (groups, inputs) unit ids. values, constants the same: the number that each input is, NaN where it is
        none; constants only where it can go, to the bias or to another input. outputs: (groups, outputs) unit ids.
        merged: (group, input) to the input that stands for it.
    """

    node: Node
    contraction: Contraction
    units: np.ndarray
    values: np.ndarray
    constants: np.ndarray
    outputs: np.ndarray
    merged: dict[tuple[int, int], int] = field(default_factory=dict)

    def needed(self, kept: np.ndarray) -> np.ndarray:
        """Return the units that some kept output reads and that are no constants."""
        read = (self.contraction.reads & kept[self.outputs][:, :, None]).any(axis=1)
        return np.asarray(self.units[read & np.isnan(self.constants)])


@dataclass
class Liveness:
    """What may go, and the contractions that have to be told.

    Shapes
        kept: boolean, one entry per unit.
    """

    graph: Graph
    coupling: Coupling
    ranges: Mapping[str, Range]
    kept: np.ndarray = field(init=False)
    sites: list[Site] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept = np.zeros(self.coupling.n_units, bool)
        self.kept[0] = True
        scratch = self.graph.copy()
        for node in self.graph.walk():
            if any(name in self.coupling.factors for name in node.inputs):
                self._read(node, scratch)

    def _read(self, node: Node, scratch: Graph) -> None:
        known = view(self.graph, node, self.coupling.shapes, self.coupling.values, dict(self.ranges))
        if node.op in CONTRACTIONS:
            try:
                found = CONTRACTIONS[node.op](known)
            except Unknown:
                found = []
            if not found:
                self._keep(f for name in node.inputs for f in self.coupling.factors.get(name, ()))
            for contraction in found:
                self._add_site(node, contraction)
        elif node.op in MASKS and node.op not in ASKED:
            self._keep(f for name in node.inputs for f in self.coupling.factors.get(name, ()))
        elif node.op in MASKS:
            self._keep(self._mixed(node, scratch))

    def _keep(self, factors: Iterable[Factor]) -> None:
        for factor in factors:
            self.kept[factor] = True

    def _add_site(self, node: Node, contraction: Contraction) -> None:
        name, factors = node.inputs[contraction.data], self.coupling.factors
        mixed = [f for f in factors.get(name, ()) if contraction.axis in spans(f)]
        data = self.ranges.get(name)
        if not mixed:
            return
        if len(mixed) > 1 or len(spans(mixed[0])) > 1:
            zero = data is not None and bool((data.low == 0).all() and (data.high == 0).all())
            self._keep(() if zero else mixed)
            return
        groups, outs, size = contraction.reads.shape
        own = [f for f in factors.get(node.outputs[0], ()) if spans(f) == (contraction.out_axis,)]
        outputs = own[0].reshape(groups, outs) if own else np.zeros((groups, outs), int)
        values = np.full((groups, size), np.nan)
        if data is not None:
            flat = data.hull(a for a in range(data.low.ndim) if a != contraction.axis)
            values.reshape(-1)[:] = np.where(flat.fixed, flat.low, np.nan).reshape(-1)
        constants = values if contraction.total is not None else np.where(values == 0, values, np.nan)
        self.sites.append(Site(node, contraction, mixed[0].reshape(groups, size), values, constants, outputs))

    def _mixed(self, node: Node, scratch: Graph) -> Iterator[Factor]:
        """Yield what the masked form of a node would mask, but for what does no harm."""
        coupling, harmless = self.coupling, UNHARMED.get(node.op)
        everything = np.ones(coupling.n_units, bool)
        everything[0] = False
        dtypes = Dtypes(coupling.elem_types, self.graph)
        asked = _Asked(scratch, node.copy(), coupling.shapes, dtypes, coupling.factors, everything, coupling.values)
        if node.inputs[0] not in coupling.shapes:
            yield from (f for name in node.inputs for f in coupling.factors.get(name, ()))
            return
        MASKS[node.op](asked)
        for name, factor in asked.found:
            data = self.ranges.get(name)
            if harmless is None or data is None:
                yield factor
            else:
                fine = (data.low == harmless) & (data.high == harmless)
                over = tuple(a for a in range(factor.ndim) if factor.shape[a] == 1)
                yield np.where(fine.all(axis=over, keepdims=True), 0, factor)

    # ---- what goes -----------------------------------------------------------------------------------------------
    def settle(self, held: np.ndarray) -> np.ndarray:
        """Return the units that go, with `held` ones and at least one index of every axis kept."""
        kept = self.kept | held
        kept[list(self.merge())] = True
        while True:
            self._spread(kept)
            before = int(kept.sum())
            kept |= protected_units(self.coupling, kept.astype(float))
            for group in self.coupling.groups:
                _keep_rows_equal(group.units, kept)
            if int(kept.sum()) == before:
                return np.asarray(~kept)

    def merge(self) -> Iterator[int]:
        """Let one of several constants that are read over a border stand for all of them; yield those that do.

        What windows see of a constant channel is the same for all but for a factor: the constant inside, zero outside.
        """
        classes: dict[tuple[tuple[int, int], ...], list[int]] = {}
        places = self._over_borders()
        for unit, found in places.items():
            classes.setdefault(tuple((number, group) for number, group, _ in found), []).append(unit)
        for members in classes.values():
            if len(members) > 1:
                first = [places[unit][0] for unit in members]
                keeper = members[int(np.argmax([abs(self.sites[n].values[g, i]) for n, g, i in first]))]
                yield keeper
                for unit in members:
                    for (number, group, index), (_, _, into) in zip(places[unit], places[keeper]):
                        if unit != keeper:
                            site = self.sites[number]
                            site.constants[group, index] = site.values[group, index]
                            site.merged[group, index] = into

    def _over_borders(self) -> dict[int, list[tuple[int, int, int]]]:
        """Return the units that only borders hold back, and where: (site, group, input)."""
        own = {name for name, found in self.graph.uses().items() if len(found) == 1} - self.graph.overridable
        places: dict[int, list[tuple[int, int, int]]] = {}
        for number, site in enumerate(self.sites):
            others = site.outputs[:, :, None] != site.units[:, None, :]
            read = (site.contraction.reads & others).any(axis=1)
            for group, index in np.argwhere(read & np.isnan(site.constants)):
                places.setdefault(int(site.units[group, index]), []).append((number, int(group), int(index)))
        return {
            unit: found
            for unit, found in places.items()
            if not self.kept[unit]
            and all(np.isfinite(self.sites[number].values[g, i]) for number, g, i in found)
            and all(_mergeable(self.sites[number], self.graph, own) for number, _, _ in found)
        }

    def _spread(self, kept: np.ndarray) -> None:
        """Keep what kept outputs read, from back to front until nothing changes."""
        changed = True
        while changed:
            before = int(kept.sum())
            for site in reversed(self.sites):
                kept[site.needed(kept)] = True
            changed = int(kept.sum()) > before


class _Asked(Masking):
    """A node that only notes what its row would mask."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.found: list[tuple[str, Factor]] = []

    def mask(self, position: int, axes: Iterable[int]) -> np.ndarray | None:
        """Note the factors that span one of `axes`, and mask nothing."""
        chosen, name = set(axes), self.given[position]
        self.found += [(name, f) for f in self.factors.get(name, ()) if chosen & set(spans(f))]
        return None


def _mergeable(site: Site, graph: Graph, own: Collection[str]) -> bool:
    """Whether a convolution has a border and a weight of its own."""
    weight = site.node.inputs[1]
    return site.contraction.border and weight in own and weight in graph.consts


def _keep_rows_equal(units: np.ndarray, kept: np.ndarray) -> None:
    """Let every row of a group lose as many as the row that can lose least, and never all."""
    free = ~kept[units]
    most = min(int(free.sum(axis=1).min()), units.shape[1] - 1)
    surplus = free & (np.cumsum(free, axis=1) > most)
    kept[units[surplus]] = True
