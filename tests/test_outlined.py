"""A part of a network that is moved into a body loses what it loses outside, and the certificate holds."""

from __future__ import annotations

import zlib

import numpy as np
import onnx
import pytest
from outline import CONDITION, KINDS, outline

from fixtures.tiny import TINY
from prunepass.graph import Graph
from prunepass.manager import Context, Facts, Pipeline
from prunepass.verify import certify

MAIN = "canonicalize,select{ratio=0.5 align=1 scope=local},slice-channels,clean"
SLOW_SEEDS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20)]


def pruned(model: onnx.ModelProto, data: dict[str, np.ndarray]) -> Facts:
    """Run the pipeline, and check the certificate."""
    facts = Pipeline.parse(MAIN).run(Graph(model), Context(data=data))
    certify(facts.source, facts.cuts, facts.graph, facts.context).raise_if_failed()
    return facts


def shapes(facts: Facts) -> dict[str, tuple[int, ...]]:
    return {name: facts.graph.consts.shape(name) for name in facts.graph.consts}


def outlined(name: str, kind: str, start: int, stop: int, condition: bool) -> tuple[onnx.ModelProto, dict]:
    """Return a network with some of its nodes in bodies, and data."""
    model, data = TINY[name]()
    if kind == "If":
        data = {**data, CONDITION: np.array(condition)}
    return outline(model, kind, start, stop), data


@pytest.mark.parametrize(("number", "name"), list(enumerate(TINY)))
def test_a_whole_network_in_a_body_loses_the_same(number: int, name: str):
    model, data = TINY[name]()
    before = shapes(pruned(model, data))
    kind = KINDS[number % len(KINDS)]
    after = shapes(pruned(*outlined(name, kind, 0, len(model.graph.node), bool(number % 2))))
    stored = {t.name for t in model.graph.initializer} & before.keys() & after.keys()
    assert stored
    assert {tensor: after[tensor] for tensor in stored} == {tensor: before[tensor] for tensor in stored}


@pytest.mark.parametrize("seed", [0, *SLOW_SEEDS])
@pytest.mark.parametrize(("number", "name"), list(enumerate(TINY)))
def test_a_part_of_a_network_in_a_body_is_cut_right(number: int, name: str, seed: int):
    rng = np.random.default_rng(zlib.crc32(name.encode()) + seed)
    count = len(TINY[name]()[0].graph.node)
    start = int(rng.integers(count))
    kind = KINDS[(number + 1 + seed) % len(KINDS)]
    pruned(*outlined(name, kind, start, int(rng.integers(start + 1, count + 1)), bool(rng.integers(2))))
