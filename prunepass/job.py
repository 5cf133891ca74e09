"""One run from the opened model to the certified result; what prune, apply and inspect share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from prunepass import inputs, wire
from prunepass import report as reports
from prunepass.cost import CostModel
from prunepass.files import save
from prunepass.graph import Graph
from prunepass.manager import Context, Facts, Progress, Timing

if TYPE_CHECKING:
    from prunepass.files import Source
    from prunepass.plan import Plan
    from prunepass.verify import Certificate


@dataclass(frozen=True)
class Result:
    """Hold a pruned model, the plan that made it, and the report with the certificate.

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
    before: dict[str, int]

    @classmethod
    def open(
        cls,
        model: Source,
        keep: str | Iterable[str],
        shapes: Mapping[str, Sequence[int]] | None,
        data: Mapping[str, np.ndarray] | None,
        seed: int,
        progress: Progress | None,
    ) -> Job:
        """Load and check everything that the user hands in."""
        start = time.perf_counter()
        context = Context(seed=seed, keep=inputs.check_keep(keep), progress=progress)
        context.tell("load", 0, 1)
        graph, origin = inputs.open_model(model)
        context.source_sha256 = origin.sha256
        context.shapes = inputs.check_shapes(graph, shapes or {})
        context.data = None if data is None else inputs.check_data(graph, data)
        facts = Facts(graph, context)
        load = Timing("load", time.perf_counter() - start)
        return cls(origin, facts, load, measure(facts, origin.size_bytes))

    @property
    def context(self) -> Context:
        """What the user asked for beside the passes."""
        return self.facts.context

    def stages(self) -> list[Timing]:
        """Return the time of everything so far."""
        return [self.load, *self.facts.timing]

    def finish(self, verify: bool, options: dict[str, Any]) -> Result:
        """Certify what the passes made and report on it.

        Raises
            VerifyError: the pruned and the masked model differ.
        """
        facts = self.facts
        certificate = self._certify() if verify else None
        plan = facts.cuts[-1].plan if facts.cuts else facts.last_plan
        coupling = facts.first.get("coupling")
        report = {
            "schema": reports.SCHEMA,
            "source": {
                "path": None if self.origin.path is None else str(self.origin.path),
                "sha256": self.origin.sha256,
            },
            "before": self.before,
            "after": measure(facts),
            "certificate": reports.certificate(certificate),
            "barriers": [] if coupling is None else reports.barriers(coupling.barriers),
            "tied": [] if coupling is None else list(coupling.tied),
            "groups": [] if plan is None else reports.plan_groups(plan),
            "options": {**options, "seed": self.context.seed, "verify": verify, "shapes": self.context.shapes},
            "timing": reports.timing(self.stages()),
            "versions": reports.versions(),
        }
        return Result(facts.graph, plan, reports.plain(report))

    def _certify(self) -> Certificate:
        from prunepass.verify import certify

        facts = self.facts
        self.context.tell("verify", 0, 1)
        with facts.timed("verify"):
            found = certify(facts.source, facts.cuts, facts.graph, self.context)
        found.raise_if_failed()
        return found


def measure(facts: Facts, size_bytes: int | None = None) -> dict[str, int]:
    """Return parameters, MACs, bytes and nodes of a graph; bytes as they lie in a file."""
    graph = facts.graph
    cost = CostModel(graph, facts.get("shapes").shape, {}).total
    size = size_bytes if size_bytes is not None else sum(map(len, wire.encode(graph)))
    return {"params": cost.params, "macs": cost.macs, "bytes": size, "nodes": len(graph.nodes)}
