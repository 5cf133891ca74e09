"""Ranges hold: whatever a network computes lies between the bounds of its channel, and constants are what they say."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from graphs import grow
from zeroing import with_zeros

from fixtures import GRAPHS, load_graph
from fixtures.tiny import TINY
from prunepass import load
from prunepass.dataflow.ranges import Range, reshape, runs
from prunepass.errors import PruneError
from prunepass.feeds import random_inputs
from prunepass.manager import Context, Facts, Pipeline
from prunepass.rules.activations import OTHER, RISING
from prunepass.rules.contractions import ASKED, CONTRACTIONS, UNHARMED
from prunepass.rules.masks import MASKS
from prunepass.rules.ranges import RANGES
from prunepass.runtime import session


def check_bounds(model: onnx.ModelProto, **context) -> tuple[int, int]:
    """Compare bounds with what two runs compute; return how many values were compared, and how many channels fixed."""
    facts = Pipeline.parse("canonicalize").run(load(model), Context(**context))
    ranges, shapes = facts.get("constants"), facts.get("shapes").shape
    names = [name for node in facts.graph.nodes for name in node.outputs if name in ranges]
    running = session(facts.graph, optimise="off", taps=names)
    fixed = 0
    for seed, scale in ((1, 1.0), (2, -20.0)):
        feeds = random_inputs(facts.graph, {name: shapes[name] for name in facts.graph.input_names}, seed)
        found = running.run({k: x * scale if x.dtype == np.float32 else x for k, x in feeds.items()})
        for name in names:
            value, data = found[name].astype(np.float64), ranges[name]
            slack = 2e-2 if found[name].dtype == np.float16 else 1e-4
            room = slack * max(1.0, float(np.abs(np.nan_to_num(value, posinf=0, neginf=0)).max(initial=0)))
            assert np.all((value >= data.low - room) | ~np.isfinite(value)), name
            assert np.all((value <= data.high + room) | ~np.isfinite(value)), name
            fixed += int(data.fixed.sum())
    return len(names), fixed


def test_random_graphs_keep_their_bounds() -> None:
    compared = fixed = 0
    for number in range(60):
        rng = random.Random(number)
        model = grow(rng).model
        with_zeros(model, rng)
        try:
            found = check_bounds(model)
        except PruneError:
            continue
        compared, fixed = compared + found[0], fixed + found[1]
    assert compared > 300
    assert fixed > 200


@pytest.mark.parametrize("name", [*TINY, *(pytest.param(n, marks=pytest.mark.slow) for n in GRAPHS)])
def test_networks_keep_their_bounds(name: str) -> None:
    model = TINY[name]()[0] if name in TINY else load_graph(name)
    with_zeros(model, random.Random(5))
    small = {"image": (1, 3, 16, 16)} if name in ("conv_chain", "pixel_shuffle") else {}
    check_bounds(model, shapes=small)


def test_rows_name_operators() -> None:
    for table in (RANGES, RISING, OTHER, CONTRACTIONS, UNHARMED):
        for op in table:
            domain, _, name = op.rpartition("::")
            assert domain or onnx.defs.has(name) or op in MASKS, op
    assert set(RISING) | set(OTHER) <= set(RANGES)
    assert set(MASKS) >= ASKED
    assert set(CONTRACTIONS) | set(UNHARMED) <= set(MASKS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 6), (2, 2, 3)),
        ((1, 4, 2, 2), (1, 16)),
        ((4,), (4, 1, 1)),
        ((1, 8, 1), (8,)),
        ((3, 4), (4, 3)),
        ((), (1, 1)),
    ],
)
def test_reshape_spells_out_what_it_must(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=before)
    found = reshape(Range.exactly(array), before, after)
    np.testing.assert_array_equal(np.broadcast_to(found.low, after), array.reshape(after))
    axes = [axis for own, _ in runs(before, after) for axis in own]
    assert axes == list(range(len(before)))


def test_zero_times_anything_is_zero() -> None:
    anything, zero = Range.anything(1), Range.exactly(np.zeros(1))
    with np.errstate(invalid="ignore"):
        product = anything * zero
    assert product.fixed.all()
    assert (anything + zero).nothing


def test_facts_are_kept_until_the_graph_changes() -> None:
    facts = Facts(load(TINY["residual"]()[0]), Context())
    assert facts.get("constants") is facts.get("constants")
