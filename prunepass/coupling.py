"""Run a graph on labels, and read off which indices can be removed: units and groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from prunepass.blocks import block_rows, components, distinct
from prunepass.graph import Graph
from prunepass.labels import PINNED, Factor, Factors, Labels, Policy, spans
from prunepass.propagation import Asked, Propagation
from prunepass.rules.step import Producer, World


@dataclass(frozen=True)
class Group:
    """Units that can stand in for each other: they compete in the ranking.

    Shapes
        units: (rows, n) unit ids. Every row must lose the same number (heads, conv groups); one row normally.
        axes: producing (tensor, axis) pairs.

    `heads`: the units are whole heads of attention (policy `whole`).
    """

    name: str
    units: np.ndarray
    axes: tuple[tuple[str, int], ...]
    signature: str
    heads: bool = False


@dataclass(frozen=True)
class Barrier:
    """A node at which labels stop, and what that costs.

    Units
        params_blocked: float parameters on the axes that this node alone or with others keeps whole.
    """

    node: str
    op: str
    reason: str
    params_blocked: int


@dataclass(frozen=True)
class Coupling:
    """What can be removed from a graph, and what goes together.

    Shapes
        factors: for each value, integer arrays with its rank: unit ids on the axes that they span, length 1 elsewhere;
        unit 0 stays. An element is removed when, in any factor, its unit is removed.
    """

    policy: Policy
    factors: Mapping[str, Factors]
    groups: tuple[Group, ...]
    n_units: int
    producing: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    elem_types: Mapping[str, int]
    values: Mapping[str, np.ndarray]
    tied: tuple[str, ...] = ()
    rounds: int = 0
    _explain: Callable[[], tuple[tuple[Barrier, ...], tuple[Barrier, ...]]] = field(
        default=lambda: ((), ()), repr=False
    )

    @cached_property
    def barriers(self) -> tuple[Barrier, ...]:
        """Nodes that no rule could follow."""
        return self._explain()[0]

    @cached_property
    def pinned(self) -> tuple[Barrier, ...]:
        """Everything that keeps an axis whole, the costliest first."""
        return self._explain()[1]


def analyse(
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, np.ndarray],
    elem_types: Mapping[str, int],
    policy: Policy = "balanced",
) -> Coupling:
    """Find units and groups by running the graph on labels until nothing changes.

    Source
        This project; the design is described in docs/labels.md.
    """
    propagation = Propagation(graph, shapes, values, elem_types, Labels(policy))
    world, asked, rounds = propagation.run()
    return _Reader(graph, world, propagation.labels, asked).read(rounds)


class _Reader:
    """Turn stable labels into units, groups and barriers."""

    def __init__(self, graph: Graph, world: World, labels: Labels, asked: Asked) -> None:
        self.graph, self.world, self.labels, self.asked = graph, world, labels, asked
        self.nodes = list(graph.walk())
        self.classes = labels.classes

    def read(self, rounds: int) -> Coupling:
        produced = self._produced()
        joints = self._joints()
        member = components(joints, self._axes_of(produced), self.labels.count, self.classes)
        usable, rows = block_rows(joints, produced, member, self.labels.count)
        unit_of = np.zeros(self.labels.count, np.int32)
        live = np.flatnonzero(usable)
        unit_of[live] = np.arange(1, live.size + 1)
        factors = self._factors(unit_of)
        return Coupling(
            policy=self.labels.policy,
            factors=factors,
            groups=self._groups(member, rows, unit_of, live, factors),
            n_units=live.size + 1,
            producing=self._producing(),
            shapes=self.world.shapes,
            elem_types=self.world.elem_types,
            values=self.world.values,
            tied=_tied(self.graph),
            rounds=rounds,
            _explain=self._explain,
        )

    # ---- which labels are units ----------------------------------------------------------------------------------
    def _produced(self) -> np.ndarray:
        """Mark the label classes that some weight produces and nobody pins."""
        mark = np.zeros(self.labels.count, bool)
        for producer in self.world.producers:
            mark[self.classes[producer.labels]] = True
        mark[PINNED] = False
        return mark

    def _axes_of(self, produced: np.ndarray) -> list[np.ndarray]:
        found = []
        for producer in self.world.producers:
            labels = np.unique(self.classes[producer.labels])
            found.append(labels[produced[labels]])
        return found

    def _joints(self) -> list[np.ndarray]:
        """All distinct joint factors, as (blocks, inner) arrays of classes."""
        arrays: dict[int, Factor] = {}
        for factors in self.world.states.values():
            arrays.update((id(f), f) for f in factors if len(spans(f)) > 1)
        arrays.update((id(f), f) for f in self.labels.blocks)
        seen: dict[tuple[int, bytes], np.ndarray] = {}
        for factor in arrays.values():
            axes = spans(factor)
            if len(axes) > 1:
                inner = factor.shape[axes[-1]]
                table = self.classes[factor].reshape(-1, inner)
                seen.setdefault((inner, table.tobytes()), table)
        distinct: dict[tuple[int, bytes], np.ndarray] = {}
        for (inner, _), table in seen.items():
            rows = {row.tobytes(): row for row in np.sort(table, axis=1)}
            ordered = np.stack([rows[key] for key in sorted(rows)])
            distinct.setdefault((inner, ordered.tobytes()), ordered)
        return list(distinct.values())

    def _factors(self, unit_of: np.ndarray) -> dict[str, Factors]:
        """Factors in unit ids, for values that can lose something."""
        done: dict[int, Factor | None] = {}
        found: dict[str, Factors] = {}
        table = unit_of[self.classes]
        for name, factors in self.world.states.items():
            own = []
            for factor in factors:
                key = id(factor)
                if key not in done:
                    units = table[factor]
                    done[key] = units if units.any() else None
                units_or_none = done[key]
                if units_or_none is not None:
                    own.append(units_or_none)
            if own:
                found[name] = tuple(own)
        return found

    # ---- groups --------------------------------------------------------------------------------------------------
    def _groups(
        self,
        member: np.ndarray,
        rows: Mapping[int, np.ndarray],
        unit_of: np.ndarray,
        live: np.ndarray,
        factors: Mapping[str, Factors],
    ) -> tuple[Group, ...]:
        axes: dict[int, dict[tuple[str, int], None]] = {}
        for producer in self.world.producers:
            for gid in distinct(member[self.classes[producer.labels]]):
                axes.setdefault(gid, {})[(producer.tensor, producer.axis)] = None
        order = np.argsort(member[live], kind="stable")
        gids, starts = np.unique(member[live][order], return_index=True)
        by_group = dict(zip(gids.tolist(), np.split(live[order], starts[1:])))
        heads = set(
            np.concatenate([np.zeros(0, int), *(self.classes[f].reshape(-1) for f in self.labels.heads)]).tolist()
        )
        site_text = self._sites(factors, unit_of, member, live)
        found = []
        for gid, labels in sorted(by_group.items(), key=lambda item: int(item[1][0])):
            units = unit_of[rows[gid]] if gid in rows else unit_of[labels][None, :]
            own = tuple(axes.get(gid, {}))
            name = own[0][0] if own else f"group {gid}"
            found.append(Group(name, units, own, site_text.get(gid, ""), int(labels[0]) in heads))
        return tuple(found)

    def _sites(
        self, factors: Mapping[str, Factors], unit_of: np.ndarray, member: np.ndarray, live: np.ndarray
    ) -> dict[int, str]:
        """Describe each group by the shapes and axes of the constants on which it sits."""
        group_of = np.full(live.size + 1, -1, np.int64)
        group_of[1:] = member[live]
        text: dict[int, list[str]] = {}
        for name in self.graph.consts:
            for factor in factors.get(name, ()):
                for gid in distinct(group_of[factor]):
                    text.setdefault(gid, []).append(f"{self.graph.consts.shape(name)}{spans(factor)}")
        return {gid: ";".join(sorted(parts)) for gid, parts in text.items()}

    def _producing(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, set[int]] = {}
        for producer in self.world.producers:
            if producer.tensor in self.graph.consts:
                found.setdefault(producer.tensor, set()).add(producer.axis)
        return {name: tuple(sorted(axes)) for name, axes in found.items()}

    # ---- what is pinned, and by whom -----------------------------------------------------------------------------
    def _weights(self) -> np.ndarray:
        """Float parameters that hang on each class of labels, before pins."""
        classes, states = self.asked.classes, self.asked.world.states
        weight = np.zeros(classes.size)
        for name in self.graph.consts:
            size = float(np.prod(self.graph.consts.shape(name)))
            for factor in states.get(name, ()):
                weight += size / factor.size * np.bincount(classes[factor].reshape(-1), minlength=weight.size)
        weight[PINNED] = 0
        return weight

    def _pinned(self) -> tuple[Barrier, ...]:
        """Every node that pins something, the costliest first."""
        weight = self._weights()
        found: dict[tuple[int, str], list[np.ndarray]] = {}
        for pin in self.asked.pins:
            found.setdefault((pin.owner, pin.reason), []).append(self.asked.classes[pin.labels])
        rows = []
        for (owner, reason), classes in found.items():
            blocked = int(weight[np.unique(np.concatenate(classes))].sum())
            node = self.nodes[owner] if owner >= 0 else None
            name = (node.name or node.outputs[0]) if node else "graph"
            rows.append(Barrier(name, node.op if node else "", reason, blocked))
        return tuple(sorted(rows, key=lambda b: (-b.params_blocked, b.node)))

    def _explain(self) -> tuple[tuple[Barrier, ...], tuple[Barrier, ...]]:
        """Barriers, and everything that pins."""
        pinned = self._pinned()
        blocked: dict[str, int] = {}
        for entry in pinned:
            blocked[entry.node] = blocked.get(entry.node, 0) + entry.params_blocked
        rows = []
        for owner, reason in sorted(self.world.barriers.items()):
            node = self.nodes[owner]
            name = node.name or node.outputs[0]
            rows.append(Barrier(name, node.op, reason, blocked.get(name, 0)))
        return tuple(rows), pinned


def _tied(graph: Graph) -> tuple[str, ...]:
    """Weight matrices that several nodes use."""
    users: dict[str, int] = {}
    for node in graph.walk():
        for name in dict.fromkeys(node.inputs):
            if name in graph.consts and len(graph.consts.shape(name)) > 1:
                users[name] = users.get(name, 0) + 1
    return tuple(name for name, number in users.items() if number > 1)


def flat_units(groups: Iterable[Group]) -> np.ndarray:
    """All unit ids of several groups."""
    parts = [g.units.reshape(-1) for g in groups]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


__all__ = ["Barrier", "Coupling", "Group", "Producer", "analyse", "flat_units"]
