"""Random graphs, pruned at random: every result carries a certificate, also for other batch sizes and lengths.

PRUNEPASS_EXAMPLES says how many examples the slow test takes, in steps of 250 (default 1000).
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Grown, grow
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from prunepass import runtime
from prunepass.api import Job, inspect
from prunepass.errors import BudgetError, PruneError
from prunepass.manager import Pipeline
from prunepass.verify import certify

STEP = 250


@dataclass(frozen=True)
class Options:
    """What is asked of select, once or twice."""

    amount: str
    scope: str
    align: int
    policy: str
    criterion: str
    steps: int
    before: str = ""

    def __str__(self) -> str:
        chosen = f"{self.amount} criterion={self.criterion} scope={self.scope} align={self.align} policy={self.policy}"
        return f"canonicalize,{self.before}select{{{chosen} steps={self.steps}}},slice-channels,clean"


def pick_options(rng: random.Random) -> Options:
    """Choose an amount, and how to spend it."""

    def pick(*options: Any) -> Any:
        return options[rng.randrange(len(options))]

    return Options(
        f"{pick('ratio', 'ratio', 'ratio', 'macs', 'params')}={pick(0.5, 0.9, 0.2, 0.7, 0.98)}",
        pick("global", "local", "isomorphic"),
        pick(1, 1, 2, 8),
        pick("balanced", "balanced", "whole", "aligned"),
        pick("l2", "random", "l1"),
        pick(1, 1, 1, 2),
        pick("", "", "select{ratio=0.5 scope=heads align=1},slice-channels,", "select{ratio=0.3},slice-channels,"),
    )


@dataclass
class Stats:
    """What many examples came to.

    Units
        removed: share of all units, for each pruned example. unexplained: of the explained examples, those with an axis
        of a weight that stays for no reason given.
    """

    examples: int = 0
    not_run: int = 0
    out_of_reach: int = 0
    explained: int = 0
    unexplained: int = 0
    removed: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(grown: Grown, options: Options, stats: Stats) -> None:
    """Prune one graph, and hold the result against everything that is promised."""
    onnx.checker.check_model(grown.model)
    try:
        source = runtime.session(grown.model, optimise="basic", threads=1)
        expected = [source.run(feeds) for feeds in (grown.feeds, grown.larger)]
    except PruneError:  # onnxruntime breaks it by an optimisation: there is nothing to compare with
        expected = []
    if not any(np.isfinite(y).any() for values in expected for y in values.values()):
        stats.not_run += 1
        return
    stats.examples += 1
    job = Job.open(grown.model, (), None, None, 0, None)
    try:
        Pipeline.parse(str(options)).run_on(job.facts)
    except BudgetError:
        stats.out_of_reach += 1
        return
    facts = job.facts
    result = job.finish(True, {})
    assert result.report["certificate"]["status"] == "passed"
    pruned = runtime.session(result.model, threads=1)
    for feeds, values in zip((grown.feeds, grown.larger), expected):
        found = pruned.run(feeds)
        assert {name: y.shape for name, y in found.items()} == {name: y.shape for name, y in values.items()}
    whole = {name: cut.before.consts.shape(name) for cut in facts.cuts[:1] for name in cut.before.consts}
    for name in whole.keys() & result.graph.consts.keys():
        assert 0 not in result.graph.consts.shape(name) or 0 in whole[name], name
    certify(facts.source, facts.cuts, facts.graph, replace(job.context, data=grown.larger)).raise_if_failed()
    if facts.cuts:
        removed = facts.cuts[-1].plan.removed
        assert removed is not None
        stats.removed.append(float(np.mean(removed)))
    stats.notes += result.report["certificate"].get("notes", [])


def check_explained(grown: Grown, stats: Stats) -> None:
    """Every axis of a weight that stays whole has a reason."""
    axes = inspect(grown.model).explanation.axes
    stats.explained += 1
    stats.unexplained += any(not axis.reason for axis in axes)


def run_examples(number: int, start: int) -> Stats:
    """Check random examples; hypothesis shrinks the first that fails, and prints it as text."""
    stats = Stats()

    @seed(start)
    @settings(max_examples=number, deadline=None, database=None, print_blob=True, suppress_health_check=HealthCheck)
    @given(st.randoms(use_true_random=False))
    def example(rng: random.Random) -> None:
        grown, options = grow(rng), pick_options(rng)
        note(f"{options}\n{onnx.printer.to_text(grown.model)}")
        check(grown, options, stats)
        if stats.examples % 4 == 0:
            check_explained(grown, stats)

    example()
    return stats


def check_stats(stats: Stats, number: int) -> None:
    """Most examples run, lose something, and are explained."""
    assert stats.examples >= 0.9 * number
    assert stats.not_run <= 0.02 * number
    assert len(stats.removed) >= 0.6 * stats.examples
    assert np.median(stats.removed) > 0.2
    assert stats.unexplained <= 0.04 * stats.explained
    assert len(stats.notes) <= 0.1 * stats.examples


def test_random_graphs() -> None:
    check_stats(run_examples(60, start=0), 60)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1, 1 + int(os.environ.get("PRUNEPASS_EXAMPLES", "1000")) // STEP))
def test_many_random_graphs(start: int) -> None:
    check_stats(run_examples(STEP, start), STEP)
