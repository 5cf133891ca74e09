"""The Python API: prune, inspect and replay as functions; the command line is a shell around them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunepass import inputs
from prunepass import report as reports
from prunepass.errors import PipelineError
from prunepass.graph import Graph
from prunepass.job import Job, Result
from prunepass.manager import Pipeline, Progress, Timing
from prunepass.options import format_value

if TYPE_CHECKING:
    from prunepass.budgets import Amount
    from prunepass.cost import CostModel
    from prunepass.coupling import Coupling
    from prunepass.explain import Explanation
    from prunepass.files import Source
    from prunepass.plan import Plan

DEFAULT_RATIO = 0.3
LOSSLESS = "canonicalize{thorough=true},fold-batchnorm,fold-zero-filters,clean"
"""What `lossless` runs: the result computes what the source computes, on any input."""
CPU = "CPUExecutionProvider"


def default_pipeline(
    ratio: float | None = None,
    *,
    macs: Amount | None = None,
    params: Amount | None = None,
    bytes: Amount | None = None,
    ram: Amount | None = None,
    latency: Amount | None = None,
    criterion: str = "l2",
    scope: str = "global",
    align: int = 8,
    threads: int = 1,
    batch: int = 1,
    provider: str = CPU,
) -> str:
    """Return the text of the main job: `canonicalize,select{...},slice-channels,clean`.

    Raises
        PipelineError: a ratio and a budget are given.
    """
    amounts = {"ratio": ratio, "macs": macs, "params": params, "bytes": bytes, "ram": ram, "latency": latency}
    given: dict[str, Any] = {name: value for name, value in amounts.items() if value is not None}
    if "ratio" in given and len(given) > 1:
        raise PipelineError(f"{' and '.join(given)} do not go together; give the ratio or budgets")
    given = given or {"ratio": DEFAULT_RATIO}
    given |= {"criterion": criterion, "scope": scope, "align": align}
    measuring = {"threads": (threads, 1), "batch": (batch, 1), "provider": (provider, CPU)}
    given |= {name: value for name, (value, usual) in measuring.items() if value != usual}
    options = " ".join(f"{name}={format_value(value)}" for name, value in given.items())
    return f"canonicalize,select{{{options}}},slice-channels,clean"


def prune(
    model: Source,
    ratio: float | None = None,
    *,
    macs: Amount | None = None,
    params: Amount | None = None,
    bytes: Amount | None = None,
    ram: Amount | None = None,
    latency: Amount | None = None,
    criterion: str = "l2",
    scope: str = "global",
    align: int = 8,
    lossless: bool = False,
    running: Mapping[str, Any] | None = None,
    keep: str | Iterable[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, np.ndarray] | None = None,
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

    Reads
        model: a path, bytes, an onnx.ModelProto, or a Graph; it is not changed. keep: regular expressions for names
        that stay whole. shapes: by input name, for dynamic axes. data: arrays by input name, used to verify. pipeline:
        passes to run instead of the default ones; criterion, scope, align and the amounts are then its own options.

    Writes
        output: the pruned model, if a path is given. Nothing is written when anything fails.

    Raises
        PruneError: bad model, option, or budget. VerifyError: the pruned and the masked model differ.

    Example
        prunepass.prune("model.onnx", ratio=0.5, output="small.onnx").report["certificate"]["max_abs"]
    """
    amounts = {"ratio": ratio, "macs": macs, "params": params, "bytes": bytes, "ram": ram, "latency": latency}
    how = {"criterion": criterion, "scope": scope, "align": align, **(running or {})}
    cache = how.pop("cache", "")
    chosen = _chosen(pipeline, amounts, how, lossless)
    if output is not None:
        inputs.check_outputs([Path(output)], source_paths(model), force)
    job = Job.open(model, keep, shapes, data, seed, progress)
    job.context.cache = os.fspath(cache)
    chosen.run_on(job.facts, verify_each=verify_each)
    result = job.finish(verify, {"pipeline": str(chosen), "keep": list(job.context.keep)})
    if output is not None:
        result.save(output, force=force)
    return result


def _chosen(
    pipeline: str | Pipeline | None, amounts: Mapping[str, Any], how: Mapping[str, Any], lossless: bool
) -> Pipeline:
    """Return the pipeline that is given, or the default one with these options."""
    given = any(value is not None for value in amounts.values())
    if lossless and (pipeline is not None or given):
        raise PipelineError("lossless removes what it can; it goes with no amount and no pipeline")
    text = LOSSLESS if lossless else default_pipeline(**amounts, **how)
    if pipeline is None:
        return Pipeline.parse(text)
    if given:
        raise PipelineError("a pipeline has its own amounts; give them to its select pass")
    return Pipeline.parse(str(pipeline))


def apply(
    plan: Plan | str | os.PathLike[str],
    model: Source,
    *,
    ephemeral: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, np.ndarray] | None = None,
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
