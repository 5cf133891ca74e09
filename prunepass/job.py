"""One run from the opened model to the certified result; what prune, apply and inspect share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import onnx

from prunepass import inputs
from prunepass import report as reports
from prunepass.cost import Cost, cost_of, source_cost
from prunepass.files import save
from prunepass.graph import Graph
from prunepass.manager import Context, Facts, Progress, Timing

if TYPE_CHECKING:
    from prunepass.files import Source
    from prunepass.plan import Plan
    from prunepass.quality import Judge


@dataclass(frozen=True)
class Result:
    """Hold a pruned model, the plan that made it (None if there were several), and the report with the certificate.

    Example
        result = prunepass.prune("model.onnx", macs=0.5)
        onnx.save(result.model, "small.onnx")
    """

    graph: Graph
    plan: Plan | None
    report: dict[str, Any]

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The pruned model."""
        return self.graph.to_proto()

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the model; the file appears whole or not at all. `force` allows to overwrite the source."""
        save(self.graph, path, force=force)


@dataclass
class Job:
    """Hold one run: the opened model, its facts, what it weighed before."""

    origin: inputs.Origin
    facts: Facts
    load: Timing

    @classmethod
    def open(
        cls,
        model: Source,
        keep: str | Iterable[str],
        shapes: Mapping[str, Sequence[int]] | None,
        data: inputs.Data | None,
        seed: int,
        progress: Progress | None,
    ) -> Job:
        """Load and check everything that the user hands in."""
        start = time.perf_counter()
        context = Context(seed=seed, keep=inputs.check_keep(keep), progress=progress)
        context.tell("load", 0, 1)
        graph, origin = inputs.open_model(model)
        context.source_sha256, context.source_bytes = origin.sha256, origin.size_bytes
        context.shapes = inputs.check_shapes(graph, shapes or {})
        if data is not None:
            context.tell("data", 0, 1)
            context.data, context.calibration = inputs.take_data(graph, data)
        return cls(origin, Facts(graph, context), Timing("load", time.perf_counter() - start))

    @property
    def context(self) -> Context:
        """What the user asked for beside the passes."""
        return self.facts.context

    def before(self) -> dict[str, int]:
        """Return what the source weighs."""
        cost = source_cost(self.facts)
        return _weights(cost, cost.bytes, self.facts.source)

    def stages(self) -> list[Timing]:
        """Return the time of everything so far."""
        return [self.load, *self.facts.timing]

    def finish(self, verify: bool, options: dict[str, Any], judge: Judge | None = None) -> Result:
        """Certify what the passes made, judge it if that is asked for, and report on it.

        Raises
            VerifyError: the pruned and the masked model differ.
        """
        if verify:
            self.context.tell("verify", 0, 1)
        certificate = self.facts.get("verify") if verify else None
        quality = None
        if judge is not None:
            self.context.tell("judge", 0, 1)
            with self.facts.timed("judge"):
                quality = judge.report(self.facts)
        with self.facts.timed("report"):
            found = self._figures()
        report = {
            "schema": reports.SCHEMA,
            **found,
            **self._measured(),
            "certificate": reports.certificate(certificate),
            "quality": quality,
            "recovery": self.facts.recovery,
            "options": {**options, "seed": self.context.seed, "verify": verify, "shapes": self.context.shapes},
            "timing": reports.timing(self.stages()),
            "versions": reports.versions(),
        }
        plans = self._plans()
        return Result(self.facts.graph, plans[0] if len(plans) == 1 else None, reports.plain(report))

    def _plans(self) -> list[Plan]:
        """Return what was carried out, or else what was only decided."""
        facts = self.facts
        decided = [] if facts.last_plan is None else [facts.last_plan]
        return [cut.plan for cut in facts.cuts if not cut.lossless] or decided

    def _listed(self) -> list[Plan]:
        """Return the plans whose groups the report lists: what was folded only where nothing was pruned."""
        return self._plans() or [cut.plan for cut in self.facts.cuts[:1]]

    def _measured(self) -> dict[str, Any]:
        """Return what was measured on the way: the latency of the last plan that was chosen for it."""
        found = [plan.options["latency"] for plan in self._plans() if "latency" in plan.options]
        return {"latency": found[-1]} if found else {}

    def _figures(self) -> dict[str, Any]:
        """Return what the models weigh, and what the analyses found on the way."""
        facts, origin = self.facts, self.origin
        _, coupling = facts.first.get("coupling", (None, None))
        cost = cost_of(facts.graph, facts.get("shapes")).total
        sha256, size = inputs.fingerprint(facts.graph)
        return {
            "source": {"path": None if origin.path is None else str(origin.path), "sha256": origin.sha256},
            "result": {"sha256": sha256},
            "before": self.before(),
            "after": _weights(cost, size, facts.graph),
            "barriers": [] if coupling is None else reports.barriers(coupling.barriers),
            "tied": [] if coupling is None else list(coupling.tied),
            "groups": [row for plan in self._listed() for row in reports.plan_groups(plan)],
        }


def _weights(cost: Cost, size_bytes: int, graph: Graph) -> dict[str, int]:
    """Return the figures of a report."""
    nodes = len(graph.nodes)
    return {"params": cost.params, "macs": cost.macs, "bytes": size_bytes, "ram": cost.ram, "nodes": nodes}
