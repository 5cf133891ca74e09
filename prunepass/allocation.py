"""Take events of a ladder until a plan keeps to all of its budgets, and no more of them than it takes.

The order is that of importance. Two kinds of budgets need care: peak RAM, where only what is alive at the peak counts,
and several budgets at once. So events that touch the peak come first while it is too high, then a prefix of all others
until the other budgets hold; then whatever turned out not to be needed is given back, the most important first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prunepass.budgets import Budgets
from prunepass.coupling import Coupling, Group
from prunepass.selection import NEAR, Event, removed_by, take_budget

_SHRINK = 0.75
"""Each round frees at least a quarter of the steps at which too much is alive, where it can."""


def take_within(
    order: Sequence[Event],
    budgets: Budgets,
    coupling: Coupling,
    groups: Sequence[Group],
    fixed: Sequence[Event] = (),
) -> list[Event]:
    """Return events after which a plan keeps to all budgets, near to them; all of them where no plan does.

    Units
        groups: those that the events speak of, by their position. fixed: events that happen anyway.
    """
    n_units = coupling.n_units
    chosen: list[Event] | None = []
    if "ram" in budgets.limits:
        chosen = _lower_peak(order, budgets, coupling, groups, fixed)
    if chosen is None:
        return list(order)
    taken = {id(event) for event in chosen}
    rest, first = [event for event in order if id(event) not in taken], chosen

    def used(events: Sequence[Event]) -> float:
        return budgets.used(removed_by([*fixed, *first, *events], n_units))

    more = take_budget(rest, 1.0, used)
    if more is None:
        return list(order)
    chosen = [*first, *more]
    removed = removed_by([*fixed, *chosen], n_units)
    return chosen if budgets.used(removed) >= 1 - NEAR else given_back(chosen, budgets, removed)


def given_back(chosen: Sequence[Event], budgets: Budgets, removed: np.ndarray) -> list[Event]:
    """Leave out the last events of each group that the budgets do not need, from the most important group on."""
    removed = removed.copy()
    own: dict[int, list[Event]] = {}
    for event in chosen:
        own.setdefault(event.group, []).append(event)
    for group in sorted(own, key=lambda group: -own[group][-1].key):
        events = own[group]

        def fits(number: int, events: Sequence[Event] = events) -> bool:
            trial = removed.copy()
            for event in events[len(events) - number :]:
                trial[event.units] = False
            return budgets.used(trial) <= 1

        number = _largest(len(events), fits)
        for event in events[len(events) - number :]:
            removed[event.units] = False
    return [event for event in chosen if removed[event.units].all()]


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number that fits, where all smaller ones do; 0 is not asked."""
    if not most or not fits(1):
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _lower_peak(
    order: Sequence[Event], budgets: Budgets, coupling: Coupling, groups: Sequence[Group], fixed: Sequence[Event]
) -> list[Event] | None:
    """Return events that bring the peak below the limit: only of groups with something alive when it is too high."""
    limit, n_units = budgets.limits["ram"], coupling.n_units
    touches = _touches(budgets, coupling, groups)
    chosen: list[Event] = []
    rest = list(order)
    over = _too_high(budgets, removed_by(fixed, n_units), limit)
    while over.any():
        alive: np.ndarray = np.any(touches[:, over], axis=1)
        near = [event for event in rest if alive[event.group]]

        def left(number: int, near: Sequence[Event] = near, chosen: Sequence[Event] = chosen) -> int:
            return int(_too_high(budgets, removed_by([*fixed, *chosen, *near[:number]], n_units), limit).sum())

        goal = max(int(_SHRINK * over.sum()), left(len(near)))
        if goal >= over.sum():
            return None
        low, high = 1, len(near)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if left(middle) <= goal else (middle + 1, high)
        taken = {id(event) for event in near[:high]}
        chosen = [*chosen, *near[:high]]
        rest = [event for event in rest if id(event) not in taken]
        over = _too_high(budgets, removed_by([*fixed, *chosen], n_units), limit)
    return chosen


def _too_high(budgets: Budgets, removed: np.ndarray, limit: float) -> np.ndarray:
    over: np.ndarray = budgets.model.live(removed) > limit
    return over


def _touches(budgets: Budgets, coupling: Coupling, groups: Sequence[Group]) -> np.ndarray:
    """Say for each group at which steps something of it is alive."""
    model = budgets.model
    laid = model.liveness.buffers(model.sizes()[model.value_places])
    owner = np.full(coupling.n_units, -1, np.int64)
    for number, group in enumerate(groups):
        owner[group.units] = number
    owner[0] = -1
    found = np.zeros((len(groups), len(model.liveness.nodes) + 2), bool)
    known: dict[int, np.ndarray] = {}
    for buffer, value in enumerate(laid.size_of.tolist()):
        for factor in coupling.factors.get(model.liveness.names[value], ()):
            if id(factor) not in known:
                known[id(factor)] = np.unique(owner[factor])
            numbers = known[id(factor)]
            found[numbers[numbers >= 0], laid.birth[buffer] : laid.death[buffer] + 1] = True
    return found
