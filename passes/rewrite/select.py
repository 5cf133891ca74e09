"""Decide which units go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prunepass.cost import Cost, CostModel
from prunepass.coupling import Coupling, Group
from prunepass.criteria import Weights, criterion, rate
from prunepass.errors import BudgetError, PipelineError
from prunepass.graph import Graph
from prunepass.kept import element_mask, kept_masks
from prunepass.labels import Policy
from prunepass.manager import Facts, Rewrite
from prunepass.plan import Plan
from prunepass.selection import (
    Event,
    isomorphic_classes,
    kept_by_name,
    ladder,
    protected_units,
    ranking,
    removed_by,
    take_budget,
    take_share,
)

Scope = Literal["global", "local", "isomorphic", "heads"]
_BUDGETS = ("macs", "params", "bytes")


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
                masked = Weights(_masked(graph, coupling, removed), coupling, facts.context.seed)
                scores = rate(masked, criterion(self.criterion), self.reduce, self.normalise).scores
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
        self.options, self.coupling, self.kept = options, coupling, kept
        heads = options.scope == "heads"
        self.groups = tuple(g for g in coupling.groups if g.heads or not heads)
        self.align = 1 if heads else options.align
        self.budget = next((b for b in _BUDGETS if getattr(options, b) is not None), None)
        self.facts = facts

    def removed(self, scores: np.ndarray, progress: float) -> np.ndarray:
        """Return which units go when `progress` (0 to 1) of the way is to be covered."""
        options, groups = self.options, self.groups
        finite = np.where(np.isneginf(scores), np.nanmin(scores[np.isfinite(scores)], initial=0.0) - 1.0, scores)
        frozen = self.kept | protected_units(self.coupling, finite) | np.isposinf(scores)
        events = ladder(groups, finite, frozen, self.align, options.max_ratio)
        sizes = [g.units.size for g in groups]
        if self.budget is not None:
            return self._within_budget(_ordered(events, sizes, options.scope, groups), progress)
        share = (0.3 if options.ratio is None else options.ratio) * progress
        return removed_by(self._by_share(events, sizes, share), self.coupling.n_units)

    def _by_share(self, events: list[list[Event]], sizes: list[int], share: float) -> list[Event]:
        if self.options.scope in ("global", "heads"):
            return take_share(ranking(events), share, sum(sizes))
        classes: list[list[int]] = [[i] for i in range(len(events))]
        if self.options.scope == "isomorphic":
            classes = list(isomorphic_classes(self.groups).values())
        chosen = []
        for members in classes:
            chosen += take_share(ranking([events[i] for i in members]), share, sum(sizes[i] for i in members))
        return chosen

    def _within_budget(self, order: list[Event], progress: float) -> np.ndarray:
        assert self.budget is not None
        model: CostModel = self.facts.get("cost", policy=self.coupling.policy)
        whole = getattr(model.total, self.budget)
        share = 1 - (1 - getattr(self.options, self.budget)) * progress
        n_units = self.coupling.n_units

        def cost(events: Sequence[Event]) -> float:
            found: Cost = model.predict(removed_by(events, n_units))
            return float(getattr(found, self.budget or ""))

        chosen = take_budget(order, share * whole, cost)
        if chosen is None:
            least = cost(order) / whole
            raise BudgetError(
                f"select: {self.budget}={share:.4g} cannot be reached; the least with align={self.align} is "
                f"{math.ceil(least * 1e4) / 1e4:.4f}: see `prunepass inspect` for what cannot shrink"
            )
        return removed_by(chosen, n_units)


def _ordered(events: list[list[Event]], sizes: list[int], scope: Scope, groups: Sequence[Group]) -> list[Event]:
    """One order for a budget: by score, or (local, isomorphic) so that all groups or classes shrink in step."""
    if scope in ("global", "heads"):
        return ranking(events)
    found = []
    classes = [[i] for i in range(len(events))]
    if scope == "isomorphic":
        classes = list(isomorphic_classes(groups).values())
    for members in classes:
        total, taken = sum(sizes[i] for i in members), 0
        for event in ranking([events[i] for i in members]):
            taken += event.units.size
            found.append(Event(event.group, taken / total, event.units))
    return sorted(found, key=lambda event: event.key)
