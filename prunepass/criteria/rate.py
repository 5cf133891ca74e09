"""Rate the units of a graph: sites -> unit (reduction) -> group (normaliser)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from prunepass.criteria.base import Criterion
from prunepass.criteria.combine import NORMALISERS, reduce_sites
from prunepass.criteria.weights import Site, Weights
from prunepass.registry import find

if TYPE_CHECKING:
    from prunepass.coupling import Coupling
    from prunepass.graph import Graph
    from prunepass.manager import Facts

Places: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
_NO_GROUP = -1


@dataclass(frozen=True, eq=False)
class ImportanceFacts:
    """Hold how much every unit matters.

    Shapes
        scores: float64 [n_units], larger is more important; +inf for the pinned unit 0, for units without a group
        and for groups that cannot be scored. raw: the same before normalising, NaN instead of +inf.
        sites: per group, in the order of the coupling, the places (tensor or value, axes) that were scored.
        notes: one sentence for each group that was not scored as asked. sets: of the criterion, see `Criterion.sets`.
    """

    scores: np.ndarray
    raw: np.ndarray
    sites: tuple[Places, ...]
    notes: tuple[str, ...]
    sets: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.scores


def weights_for(criterion: Criterion, graph: Graph, coupling: Coupling, facts: Facts) -> Weights:
    """Return the constants of a graph with the facts about it that a criterion needs."""
    known = {}
    for name in criterion.needs:
        same = {"policy": coupling.policy} if "policy" in find(name).__dataclass_fields__ else {}
        known[name] = facts.get(name, **same)
    return Weights(graph, coupling, facts.context.seed, known)


def rate(weights: Weights, criterion: Criterion, reduce: str = "mean", normalise: str = "auto") -> ImportanceFacts:
    """Score all units; a group that lacks sites in the first tier of the criterion falls to the next."""
    coupling = weights.coupling
    members = [group.units.reshape(-1) for group in coupling.groups]
    owner = np.full(coupling.n_units, _NO_GROUP)
    for number, units in enumerate(members):
        owner[units] = number
    raw, scores = np.full(coupling.n_units, np.nan), np.full(coupling.n_units, np.inf)
    sites: list[Places] = [()] * len(members)
    notes: list[str] = []
    chosen = NORMALISERS[criterion.normalise if normalise == "auto" else normalise]
    pending = [number for number, units in enumerate(members) if units.size]
    tiers = criterion.tiers(weights)
    first = next(iter(tiers))
    for tier, candidates in tiers.items():
        waiting = np.isin(owner, pending)
        used = [site for site in candidates if waiting[site.units].any()]
        values, count = reduce_sites(criterion.scores(weights, used), coupling.n_units, reduce)
        done = [number for number in pending if count[members[number]].all()]
        for number in done:
            units = members[number]
            raw[units] = criterion.finish(values[units])
            scores[units] = chosen(raw[units])
        _record(sites, used, owner, set(done))
        notes += [f"{coupling.groups[n].name}: no {first}, scored by {tier}" for n in done if tier != first]
        pending = [number for number in pending if number not in done]
    if any(weights.fact(name).drawn for name in criterion.needs if name == "statistics"):
        notes.append(f"{criterion}: scored on random inputs; calibration data give better scores")
    notes += [f"{coupling.groups[n].name}: no float constants, not scored and so kept" for n in pending]
    return ImportanceFacts(scores, raw, tuple(sites), tuple(notes), tuple(criterion.sets(weights)))


def _record(sites: list[Places], used: list[Site], owner: np.ndarray, done: set[int]) -> None:
    for site in used:
        for number in np.unique(owner[site.units]).tolist():
            if number in done:
                sites[number] += ((site.tensor, site.axes),)
