"""The Python API: prune, inspect and replay as functions; the command line is a shell around them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunepass import inputs
from prunepass import report as reports
from prunepass.graph import Graph
from prunepass.job import Job, Result
from prunepass.manager import Pipeline, Progress, Timing
from prunepass.request import Request, carry_out

if TYPE_CHECKING:
    from prunepass.budgets import Amount
    from prunepass.cost import CostModel
    from prunepass.coupling import Coupling
    from prunepass.explain import Explanation
    from prunepass.files import Source
    from prunepass.plan import Plan
    from prunepass.quality import Metric


def prune(
    model: Source,
    ratio: float | None = None,
    *,
    macs: Amount | None = None,
    params: Amount | None = None,
    bytes: Amount | None = None,
    ram: Amount | None = None,
    latency: Amount | None = None,
    criterion: str | None = None,
    scope: str = "global",
    align: int = 8,
    lossless: bool = False,
    running: Mapping[str, Any] | None = None,
    keep: str | Iterable[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: inputs.Data | None = None,
    metric: Metric | None = None,
    recover: bool = True,
    max_drop: float | None = None,
    seed: int = 0,
    pipeline: str | Pipeline | None = None,
    verify: bool = True,
    verify_each: bool = False,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Prune a model and check the result against a masked run of the same plan.

    Units
        ratio: share of the channels to remove, 0 <= ratio < 1, default 0.3. macs, params, bytes, ram (of activations,
        at their peak), latency: what may stay, as a share of the source, 0 < share <= 1, or as an amount ("120M",
        "256KB", "8ms"); all must hold. align: kept channels are a multiple of it. running: how latency is measured in
        onnxruntime: threads, batch, provider, folder for times (cache). lossless: remove only what changes no output.
        max_drop: share of the metric, or of the agreement of the outputs, that may be lost: find the smallest model, by
        MACs or by the one amount that is given, the least to try.

    Reads
        model: a path, bytes, an onnx.ModelProto, or a Graph; it is not changed. keep: regular expressions for names
        that stay whole. shapes: by input name, for dynamic axes. data: typical inputs, to refit the weights to (if
        `recover`) and to verify on; metric: measures quality; for both see docs/recovery.md. pipeline: passes to run
        instead of the default ones; criterion, scope, align and the amounts are then its own options.
    Writes
        output: the pruned model. Nothing is written when anything fails.
    Raises
        PruneError: bad model, data, option, or budget. VerifyError: the pruned and the masked model differ.
    """
    amounts = {"ratio": ratio, "macs": macs, "params": params, "bytes": bytes, "ram": ram, "latency": latency}
    how = {"criterion": criterion, "scope": scope, "align": align, **(running or {})}
    cache = how.pop("cache", "")
    request = Request(amounts, how, None if pipeline is None else str(pipeline), lossless, max_drop)
    if output is not None:
        inputs.check_outputs([Path(output)], source_paths(model), force)
    job = Job.open(model, keep, shapes, data, seed, progress)
    job.context.cache = os.fspath(cache)
    result = carry_out(job, request, metric, recover, verify, verify_each)
    if output is not None:
        result.save(output, force=force)
    return result


def apply(
    plan: Plan | str | os.PathLike[str],
    model: Source,
    *,
    ephemeral: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: inputs.Data | None = None,
    seed: int = 0,
    verify: bool = True,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Carry out a plan on the model that it was made for: sliced, or masked during computation.

    Raises
        PruneError: the plan does not fit the model. VerifyError: the pruned and the masked model differ.
    """
    from prunepass.plan import Plan
    from prunepass.replay import apply_plan

    paths = [] if isinstance(plan, Plan) else [Path(plan)]
    found = plan if isinstance(plan, Plan) else Plan.from_json(reports.read_json(paths[0]))
    if output is not None:
        inputs.check_outputs([Path(output)], [*source_paths(model), *paths], force)
    job = Job.open(model, (), shapes, data, seed, progress)
    facts = job.facts
    with facts.timed("apply"):
        apply_plan(facts, found, ephemeral)
    facts.invalidate()
    result = job.finish(verify, {"plan": str(paths[0]) if paths else None, "ephemeral": ephemeral})
    if output is not None:
        result.save(output, force=force)
    return result


@dataclass(frozen=True)
class Inspection:
    """Hold what `inspect` found: the canonical graph, its coupling, what explains it, and its size."""

    graph: Graph
    coupling: Coupling
    explanation: Explanation
    binding: dict[str, int]
    size: dict[str, int]
    sha256: str
    timing: tuple[Timing, ...]
    cost: CostModel

    def costs(self) -> dict[str, Any]:
        """Return what the model costs as plain data: in all, by type, at the peak of its memory, per node and group."""
        from prunepass.costs import cost_report

        found = cost_report(self.graph, self.coupling, self.cost)
        found["total"]["bytes"] = self.size["bytes"]
        return found

    def to_json(self, cost: bool = False) -> dict[str, Any]:
        """Return everything as plain data, as docs/inspect.md describes it; the costs if asked for."""
        holders = self.explanation.holders
        found = {
            "schema": reports.INSPECT_SCHEMA,
            "sha256": self.sha256,
            "size": self.size,
            "inputs": {name: self.coupling.shapes.get(name, ()) for name in self.graph.input_names},
            "assumed": self.binding,
            "groups": reports.coupling_groups(self.coupling, self.explanation),
            "tied": self.coupling.tied,
            "barriers": reports.holders(h for h in holders if h.no_rule),
            "pinned": reports.holders(h for h in holders if not h.no_rule),
            "axes": reports.pinned_axes(self.explanation.axes),
            **({"cost": self.costs()} if cost else {}),
            "timing": reports.timing(self.timing),
            "versions": reports.versions(),
        }
        plain: dict[str, Any] = reports.plain(found)
        return plain


def inspect(
    model: Source, *, shapes: Mapping[str, Sequence[int]] | None = None, progress: Progress | None = None
) -> Inspection:
    """Find out what can be pruned: coupling groups, tied tensors, barriers, and why axes must stay.

    Raises
        PruneError: the model cannot be used.
    """
    from prunepass.explain import explain

    job = Job.open(model, (), shapes, None, 0, progress)
    Pipeline.parse("canonicalize").run_on(job.facts)
    facts, coupling, cost = job.facts, job.facts.get("coupling"), job.facts.get("cost")
    with facts.timed("explain"):
        explanation = explain(facts.graph, coupling, cost)
    binding, sha256 = facts.get("shapes").binding, job.context.source_sha256
    return Inspection(facts.graph, coupling, explanation, binding, job.before(), sha256, tuple(job.stages()), cost)


def source_paths(model: Source) -> list[Path]:
    """Return the file of a model that is given by its path."""
    return [Path(model)] if isinstance(model, (str, os.PathLike)) else []
