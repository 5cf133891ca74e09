"""Spend a budget where it hurts least: choose the width of every group by its error curve and by what it saves.

A group's curve says what its predicted error is at every allowed width. Costs are not a sum over groups (the MACs of a
layer are the product of two widths), so the exact method for sums, a dynamic program, does not apply. Instead the step
with the least error per cost saved is taken again and again, the saving always counted exactly at the point reached;
curves are made convex first, so that no step is better than one before it. At the end steps are exchanged while that
lowers the error.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from prunepass.allocation import given_back
from prunepass.budgets import Budgets
from prunepass.selection import NEAR, Event, removed_by

_SAVES_NOTHING = 1e-12
_EXCHANGES, _TRIES = 200, 12


def allocate(
    events: Sequence[Sequence[Event]], limit: float, cost: Callable[[Sequence[Event]], float]
) -> list[Event] | None:
    """Return the events that bring the cost to at most `limit` for the least error; None where none can.

    events: of each group, in the order in which they must happen; the key of an event is the mean error of its units.
    cost: of the model when some events have happened.
    """
    state = _State([_convex(own) for own in events if own], cost)
    if not state.descend(limit):
        return None
    state.exchange(limit)
    return state.trimmed(limit)


def spend(order: Sequence[Event], fixed: Sequence[Event], budgets: Budgets, n_units: int) -> list[Event]:
    """Return events after which a plan keeps to all budgets, for the least error; all of them where no plan does.

    order: events in which those of a group stand in the order in which they must happen. fixed: happen anyway.
    """
    groups: dict[int, list[Event]] = {}
    for event in order:
        groups.setdefault(event.group, []).append(event)

    def used(events: Sequence[Event]) -> float:
        return budgets.used(removed_by([*fixed, *events], n_units))

    chosen = allocate(list(groups.values()), 1.0, used)
    if chosen is None:
        return list(order)
    removed = removed_by([*fixed, *chosen], n_units)
    return chosen if budgets.used(removed) >= 1 - NEAR else given_back(chosen, budgets, removed)


class _State:
    """The steps taken of every group: a step is a run of events that go together."""

    def __init__(self, steps: list[list[list[Event]]], cost: Callable[[Sequence[Event]], float]) -> None:
        self.steps, self._cost = steps, cost
        self.at = [0] * len(steps)
        self.spent = cost([])

    def chosen(self) -> list[Event]:
        """Return the events so far."""
        return [event for own, at in zip(self.steps, self.at) for step in own[:at] for event in step]

    def _moved(self, *moves: tuple[int, int]) -> float:
        """Return the cost after some moves (group, steps)."""
        for group, by in moves:
            self.at[group] += by
        found = self._cost(self.chosen())
        for group, by in moves:
            self.at[group] -= by
        return found

    def _rate(self, group: int) -> float:
        """Return the error per cost saved of the next step of a group."""
        saved = self.spent - self._moved((group, 1))
        return _error(self.steps[group][self.at[group]]) / max(saved, _SAVES_NOTHING)

    def descend(self, limit: float) -> bool:
        """Take the best step until the limit holds. Rates only grow while other groups shrink: stale ones are low."""
        queue = [(self._rate(group), group) for group in range(len(self.steps))]
        heapq.heapify(queue)
        while self.spent > limit and queue:
            _, group = heapq.heappop(queue)
            rate = self._rate(group)
            if queue and rate > queue[0][0]:
                heapq.heappush(queue, (rate, group))
                continue
            self.at[group] += 1
            self.spent = self._cost(self.chosen())
            if self.at[group] < len(self.steps[group]):
                heapq.heappush(queue, (self._rate(group), group))
        return self.spent <= limit

    def exchange(self, limit: float) -> None:
        """Take steps back where the limit allows it, and exchange one for another while the error falls."""
        for _ in range(_EXCHANGES):
            back = [(_error(own[at - 1]), g) for g, (own, at) in enumerate(zip(self.steps, self.at)) if at]
            moves = self._better(sorted(back, reverse=True)[:_TRIES], limit)
            if moves is None:
                break
            for group, by in moves:
                self.at[group] += by
            self.spent = self._cost(self.chosen())

    def trimmed(self, limit: float) -> list[Event]:
        """Return the events so far, without those at the end of joined steps that the limit does not need."""
        taken = [[event for step in own[:at] for event in step] for own, at in zip(self.steps, self.at)]
        loose = [len(own[at - 1]) - 1 if at else 0 for own, at in zip(self.steps, self.at)]
        for group in sorted(range(len(taken)), key=lambda g: -_error(taken[g][-1:])):
            while loose[group]:
                last = taken[group].pop()
                if self._cost([event for own in taken for event in own]) > limit:
                    taken[group].append(last)
                    break
                loose[group] -= 1
        return [event for own in taken for event in own]

    def _better(self, back: Sequence[tuple[float, int]], limit: float) -> tuple[tuple[int, int], ...] | None:
        for _, group in back:
            if self._moved((group, -1)) <= limit:
                return ((group, -1),)
        ahead = [(_error(own[at]), g) for g, (own, at) in enumerate(zip(self.steps, self.at)) if at < len(own)]
        for gain, group in back:
            for loss, other in sorted(ahead)[:_TRIES]:
                if loss >= gain:
                    break
                if other != group and self._moved((group, -1), (other, 1)) <= limit:
                    return ((group, -1), (other, 1))
        return None


def _error(step: Sequence[Event]) -> float:
    return sum(event.key * event.units.size for event in step)


def _convex(events: Sequence[Event]) -> list[list[Event]]:
    """Join events into steps whose error per unit never falls."""
    found: list[tuple[float, int, list[Event]]] = []
    for event in events:
        error, units, step = event.key * event.units.size, event.units.size, [event]
        while found and found[-1][0] / found[-1][1] > error / units:
            before = found.pop()
            error, units, step = error + before[0], units + before[1], [*before[2], *step]
        found.append((error, units, step))
    return [step for _, _, step in found]
