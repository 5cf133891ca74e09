"""Turn scores into a set of units that go: ladder, ranking, and a ratio or budgets that say how far down to go."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunepass.allocation import take_within
from prunepass.budgets import Budget, Budgets, Meter, amount_text, what_remains
from prunepass.cost import Cost, CostModel
from prunepass.coupling import Coupling, Group
from prunepass.errors import BudgetError, PipelineError
from prunepass.graph import Graph
from prunepass.selection import (
    NEAR,
    Event,
    Scope,
    classes_of,
    in_step,
    ladder,
    protected_units,
    ranking,
    removed_by,
    take_share,
)
from prunepass.widths import spend

log = logging.getLogger(__name__)
_CORRECTIONS = 8

NamedRatios = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Terms:
    """Hold what a user may ask of a choice.

    Units
        ratio: share of all units, where no budget is given. strict: align narrow axes to no less than wide ones.
        max_ratio: largest share that one group may lose. by_error: scores are errors; budgets are spent where it hurts
        least.
        ratios, max_ratios: the same for groups by name: pairs of a regular expression and a share.
    """

    ratio: float = 0.3
    budgets: tuple[Budget, ...] = ()
    scope: Scope = "global"
    align: int = 8
    strict: bool = False
    max_ratio: float = 1.0
    ratios: NamedRatios = ()
    max_ratios: NamedRatios = ()
    exponential: bool = False
    by_error: bool = False


@dataclass(frozen=True)
class Scale:
    """Measure one kind of cost on the finished model, where a prediction is not exact.

    Units
        near: share of the budget that may stay unused. meter: of a plan, in the unit of the kind; None: the cost model.
        additive: whether what the prediction misses is a difference; otherwise it is a factor.
    """

    weigh: Callable[[Graph], float]
    near: float = NEAR
    meter: Meter | None = None
    additive: bool = True

    def corrected(self, goal: float, predicted: float, spent: float) -> float:
        """Return the limit of the prediction, given what was predicted and spent for some plan near the goal."""
        if self.additive:
            return goal - (spent - predicted)
        return goal * (1 - self.near / 2) * predicted / spent


def named_ratios(option: str, texts: Sequence[str]) -> NamedRatios:
    """Read `REGEX:RATIO` texts.

    Raises
        PipelineError: one of them is something else.
    """
    found = []
    for text in texts:
        pattern, _, number = text.rpartition(":")
        try:
            re.compile(pattern)
            ratio = float(number)
        except (re.error, ValueError):
            ratio = math.nan
        if not pattern or not 0 <= ratio <= 1:
            raise PipelineError(f"{option}: {text!r} must be REGEX:RATIO with a ratio from 0 to 1, as in layer4:0.5")
        found.append((pattern, ratio))
    return tuple(found)


def ratios_by_name(graph: Graph, groups: Sequence[Group], named: NamedRatios) -> dict[int, float]:
    """Return the ratio of each group that a pattern names: by a weight that produces it, or by the node that reads it.

    The last pattern that matches counts.
    """
    names: dict[str, set[str]] = {}
    for node in graph.walk() if named else ():
        for name in node.inputs:
            names.setdefault(name, {name}).add(node.name)
    found: dict[int, float] = {}
    for pattern, ratio in named:
        search, before = re.compile(pattern).search, len(found)
        for number, group in enumerate(groups):
            own = {group.name}.union(*(names.get(tensor, {tensor}) for tensor, _ in group.axes))
            if any(map(search, own)):
                found[number] = ratio
                before = -1
        if before >= 0:
            log.warning("no group has a weight or node whose name matches %r", pattern)
    return found


@dataclass
class Choice:
    """Choose among the units of a coupling.

    Shapes
        kept: boolean, one entry per unit: what the user wants to stay.

    Units
        whole: what the source costs, by kind. carry_out: return the finished model of a plan. scales: by kind. sets:
        units of a group, and (widths, units) which of them go best when 0, 1, ... of them go.
    """

    terms: Terms
    graph: Graph
    coupling: Coupling
    kept: np.ndarray
    cost: Callable[[], CostModel]
    whole: Callable[[], Mapping[str, float]]
    carry_out: Callable[[np.ndarray], Graph]
    scales: Mapping[str, Scale] = field(default_factory=dict)
    sets: Sequence[tuple[np.ndarray, np.ndarray]] = ()

    def __post_init__(self) -> None:
        heads = self.terms.scope == "heads"
        self.groups = [group for group in self.coupling.groups if group.heads or not heads]
        self.fixed = ratios_by_name(self.graph, self.groups, self.terms.ratios)
        limits = ratios_by_name(self.graph, self.groups, self.terms.max_ratios)
        self.most = [limits.get(number, self.terms.max_ratio) for number in range(len(self.groups))]
        self.classes = classes_of(self.groups, self.terms.scope, self.fixed)
        self.sizes = [sum(self.groups[i].units.size for i in members) for members in self.classes]
        self.align = 1 if heads else self.terms.align

    def removed(self, scores: np.ndarray, progress: float = 1.0) -> np.ndarray:
        """Return which units go when `progress` (0 to 1) of the way is to be covered."""
        events = self.events(scores)
        first = [event for i, ratio in self.fixed.items() for event in self._share(events[i], i, ratio * progress)]
        rankings = [ranking([events[i] for i in members]) for members in self.classes]
        if self.terms.budgets:
            order = in_step(rankings, self.sizes)
            if self.terms.by_error:
                order = [event for members in self.classes for i in members for event in events[i]]
            return self._within_budgets(first, order, progress)
        share = _covered(self.terms.ratio, progress, self.terms.exponential)
        chosen = [event for order, size in zip(rankings, self.sizes) for event in take_share(order, share, size)]
        return self._gone([*first, *chosen])

    def events(self, scores: np.ndarray) -> list[list[Event]]:
        """Return the ladder of every group."""
        finite = np.where(np.isneginf(scores), np.nanmin(scores[np.isfinite(scores)], initial=0.0) - 1.0, scores)
        frozen = self.kept | protected_units(self.coupling, finite) | np.isposinf(scores)
        return ladder(self.coupling, self.groups, finite, frozen, self.align, self.most, self.terms.strict)

    def thinned(self, scores: np.ndarray, share: float) -> np.ndarray:
        """Return the plan that takes the same share of every group."""
        chosen = [event for i, own in enumerate(self.events(scores)) for event in self._share(own, i, share)]
        return self._gone(chosen)

    def _gone(self, events: Sequence[Event]) -> np.ndarray:
        """Return which units go after some events: of each group so many, and of these the best set."""
        removed = removed_by(events, self.coupling.n_units)
        for units, gone in self.sets:
            removed[units] = gone[removed[units].sum()]
        return removed

    def _share(self, events: Sequence[Event], number: int, ratio: float) -> list[Event]:
        return take_share(events, ratio, self.groups[number].units.size)

    def _within_budgets(self, first: list[Event], order: list[Event], progress: float) -> np.ndarray:
        whole = self.whole()
        goals = {b.kind: b.limit(whole[b.kind], progress, self.terms.exponential) for b in self.terms.budgets}
        meters = {kind: scale.meter for kind, scale in self.scales.items() if scale.meter and kind in goals}
        budgets = Budgets(self.cost(), goals, meters)
        removed = self._predicted(first, order, budgets)
        weighed = [kind for kind in goals if kind in self.scales]
        if not weighed or progress < 1:
            return self._checked(removed, budgets, goals, {})
        return self._corrected(first, order, budgets, removed, weighed)

    def _predicted(self, first: list[Event], order: list[Event], budgets: Budgets) -> np.ndarray:
        if self.terms.by_error:
            chosen = spend(order, first, budgets, self.coupling.n_units)
        else:
            chosen = take_within(order, budgets, self.coupling, self.groups, first)
        return self._gone([*first, *chosen])

    def _corrected(
        self, first: list[Event], order: list[Event], budgets: Budgets, removed: np.ndarray, weighed: list[str]
    ) -> np.ndarray:
        """Weigh the finished model and correct the limits by what the prediction missed."""
        goals = dict(budgets.limits)
        near = max(self.scales[kind].near for kind in weighed)
        least = budgets.costs(self._gone([*first, *order]))
        between = {kind: (least[kind], math.inf) for kind in weighed}
        best, most, spent = removed, 0.0, dict[str, float]()
        for _ in range(_CORRECTIONS):
            predicted = budgets.costs(removed)
            finished = self.carry_out(removed)
            spent = {**predicted, **{kind: self.scales[kind].weigh(finished) for kind in weighed}}
            used = max(spent[kind] / goal for kind, goal in goals.items())
            if most < used <= 1:
                best, most = removed, used
            if 1 - near <= used <= 1:
                break
            for kind in weighed:
                low, high = between[kind]
                fits = spent[kind] <= goals[kind]
                low, high = between[kind] = (max(low, predicted[kind]), high) if fits else (low, predicted[kind])
                limit = self.scales[kind].corrected(goals[kind], predicted[kind], spent[kind])
                budgets = budgets.at(kind, limit if low < limit < high else (low + high) / 2)
            before, removed = removed, self._predicted(first, order, budgets)
            if np.array_equal(before, removed):
                if used <= 1:
                    break
                for kind in weighed:
                    budgets = budgets.at(kind, (between[kind][0] + min(budgets.limits[kind], between[kind][1])) / 2)
                removed = self._predicted(first, order, budgets)
        if not most:  # perhaps everything that can go is enough
            best = self._gone([*first, *order])
            finished = self.carry_out(best)
            spent = {kind: self.scales[kind].weigh(finished) for kind in weighed}
            return self._checked(best, budgets, goals, spent)
        return best

    def _checked(
        self, removed: np.ndarray, budgets: Budgets, goals: Mapping[str, float], spent: Mapping[str, float]
    ) -> np.ndarray:
        """Return a plan that keeps to the budgets.

        Raises
            BudgetError: it does not; says the nearest that can be reached, and what the rest is made of.
        """
        costs = {**budgets.costs(removed), **spent}
        broken = [kind for kind, goal in goals.items() if costs[kind] > goal]
        if not broken:
            return removed
        kind = broken[0]
        whole, least = self.whole()[kind], costs[kind]
        asked = next(budget for budget in self.terms.budgets if budget.kind == kind)
        goal = f"{goals[kind] / whole:.4g}" if asked.share else amount_text(kind, goals[kind])
        raise BudgetError(
            f"select: {kind}={goal} cannot be reached; the least with align={self.align} is "
            f"{math.ceil(least / whole * 1e4) / 1e4:.4f} ({amount_text(kind, least)}): "
            f"{what_remains(budgets.model, kind, removed)}; see `prunepass inspect` for what cannot shrink"
        )


def whole_cost(cost: Cost) -> dict[str, float]:
    """Return what a model costs, by kind."""
    return {kind: float(getattr(cost, kind)) for kind in ("macs", "params", "bytes", "ram")}


def _covered(ratio: float, progress: float, exponential: bool) -> float:
    """Return the share to remove when `progress` of the way is covered: in equal steps, or keeping equal shares."""
    return 1 - (1 - ratio) ** progress if exponential else ratio * progress
