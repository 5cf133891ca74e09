"""Find the smallest model whose quality drops by no more than a given share of the dense one's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from prunepass.errors import BudgetError
from prunepass.manager import Facts, Pipeline
from prunepass.quality import Judge

MOST_TRIALS = 6
NEAR = 0.01
"""Shares of the source that are nearer to each other than this are not told apart."""


@dataclass(frozen=True)
class Trial:
    """What one amount gives.

    Units
        kept: share that may stay. quality, drop: None where so little cannot be reached. facts: of the best only.
    """

    kept: float
    quality: float | None = None
    drop: float | None = None
    facts: Facts | None = None


class Search:
    """Bisect over the amount, each time with everything that the pipeline does.

    pipeline: the passes for a share that may stay. goal: the least share to try, 0 for as little as can be.
    most_drop: share of the dense quality.
    """

    def __init__(
        self,
        facts: Facts,
        judge: Judge,
        pipeline: Callable[[float], Pipeline],
        goal: float,
        most_drop: float,
        verify_each: bool = False,
    ) -> None:
        self.facts, self.judge, self.pipeline, self.verify_each = facts, judge, pipeline, verify_each
        self.goal, self.most_drop = goal, most_drop
        self.trials: list[Trial] = []
        self.best: Trial | None = None
        judge.dense  # noqa: B018  a metric that cannot measure shows now
        first = Pipeline(pipeline(1.0).steps[:1])
        first.run_on(facts)  # what selects comes next: its facts stay true from trial to trial

    def run(self) -> Trial:
        """Return the trial with the least that drops no more.

        Raises
            BudgetError: none does.
        """
        low, high = self.goal, 1.0
        if self.goal and self._good(self._tried(self.goal)):
            high = low
        while len(self.trials) < MOST_TRIALS and high - low > NEAR:
            trial = self._tried(round((low + high) / 2, 4))
            low, high = (low, trial.kept) if self._good(trial) else (trial.kept, high)
        if self.best is None:
            raise BudgetError(self._complaint())
        return self.best

    def to_json(self) -> dict[str, Any]:
        """Return what was tried."""
        rows = [{"kept": t.kept, "quality": t.quality, "drop": t.drop} for t in self.trials]
        return {"most_drop": self.most_drop, "quality": self.judge.name, "dense": self.judge.dense, "trials": rows}

    def _good(self, trial: Trial) -> bool:
        return trial.drop is not None and trial.drop <= self.most_drop + 1e-9

    def _tried(self, kept: float) -> Trial:
        steps = self.pipeline(kept).steps
        try:
            Pipeline(steps[1:2]).run_on(self.facts)
        except BudgetError:
            self.trials.append(Trial(kept))
            return self.trials[-1]
        facts = self.facts.fork()
        Pipeline(steps[2:]).run_on(facts, self.verify_each)
        with facts.timed("judge"):
            quality = self.judge.quality(facts)
        found = Trial(kept, quality, self.judge.drop(quality))
        self.trials.append(found)
        if self._good(found) and (self.best is None or kept < self.best.kept):
            self.best = replace(found, facts=facts)
        return found

    def _complaint(self) -> str:
        text = f"max-drop: no smaller model was found whose {self.judge.name} drops by at most {self.most_drop:.2%}"
        measured = [trial for trial in self.trials if trial.drop is not None]
        if not measured:
            return f"{text}; nothing can be removed: see `prunepass inspect` for what cannot shrink"
        nearest = min(measured, key=lambda trial: trial.drop or 0.0)
        found = f"the nearest of {len(self.trials)} tries keeps {nearest.kept:.2%} and drops by {nearest.drop:.2%}"
        return f"{text}; {found}; allow more, or give more data"
