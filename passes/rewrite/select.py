"""Decide which units go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunepass import wire
from prunepass.allocation import allocate
from prunepass.cost import CostModel, source_cost
from prunepass.coupling import Coupling
from prunepass.criteria import criterion, rate, weights_for
from prunepass.errors import BudgetError, PipelineError
from prunepass.graph import Graph
from prunepass.kept import element_mask, kept_masks
from prunepass.labels import Policy
from prunepass.manager import Facts, Rewrite
from prunepass.plan import Plan
from prunepass.selection import (
    NEAR,
    Event,
    Scope,
    classes_of,
    in_step,
    kept_by_name,
    ladder,
    protected_units,
    ranking,
    removed_by,
    take_budget,
    take_share,
)
from prunepass.slicing import slice_graph

from .clean import Clean

_BUDGETS = ("macs", "params", "bytes")
_CORRECTIONS = 8


@dataclass(frozen=True)
class Select(Rewrite):
    """Choose the units that go, by importance, for a ratio or a budget; the plan is for slice-channels.

    Units
        ratio: share of all units to remove. macs, params, bytes: share of the whole model that may stay.
        align: kept channels per axis are a multiple of it; 1 switches it off. keep: regular expressions of names that
        stay whole. scope: rank all groups together, each for itself, equal structures together, or whole heads of
        attention only (with their key and value heads, whatever the policy says). steps: rounds of scoring and
        removing. max_ratio: largest share that one group may lose.
    Raises
        BudgetError: the budget cannot be reached; says the nearest that can.
    """

    name = "select"
    keeps = ("shapes", "coupling", "importance", "cost")
    idempotent = False

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    criterion: str = "l2"
    allocate: Literal["score", "error"] = "score"
    scope: Scope = "global"
    align: int = 8
    keep: tuple[str, ...] = ()
    policy: Policy = "balanced"
    reduce: Literal["mean", "sum", "max", "first"] = "mean"
    normalise: Literal["auto", "mean", "max", "sum", "none", "lamp", "standardise"] = "auto"
    steps: int = 1
    max_ratio: float = 1.0

    def __post_init__(self) -> None:
        given = [n for n in ("ratio", *_BUDGETS) if getattr(self, n) is not None]
        if len(given) > 1:
            raise PipelineError(f"select: {' and '.join(given)} do not go together; give one of them")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise PipelineError(f"select: ratio={self.ratio} must be at least 0 and below 1")
        for name in _BUDGETS:
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise PipelineError(f"select: {name}={share} must be above 0 and at most 1")
        if self.align < 1 or self.steps < 1 or not 0 < self.max_ratio <= 1:
            raise PipelineError("select: align and steps must be at least 1, max_ratio above 0 and at most 1")
        criterion(self.criterion)

    def run(self, graph: Graph, facts: Facts) -> int:
        """Store the plan in `facts.plan` and return the number of units that go."""
        policy: Policy = "whole" if self.scope == "heads" else self.policy
        coupling: Coupling = facts.get("coupling", policy=policy)
        options = {"criterion": self.criterion, "reduce": self.reduce, "normalise": self.normalise}
        scores = facts.get("importance", policy=policy, **options).scores
        kept = kept_by_name(graph, coupling, (*self.keep, *facts.context.keep))
        choice = _Choice(self, coupling, kept, facts)
        removed = np.zeros(coupling.n_units, bool)
        for step in range(1, self.steps + 1):
            if step > 1:
                masked = Facts(_masked(graph, coupling, removed), facts.context)
                weights = weights_for(criterion(self.criterion), masked.graph, coupling, masked)
                scores = rate(weights, criterion(self.criterion), self.reduce, self.normalise).scores
                scores = np.where(removed, -np.inf, scores)
            removed = choice.removed(scores, step / self.steps)
        chosen = {"select": str(self), "keep": list(facts.context.keep)}
        facts.plan = Plan.of(graph, coupling, removed, scores, chosen, facts.context.source_sha256)
        return int(removed.sum())


def _masked(graph: Graph, coupling: Coupling, removed: np.ndarray) -> Graph:
    """Copy the graph with zeros in the place of everything that is already chosen to go."""
    copy = graph.copy()
    for name in graph.consts:
        masks = [m for m in kept_masks(coupling.factors.get(name, ()), removed) if not m.all()]
        if masks:
            array = graph.consts[name]
            copy.consts[name] = np.where(element_mask(array.shape, masks), array, array.dtype.type(0))
    return copy


class _Choice:
    """Turn scores into a set of removed units."""

    def __init__(self, options: Select, coupling: Coupling, kept: np.ndarray, facts: Facts) -> None:
        self.options, self.coupling, self.kept, self.facts = options, coupling, kept, facts
        heads = options.scope == "heads"
        self.groups = [group for group in coupling.groups if group.heads or not heads]
        self.classes = classes_of(self.groups, options.scope)
        self.sizes = [sum(self.groups[i].units.size for i in members) for members in self.classes]
        self.align = 1 if heads else options.align
        self.budget = next((b for b in _BUDGETS if getattr(options, b) is not None), "")

    def removed(self, scores: np.ndarray, progress: float) -> np.ndarray:
        """Return which units go when `progress` (0 to 1) of the way is to be covered."""
        finite = np.where(np.isneginf(scores), np.nanmin(scores[np.isfinite(scores)], initial=0.0) - 1.0, scores)
        frozen = self.kept | protected_units(self.coupling, finite) | np.isposinf(scores)
        events = ladder(self.coupling, self.groups, finite, frozen, self.align, self.options.max_ratio)
        self.events = events
        rankings = [ranking([events[i] for i in members]) for members in self.classes]
        if self.budget:
            return self._within_budget(in_step(rankings, self.sizes), progress)
        share = (0.3 if self.options.ratio is None else self.options.ratio) * progress
        chosen = [event for order, size in zip(rankings, self.sizes) for event in take_share(order, share, size)]
        return removed_by(chosen, self.coupling.n_units)

    def _within_budget(self, order: list[Event], progress: float) -> np.ndarray:
        share = 1 - (1 - getattr(self.options, self.budget)) * progress
        goal = limit = share * getattr(source_cost(self.facts), self.budget)
        removed = self._predicted_within(order, limit, share)
        if self.budget != "bytes":
            return removed
        best, most = removed, 0.0
        for _ in range(_CORRECTIONS):  # by what slicing inserts and what is shared again, which nobody can predict
            spent = self._written_bytes(removed)
            if most < spent <= goal:
                best, most = removed, spent
            if (1 - NEAR) * goal <= spent <= goal:
                break
            limit -= spent - goal
            before, removed = removed, self._predicted_within(order, limit, share)
            if spent <= goal and np.array_equal(before, removed):
                break
        return best if most else removed

    def _predicted_within(self, order: list[Event], limit: float, share: float) -> np.ndarray:
        model: CostModel = self.facts.get("cost", policy=self.coupling.policy)
        n_units = self.coupling.n_units

        def cost(events: Sequence[Event]) -> float:
            return float(getattr(model.predict(removed_by(events, n_units)), self.budget))

        if self.options.allocate == "error":
            chosen = allocate(self.events, limit, cost)
        else:
            chosen = take_budget(order, limit, cost)
        if chosen is None:
            least = math.ceil(cost(order) / limit * share * 1e4) / 1e4
            raise BudgetError(
                f"select: {self.budget}={share:.4g} cannot be reached; the least with align={self.align} is "
                f"{least:.4f}: see `prunepass inspect` for what cannot shrink"
            )
        return removed_by(chosen, n_units)

    def _written_bytes(self, removed: np.ndarray) -> int:
        graph = self.facts.graph.copy()
        slice_graph(graph, Plan.of(graph, self.coupling, removed))
        Clean().run(graph, self.facts)
        return sum(map(len, wire.encode(graph)))
