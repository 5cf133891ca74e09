"""What removing units costs: predicted errors against refits that are done."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from recovering import drawn, graph_of, start, weights

from fixtures.tiny import TINY
from prunepass import load
from prunepass.errors import ModelError
from prunepass.feeds import random_inputs
from prunepass.manager import Context, Facts, Pipeline
from prunepass.recovery import obs
from prunepass.recovery.batches import Batches
from prunepass.recovery.obs import Reader, Sweep
from prunepass.recovery.sensitivity import output_sensitivity


@pytest.fixture
def undamped(monkeypatch):
    monkeypatch.setattr(obs, "DAMPING", 1e-9)
    monkeypatch.setattr(obs, "SPREAD", 0.0)


def refitted(x, weight, gone):
    """Return the mean squared error, summed over outputs, of the best fit without some features."""
    kept = np.setdiff1d(np.arange(x.shape[1]), gone)
    centred, y = x - x.mean(axis=0), (x - x.mean(axis=0)) @ weight
    best = np.linalg.lstsq(centred[:, kept], y, rcond=None)[0]
    return np.square(centred[:, kept] @ best - y).sum() / len(x)


def rows(n=300, features=6, seed=0):
    """Draw rows whose features have something in common."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((features, features)) * 0.4 + np.diag(rng.uniform(0.3, 2, features))
    return rng.standard_normal((n, features)) @ mix + 1


def reader(x, weight, units, importance=1.0):
    return Reader.of(np.cov(x.T, bias=True), len(x), weight, np.asarray(units), importance)


# ---- the sweep -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("per_unit", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_cost_is_what_the_error_grows_by(seed, per_unit, undamped):
    x = rows(features=6 * per_unit, seed=seed)
    weight = np.random.default_rng(seed).standard_normal((x.shape[1], 4))
    units = np.repeat(np.arange(1, 7), per_unit)
    path = Sweep([reader(x, weight, units)], np.arange(1, 7)).run(1, floating=False)
    order, costs = path.order, np.diff(path.costs)
    gone, errors = [], [0.0]
    for at in order:
        options = {}
        for other in set(range(6)) - set(gone):
            features = np.flatnonzero(np.isin(units - 1, [*gone, other]))
            options[other] = refitted(x, weight, features)
        assert min(options, key=options.get) == at  # greedy
        gone.append(int(at))
        errors.append(options[at])
    np.testing.assert_allclose(costs, np.diff(errors), rtol=1e-4, atol=1e-7)


def test_costs_of_all_readers_add_up(undamped):
    """Features stand elsewhere in the second reader, there are others, and its errors count three times."""
    x, other = rows(), rows(features=9, seed=5)
    first, second = np.random.default_rng(0).standard_normal((6, 4)), np.random.default_rng(1).standard_normal((9, 2))
    places = np.array([0, 3, 0, 1, 2, 6, 5, 4, 0])  # of units 1 to 6; 0: not of this group
    sweep = Sweep([reader(x, first, np.arange(1, 7)), reader(other, second, places, 3.0)], np.arange(1, 7))
    path = sweep.run(2, floating=False)
    order, costs = path.order, np.diff(path.costs)

    def total(gone):
        units = np.asarray(gone) + 1
        return refitted(x, first, units - 1) + 3 * refitted(other, second, np.flatnonzero(np.isin(places, units)))

    gone, before = [], 0.0
    for at, cost in zip(order, costs):
        found = {other: total([*gone, other]) for other in range(6) if other not in gone}
        assert min(found, key=found.get) == at
        assert cost == pytest.approx(found[at] - before, rel=1e-4)
        gone, before = [*gone, int(at)], found[at]
    best = min(total(list(choice)) for choice in combinations(range(6), 4))
    assert before < 1.5 * best


def test_the_last_units_stay():
    path = Sweep([reader(rows(), np.ones((6, 2)), np.arange(1, 7))], np.arange(1, 7)).run(4)
    assert path.gone.sum(axis=1).tolist() == [0, 1, 2]
    assert len(path.costs) - 1 == len(set(path.order)) == 2


def test_units_come_back_where_another_set_is_better(undamped):
    """The sum of two features goes first, for nothing; of two features to remove, the summands are the best."""
    x = rows(features=4)
    x[:, 0] = x[:, 1] + x[:, 2] + 0.05 * x[:, 0]
    weight = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    sweep = [reader(x, weight, np.arange(1, 5))], np.arange(1, 5)
    greedy, floating = Sweep(*sweep).run(1, floating=False), Sweep(*sweep).run(1)
    assert [np.flatnonzero(gone).tolist() for gone in floating.gone[:3]] == [[], [0], [1, 2]]
    assert floating.costs[2] < 0.05 * greedy.costs[2]
    for size, (cost, gone) in enumerate(zip(floating.costs, floating.gone)):
        best = min(refitted(x, weight, np.array(at, int)) for at in combinations(range(4), size))
        assert cost == pytest.approx(refitted(x, weight, np.flatnonzero(gone)), rel=1e-3, abs=1e-5)
        assert cost == pytest.approx(best, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_sets_are_no_worse_than_greedy_ones(seed, undamped):
    x, units = rows(features=24, seed=seed), np.repeat(np.arange(1, 13), 2)
    sweep = [reader(x, np.random.default_rng(seed).standard_normal((24, 3)), units)], np.arange(1, 13)
    greedy, floating = Sweep(*sweep).run(1, floating=False), Sweep(*sweep).run(1)
    assert (floating.costs <= greedy.costs * (1 + 1e-6) + 1e-9).all()
    assert (np.diff(greedy.gone.astype(int), axis=0) >= 0).all()
    assert floating.gone.sum(axis=1).tolist() == list(range(12))


@pytest.mark.parametrize("n", [4, 12, 200])
def test_dead_and_doubled_features_go_first_however_few_rows(n):
    x = rows(n=n, features=8, seed=3)
    x[:, 2] = 5.0  # dead but for its mean
    x[:, 6] = x[:, 4]
    weight = np.random.default_rng(0).standard_normal((8, 5)) + 3
    path = Sweep([reader(x, weight, np.arange(1, 9))], np.arange(1, 9)).run(1)
    order, costs = path.order, np.diff(path.costs)
    assert order[0] == 2
    assert costs[0] < 1e-6
    if n == 200:
        assert order[1] in (4, 6)
        assert costs[1] < 0.6 * costs[2]
    assert np.isfinite(costs).all()


def test_damping_grows_where_rows_are_few():
    """With 4 rows each feature seems to be a combination of others; that must not make it free."""
    weight = np.ones((8, 3))
    few = Sweep([reader(rows(4, 8), weight, np.arange(1, 9))], np.arange(1, 9)).run(1).costs
    many = Sweep([reader(rows(4000, 8), weight, np.arange(1, 9))], np.arange(1, 9)).run(1).costs
    assert few[5] > 0.3 * many[5]


# ---- networks --------------------------------------------------------------------------------------------------------
def errors_of(graph, data, text="canonicalize"):
    facts = start(graph, data)
    Pipeline.parse(text).run_on(facts)
    return facts, facts.get("errors")


def units_of(facts, name, axis):
    """Return the units along an axis of a tensor."""
    return next(f.reshape(-1) for f in facts.get("coupling").factors[name] if f.shape[axis] > 1)


DENSE = {"w": weights(6, 5), "b": drawn(6), "v": weights(6, 4)}


def test_scores_are_brute_force_errors_times_the_sensitivity(undamped):
    nodes = [("Gemm", ["x", "w", "b"], "h", {"transB": 1}), ("Tanh", ["h"], "a", {}), ("Gemm", ["a", "v"], "y", {})]
    graph = graph_of(nodes, DENSE, {"x": ["n", 5]})
    data = drawn(200, 5)
    facts, found = errors_of(graph, {"x": data})
    a = np.tanh(data.astype(float) @ DENSE["w"].T + DENSE["b"])
    scores = found.scores[units_of(facts, "w", 0)]
    gone, before = [], 0.0
    for at in np.argsort(scores)[:-1]:
        options = {o: refitted(a, DENSE["v"].astype(float), np.array([*gone, o])) for o in range(6) if o not in gone}
        assert min(options, key=options.get) == at
        expected = (options[at] - before) / 4 * found.sensitivity["y"]
        assert scores[at] == pytest.approx(expected, rel=1e-3)
        gone, before = [*gone, int(at)], options[at]
    assert scores.max() > 1.5 * np.sort(scores)[-2]
    y = a @ DENSE["v"]
    around = y - y.mean(axis=0)  # the noise is like that; outputs are compared around the mean of each sample
    share = np.square(around - around.mean(axis=1, keepdims=True)).mean() / np.square(around).mean()
    power = np.square(y - y.mean(axis=1, keepdims=True)).mean()
    assert found.sensitivity["y"] * power == pytest.approx(share, rel=0.1)


def test_select_takes_the_best_set_of_a_width():
    """Of a sum and its two summands, both summands go, though the sum is what goes first."""
    states = np.abs(drawn(300, 4))
    states[:, 0] = states[:, 1] + states[:, 2] + 0.05 * states[:, 0]
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}), ("MatMul", ["r", "v"], "y", {})]
    consts = {"w": np.eye(4, dtype=np.float32), "v": np.array([[0, 0], [1, 0], [1, 0], [0, 5]], np.float32)}
    for ratio, expected in ((0.25, [0]), (0.5, [1, 2])):
        facts = start(graph_of(nodes, consts, {"x": ["n", 4]}), {"x": states})
        Pipeline.parse(f"canonicalize,select{{ratio={ratio} criterion=obs align=1}}").run_on(facts)
        assert np.flatnonzero(facts.plan.removed[units_of(facts, "w", 1)]).tolist() == expected


def test_sensitivity_is_what_noise_does_to_the_outputs():
    """Errors in y count once, in h through the weight of the last layer, in u not at all."""
    nodes = [
        ("Gemm", ["x", "w", "b"], "h", {"transB": 1}),
        ("Gemm", ["h", "v"], "y", {}),
        ("Gemm", ["x", "u"], "z", {}),
    ]
    rest = [("Mul", ["z", "nothing"], "o", {}), ("Add", ["y", "o"], "s", {})]
    consts = DENSE | {"v": weights(6, 4) * 3, "u": weights(5, 4), "nothing": np.zeros(1, np.float32)}
    graph = graph_of([*nodes, *rest], consts, {"x": ["n", 5]}, ["s"])
    batches = Batches(tuple({"x": drawn(8, 5, seed=at)} for at in range(64)), 512)
    found = output_sensitivity(graph, {"h": 1.0, "y": 1.0, "z": 1.0}, {}, batches, 1, 0)
    assert found["z"] == 0
    per_output = np.square(consts["v"] - consts["v"].mean(axis=1, keepdims=True)).sum() / (4 * (1 - 1 / 4))
    assert found["h"] / found["y"] == pytest.approx(per_output, rel=0.35)


@pytest.mark.parametrize("name", ["attention", "grouped_query_attention", "fused_attention"])
def test_queries_and_keys_have_errors_too(name):
    model, feeds = TINY[name]()
    graph = load(model)
    shapes = {key: value.shape for key, value in feeds.items()}
    batches = Batches(tuple(random_inputs(graph, shapes, seed) for seed in range(6)), 6)
    facts = Facts(graph, Context(calibration=batches))
    Pipeline.parse("canonicalize").run_on(facts)
    scores = facts.get("errors", policy="balanced").scores
    coupling = facts.get("coupling")
    assert scores[0] == 0
    for group in coupling.groups:
        own = scores[group.units.reshape(-1)]
        assert np.isfinite(own).all()
        assert (own > 0).all(), group


def test_channels_that_repeat_others_are_the_first_to_go(digits):
    weight = weights(8, 3, 3, 3)
    weight[5], weight[6] = weight[1], 0
    nodes = [
        ("Conv", ["x", "w"], "h", {}),
        ("Relu", ["h"], "a", {}),
        ("Conv", ["a", "v"], "k", {}),
        ("Relu", ["k"], "y", {}),
    ]
    graph = graph_of(nodes, {"w": weight, "v": weights(5, 8, 3, 3)}, {"x": ["n", 3, 8, 8]})
    for count in (3, 40):
        facts, found = errors_of(graph, {"x": drawn(count, 3, 8, 8)})
        order = np.argsort(found.scores[units_of(facts, "w", 0)])
        assert order[0] == 6
        assert count == 3 or order[1] in (1, 5)


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
def test_states_have_errors(op):
    gates = {"GRU": 3, "LSTM": 4}[op]
    consts = {"w": weights(1, gates * 8, 6), "r": weights(1, gates * 8, 8), "o": weights(8, 3)}
    consts["r"][:, :, 5] = 0
    consts["o"][5] = 0  # nobody reads the sixth state
    nodes = [
        (op, ["x", "w", "r"], "states", {"hidden_size": 8}),
        ("Squeeze", ["states", "one"], "s", {}),
        ("MatMul", ["s", "o"], "y", {}),
    ]
    graph = graph_of(nodes, consts | {"one": np.array([1])}, {"x": [7, 2, 6]})
    facts = Facts(graph, Context(calibration=Batches(tuple({"x": drawn(7, 2, 6, seed=at)} for at in range(10)), 10)))
    Pipeline.parse("canonicalize").run_on(facts)
    found = facts.get("errors")
    scores = found.scores[units_of(facts, "states", 3)]
    assert np.argmin(scores) == 5
    assert scores[5] < 0.05 * np.sort(scores)[1]


def test_data_that_are_not_finite_are_refused():
    data = drawn(20, 5)
    data[3, 2] = np.nan
    nodes = [("Gemm", ["x", "w", "b"], "h", {"transB": 1}), ("Tanh", ["h"], "a", {}), ("Gemm", ["a", "v"], "y", {})]
    with pytest.raises(ModelError, match="NaN or infinity on batch 1 "):
        errors_of(graph_of(nodes, DENSE, {"x": ["n", 5]}), {"x": data})


def test_same_scores_twice_and_with_files():
    model, feeds = TINY["residual"]()
    data = {key: drawn(30, *value.shape[1:]) for key, value in feeds.items()}
    _, found = errors_of(load(model), data)
    again, same = errors_of(load(model), data)
    np.testing.assert_array_equal(found.scores, same.scores)
    np.testing.assert_array_equal(again.get("errors", memory=1).scores, found.scores)
