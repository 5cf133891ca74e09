"""Widths for a budget against every choice that there is."""

from __future__ import annotations

from itertools import accumulate, pairwise, product

import numpy as np
import pytest

from prunepass.selection import Event
from prunepass.widths import _convex, allocate


def curves(keys, sizes=None):
    """Make the events of each group; keys: mean error of each step's units, in the order in which they go."""
    found, unit = [], 1
    for group, own in enumerate(keys):
        events = []
        for at, key in enumerate(own):
            size = 1 if sizes is None else sizes[group][at]
            events.append(Event(group, float(key), np.arange(unit, unit + size)))
            unit += size
        found.append(events)
    return found


def widths(events, full):
    """Return how many units of each group are left."""
    left = list(full)
    for event in events:
        left[event.group] -= event.units.size
    return left


def total_error(events):
    """Return the predicted error of a choice."""
    return sum(event.key * event.units.size for event in events)


def chain(full):
    """Cost of layers one after the other: each multiplies two widths."""
    return lambda events: float(sum(a * b for a, b in pairwise([3, *widths(events, full), 5])))


def brute_force(events, limit, cost):
    """Return the least error of all prefixes within the limit, None where there is none."""
    choices = product(*(range(len(own) + 1) for own in events))
    found = [[event for own, at in zip(events, choice) for event in own[:at]] for choice in choices]
    return min((total_error(chosen) for chosen in found if cost(chosen) <= limit), default=None)


def problem(seed, steps=6, groups=3, sizes=False):
    rng = np.random.default_rng(seed)
    keys = [np.sort(rng.exponential(size=steps) ** 2) for _ in range(groups)]
    counts = [[int(n) for n in rng.integers(1, 4, steps)] for _ in range(groups)] if sizes else None
    events = curves(keys, counts)
    full = [sum(event.units.size for event in own) + 2 for own in events]
    return events, full, chain(full)


SHARES = (0.9, 0.75, 0.5, 0.3, 0.2)


@pytest.mark.parametrize("sizes", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_as_good_as_every_choice_tried(seed, sizes):
    events, _, cost = problem(seed, sizes=sizes)
    excess = []
    for share in SHARES:
        limit = share * cost([])
        best = brute_force(events, limit, cost)
        chosen = allocate(events, limit, cost)
        if best is None:
            assert chosen is None
            continue
        assert cost(chosen) <= limit
        excess.append(total_error(chosen) / best - 1 if best else 0.0)
        assert excess[-1] >= -1e-9
        assert excess[-1] < 0.3
    assert np.mean(excess) < 0.08


@pytest.mark.parametrize("seed", range(4))
def test_events_happen_in_their_order(seed):
    events, _, cost = problem(seed, sizes=True)
    for share in SHARES:
        chosen = allocate(events, share * cost([]), cost) or []
        for own in events:
            taken = [event for event in chosen if event.group == own[0].group]
            assert taken == own[: len(taken)]


def test_more_budget_never_costs_more_error():
    events, _, cost = problem(3, steps=10)
    limits = np.linspace(0.15, 1.0, 40) * cost([])
    errors = [total_error(chosen) for limit in limits if (chosen := allocate(events, limit, cost)) is not None]
    assert len(errors) > 30
    assert errors[-1] == 0
    assert all(after <= before * 1.25 for before, after in pairwise(errors))


@pytest.mark.parametrize(
    ("keys", "limit", "expected"),
    [
        ([[1, 2], [1, 2]], 15 * 4 + 100, []),  # nothing has to go
        ([[], []], 10, None),  # nothing can go
        ([[1, 2], [1, 2]], 5, None),  # not enough can
        ([[1, 9], [2, 3]], 41, [(0, 1.0)]),
        ([[9, 9], [1, 1]], 40, [(1, 1.0)]),
    ],
)
def test_by_hand(keys, limit, expected):
    """Two layers of width 4 cost 48; 41 where the first is narrower by one, 39 where the second is."""
    chosen = allocate(curves(keys), limit, chain([4, 4]))
    assert (chosen if chosen is None else [(event.group, event.key) for event in chosen]) == expected


def test_a_sum_of_costs_on_convex_curves_is_solved_exactly():
    """Knapsack with equal units: the cheapest units go, whichever group they are of."""
    keys = [[1, 4, 7], [2, 5, 8], [3, 6, 9]]
    for removed in range(10):
        chosen = allocate(curves(keys), 9 - removed, lambda events: 9.0 - len(events))
        assert sorted(event.key for event in chosen) == list(range(1, removed + 1))


def test_a_cheap_step_behind_a_dear_one_is_seen():
    """Alone, the first step of the first group is dear; with the free ones behind it, it is the best."""
    keys = [[3, 0, 0, 0], [1, 1, 1, 1]]
    chosen = allocate(curves(keys), 4.0, lambda events: 8.0 - len(events))
    assert [event.key for event in chosen] == [3, 0, 0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_curves_become_convex_and_lose_nothing(seed):
    rng = np.random.default_rng(seed)
    (events,) = curves([rng.exponential(size=12)], [[int(n) for n in rng.integers(1, 5, 12)]])
    steps = _convex(events)
    assert [event for step in steps for event in step] == events
    errors, sizes = (
        [sum(f(e) for e in step) for step in steps] for f in (lambda e: e.key * e.units.size, lambda e: e.units.size)
    )
    rates = [error / size for error, size in zip(errors, sizes)]
    assert rates == sorted(rates)
    corners = list(accumulate(errors, initial=0.0))
    places = list(accumulate(sizes, initial=0))
    curve = np.array(list(accumulate((e.key * e.units.size for e in events), initial=0.0)))
    at = list(accumulate((e.units.size for e in events), initial=0))
    assert (np.interp(at, places, corners) <= curve + 1e-12).all()  # the hull lies below
    assert len(steps) < len(events)


def test_units_that_cost_no_error_go_when_the_budget_asks():
    keys = [[0, 0, 5], [0, 4, 6]]
    chosen = allocate(curves(keys), 3.0, lambda events: 6.0 - len(events))
    assert total_error(chosen) == 0


def test_same_choice_twice():
    events, _, cost = problem(5)
    first, second = (allocate(events, 0.5 * cost([]), cost) for _ in range(2))
    assert first == second
