"""What a pruned model is still worth: by a measure of the user, and by how near its outputs are to the dense ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from prunepass.errors import ModelError
from prunepass.graph import Graph
from prunepass.manager import Facts
from prunepass.recovery.judging import distances, judging_batches
from prunepass.runtime import session
from prunepass.users import call, name_of

Run: TypeAlias = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
Metric: TypeAlias = Callable[[Run], float]
"""Given a function that runs a model, arrays by input name to arrays by output name, return its quality: larger is
better."""


def measure(metric: Metric, graph: Graph) -> float:
    """Return the quality of a model by a measure of the user.

    Raises
        ModelError: the measure fails, or returns no number.
    """
    found = call(metric, "metric", session(graph).run)
    try:
        return float(found)
    except (TypeError, ValueError):
        kind = type(found).__name__
        raise ModelError(f"metric: {name_of(metric)} returned a {kind}; it must return a number") from None


class Judge:
    """Compare models with the dense one, by the metric where there is one, else by their outputs."""

    def __init__(self, facts: Facts, metric: Metric | None) -> None:
        self.metric = metric
        self._source, self._known = facts.source, list[tuple[Graph, float]]()

    @cached_property
    def dense(self) -> float:
        """The quality of the dense model; without a metric its likeness to itself.

        Raises
            ModelError: it is no finite number.
        """
        if self.metric is None:
            return 1.0
        found = self._measured(self._source)
        if not math.isfinite(found):
            raise ModelError(f"metric: {self.name} is {found} for the model as it is; it must be a finite number")
        return found

    @property
    def name(self) -> str:
        """What is measured."""
        return "agreement of the outputs" if self.metric is None else name_of(self.metric)

    def quality(self, facts: Facts) -> float:
        """Return the quality of the model as it is now."""
        if self.metric is not None:
            return self._measured(facts.graph)
        found = distances(facts.source, {"now": facts.graph}, judging_batches(facts).feeds)
        return found["now"].likeness

    def drop(self, quality: float) -> float:
        """Return by which share of the dense quality a quality is lower; infinite where it is no number."""
        if math.isnan(quality):
            return math.inf
        return (self.dense - quality) / max(abs(self.dense), 1e-12)

    def report(self, facts: Facts) -> dict[str, Any]:
        """Return output error, agreement and metric of the pruned model, before and after its weights were refitted."""
        refitted = facts.pruned is not None
        models = {"pruned": facts.pruned or facts.graph, **({"recovered": facts.graph} if refitted else {})}
        batches = judging_batches(facts)
        found = distances(facts.source, models, batches.feeds)
        agreement = {name: d.agreement for name, d in found.items() if d.agreement is not None}
        report: dict[str, Any] = {
            "judged_on": {"samples": batches.samples, "drawn": batches.drawn},
            "output_error": {name: d.error for name, d in found.items()},
            "agreement": agreement or None,
            "metric": None,
        }
        if self.metric is not None:
            values = {name: self._measured(graph) for name, graph in models.items()}
            report["metric"] = {"name": self.name, "dense": self.dense, **values}
        return report

    def _measured(self, graph: Graph) -> float:
        """Measure a model once; graphs that were measured are held, so that an id cannot be taken twice."""
        assert self.metric is not None
        for known, value in self._known:
            if known is graph:
                return value
        value = measure(self.metric, graph)
        self._known.append((graph, value))
        return value
