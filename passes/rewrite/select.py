"""Decide which units go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prunepass import wire
from prunepass.budgets import KINDS, Amount, Budget
from prunepass.choice import Choice, Scale, Terms, named_ratios, whole_cost
from prunepass.cost import source_cost
from prunepass.coupling import Coupling
from prunepass.criteria import ImportanceFacts, criterion, rate, weights_for
from prunepass.errors import PipelineError
from prunepass.graph import Graph
from prunepass.kept import element_mask, kept_masks
from prunepass.labels import Policy
from prunepass.latency import LatencyModel
from prunepass.manager import Facts, Rewrite
from prunepass.optable import cache_folder
from prunepass.plan import Plan
from prunepass.runtime import CPU
from prunepass.selection import Scope, kept_by_name, protected_units
from prunepass.slicing import slice_graph
from prunepass.speedup import judged, learn_latency
from prunepass.stopwatch import Setting

from .clean import Clean


@dataclass(frozen=True)
class Select(Rewrite):
    """Choose the units that go, by importance, for a ratio or a budget; the plan is for slice-channels.

    Units
        ratio: share of all units to remove. macs, params, bytes, ram: what may stay, as a share of the source or an
        amount (120M, 256KB, 8ms); several must hold at once. ram: bytes of activations at the worst moment. latency:
        measured here in onnxruntime, with so many threads, samples at a time (batch) and this execution provider.
        align: kept channels per axis are a multiple of it; 1 switches it off. keep: regular expressions of names that
        stay whole. allocate: the best first, or, with scores that are errors such as those of obs, the least error per
        cost saved. scope: rank all groups together, each for itself, equal structures together, or whole heads of
        attention only (with their key and value heads, whatever the policy says). steps: rounds of scoring and
        removing, in equal steps or by equal factors (schedule). max_ratio: largest share that one group may lose.
        ratios, max_ratios: REGEX:RATIO, what groups of that name lose, apart from the ranking, and what they may lose.
    Raises
        BudgetError: the budget cannot be reached; says the nearest that can.
    """

    name = "select"
    keeps = ("shapes", "coupling", "importance", "cost", "errors")
    idempotent = False

    ratio: float | None = None
    macs: Amount | None = None
    params: Amount | None = None
    bytes: Amount | None = None
    ram: Amount | None = None
    latency: Amount | None = None
    criterion: str = "l2"
    allocate: Literal["score", "error"] = "score"
    scope: Scope = "global"
    align: int = 8
    keep: tuple[str, ...] = ()
    policy: Policy = "balanced"
    reduce: Literal["mean", "sum", "max", "first"] = "mean"
    normalise: Literal["auto", "mean", "max", "sum", "none", "lamp", "standardise"] = "auto"
    steps: int = 1
    schedule: Literal["linear", "exponential"] = "linear"
    max_ratio: float = 1.0
    ratios: tuple[str, ...] = ()
    max_ratios: tuple[str, ...] = ()
    threads: int = 1
    batch: int = 1
    provider: str = CPU

    def __post_init__(self) -> None:
        budgets = self.budgets()
        if self.ratio is not None and budgets:
            raise PipelineError(f"select: ratio and {budgets[0].kind} do not go together; give one of them")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise PipelineError(f"select: ratio={self.ratio} must be at least 0 and below 1")
        if min(self.align, self.steps) < 1 or not 0 < self.max_ratio <= 1:
            raise PipelineError("select: align and steps must be at least 1, max_ratio above 0 and at most 1")
        if min(self.threads, self.batch) < 1:
            raise PipelineError("select: threads and batch must be at least 1")
        criterion(self.criterion)
        self.terms()

    def budgets(self) -> tuple[Budget, ...]:
        """Return the budgets that are given."""
        given = {kind: getattr(self, kind, None) for kind in KINDS}
        try:
            return tuple(Budget.parse(kind, value) for kind, value in given.items() if value is not None)
        except PipelineError as error:
            raise PipelineError(f"select: {error}") from None

    def terms(self) -> Terms:
        """Return what is asked for, in the words of the core."""
        return Terms(
            ratio=0.3 if self.ratio is None else self.ratio,
            budgets=self.budgets(),
            scope=self.scope,
            align=self.align,
            max_ratio=self.max_ratio,
            ratios=named_ratios("select: ratios", self.ratios),
            max_ratios=named_ratios("select: max_ratios", self.max_ratios),
            exponential=self.schedule == "exponential",
            by_error=self.allocate == "error",
        )

    def run(self, graph: Graph, facts: Facts) -> int:
        """Store the plan in `facts.plan` and return the number of units that go."""
        policy: Policy = "whole" if self.scope == "heads" else self.policy
        coupling: Coupling = facts.get("coupling", policy=policy)
        options = {"criterion": self.criterion, "reduce": self.reduce, "normalise": self.normalise}
        importance = facts.get("importance", policy=policy, **options)
        scores = importance.scores
        kept = kept_by_name(graph, coupling, (*self.keep, *facts.context.keep))
        choice = self._choice(graph, coupling, kept, importance, facts)
        model = self._latency(choice, facts, scores) if self.latency is not None else None
        removed = np.zeros(coupling.n_units, bool)
        for step in range(1, self.steps + 1):
            if step > 1:
                masked = Facts(_masked(graph, coupling, removed), facts.context)
                weights = weights_for(criterion(self.criterion), masked.graph, coupling, masked)
                scores = rate(weights, criterion(self.criterion), self.reduce, self.normalise).scores
                scores = np.where(removed, -np.inf, scores)
            removed = choice.removed(scores, step / self.steps)
        chosen: dict[str, Any] = {"select": str(self), "keep": list(facts.context.keep)}
        if model is not None:
            removed, speedup = judged(choice, model, scores, removed)
            chosen["latency"] = speedup.to_json()
        facts.plan = Plan.of(graph, coupling, removed, scores, chosen, facts.context.source_sha256)
        return int(removed.sum())

    def _latency(self, choice: Choice, facts: Facts, scores: np.ndarray) -> LatencyModel:
        setting = Setting(self.threads, self.batch, self.provider)
        model = LatencyModel(facts, choice.coupling, setting, cache_folder(facts.context.cache))
        learn_latency(choice, model, scores)
        return model

    def _choice(
        self, graph: Graph, coupling: Coupling, kept: np.ndarray, importance: ImportanceFacts, facts: Facts
    ) -> Choice:
        return Choice(
            self.terms(),
            graph,
            coupling,
            kept,
            lambda: facts.get("cost", policy=coupling.policy),
            lambda: whole_cost(source_cost(facts)),
            lambda removed: _carried_out(removed, coupling, facts),
            {"bytes": Scale(_file_bytes)},  # what slicing inserts and what is shared again, nobody can predict
            _free_sets(importance, coupling, kept) if self.steps == 1 else [],
        )


def _free_sets(
    importance: ImportanceFacts, coupling: Coupling, kept: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the best sets of units for every width, of groups that may lose any of their units."""
    if not importance.sets:
        return []
    frozen = kept | protected_units(coupling, importance.scores)
    return [(units, gone) for units, gone in importance.sets if not frozen[units].any()]


def _masked(graph: Graph, coupling: Coupling, removed: np.ndarray) -> Graph:
    """Copy the graph with zeros in the place of everything that is already chosen to go."""
    copy = graph.copy()
    for name in graph.consts:
        masks = [m for m in kept_masks(coupling.factors.get(name, ()), removed) if not m.all()]
        if masks:
            array = graph.consts[name]
            copy.consts[name] = np.where(element_mask(array.shape, masks), array, array.dtype.type(0))
    return copy


def _carried_out(removed: np.ndarray, coupling: Coupling, facts: Facts) -> Graph:
    """Return the finished model of a plan."""
    graph = facts.graph.copy()
    slice_graph(graph, Plan.of(graph, coupling, removed))
    Clean().run(graph, facts)
    return graph


def _file_bytes(graph: Graph) -> float:
    return float(sum(map(len, wire.encode(graph))))
