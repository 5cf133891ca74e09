"""Ridge regression on rows: exact maps, shrinkage, the choice by held-back rows, flat activations."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from prunepass.recovery.ridge import RIDGES, Flat, Moments, Regression, Rows, fit

RELU, RELU6 = Flat(0.0), Flat(0.0, 6.0)


def rows_of(x, y, rest=None, blocks=3):
    """Put rows (groups, n, features) into blocks."""
    found = Rows()
    parts = [np.array_split(a, blocks, axis=1) for a in (x, y)]
    others = [None] * blocks if rest is None else np.array_split(rest, blocks, axis=1)
    for a, b, c in zip(*parts, others):
        found.add(a, b, c)
    return found


def sample(n, *, groups=1, features=5, outputs=3, noise=0.0, intercept=True, seed=0, extra=()):
    """Draw a linear map, and rows of it for fitting and for judging."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((groups, features, outputs))
    bias = rng.standard_normal((groups, outputs)) * 3 if intercept else np.zeros((groups, outputs))
    sets = []
    for size in (n, 400, *extra):
        x = rng.standard_normal((groups, size, features)) + 2
        sets.append((x, x @ weight + bias[:, None] + noise * rng.standard_normal((groups, size, outputs))))
    return weight, bias, *sets


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("features", [5, 80])  # small matrices are inverted, large ones factorised
def test_an_exact_map_is_found(features, intercept, groups, blocks):
    weight, bias, train, held = sample(400, groups=groups, features=features, intercept=intercept)
    start, own = np.zeros_like(weight), np.zeros_like(bias) if intercept else None
    found = fit(rows_of(*train, blocks=blocks), rows_of(*held), start, own, Flat())
    np.testing.assert_allclose(found.weight, weight, atol=1e-6)
    np.testing.assert_allclose(found.bias, bias, atol=1e-5)
    assert found.after < 1e-12 < 0.1 < found.before
    assert found.ridge == RIDGES[0]


def test_errors_are_relative_to_the_variance_of_the_held_back_targets():
    weight, bias, train, held = sample(50, groups=2)
    found = fit(rows_of(*train), rows_of(*held), np.zeros_like(weight), np.zeros_like(bias), Flat())
    every = np.concatenate([train[1], held[1]], axis=1)
    assert found.before == pytest.approx(np.square(held[1]).mean() / every.var(axis=1).mean(), 1e-5)
    start = fit(rows_of(*train), rows_of(*held), weight, bias, Flat())
    assert start.before < 1e-12


def test_what_else_adds_up_is_taken_off_the_target():
    weight, bias, train, held = sample(200, groups=2)
    rng = np.random.default_rng(1)
    rests = [5 * rng.standard_normal(y.shape) for _, y in (train, held)]
    with_rest = [rows_of(x, y + rest, rest) for (x, y), rest in zip((train, held), rests)]
    found = fit(*with_rest, np.zeros_like(weight), np.zeros_like(bias), Flat())
    np.testing.assert_allclose(found.weight, weight, atol=1e-6)
    np.testing.assert_allclose(found.bias, bias, atol=1e-5)


def test_a_larger_ridge_stays_nearer_to_the_start():
    weight, _, train, held = sample(60, noise=1.0)
    start = np.random.default_rng(9).standard_normal(weight.shape)
    work = Regression(rows_of(*train), rows_of(*held), start, True, Flat())
    away = [np.linalg.norm(work.solve(ridge)[0] - start) for ridge in RIDGES]
    assert all(a > b for a, b in pairwise(away))
    assert away[-1] < 0.02 * away[0]
    x, y = train
    for ridge in RIDGES:  # the closed form: rows that pull toward the start
        found, own = work.solve(ridge)
        centred = x[0] - x[0].mean(axis=0)
        pull = np.sqrt(ridge * work.moments.scale[0] * len(x[0])) * np.eye(x.shape[2])
        left = np.concatenate([centred, pull])
        right = np.concatenate([y[0] - y[0].mean(axis=0), pull @ start[0]])
        np.testing.assert_allclose(found[0], np.linalg.lstsq(left, right)[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own[0], y[0].mean(axis=0) - x[0].mean(axis=0) @ found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("n", [8, 30, 300])
def test_held_back_rows_choose_the_ridge(n, noise):
    weight, bias, train, held = sample(n, features=12, noise=noise, seed=n)
    start = weight + 0.3 * np.random.default_rng(2).standard_normal(weight.shape)
    rows = rows_of(*train), rows_of(*held)
    found = fit(*rows, start, bias, Flat())
    work = Regression(*rows, start, True, Flat())
    errors = [work.error(*work.solve(ridge)) for ridge in RIDGES]
    at = RIDGES.index(found.ridge)
    assert found.after == pytest.approx(errors[at])
    assert all(found.after <= errors[other] * (1 + 1e-12) for other in (at - 1, at + 1) if 0 <= other < len(RIDGES))
    assert found.after <= 1.05 * min(errors)


def test_few_rows_do_not_spoil_a_good_start():
    """With fewer rows than features, least squares alone would be far off."""
    weight, bias, train, held = sample(6, features=30, noise=1.0)
    found = fit(rows_of(*train), rows_of(*held), weight, bias, Flat())
    free = Regression(rows_of(*train), rows_of(*held), np.zeros_like(weight), True, Flat())
    assert found.after < 3 * found.before
    assert free.error(*free.solve(RIDGES[0])) > 10 * found.after


@pytest.mark.parametrize("features", [6, 100])
def test_features_that_depend_on_each_other(features):
    rng = np.random.default_rng(0)
    few = rng.standard_normal((2, 300, 3))
    x = np.concatenate(
        [few, few @ rng.standard_normal((2, 3, features - 5)), np.ones((2, 300, 1)), 0 * few[..., :1]], 2
    )
    weight = rng.standard_normal((2, features, 4))
    y = x @ weight
    start = rng.standard_normal(weight.shape)
    found = fit(rows_of(x[:, :200], y[:, :200]), rows_of(x[:, 200:], y[:, 200:]), start, np.zeros((2, 4)), Flat())
    assert found.after < 1e-9
    assert np.abs(found.weight).max() < 3 * max(np.abs(start).max(), np.abs(weight).max())
    np.testing.assert_allclose(found.weight[:, -1], start[:, -1], atol=1e-9)  # a dead feature keeps its weights


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_rows(value):
    x, y = np.full((1, 40, 4), value), np.full((1, 40, 2), 7.0)
    start = np.ones((1, 4, 2))
    found = fit(rows_of(x, y), rows_of(x, y), start, np.zeros((1, 2)), Flat())
    assert np.isfinite(found.weight).all()
    np.testing.assert_allclose(x[0, :1] @ found.weight[0] + found.bias, y[:, 0], rtol=1e-6)


def test_what_rounding_makes_of_constants_is_not_fitted():
    rng = np.random.default_rng(0)
    x = (1 + 1e-7 * rng.standard_normal((1, 200, 5))).astype(np.float32)
    y = rng.standard_normal((1, 200, 2)) * 1e-3
    start = np.zeros((1, 5, 2))
    work = Regression(rows_of(x, y), rows_of(x, y), start, True, Flat())
    centred = (x - x.mean(axis=1, dtype=float))[0]
    plain = np.linalg.lstsq(centred, y[0] - y[0].mean(axis=0))[0]
    assert np.abs(work.solve(RIDGES[0])[0]).max() < 0.3 * np.abs(plain).max()


# ---- flat activations ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flat", "target", "found", "aim"),
    [
        (Flat(), -1.0, 5.0, -1.0),
        (RELU, -1.0, -9.0, -9.0),
        (RELU, -1.0, 5.0, 0.0),
        (RELU, 2.0, -9.0, 2.0),
        (RELU, 0.0, -9.0, -9.0),
        (RELU6, 7.0, 9.0, 9.0),
        (RELU6, 7.0, 1.0, 6.0),
        (RELU6, 3.0, 9.0, 3.0),
        (Flat(-math.inf, 6.0), -7.0, 1.0, -7.0),
    ],
)
def test_the_nearest_output_that_is_as_good(flat, target, found, aim):
    assert flat.aim(np.array([target]), np.array([found])).tolist() == [aim]
    assert flat.nowhere is (flat == Flat())


def activated(flat, noise=0.5, **options):
    """Draw a map whose inputs lack some of what made the targets, so that no map is exact."""
    weight, bias, *sets = sample(600, features=12, outputs=6, noise=noise, extra=(2000,), **options)
    shifted = [(x[:, :, :7], (y - y.mean(axis=(0, 1)) + (flat.low if flat.high > 9 else 3)) * 1.0) for x, y in sets]
    return weight[:, :7], bias, shifted


@pytest.mark.parametrize("flat", [RELU, RELU6, Flat(-1.0, 1.0)])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_the_loss_behind_a_flat_activation_falls_in_every_round(flat, ridge):
    start, _, ((x, y), held, _) = activated(flat, groups=2)
    train = rows_of(x, y)
    work = Regression(train, rows_of(*held), start, True, flat)

    def loss(weight, bias):
        misses = sum(float(np.square(miss).sum()) for _, miss in train.misses(weight, bias, flat)) / train.n
        return misses + ridge * (work.moments.scale * np.square(weight - start).sum(axis=(1, 2))).sum()

    point = work.solve(ridge)
    losses = [loss(*point)]
    for _ in range(12):
        point = work.bent(*point, ridge)
        losses.append(loss(*point))
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(losses))
    assert losses[1] < 0.98 * losses[0]
    assert losses[1] - losses[-1] < 0.35 * (losses[0] - losses[-1])


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("flat", [RELU, RELU6])
def test_a_flat_activation_never_ends_worse(flat, intercept):
    def behind(rows, weight, bias):
        return np.clip(rows @ weight + bias[:, None], flat.low, flat.high)

    gains = []
    for seed in range(6):
        start, bias, (train, held, fresh) = activated(flat, seed=seed)
        own = bias if intercept else None
        found = fit(rows_of(*train), rows_of(*held), start, own, flat)
        work = Regression(rows_of(*train), rows_of(*held), start, intercept, flat)
        assert found.after <= work.error(*work.solve(found.ridge)) * (1 + 1e-12)
        assert intercept or not found.bias.any()
        plain = fit(rows_of(*train), rows_of(*held), start, own, Flat())
        wanted = np.clip(fresh[1], flat.low, flat.high)
        bent, straight = (np.square(behind(fresh[0], f.weight, f.bias) - wanted).mean() for f in (found, plain))
        gains.append(1 - bent / straight)
    assert min(gains) > -0.001
    assert np.mean(gains) > 0.002


def test_moments_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    x, y, rest = rng.standard_normal((2, 50, 4)) + 1, rng.standard_normal((2, 50, 3)), rng.standard_normal((2, 50, 3))
    for centre in (True, False):
        found = Moments(rows_of(x, y, rest), centre)
        a = x - x.mean(axis=1, keepdims=True) if centre else x
        b = y - rest
        b = b - b.mean(axis=1, keepdims=True) if centre else b
        np.testing.assert_allclose(found.xx, a.transpose(0, 2, 1) @ a / 50, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.xy, a.transpose(0, 2, 1) @ b / 50, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.scale, np.square(a).mean(axis=(1, 2)), rtol=1e-5)
