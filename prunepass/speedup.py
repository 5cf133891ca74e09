"""Judge a measured speed-up: how much of what its MACs promise came true, and why not more."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prunepass.choice import Choice, Scale
from prunepass.coupling import Coupling
from prunepass.errors import BudgetError
from prunepass.latency import SAMPLED, LatencyModel

log = logging.getLogger(__name__)
NEAR = 0.06
"""Share of a latency that may stay unused."""

PROMISED = 0.5
"""Share of what the MACs promise to save below which the reason is given."""
ENOUGH = 0.8
"""Share above which no other alignment is tried."""
LITTLE = 0.25
"""Share of the time that is no reason for anything."""
WIDTH = 8
WIDTHS = (8, 16)
"""Channels that the kernels of a CPU take at once: 8, or 16 with AVX-512."""


@dataclass(frozen=True)
class Speedup:
    """Hold what was measured.

    Units
        macs, ratio: what is left of the MACs and of the time. realised: time saved / MACs saved. reasons: why it is
        little; empty where it is enough.
    """

    before_ms: float
    after_ms: float
    macs: float
    align: int
    reasons: tuple[str, ...] = field(default=())

    @property
    def ratio(self) -> float:
        """Share of the time that is left."""
        return self.after_ms / self.before_ms

    @property
    def realised(self) -> float:
        """Time saved as a share of the MACs saved; 1 where no MACs are saved."""
        return (1 - self.ratio) / (1 - self.macs) if self.macs < 1 else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "before_ms": round(self.before_ms, 4),
            "after_ms": round(self.after_ms, 4),
            "ratio": round(self.ratio, 4),
            "macs_ratio": round(self.macs, 4),
            "realised": round(self.realised, 3),
            "align": self.align,
            "reasons": list(self.reasons),
        }


def judge(model: LatencyModel, coupling: Coupling, removed: np.ndarray, after_ms: float, align: int) -> Speedup:
    """Compare a measured time with what the MACs promise."""
    left = model.cost.predict(removed).macs / max(model.cost.total.macs, 1)
    found = Speedup(model.before_ms, after_ms, left, align)
    if found.realised >= PROMISED:
        return found
    return Speedup(model.before_ms, after_ms, left, align, _reasons(model, coupling, removed))


def learn_latency(choice: Choice, model: LatencyModel, scores: np.ndarray) -> None:
    """Let a choice keep to a latency: by prediction first, then by measurement."""
    model.learn([choice.thinned(scores, share) for share in SAMPLED], choice.carry_out)
    whole = choice.whole
    choice.whole = lambda: {**whole(), "latency": model.before_ms}
    choice.scales = {**choice.scales, "latency": Scale(model.weigh, NEAR, model.predict, additive=False)}


def judged(choice: Choice, model: LatencyModel, scores: np.ndarray, removed: np.ndarray) -> tuple[np.ndarray, Speedup]:
    """Return a plan with its measured speed-up; aligned to more channels where that is faster for the same MACs."""
    found = judge(model, choice.coupling, removed, model.weigh(choice.carry_out(removed)), choice.align)
    for align in WIDTHS if found.realised < ENOUGH and choice.terms.scope != "heads" else ():
        if align <= choice.align or align % choice.align:
            continue
        wider = replace(choice, terms=replace(choice.terms, align=align, strict=True))
        try:
            other = wider.removed(scores)
        except BudgetError:
            continue
        second = judge(model, choice.coupling, other, model.weigh(wider.carry_out(other)), align)
        if second.macs > found.macs:
            log.info("latency: align is raised from %d to %d", found.align, align)
            removed, found = other, second
    if found.reasons:
        text = "%.0f%% of the MACs are gone, but %.0f%% of the time: %s"
        log.warning(text, 100 * (1 - found.macs), 100 * (1 - found.ratio), "; ".join(found.reasons))
    return removed, found


def _reasons(model: LatencyModel, coupling: Coupling, removed: np.ndarray) -> tuple[str, ...]:
    found = []
    kept = [int((~removed[group.units]).sum()) for group in coupling.groups if removed[group.units].any()]
    odd = sum(number % WIDTH > 0 for number in kept)
    if odd > len(kept) / 4:
        found.append(f"alignment: {odd} of {len(kept)} groups keep a number of channels that is no multiple of {WIDTH}")
    shares = model.shares(removed)
    if shares["memory"] > max(shares["compute"], LITTLE):
        found.append(f"memory-bound: {shares['memory']:.0%} of the time goes with the bytes that are moved")
        if _weights_moved(model, removed) > PROMISED:
            found.append(f"batch: with {model.setting.batch} sample at a time most of these bytes are weights")
    if shares["overhead"] > shares["compute"]:
        found.append(f"overhead: {shares['overhead']:.0%} of the time is the same for any number of channels")
    return tuple(found) or ("the rest of the network takes the time: see `prunepass inspect --cost`",)


def _weights_moved(model: LatencyModel, removed: np.ndarray) -> float:
    """Return the share of weights in what is moved."""
    moved = np.asarray(model.traffic.sum(axis=0)).reshape(-1) * model.cost.sizes(removed)
    return float(moved[: model.cost.n_consts].sum() / max(moved.sum(), 1))
