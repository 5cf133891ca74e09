"""Kept masks, new shapes and physical cuts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunepass.kept import Lengths, cut, element_mask, kept_masks, merged, new_shape


def axis(ids, position, rank):
    """Make a factor that spans one axis."""
    shape = [1] * rank
    shape[position] = len(ids)
    return np.array(ids).reshape(shape)


def gone(n_units, *units):
    """Make a plan."""
    removed = np.zeros(n_units, bool)
    removed[list(units)] = True
    return removed


GROUPED = (axis([1, 2, 3, 4], 0, 3), np.array([5, 6, 5, 6, 7, 8, 7, 8]).reshape(4, 2, 1))
HEADS = (np.arange(1, 7).reshape(1, 2, 3),)
CUBE = (np.arange(1, 13).reshape(2, 3, 2),)

CASES = [
    ("nothing", (4, 3), [axis([1, 2, 3, 4], 0, 2)], [], (4, 3)),
    ("rows", (4, 3), [axis([1, 2, 3, 4], 0, 2)], [1, 4], (2, 3)),
    ("rows and columns", (3, 2), [axis([1, 2, 3], 0, 2), axis([4, 5], 1, 2)], [2, 4], (2, 1)),
    ("pinned rows stay", (4, 3), [axis([0, 1, 0, 2], 0, 2)], [1], (3, 3)),
    ("one unit many times", (1, 6), [axis([1, 1, 1, 2, 2, 2], 1, 2)], [1], (1, 3)),
    ("two factors on one axis", (4, 1), [axis([1, 1, 2, 2], 0, 2), axis([3, 4, 3, 4], 0, 2)], [1, 3], (1, 1)),
    ("grouped conv, inputs", (4, 2, 3), GROUPED, [5, 8], (4, 1, 3)),
    ("grouped conv, both", (4, 2, 3), GROUPED, [1, 3, 6, 7], (2, 1, 3)),
    ("grouped conv, whole group", (4, 2, 3), GROUPED, [1, 2, 5, 6], (2, 2, 3)),
    ("heads, each its own", (5, 2, 3), HEADS, [1, 6], (5, 2, 2)),
    ("heads, a whole one", (5, 2, 3), HEADS, [1, 2, 3], (5, 1, 3)),
    ("three axes", (2, 3, 2), CUBE, [1, 3, 6, 7, 8, 9, 10, 11, 12], (1, 3, 1)),
    ("joint and apart", (2, 2, 3), [*HEADS, axis([7, 8], 0, 3)], [2, 4, 7], (1, 2, 2)),
]


@pytest.mark.parametrize(("shape", "factors", "units", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_cut_keeps_the_kept_elements(shape, factors, units, expected):
    removed = gone(20, *units)
    masks = kept_masks(factors, removed)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert new_shape(shape, masks) == expected
    result = cut(array, masks)
    assert result.shape == expected
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result.ravel(), array[element_mask(shape, masks)])
    lengths = Lengths()
    assert lengths.add("x", shape, factors)
    assert tuple(lengths.after(removed)[lengths.places["x"]]) == expected


def test_element_mask_says_which_elements_stay():
    masks = kept_masks([axis([1, 2], 0, 2), axis([3, 0], 1, 2)], gone(4, 2, 3))
    assert element_mask((2, 2), masks).tolist() == [[False, True], [False, False]]
    assert element_mask((2,), []).tolist() == [True, True]
    assert element_mask((), []).tolist() is True


@pytest.mark.parametrize(
    ("shape", "factors", "units", "message"),
    [
        ((2, 3), [np.arange(1, 7).reshape(2, 3)], [1], "5 entries kept along axes"),
        ((2, 3), [np.arange(1, 7).reshape(2, 3)], [1, 5, 6], "entries kept along axes"),
        ((2, 3), [axis([1, 2], 0, 2)], [1, 2], "nothing is left"),
        ((2, 3), [np.array([[1]])], [1], "nothing is left"),
        ((2, 3), [axis([1, 2, 3], 0, 2)], [1], "does not fit"),
        ((2, 3), [axis([1, 2], 0, 1)], [1], "does not fit"),
    ],
)
def test_cut_refuses_what_is_no_rectangle(shape, factors, units, message):
    with pytest.raises(ValueError, match=message):
        cut(np.zeros(shape), kept_masks(factors, gone(9, *units)))


@pytest.mark.parametrize(
    "kind", [np.float32, np.float64, np.float16, np.int64, np.bool_, ml_dtypes.bfloat16, ml_dtypes.int4]
)
def test_cut_takes_any_element_type(kind):
    array = np.arange(8).reshape(4, 2).astype(kind)
    result = cut(array, kept_masks([axis([1, 2, 3, 4], 0, 2), axis([5, 6], 1, 2)], gone(7, 1, 6)))
    assert result.dtype == array.dtype
    assert result.tolist() == array[1:, :1].tolist()
    joint = cut(array, kept_masks([np.arange(1, 9).reshape(4, 2)], gone(9, 1, 3, 6, 8)))
    assert joint.dtype == array.dtype
    assert joint.tolist() == array.ravel()[[1, 3, 4, 6]].reshape(4, 1).tolist()


def test_cut_returns_the_same_object_when_nothing_goes():
    array = np.zeros((3, 2))
    assert cut(array, kept_masks([axis([1, 2, 3], 0, 2)], gone(4))) is array
    assert cut(array, []) is array
    scalar = np.array(1.0)
    assert cut(scalar, []) is scalar


def test_merged_masks_share_no_axis():
    ones = [np.ones(s, bool) for s in [(2, 1, 1), (1, 3, 1), (1, 1, 4), (2, 3, 1)]]
    assert sorted(m.shape for m in merged(ones)) == [(1, 1, 4), (2, 3, 1)]


@st.composite
def balanced(draw):
    """Draw a joint factor and a plan that removes as many indices from each of the blocks that stay."""
    blocks, inner = draw(st.integers(2, 4)), draw(st.integers(2, 5))
    lost = draw(st.integers(0, inner - 1))
    whole = draw(st.sets(st.integers(0, blocks - 1), max_size=blocks - 1))
    removed = np.zeros(1 + blocks * inner + 3, bool)
    units = np.arange(1, 1 + blocks * inner).reshape(blocks, inner)
    for block in range(blocks):
        chosen = range(inner) if block in whole else draw(st.permutations(range(inner)))[:lost]
        removed[units[block][list(chosen)]] = True
    removed[-draw(st.integers(1, 2)) :] = True
    return units, removed, (blocks - len(whole), inner - lost)


@given(balanced(), st.sampled_from([(0, 1, 2), (0, 2, 1), (2, 0, 1)]))
def test_cut_of_a_joint_factor_beside_a_single_one(case, order):
    units, removed, (blocks, inner) = case
    single = np.arange(removed.size - 3, removed.size)
    factors = [units[:, :, None].transpose(order), single[None, None, :].transpose(order)]
    shape = tuple(np.array([*units.shape, 3])[list(order)])
    masks = kept_masks(factors, removed)
    array = np.arange(np.prod(shape)).reshape(shape)
    kept = 3 - int(removed[single].sum())
    assert new_shape(shape, masks) == tuple(np.array([blocks, inner, kept])[list(order)])
    result = cut(array, masks)
    assert result.shape == new_shape(shape, masks)
    assert result.ravel().tolist() == array[element_mask(shape, masks)].tolist()


def test_lengths_of_values_that_cannot_change_are_not_kept():
    lengths = Lengths()
    assert not lengths.add("fixed", (3, 4), [])
    assert not lengths.add("pinned", (3, 4), [axis([0, 0, 0], 0, 2)])
    assert lengths.after(gone(3)).size == 0
    assert lengths.add("x", (2, 4), [axis([1, 2], 0, 2)])
    assert lengths.add("y", (7, 2), [axis([1, 2], 1, 2)])
    assert lengths.add("x", (2, 4), [])
    assert lengths.after(gone(3)).tolist() == [2, 4, 7, 2]
    assert lengths.after(gone(3, 2)).tolist() == [1, 4, 7, 1]
