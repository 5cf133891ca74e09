"""What heads of attention lose with some of their channels: predicted against products of lower rank."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ValueInfoProto
from recovering import error, graph_of, run, start
from test_compensate_attention import (
    DATA,
    FORMS,
    HEADS,
    LEFT_ALONE,
    SIZE,
    TOKENS,
    WIDTH,
    attended,
    built,
    constants,
    projected,
)

from fixtures import VIT
from prunepass import load
from prunepass.recovery import errors, obs
from prunepass.recovery.head_errors import Behind, _mixtures
from prunepass.runtime import session

ROWS = len(DATA["x"]) * TOKENS


@pytest.fixture
def undamped(monkeypatch):
    monkeypatch.setattr(obs, "DAMPING", 1e-9)
    monkeypatch.setattr(obs, "SPREAD", 0.0)


def found_for(graph, data=DATA):
    """Return facts, and the errors of units."""
    facts = start(graph, data)
    run(facts, "canonicalize")
    return facts, facts.get("errors")


def without_heads(graph, monkeypatch, data=DATA):
    """Return the errors of units as if no products were known."""
    with monkeypatch.context() as patch:
        patch.setattr(errors, "lost", lambda *_: None)
        return found_for(graph, data)[1]


def group_of(facts, name):
    """Return the group in which the first channel of a tensor is."""
    unit = next(f.reshape(-1) for f in facts.get("coupling").factors[name] if f.shape[-1] > 1)[0]
    return next(group for group in facts.get("coupling").groups if (group.units == unit).any())


def costs(facts, found, name):
    """Return what the group of a tensor costs by how many channels of each head go."""
    units = group_of(facts, name).units
    return np.concatenate([[0.0], np.cumsum(np.sort(found.scores[units], axis=1).sum(axis=0))])


def values_of(graph, *names):
    shown = graph.copy()
    shown.outputs = [ValueInfoProto(name=name) for name in names]
    found = session(shown, optimise="off").run(DATA)
    return [found[name].astype(float) for name in names]


def tail(product):
    """Return the mean squared error of the best matrices of one rank less, two less, ... as a sum of squares."""
    squares = np.square(np.linalg.svd(product, compute_uv=False)[:SIZE])
    return np.concatenate([[0.0], np.cumsum(squares[::-1])])


def of_scores(form, graph, sensitivity):
    """Return what low rank loses of all scores, every query with every key: second moments stand for that."""
    query, key = values_of(graph, "q", "k")
    key = (key - key.mean(axis=-1, keepdims=True)).swapaxes(-1, -2)
    noise = np.concatenate([batch - batch.mean(axis=0) for batch in np.split(query, 10)])
    noise /= np.sqrt(np.square(noise).mean())
    query, noise, key = (
        [x[:, head % x.shape[1]].reshape(ROWS, SIZE) for head in range(HEADS)] for x in (query, noise, key)
    )
    made = np.mean([np.square(n @ k.T).mean() for n, k in zip(noise, key)])
    if form == "grouped":  # one mixture of keys for all queries
        wanted = tail(np.concatenate(query) @ key[0].T)
    else:
        wanted = sum(tail(q @ k.T) for q, k in zip(query, key))
    return wanted / (ROWS * ROWS * HEADS) / made * sensitivity["q"]


def of_sums(graph, sensitivity):
    """Return what low rank loses of the layer behind."""
    (sums,) = values_of(graph, "zj")
    sums = (sums - sums.mean(axis=(0, 1))).reshape(ROWS, HEADS, SIZE)
    weight = graph.consts["wo"].astype(float).reshape(HEADS, SIZE, WIDTH)
    return sum(tail(sums[:, head] @ weight[head]) for head in range(HEADS)) / (ROWS * WIDTH) * sensitivity["y"]


@pytest.mark.parametrize("form", FORMS)
def test_heads_cost_what_products_of_lower_rank_lose(form, undamped):
    graph = built(form, "")
    facts, found = found_for(graph)
    if form == "fused":  # channels of queries, keys and values go together
        wanted = of_scores(form, graph, found.sensitivity) + of_sums(graph, found.sensitivity)
        np.testing.assert_allclose(costs(facts, found, "w"), wanted, rtol=1e-3)
    if form in ("apart", "grouped"):
        np.testing.assert_allclose(costs(facts, found, "wq"), of_scores(form, graph, found.sensitivity), rtol=1e-3)
    if form in ("apart", "operator"):
        np.testing.assert_allclose(costs(facts, found, "wv"), of_sums(graph, found.sensitivity), rtol=1e-3)
    if form == "operator":  # scores inside it cannot be seen; queries in front of it can
        other = found_for(built("apart", ""))
        np.testing.assert_allclose(costs(facts, found, "wq"), costs(*other, "wq"), rtol=0.3)


def test_values_that_several_heads_read_cost_no_more_than_one_by_one(undamped, monkeypatch):
    """No mixture suits both heads; with all four channels left, or none, there is nothing to mix."""
    graph = built("grouped", "")
    facts, found = found_for(graph)
    plain = without_heads(graph, monkeypatch)
    assert (len(plain.sets), len(found.sets)) == (1, 0)  # it does not matter which of them go
    before, after = costs(facts, plain, "wv"), costs(facts, found, "wv")
    assert (after <= before * (1 + 1e-6) + 1e-9).all()
    assert after[1] > 0.01 * before[1]


def test_one_mixture_for_sums_that_are_alike_is_the_best_for_both(undamped):
    """Two heads read the values with the same covariance: as if one read them with all weights."""
    rng = np.random.default_rng(0)
    half, first, second = (rng.standard_normal((SIZE, size)) for size in (SIZE, 3, 3))
    one = half @ half.T
    behind = Behind(np.kron(np.eye(2), one), np.concatenate([first, second]), 100)
    read = np.arange(2 * SIZE).reshape(2, SIZE).T
    wanted = tail(np.linalg.cholesky(one).T @ np.concatenate([first, second], axis=1))
    np.testing.assert_allclose(_mixtures(behind, read), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["q", "k"])
def test_channels_that_follow_from_others_cost_nothing(form, kind, undamped, monkeypatch):
    """Whichever goes: the first one to go is the one that costs least by itself."""
    graph = built(form, [kind, "v"])
    name = "w" if form == "fused" else "wq"
    facts, found = found_for(graph)
    before, after = without_heads(graph, monkeypatch), costs(facts, found, name)
    assert after[1] < 1e-4 * after[2]
    units = group_of(facts, name).units
    orders = [np.argsort(e.scores[units], axis=1, kind="stable") for e in (before, found)]
    assert orders[0].tolist() == orders[1].tolist()


def stored_as_integers():
    """Weights that are integers are refitted as they are, not to products."""
    consts = constants()
    nodes, weights = [], {}
    for name in ("wq", "wv"):
        weights[f"{name}8"] = np.rint(consts.pop(name) * 32).astype(np.int8)
        nodes.append(("DequantizeLinear", [f"{name}8", "scale"], name, {}))
    made = [*projected("q"), *projected("k", turned=True), *projected("v"), *attended()]
    return graph_of([*nodes, *made], consts | weights | {"scale": np.float32(1 / 32)}, {"x": ["n", TOKENS, WIDTH]})


def test_heads_whose_weights_are_integers_cost_what_they_did(monkeypatch):
    graph = stored_as_integers()
    found, before = found_for(graph)[1], without_heads(graph, monkeypatch)
    assert found.sensitivity == before.sensitivity
    np.testing.assert_array_equal(found.scores, before.scores)
    assert found.scores.any()


def test_whole_heads_cost_what_they_did(monkeypatch):
    graph = built("apart", "")
    found = []
    for known in (True, False):
        facts = start(graph, DATA)
        run(facts, "canonicalize")
        if not known:
            monkeypatch.setattr(errors, "lost", lambda *_: None)
        found.append(facts.get("errors", policy="whole").scores)
    assert len(found[0]) == 1 + HEADS
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_not_refitted_costs_what_it_did(name, monkeypatch):
    nodes, more = LEFT_ALONE[name][0]
    used = {i for _, ins, _, _ in nodes for i in ins}
    graph = graph_of(nodes, {n: c for n, c in constants(**more).items() if n in used}, {"x": ["n", TOKENS, WIDTH]})
    facts, found = found_for(graph)
    before = without_heads(graph, monkeypatch)
    assert found.sensitivity == before.sensitivity  # queries are not probed
    units = group_of(facts, "wq").units
    np.testing.assert_array_equal(found.scores[units], before.scores[units])


def test_queries_that_never_change_are_not_free():
    """The same queries for all samples, as learned ones are: noise like them would be none."""
    graph = built("apart", "")
    data = {"x": np.repeat(DATA["x"][:1], 40, axis=0)}
    facts, found = found_for(graph, data)
    assert (np.diff(costs(facts, found, "wq")) > 0).all()


def test_a_trained_transformer_loses_about_what_is_predicted(digits):
    data = {"image": digits["calibration"][:128]}
    facts, found = found_for(load(VIT), data)
    for kind, most in (("query", 2.5), ("value", 6)):
        pruned = start(load(VIT), data)
        run(pruned, f"canonicalize,select{{ratio=0 align=1 scope=local ratios={kind}:0.5}},slice-channels,compensate")
        real = error(pruned.source, pruned.graph, {"image": digits["image"][:200]})
        predicted = sum(costs(facts, found, f"block{at}.attention.{kind}.weight")[5] for at in range(3))
        assert 1 < predicted / real < most, kind
