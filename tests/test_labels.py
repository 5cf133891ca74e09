"""The label algebra: classes against a naive union-find, and every operation on factors against what it removes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunepass.labels import Factor, Factors, Labels, Policy, collapse, constant_along, lift, on_axis, spans

POLICIES: tuple[Policy, ...] = ("balanced", "whole", "aligned")
COUNT = 12
checked = settings(deadline=None)


def f(*rows: object) -> Factor:
    """Make a factor from nested lists."""
    return np.array(rows, np.int32)


def started(policy: Policy = "balanced") -> Labels:
    """Make an algebra of COUNT labels, 1 to COUNT."""
    labels = Labels(policy)
    labels.fresh("all", COUNT)
    return labels


def pinned(labels: Labels) -> set[int]:
    return {int(label) for pin in labels.pins for label in pin.labels}


def classes_of(labels: Labels, with_pins: bool = False) -> list[list[int]]:
    """Solve, and return the classes of more than one label."""
    labels.solve(with_pins)
    classes = labels.classes
    return [found for c in range(labels.count) if len(found := np.flatnonzero(classes == c).tolist()) > 1]


HEADS = f([[1, 2, 3], [4, 5, 6]])  # 1 x 2 x 3: blocks on axis 1, inner axis 2


# ---- plain functions -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("factor", "axes", "inner_constant", "first"),
    [
        (f(1, 2, 3), (0,), False, f(1)),
        (f([1, 2, 3]), (1,), False, f([1])),
        (f([1, 2], [1, 2]), (0, 1), False, f([1], [1])),
        (f([1, 1], [2, 2]), (0, 1), True, f([1], [2])),
        (f([[1], [2]]), (1,), True, f([[1], [2]])),
        (f([5]), (), True, f([5])),
    ],
)
def test_spans(factor: Factor, axes: tuple[int, ...], inner_constant: bool, first: Factor) -> None:
    last = [factor.ndim - 1]
    assert spans(factor) == axes
    assert constant_along(factor, last) is inner_constant
    np.testing.assert_array_equal(collapse(factor, last), first)


def test_lift_and_on_axis() -> None:
    assert lift(f(1, 2), 3).tolist() == [[[1, 2]]]
    assert on_axis(f(1, 2), 1, 3).tolist() == [[[1], [2]]]


# ---- labels, equalities, rounds --------------------------------------------------------------------------------------
def test_fresh_labels_belong_to_their_key() -> None:
    labels = Labels()
    assert labels.fresh("a", 2).tolist() == [1, 2]
    assert labels.fresh(("b", 1), 3).tolist() == [3, 4, 5]
    assert labels.fresh("a", 2).tolist() == [1, 2]
    labels.unify(f(2, 5), f(1, 3))
    assert labels.fresh("a", 2).tolist() == [1, 2], "merged before solve"
    assert labels.solve(with_pins=False)
    assert labels.fresh("a", 2).tolist() == [1, 1]
    assert labels.fresh(("b", 1), 3).tolist() == [3, 4, 3]
    assert labels.fresh("c", 1).tolist() == [6]
    assert labels.count == 7


def test_unify_broadcasts() -> None:
    labels = started()
    labels.unify(HEADS, f([[7, 8, 9]]))
    assert classes_of(labels) == [[1, 4, 7], [2, 5, 8], [3, 6, 9]]
    labels.unify(f([[1], [2]]), f([[3, 3]]))
    assert classes_of(labels) == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]


def test_unify_along_returns_what_is_left() -> None:
    labels = started()
    left = labels.unify_along(HEADS, [1])
    assert left.tolist() == [[[1, 2, 3]]]
    assert classes_of(labels) == [[1, 4], [2, 5], [3, 6]]


def test_solve_says_whether_a_class_changed() -> None:
    labels = started()
    assert not labels.solve(with_pins=False)
    labels.unify(f(1), f(2))
    assert labels.solve(with_pins=False)
    labels.unify(f(2), f(1))
    assert not labels.solve(with_pins=True)
    labels.pin(f(2), "why")
    assert labels.solve(with_pins=True)
    assert labels.classes[:3].tolist() == [0, 0, 0]


def test_pins_that_came_too_early_are_forgotten() -> None:
    labels = started()
    labels.pin(f(1), "the labels still differ")
    labels.unify(f(1), f(2))
    labels.blocks.append(HEADS)
    labels.solve(with_pins=False)
    labels.begin_round()
    assert labels.pins == [] and labels.blocks == []
    labels.pin(f(3), "still there with merged labels")
    assert classes_of(labels, with_pins=True) == [[0, 3], [1, 2]]


def test_pins_remember_who_and_why() -> None:
    labels = started()
    labels.owner = 7
    labels.pin_all((f(1, 0), f([2])), "because")
    labels.pin(f(0, 0), "nothing to pin")
    assert [(p.labels.tolist(), p.owner, p.reason) for p in labels.pins] == [([1], 7, "because"), ([2], 7, "because")]


class Naive:
    """Union-find over label numbers, one edge at a time."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count + 1))

    def find(self, a: int) -> int:
        while self.parent[a] != a:
            a = self.parent[a]
        return a

    def union(self, a: int, b: int) -> None:
        a, b = sorted((self.find(a), self.find(b)))
        self.parent[b] = a

    def classes(self) -> list[int]:
        return [self.find(a) for a in range(len(self.parent))]


vectors = st.lists(st.integers(0, COUNT), min_size=1, max_size=4)


def pair(a: list[int], b: list[int], outer: bool) -> tuple[Factor, Factor]:
    """Make two factors that broadcast: each label of one with each of the other, or one by one."""
    least = min(len(a), len(b))
    return (f(*a)[:, None], f(*b)[None]) if outer else (f(*a[:least]), f(*b[:least]))


@checked
@given(st.lists(st.builds(pair, vectors, vectors, st.booleans())), st.lists(vectors), st.integers(0, 3))
def test_classes_are_those_of_a_union_find(
    pairs: list[tuple[Factor, Factor]], pins: list[list[int]], early: int
) -> None:
    labels, naive = started(), Naive(COUNT)
    for number, (left, right) in enumerate(pairs):
        labels.unify(left, right)
        for a, b in zip(*(x.reshape(-1).tolist() for x in np.broadcast_arrays(left, right))):
            naive.union(a, b)
        if number < early:
            labels.solve(with_pins=False)
    labels.solve(with_pins=False)
    assert labels.classes.tolist() == naive.classes()
    for own in pins:
        labels.pin(f(*own), "pin")
        for label in own:
            naive.union(0, label)
    labels.solve(with_pins=True)
    assert labels.classes.tolist() == naive.classes()


# ---- operations on factors, case by case -----------------------------------------------------------------------------
Case = tuple[Callable[[Labels], object], object, list[list[int]], set[int]]
INNER = f([[7, 8, 9]])
SAME = f([[1, 2, 3], [1, 2, 3]])
EACH: dict[str, dict[str, Case]] = {
    "any": {
        "tidy what is pinned": (lambda s: s.tidy(f(0, 0)), None, [], set()),
        "tidy one axis": (lambda s: s.tidy(f(1, 1)), [1, 1], [], set()),
        "tidy equal blocks": (lambda s: s.tidy(SAME), [[[1, 2, 3]]], [], set()),
        "tidy a block of one label": (lambda s: s.tidy(f([1, 1], [2, 2])), [[1], [2]], [], set()),
        "tidy a single label": (lambda s: s.tidy(f([[3, 3], [3, 3]])), None, [], {3}),
        "pin an axis that is not spanned": (lambda s: s.pin_axis(f([1, 2]), 0, "why"), [[1, 2]], [], set()),
        "pin the only axis": (lambda s: s.pin_axis(f([1, 2]), 1, "why"), None, [], {1, 2}),
        "pin the inner axis": (lambda s: s.pin_axis(HEADS, 2, "why"), [[[1], [4]]], [[1, 2, 3], [4, 5, 6]], set()),
        "pin both axes": (lambda s: s.pin_axes((HEADS,), (1, 2), "why"), [], [[1, 2, 3], [4, 5, 6]], {1, 4}),
        "drop the inner axis": (lambda s: s.drop_axis(HEADS, 2, "why"), [[[1], [4]]], [[1, 2, 3], [4, 5, 6]], set()),
        "relate apart": (lambda s: s.relate(f([1], [2]), f([3, 4]), "why"), [[[1], [2]], [[3, 4]]], [], set()),
        "relate equal axes": (lambda s: s.relate(f(1, 2), f(3, 4), "why"), [[1, 2]], [[1, 3], [2, 4]], set()),
        "relate blocks of one label": (
            lambda s: s.relate(f([1, 1], [2, 2]), f([3], [4]), "why"),
            [[[3], [4]]],
            [[1, 3], [2, 4]],
            set(),
        ),
        "relate equal blocks": (
            lambda s: s.relate(SAME, f([[7], [8]]), "why"),
            [[[[1, 2, 3]]], [[[7], [8]]]],
            [],
            set(),
        ),
        "relate crossing blocks": (
            lambda s: s.relate(f([[1], [2]], [[3], [4]]), f([[5, 6], [7, 8]]), "why"),
            [[[[5], [7]]]],
            [[1, 3, 5, 6], [2, 4, 7, 8]],
            set(),
        ),
        "relate blocks with a common inner axis": (
            lambda s: s.relate(f([[5, 6]], [[7, 8]]), f([[1, 2], [3, 4]]), "why"),
            [[[[1, 2]]]],
            [[1, 3, 5, 7], [2, 4, 6, 8]],
            set(),
        ),
        "project onto all": (lambda s: s.project(HEADS, [1, 2]), HEADS.tolist(), [], set()),
        "project away one axis": (lambda s: s.project(f([1, 2]), [0]), None, [], set()),
        "project away the blocks": (lambda s: s.project(HEADS, [2]), [[[1, 2, 3]]], [[1, 4], [2, 5], [3, 6]], set()),
        "project away the inner axis": (lambda s: s.project(HEADS, [1]), None, [], set()),
        "project away everything": (lambda s: s.project(HEADS, []), None, [], set()),
        "project away equal inner labels": (lambda s: s.project(f([1, 1], [2, 2]), [0]), [[1], [2]], [], set()),
        "transpose one axis": (lambda s: s.transpose(f([1, 2]), [1, 0]), [[1], [2]], [], set()),
        "transpose in order": (lambda s: s.transpose(HEADS, [1, 0, 2]), HEADS.transpose(1, 0, 2).tolist(), [], set()),
        "transpose the inner axis to the front": (
            lambda s: s.transpose(HEADS, [0, 2, 1]),
            [[[1], [2], [3]]],
            [[1, 4], [2, 5], [3, 6]],
            set(),
        ),
    },
    "balanced": {
        "pin the blocks": (lambda s: s.pin_axis(HEADS, 1, "why"), HEADS.tolist(), [], set()),
        "drop the blocks": (lambda s: s.drop_axis(HEADS, 1, "why"), [[[1, 2, 3]]], [[1, 4], [2, 5], [3, 6]], set()),
        "relate with an inner vector": (
            lambda s: s.relate(INNER, HEADS, "why"),
            [INNER.tolist()],
            [[1, 4, 7], [2, 5, 8], [3, 6, 9]],
            set(),
        ),
        "relate with a block vector": (lambda s: s.relate(HEADS, f([[7], [8]]), "why"), [HEADS.tolist()], [], {7, 8}),
        "block site": (lambda s: s.at_block_site(HEADS), HEADS.tolist(), [], set()),
    },
    "whole": {
        "pin the blocks": (lambda s: s.pin_axis(HEADS, 1, "why"), None, [[1, 2, 3], [4, 5, 6]], {1, 4}),
        "relate with an inner vector": (
            lambda s: s.relate(HEADS, INNER, "why"),
            [[[[1], [4]]]],
            [[1, 2, 3], [4, 5, 6]],
            {7, 8, 9},
        ),
        "relate with a block vector": (
            lambda s: s.relate(HEADS, f([[7], [8]]), "why"),
            [[[[1], [4]]]],
            [[1, 2, 3, 7], [4, 5, 6, 8]],
            set(),
        ),
        "relate blocks of blocks": (
            lambda s: s.relate(f([[1, 2], [3, 4]], [[5, 6], [7, 8]]), f([[9, 10], [11, 12]]), "why"),
            [[[[1]], [[5]]]],
            [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], [11, 12]],
            {9, 11},
        ),
        "block site": (lambda s: s.at_block_site(HEADS), [[[1], [4]]], [[1, 2, 3], [4, 5, 6]], set()),
    },
    "aligned": {
        "pin the blocks": (lambda s: s.pin_axis(HEADS, 1, "why"), [[[1, 2, 3]]], [[1, 4], [2, 5], [3, 6]], set()),
        "relate with a block vector": (lambda s: s.relate(HEADS, f([[7], [8]]), "why"), [HEADS.tolist()], [], {7, 8}),
        "block site": (lambda s: s.at_block_site(HEADS), [[[1, 2, 3]]], [[1, 4], [2, 5], [3, 6]], set()),
    },
}
CASES = [(p, name, case) for p, cases in EACH.items() for name, case in cases.items()]


def plain(result: object) -> object:
    """Turn factors into nested lists."""
    if isinstance(result, (tuple, list)):
        return [plain(part) for part in result]
    return result.tolist() if isinstance(result, np.ndarray) else result


@pytest.mark.parametrize(("policy", "name", "case"), CASES, ids=[f"{p}: {name}" for p, name, _ in CASES])
def test_operation(policy: str, name: str, case: Case) -> None:
    run, expected, classes, pins = case
    for chosen in POLICIES if policy == "any" else [p for p in POLICIES if p == policy]:
        labels = started(chosen)
        assert plain(run(labels)) == expected, chosen
        assert pinned(labels) == pins, chosen
        assert classes_of(labels) == classes, chosen


@pytest.mark.parametrize(
    ("run", "policy", "recorded"),
    [
        (lambda s: s.at_block_site(HEADS), "balanced", [HEADS]),
        (lambda s: s.at_block_site(HEADS), "whole", []),
        (lambda s: s.at_block_site(f([1, 2])), "balanced", []),
        (lambda s: s.project(HEADS, [1]), "balanced", [HEADS]),
        (lambda s: s.project(HEADS, []), "balanced", [HEADS]),
        (lambda s: s.project(HEADS, [2]), "balanced", []),
        (lambda s: s.project(f([[1, 2], [3, 4]], [[5, 6], [7, 8]]), [0]), "balanced", [f([[1, 2]], [[5, 6]])]),
    ],
)
def test_blocks_are_recorded(run: Callable[[Labels], object], policy: Policy, recorded: list[Factor]) -> None:
    labels = started(policy)
    run(labels)
    assert plain(labels.blocks) == plain(recorded)


def test_whole_heads_are_recorded() -> None:
    labels = started("whole")
    labels.at_block_site(HEADS)
    labels.at_block_site(HEADS, heads=False)
    assert plain(labels.heads) == [[[[1], [4]]]]


# ---- operations on factors, by what they remove ----------------------------------------------------------------------
@st.composite
def factors(draw: st.DrawFn, count: int) -> list[Factor]:
    """Draw factors of one tensor: each spans some axes, its labels may repeat or be pinned."""
    shape = draw(st.lists(st.integers(2, 3), min_size=1, max_size=3))
    found = []
    for _ in range(count):
        own = [size if draw(st.booleans()) else 1 for size in shape]
        ids = draw(st.lists(st.integers(0, COUNT), min_size=int(np.prod(own)), max_size=int(np.prod(own))))
        found.append(np.array(ids, np.int32).reshape(own))
    return found


def removed_by(factors: Factors, gone: np.ndarray, rank: int) -> np.ndarray:
    """Say which elements disappear when some labels do."""
    result = np.zeros([1] * rank, bool)
    for factor in factors:
        result = result | gone[factor]
    return result


def listed(result: object) -> Factors:
    if isinstance(result, np.ndarray):
        return (result,)
    return () if result is None else tuple(result)  # type: ignore[arg-type]


def assert_removes_the_same(labels: Labels, before: Factors, after: Factors, seed: int) -> None:
    """Whatever classes are removed, the elements that go are those that went."""
    labels.solve(with_pins=True)
    rng = np.random.default_rng(seed)
    for share in (0.2, 0.5, 1.0):
        chosen = rng.random(labels.count) < share
        chosen[0] = False
        gone = chosen[labels.classes]
        rank = before[0].ndim
        a, b = removed_by(before, gone, rank), removed_by(after, gone, rank)
        assert (np.broadcast_arrays(a, b)[0] == np.broadcast_arrays(a, b)[1]).all()


ALONE: dict[str, Callable[[Labels, Factor, int], object]] = {
    "tidy": lambda s, x, axis: s.tidy(x),
    "pin_axis": lambda s, x, axis: s.pin_axis(x, axis, "why"),
    "drop_axis": lambda s, x, axis: s.drop_axis(x, axis, "why"),
    "unify_along": lambda s, x, axis: s.unify_along(x, [axis]),
    "at_block_site": lambda s, x, axis: s.at_block_site(x),
}


@pytest.mark.parametrize("name", ALONE)
@checked
@given(factors(1), st.sampled_from(POLICIES), st.integers(0, 2), st.integers(0, 99))
def test_one_factor_removes_what_it_did(name: str, found: list[Factor], policy: Policy, place: int, seed: int) -> None:
    labels, axis = started(policy), place % found[0].ndim
    left = listed(ALONE[name](labels, found[0], axis))
    if name in ("drop_axis", "unify_along"):
        assert all(x.shape[axis] == 1 for x in left)
    assert_removes_the_same(labels, tuple(found), left, seed)


@checked
@given(factors(2), st.sampled_from(POLICIES), st.integers(0, 99))
def test_related_factors_remove_what_both_did(found: list[Factor], policy: Policy, seed: int) -> None:
    labels = started(policy)
    a, b = found
    if a.size > 1 and b.size > 1:
        assert_removes_the_same(labels, (a, b), labels.relate(a, b, "why"), seed)


@checked
@given(factors(4), st.sampled_from(POLICIES), st.integers(0, 99))
def test_merged_factors_share_no_axis(found: list[Factor], policy: Policy, seed: int) -> None:
    labels = started(policy)
    known = [x for x in found if x.size > 1]
    left = labels.merge(known, "why")
    axes = [axis for x in left for axis in spans(x)]
    assert len(set(axes)) == len(axes)
    if known:
        assert_removes_the_same(labels, tuple(known), tuple(left), seed)


@checked
@given(factors(1), st.permutations(range(3)), st.sampled_from(POLICIES), st.integers(0, 99))
def test_transposed_factors_remove_the_same(found: list[Factor], order: list[int], policy: Policy, seed: int) -> None:
    labels, (x,) = started(policy), found
    perm = [axis for axis in order if axis < x.ndim]
    left = listed(labels.transpose(x, perm))
    assert all(perm[spans(y)[-1]] == max(perm[a] for a in spans(y)) for y in left if y.size > 1), "inner stays inner"
    assert_removes_the_same(labels, (x.transpose(perm),), left, seed)


@checked
@given(factors(1), st.sets(st.integers(0, 2)), st.sampled_from(POLICIES), st.integers(0, 99))
def test_projected_factors(found: list[Factor], keep: set[int], policy: Policy, seed: int) -> None:
    """What is left spans kept axes only; where nothing is, the mixed blocks are on record, or all labels stay."""
    labels, (x,) = started(policy), found
    left = labels.project(x, keep)
    if left is not None:
        assert set(spans(left)) <= keep
        assert_removes_the_same(labels, (x,), (left,), seed)
    elif set(spans(x)) & keep:
        labels.solve(with_pins=True)
        assert labels.blocks or not labels.classes[x].any()
