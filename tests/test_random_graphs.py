"""Random graphs, pruned at random: every result carries a certificate, also on other batch sizes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from graphs import Grown

from prunepass import runtime
from prunepass.api import Job
from prunepass.errors import BudgetError, PruneError
from prunepass.manager import Pipeline
from prunepass.plan import Plan
from prunepass.verify import certify

CRITERIA = ("l2", "random", "l1")


@dataclass(frozen=True)
class Options:
    """What is asked of select."""

    amount: str
    scope: str = "global"
    align: int = 1
    policy: str = "balanced"
    criterion: str = "l2"
    steps: int = 1

    def __str__(self) -> str:
        rest = f"criterion={self.criterion} scope={self.scope} align={self.align} policy={self.policy} steps={self.steps}"
        return f"canonicalize,select{{{self.amount} {rest}}},slice-channels,clean"


@dataclass
class Stats:
    """What many examples came to."""

    examples: int = 0
    pruned: int = 0
    barriers: int = 0
    budgets: int = 0
    not_run: int = 0
    notes: list[str] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        kept = np.percentile(self.kept, [0, 10, 50, 90, 100]).round(2) if self.kept else []
        return (
            f"{self.examples} examples, {self.not_run} not run, {self.pruned} pruned, {self.budgets} budgets out of reach, {len(self.notes)} notes, "
            f"{self.barriers} with barriers, share of units removed {kept}\n{self.reasons}"
        )


def pick_options(rng: random.Random) -> Options:
    def pick(*options: Any) -> Any:
        return options[rng.randrange(len(options))]

    share = pick(0.5, 0.9, 0.2, 0.7, 0.98)
    return Options(
        f"{pick('ratio', 'ratio', 'ratio', 'macs', 'params')}={share}",
        pick("global", "local", "isomorphic"),
        pick(1, 1, 2, 8),
        pick("balanced", "balanced", "whole", "aligned"),
        pick(*CRITERIA),
        pick(1, 1, 1, 2),
    )


def check(grown: Grown, options: Options, stats: Stats) -> None:
    """Prune one graph, and hold the result against everything that is promised."""
    onnx.checker.check_model(grown.model)
    try:
        source = runtime.session(grown.model, optimise="basic", threads=1)
        before = [source.run(feeds) for feeds in (grown.feeds, grown.larger)]
    except PruneError:  # what onnxruntime cannot run, nobody can certify
        stats.not_run += 1
        return
    stats.examples += 1
    job = Job.open(grown.model, (), None, None, 0, None)
    try:
        Pipeline.parse(str(options)).run_on(job.facts)
    except BudgetError as error:
        assert "the least with" in str(error)
        stats.budgets += 1
        return
    result = job.finish(True, {})
    assert result.report["certificate"]["status"] == "passed"
    stats.notes += result.report["certificate"].get("notes", [])
    coupling = job.facts.first["coupling"][1]
    stats.barriers += bool(coupling.barriers)
    for b in coupling.barriers:
        stats.reasons[f"{b.op}: {b.reason}"] = stats.reasons.get(f"{b.op}: {b.reason}", 0) + 1
    if job.facts.cuts:
        plan: Plan = job.facts.cuts[-1].plan
        assert plan.removed is not None
        stats.pruned += 1
        stats.kept.append(float(plan.removed.sum() / plan.removed.size))
    pruned = runtime.session(result.model, threads=1)
    for feeds, expected in zip((grown.feeds, grown.larger), before):
        found = pruned.run(feeds)
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    for name in result.graph.consts:
        shape = result.graph.consts.shape(name)
        assert 0 not in shape or 0 in job.facts.source.consts.shape(name), f"{name} has shape {shape}"
    certify(job.facts.source, job.facts.cuts, job.facts.graph, replace(job.context, data=grown.larger)).raise_if_failed()
