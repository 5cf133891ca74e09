"""The ladder of allowed sizes, and the ways down: shares, budgets, classes in step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from prunepass.selection import Event, allowed_losses, in_step, take_budget, take_share, unit_floor


@pytest.mark.parametrize(
    ("channels", "align", "expected"),
    [(1, 8, 1), (3, 8, 1), (4, 8, 1), (7, 8, 1), (8, 8, 2), (12, 8, 2), (15, 8, 2), (16, 8, 8), (24, 8, 8), (31, 16, 4),
     (32, 16, 16), (64, 1, 1), (6, 4, 1), (8, 4, 4), (100, 8, 8)],
)  # fmt: skip
def test_narrow_axes_are_aligned_to_less(channels: int, align: int, expected: int) -> None:
    assert unit_floor(channels, align) == expected


@pytest.mark.parametrize(
    ("rows", "size", "most", "align", "widths", "expected"),
    [
        (1, 24, 23, 8, (1,), [8, 16]),
        (1, 20, 19, 8, (1,), [4, 12]),  # 16 and 8 are left
        (1, 12, 11, 8, (1,), [2, 4, 6, 8, 10]),
        (4, 8, 7, 8, (1,), [2, 4, 6]),  # four rows of 8: 32 channels, 24, 16, 8
        (1, 8, 7, 8, (4,), [2, 4, 6]),  # units of four channels
        (1, 12, 11, 8, (64,), list(range(1, 12))),  # whole heads
        (1, 32, 31, 8, (1, 4), [8, 16, 24]),  # the narrower axis decides
        (1, 6, 4, 1, (), [1, 2, 3, 4]),
        (1, 24, 7, 8, (1,), []),
    ],
)
def test_allowed_losses(
    rows: int, size: int, most: int, align: int, widths: tuple[int, ...], expected: list[int]
) -> None:
    assert allowed_losses(rows, size, most, align, widths) == expected


def event(group: int, key: float, *units: int) -> Event:
    return Event(group, key, np.array(units))


ORDER = [event(0, 0.1, 1), event(1, 0.2, 2, 3), event(0, 0.3, 4), event(2, 0.4, 5, 6, 7, 8), event(1, 0.5, 9)]


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 0), (0.04, 0), (0.05, 1), (0.19, 1), (0.2, 2), (0.4, 3), (0.59, 3), (0.6, 4), (1, 5)]
)
def test_take_share(share: float, expected: int) -> None:
    assert take_share(ORDER, share, 10) == ORDER[:expected]


def test_in_step() -> None:
    merged = in_step([ORDER[:1] + ORDER[2:3], ORDER[1:2] + ORDER[4:]], [4, 4])
    assert [(e.group, e.key) for e in merged] == [(0, 0.25), (0, 0.5), (1, 0.5), (1, 0.75)]


WEIGHTS = {1: 10, 2: 10, 3: 10, 4: 5, 5: 20, 6: 20, 7: 20, 8: 20, 9: 4}


def spent(events: list[Event]) -> float:
    return 130.0 - sum(WEIGHTS[int(u)] for e in events for u in e.units)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (200, 130),  # nothing has to go
        (130, 130),
        (125, 120),  # the first event
        (95, 95),  # three of them, exactly
        (94, 91),  # not the large one, but the one after it
        (40, 40),  # the large one, without what is not needed
        (10, None),
    ],
)
def test_take_budget(limit: float, expected: float | None) -> None:
    chosen = take_budget(ORDER, limit, spent)
    assert (chosen if chosen is None else spent(chosen)) == expected
    for group in range(3):
        own = [e for e in chosen or () if e.group == group]
        assert own == [e for e in ORDER if e.group == group][: len(own)], "the events of a group are out of order"


def test_take_budget_keeps_to_the_limit_whatever_the_cost() -> None:
    """As with layers, whose MACs are products of what two groups keep: gains do not add up."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(2, 9, 6)
        order = [event(g, rng.random() + i, 100 * g + i) for g, size in enumerate(sizes) for i in range(1, size)]
        order.sort(key=lambda e: (e.key, e.group))

        def cost(events: list[Event], sizes: np.ndarray = sizes) -> float:
            left = sizes - np.bincount([e.group for e in events], minlength=len(sizes))
            return float((left[:-1] * left[1:]).sum())

        for share in (0.9, 0.6, 0.3):
            limit = share * cost([])
            chosen = take_budget(order, limit, cost)
            if chosen is None:
                assert cost(order) > limit
                continue
            assert 0.75 * limit < cost(chosen) <= limit
            for group in range(len(sizes)):
                own = [e for e in order if e.group == group]
                assert [e for e in chosen if e.group == group] == own[: sum(e.group == group for e in chosen)]


@pytest.mark.parametrize("seed", range(20))
def test_take_budget_is_as_near_as_any_plan_where_there_are_few(seed: int) -> None:
    """Three groups of a few widths each: within 2% of the limit, or nothing is nearer."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, 3)
    order = [event(g, rng.random() + i, 100 * g + i) for g, size in enumerate(sizes) for i in range(1, size)]
    order.sort(key=lambda e: (e.key, e.group))

    def macs(left: Sequence[int]) -> float:
        return float(3 * left[0] + left[0] * left[1] + left[1] * left[2] + 2 * left[2])

    def cost(events: list[Event]) -> float:
        return macs(sizes - np.bincount([e.group for e in events], minlength=len(sizes)))

    for share in (0.9, 0.7, 0.5, 0.3):
        limit = share * cost([])
        nearest = max((c for c in map(macs, product(*(range(1, n + 1) for n in sizes))) if c <= limit), default=None)
        chosen = take_budget(order, limit, cost)
        assert (chosen is None) == (nearest is None)
        if chosen is not None and nearest is not None:
            assert min(nearest, 0.98 * limit) <= cost(chosen) <= limit
            for group in range(len(sizes)):
                own = [e for e in order if e.group == group]
                assert [e for e in chosen if e.group == group] == own[: sum(e.group == group for e in chosen)]


def test_take_budget_is_near_for_many_small_events() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 100, 400)
    order = [event(i % 20, float(i), i) for i in range(400)]

    def cost(events: list[Event]) -> float:
        return float(sizes.sum() - sum(sizes[e.units[0]] for e in events))

    for share in (0.9, 0.5, 0.1):
        chosen = take_budget(order, share * sizes.sum(), cost)
        assert chosen is not None
        assert 0.99 * share * sizes.sum() <= cost(chosen) <= share * sizes.sum()
        assert len(chosen) == pytest.approx((1 - share) * 400, abs=25)
