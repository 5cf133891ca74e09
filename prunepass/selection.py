"""Choose which units go: rank what can be removed in aligned steps, and take a prefix of the ranking.

A group can shrink to certain sizes only: at least one unit per row, every row alike, a multiple of `align` channels.
Going from one such size to the next is an *event*; its key is the mean score of the units that it removes. Sorted
events form a ladder of nested plans. A ratio takes the prefix that removes that share of all units, a budget the
shortest prefix that meets it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from prunepass.coupling import Coupling, Group
from prunepass.graph import Graph
from prunepass.labels import spans

log = logging.getLogger(__name__)
Scope = Literal["global", "local", "isomorphic", "heads"]
_DETOURS, _EXCHANGES, _TRIES, _MOST_PLANS = 4, 24, 8, 4096
NEAR, FAR = 0.002, 0.02
"""Shares of a budget: with less than the first unused, it is met; with more than the second, more is tried."""


@dataclass(frozen=True)
class Event:
    """Shrink one group from one allowed size to the next.

    Shapes
        units: ids of the units that go.
    """

    group: int
    key: float
    units: np.ndarray


def unit_floor(channels: int, align: int) -> int:
    """Return the multiple that the kept channels of an axis have: `align`, less for narrow axes.

    Below 16 channels for the default of 8 (in general below twice `align`): the largest power of two up to a quarter.
    """
    if channels >= 2 * align:
        return align
    return max(1, min(align, 1 << max(0, int(math.log2(max(channels, 1))) - 2)))


def allowed_losses(
    rows: int, size: int, most: int, align: int, widths: Sequence[int] = (1,), strict: bool = False
) -> list[int]:
    """Return how many units a row may lose, ascending, without 0.

    Units
        widths: channels per unit, one entry for each axis that must stay aligned. strict: narrow axes, too.
    """
    losses = np.arange(1, most + 1)
    kept = rows * (size - losses)
    floors = [align if strict else unit_floor(rows * size * width, align) for width in widths]
    aligned = [kept * width % floor == 0 for width, floor in zip(widths, floors)]
    found: list[int] = losses[np.logical_and.reduce(aligned)].tolist() if aligned else losses.tolist()
    return found


def channels_per_unit(coupling: Coupling, group: Group) -> tuple[int, ...]:
    """Return how many channels one unit has on the producing axes of its group: several before DepthToSpace."""
    member = np.zeros(coupling.n_units, bool)
    member[group.units] = True
    found = set()
    for tensor, axis in group.axes:
        for factor in coupling.factors.get(tensor, ()):
            width, rest = divmod(int(member[factor].sum()), group.units.size)
            if spans(factor) == (axis,) and width and not rest:
                found.add(width)
    return tuple(sorted(found))


def protected_units(coupling: Coupling, scores: np.ndarray) -> np.ndarray:
    """Mark one unit, the best, of every axis that could otherwise lose all its indices while its group lives on."""
    group_of = np.zeros(coupling.n_units, np.int64)
    units_of = [np.zeros(1, np.int64)]  # 0: the pinned unit, which is never present below
    for number, group in enumerate(coupling.groups, 1):
        group_of[group.units] = number
        units_of.append(group.units.reshape(-1))
    marked, present = np.zeros((2, coupling.n_units), bool)
    factors = {id(factor): factor for own in coupling.factors.values() for factor in own if len(spans(factor)) == 1}
    for factor in factors.values():
        labels = factor.reshape(-1)
        if not labels.all():
            continue
        present[labels] = True
        whole = present[units_of[group_of[labels[0]]]].all()
        if not whole and not any(present[units_of[g]].all() for g in np.unique(group_of[labels])):
            own = np.flatnonzero(present)
            marked[own[np.argmax(scores[own])]] = True
        present[labels] = False
    return marked


def kept_by_name(graph: Graph, coupling: Coupling, patterns: Sequence[str]) -> np.ndarray:
    """Mark the units on values, or on outputs of nodes, whose name matches one of the regular expressions."""
    marked = np.zeros(coupling.n_units, bool)
    for pattern in patterns:
        search = re.compile(pattern).search
        names = {name for name in (*graph.consts, *graph.producers()) if search(name)}
        for node in graph.walk():
            if node.name and search(node.name):
                names.update(node.outputs, (name for name in node.inputs if name in graph.consts))
        if not names:
            log.warning("keep: no value and no node has a name that matches %r; nothing is kept for it", pattern)
        for name in names:
            for factor in coupling.factors.get(name, ()):
                marked[factor] = True
    marked[0] = False
    return marked


def ladder(
    coupling: Coupling,
    groups: Sequence[Group],
    scores: np.ndarray,
    frozen: np.ndarray,
    align: int,
    max_ratio: float | Sequence[float] = 1.0,
    strict: bool = False,
) -> list[list[Event]]:
    """Return the events of each group, in the order in which they must happen.

    Units
        max_ratio: largest share that a group may lose: one for all, or one for each. strict: narrow axes are aligned
        to no less.
    """
    most = [max_ratio] * len(groups) if isinstance(max_ratio, (int, float)) else max_ratio
    found = []
    for number, group in enumerate(groups):
        widths = channels_per_unit(coupling, group) if align > 1 else ()
        found.append(_group_events(number, group, scores, frozen, align, most[number], widths, strict))
    return found


def _group_events(
    number: int,
    group: Group,
    scores: np.ndarray,
    frozen: np.ndarray,
    align: int,
    max_ratio: float,
    widths: Sequence[int],
    strict: bool,
) -> list[Event]:
    rows, size = group.units.shape
    held = frozen[group.units]
    value = np.where(held, np.inf, scores[group.units])
    order = np.argsort(value, axis=1, kind="stable")
    ranked = np.take_along_axis(group.units, order, axis=1)
    keys = np.take_along_axis(value, order, axis=1).mean(axis=0)
    most = min(size - 1, size - int(held.sum(axis=1).max()), math.floor(max_ratio * size + 1e-9))
    losses = allowed_losses(rows, size, most, align, widths, strict)
    starts = [0, *losses[:-1]]
    if not losses:
        return []
    sums = np.add.reduceat(keys[: losses[-1]], starts)
    means = np.maximum.accumulate(sums / np.diff([0, *losses]))
    steps = zip(means.tolist(), starts, losses)
    return [Event(number, key, ranked[:, before:loss].reshape(-1)) for key, before, loss in steps]


def classes_of(groups: Sequence[Group], scope: Scope, without: Container[int] = ()) -> list[list[int]]:
    """Sort groups, by their positions, into classes whose units are ranked together; some take no part.

    Source
        isomorphic: Fang et al. 2024, Isomorphic Pruning for Vision Models, section 3. Here equal structure means the
        shapes and axes of all constants on which a group sits.
    """
    if scope == "local":
        return [[position] for position in range(len(groups)) if position not in without]
    found: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        if position in without:
            continue
        found.setdefault(group.signature if scope == "isomorphic" else "", []).append(position)
    return list(found.values())


def ranking(events: Sequence[Sequence[Event]]) -> list[Event]:
    """Merge the events of several groups into one order; events of one group stay in theirs."""
    flat = [event for own in events for event in own]
    return sorted(flat, key=lambda event: event.key)


def in_step(rankings: Sequence[Sequence[Event]], sizes: Sequence[int]) -> list[Event]:
    """Merge the rankings of classes so that all classes lose the same share of their units at the same time.

    Units
        sizes: units of each class.
    """
    found = []
    for order, size in zip(rankings, sizes):
        taken = np.cumsum([event.units.size for event in order]).tolist()
        found += [replace(event, key=count / size) for event, count in zip(order, taken)]
    return sorted(found, key=lambda event: event.key)


def take_share(order: Sequence[Event], share: float, total: int) -> list[Event]:
    """Return the prefix that removes as near as possible to a share of `total` units."""
    target, taken, chosen = share * total, 0, []
    for event in order:
        if taken + event.units.size - target > target - taken:
            break
        taken += event.units.size
        chosen.append(event)
    return chosen


def take_budget(order: Sequence[Event], limit: float, cost: Callable[[Sequence[Event]], float]) -> list[Event] | None:
    """Return events whose cost is at most `limit`, and near to it; None where even the whole order does not fit.

    The shortest prefix that fits comes first, then exchanges of single events. Where that leaves more than 2% unused,
    the event that overshot is left out, with the rest of its group, and the search starts again. Small models have
    few widths to choose from: if still more is unused there, all plans are tried.
    """
    best: list[Event] | None = None
    used, whole = -math.inf, order
    for _ in range(_DETOURS):
        if cost(order) > limit:
            break
        prefix = _shortest_prefix(order, limit, cost)
        chosen, spent = _exchanged(prefix, order, limit, cost)
        if spent > used:
            best, used = chosen, spent
        if not prefix or used >= (1 - FAR) * limit:
            break
        before = {id(event) for event in prefix[:-1]}
        order = [event for event in order if event.group != prefix[-1].group or id(event) in before]
    if best is not None and used < (1 - FAR) * limit:
        best = _best_of_all(whole, limit, cost) or best
    return best


def _best_of_all(order: Sequence[Event], limit: float, cost: Callable[[Sequence[Event]], float]) -> list[Event] | None:
    """Return the plan of least importance that uses nearly all of the limit, else the one that uses most of it.

    None where there are too many plans, or where none fits.
    """
    ladders: dict[int, list[Event]] = {}
    for event in order:
        ladders.setdefault(event.group, []).append(event)
    if math.prod(len(events) + 1 for events in ladders.values()) > _MOST_PLANS:
        return None
    best, rank = None, (-math.inf, -math.inf)
    for levels in product(*(range(len(events) + 1) for events in ladders.values())):
        plan = [event for events, level in zip(ladders.values(), levels) for event in events[:level]]
        used = cost(plan) / limit
        own = min(used, 1 - FAR), -sum(event.key * event.units.size for event in plan)
        if used <= 1 and own > rank:
            best, rank = plan, own
    return best


def _shortest_prefix(order: Sequence[Event], limit: float, cost: Callable[[Sequence[Event]], float]) -> list[Event]:
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(order[:middle]) <= limit else (middle + 1, high)
    return list(order[:high])


def _exchanged(
    chosen: list[Event], order: Sequence[Event], limit: float, cost: Callable[[Sequence[Event]], float]
) -> tuple[list[Event], float]:
    """While much of the limit is unused, take the best event back that can be, or exchange one for another group's."""
    spent = cost(chosen)
    for _ in range(_EXCHANGES):
        if not chosen or spent >= (1 - NEAR) * limit:
            break
        better = _nearer(chosen, order, limit, spent, cost)
        if better is None:
            break
        chosen, spent = better
    return chosen, spent


def _nearer(
    chosen: Sequence[Event],
    order: Sequence[Event],
    limit: float,
    spent: float,
    cost: Callable[[Sequence[Event]], float],
) -> tuple[list[Event], float] | None:
    """Take one event back, or exchange one, so that more of the limit is used."""
    taken = {id(event) for event in chosen}
    last = {event.group: event for event in chosen}
    following: dict[int, Event] = {}
    for event in order:
        if id(event) not in taken:
            following.setdefault(event.group, event)
    back = {g: [e for e in chosen if e is not event] for g, event in last.items()}
    gain = {g: cost(events) - spent for g, events in back.items()}
    fits = [g for g in gain if spent + gain[g] <= limit and gain[g] > 0]
    if fits:
        best = max(fits, key=lambda g: (last[g].key, gain[g]))
        return back[best], spent + gain[best]
    saved = {g: spent - cost([*chosen, event]) for g, event in following.items()}
    pairs = [(gain[a] - saved[b], a, b) for a in gain for b in saved if a != b]
    room = limit - spent
    for _, a, b in sorted((p for p in pairs if 0 < p[0] <= room), reverse=True)[:_TRIES]:
        trial = [*back[a], following[b]]
        if spent < (total := cost(trial)) <= limit:
            return trial, total
    return None


def removed_by(events: Sequence[Event], n_units: int) -> np.ndarray:
    """Return a boolean array of all units, True for those that the events remove."""
    removed = np.zeros(n_units, bool)
    if events:
        removed[np.concatenate([event.units for event in events])] = True
    return removed
