"""Random graphs with zeros, constants and unread channels: folding changes no output, for any input tried."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
from graphs import Grown, grow
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from zeroing import with_zeros

from prunepass import runtime
from prunepass.errors import PruneError
from prunepass.job import Job
from prunepass.manager import Pipeline
from prunepass.verify import certify

PIPELINES = (
    "canonicalize,fold-zero-filters,clean",
    "canonicalize,fold-batchnorm,fold-zero-filters,clean",
    "canonicalize{thorough=true},fold-batchnorm,fold-zero-filters,clean",
    "canonicalize,select{ratio=0.4 align=1},slice-channels,fold-zero-filters,clean",
)


@dataclass
class Stats:
    """What many examples came to.

    Units
        zeros: channels that got zeros, for each example. folded: units that went. not_finite: examples in which a
        channel that nobody counts is not finite, which the certificate finds.
    """

    examples: int = 0
    not_run: int = 0
    not_finite: int = 0
    zeros: list[int] = field(default_factory=list)
    folded: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(grown: Grown, zeros: int, pipeline: str, stats: Stats) -> None:
    """Fold one graph, and compare with the source on other inputs, too."""
    try:
        source = runtime.session(grown.model, optimise="basic", threads=1)
        expected = [source.run(feeds) for feeds in (grown.feeds, grown.larger)]
    except PruneError:
        expected = []
    if not any(np.isfinite(y).any() for values in expected for y in values.values()):
        stats.not_run += 1
        return
    stats.examples += 1
    stats.zeros.append(zeros)
    job = Job.open(grown.model, (), None, None, 0, None)
    facts = Pipeline.parse(pipeline).run_on(job.facts)
    certificate = certify(facts.source, facts.cuts, facts.graph, job.context)
    if any("NaN or infinity" in fault for fault in certificate.details):  # zero times what is not finite
        stats.not_finite += 1
        return
    certificate.raise_if_failed()
    stats.notes += certificate.notes
    certify(facts.source, facts.cuts, facts.graph, replace(job.context, data=grown.larger)).raise_if_failed()
    if _passes(grown.model):
        onnx.checker.check_model(facts.graph.to_proto(), full_check=True)
    stats.folded.append(sum(int(cut.plan.removed.sum()) for cut in facts.cuts if cut.lossless))
    assert Pipeline.parse("fold-zero-filters").run(facts.graph.copy(), job.context).timing[-1].changes == 0


def _passes(model: onnx.ModelProto) -> bool:
    """Whether the checker can follow the shapes of the source."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def run_examples(number: int, start: int) -> Stats:
    """Check random examples; hypothesis shrinks the first that fails, and prints it as text."""
    stats = Stats()

    @seed(start)
    @settings(max_examples=number, deadline=None, database=None, print_blob=True, suppress_health_check=HealthCheck)
    @given(st.randoms(use_true_random=False))
    def example(rng: random.Random) -> None:
        grown = grow(rng)
        zeros = with_zeros(grown.model, rng)
        pipeline = PIPELINES[rng.randrange(len(PIPELINES))]
        note(f"{pipeline}\n{onnx.printer.to_text(grown.model)}")
        check(grown, zeros, pipeline, stats)

    example()
    return stats


def check_stats(stats: Stats, number: int) -> None:
    """Most examples run and have zeros, and of many something goes."""
    assert stats.examples >= 0.9 * number
    assert np.mean(np.array(stats.zeros) > 0) > 0.8
    assert np.mean(np.array(stats.folded) > 0) > 0.15
    assert stats.not_finite <= 0.01 * number
    assert len(stats.notes) <= 0.1 * stats.examples


def test_random_graphs_with_zeros() -> None:
    check_stats(run_examples(40, start=0), 40)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1, 11))
def test_many_random_graphs_with_zeros(start: int) -> None:
    check_stats(run_examples(300, start), 300)
