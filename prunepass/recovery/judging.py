"""How far a model is from the dense one, on inputs that no refit has seen."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prunepass.errors import PruneError
from prunepass.feeds import Feeds
from prunepass.graph import Graph
from prunepass.recovery.batches import Batches, calibration, drawn, varies
from prunepass.runtime import seed_random_nodes, session

if TYPE_CHECKING:
    from prunepass.manager import Facts, Rewrite

log = logging.getLogger(__name__)
_CLASSIFIER_RANKS = (2, 3)  # (samples, classes), (samples, places, classes)


@dataclass(frozen=True)
class Distance:
    """Say how far a model is from the dense one.

    Units
        error: squared error of the outputs, relative to their variance; the mean of all outputs. agreement: share of
        rows in which the same entry is the largest; None where no output looks like scores of classes.
    """

    error: float
    agreement: float | None

    @property
    def likeness(self) -> float:
        """What counts where there is no other measure: the agreement, else 1 - error; 1 is the dense model."""
        return 1 - self.error if self.agreement is None else self.agreement


def judging_batches(facts: Facts) -> Batches:
    """Return what models are judged on: held-back data; drawn inputs where none are held back or all are the same."""
    context = facts.context
    given = None if context.calibration is None and context.data is None else calibration(facts)
    held = None if given is None else given.parted()[1]
    if given is not None and held is not None and held.feeds and varies(given, facts.source):
        return held
    return drawn(facts.source, facts.get("shapes").shape, facts.context.seed)


def distances(dense: Graph, others: Mapping[str, Graph], feeds: Iterable[Feeds]) -> dict[str, Distance]:
    """Run all models side by side and compare each with the dense one; inputs on which one does not run are left out.

    Raises
        ModelError: onnxruntime runs them on none.
    """
    teacher = session(seed_random_nodes(dense), optimise="basic")
    running = {name: session(seed_random_nodes(graph), optimise="basic") for name, graph in others.items()}
    tallies: dict[str, dict[str, _Tally]] = {name: {} for name in others}
    failed: PruneError | None = None
    for one in feeds:
        try:
            wanted, made = teacher.run(one), {name: model.run(one) for name, model in running.items()}
        except PruneError as error:  # a route through experts, say, that the exporter did not see
            failed = error
            log.info("judging: an input is left out: %s", error)
            continue
        for name, outputs in made.items():
            for output, found in outputs.items():
                if _is_numeric(wanted.get(output)):
                    tallies[name].setdefault(output, _Tally()).add(wanted[output], np.asarray(found))
    if failed is not None and not any(tallies.values()):
        raise failed
    return {name: _summary(list(own.values())) for name, own in tallies.items()}


def attempt(done: Rewrite, batches: Batches, **more: Any) -> dict[str, Any]:
    """Return what the report says of a pass that refits something: kept unless `nearer` finds otherwise."""
    return {"pass": str(done), "samples": batches.samples, "kept": True, "note": "", "layers": [], **more}


def nearer(before: Graph, after: Graph, facts: Facts) -> bool:
    """Say whether the outputs have come nearer to those of the dense model; note it on the last attempt."""
    judged = judging_batches(facts)
    facts.context.tell("judge", 0, 1)
    found = distances(facts.source, {"before": before, "after": after}, judged.feeds)
    old, new = found["before"].error, found["after"].error
    noted = facts.recovery[-1]
    noted |= {"judged_on": judged.samples, "drawn": judged.drawn, "before": old, "after": new}
    if not new < old:
        kind = "drawn" if judged.drawn else "held-back"
        noted["kept"] = False
        noted["note"] = (
            f"the refit was taken back: on {judged.samples} {kind} inputs the outputs are no nearer to those of the "
            f"dense model (squared error {new:.3g}, {old:.3g} without); give more data"
        )
        name = noted["pass"].partition("{")[0]
        log.warning("%s: %s", name, noted["note"])
    return bool(noted["kept"])


@dataclass
class _Tally:
    """Collect one output over all runs."""

    floating: bool = True
    miss: float = 0.0
    count: int = 0
    sums: float = 0.0
    squares: float = 0.0
    rows: int = 0
    same: int = 0
    classes: bool = True
    origin: float | None = field(default=None)  # a value near the mean, so that the variance keeps its digits

    def add(self, wanted: np.ndarray, found: np.ndarray) -> None:
        """Take in one run."""
        self.floating = wanted.dtype.kind == "f"
        a = wanted.astype(np.float64)
        fits = found.shape == wanted.shape
        b = found.astype(np.float64) if fits else np.full(a.shape, np.inf)
        finite = np.isfinite(a)
        if self.origin is None:
            self.origin = float(a[finite].mean()) if finite.any() else 0.0
        near = a[finite] - self.origin
        self.count += near.size
        self.sums += float(near.sum())
        self.squares += float(np.square(near).sum())
        if self.floating:
            with np.errstate(over="ignore", invalid="ignore"):
                miss = float(np.square(b[finite] - a[finite]).sum())
            self.miss += miss if math.isfinite(miss) else math.inf
            self._count_best(a, b, finite)
        else:
            self.miss += float((a != b).sum())

    def _count_best(self, a: np.ndarray, b: np.ndarray, finite: np.ndarray) -> None:
        if a.ndim not in _CLASSIFIER_RANKS or a.shape[-1] < 2 or not a.size or not finite.all():
            self.classes = False
            return
        top = np.partition(a, -2, axis=-1)[..., -2:]
        self.classes = self.classes and bool((top[..., 0] < top[..., 1]).all())
        right = (a.argmax(-1) == b.argmax(-1)) & np.isfinite(b).all(-1)
        self.rows += right.size
        self.same += int(right.sum())

    @property
    def error(self) -> float:
        """The squared error relative to the variance; of integers, the share that differs."""
        if not self.floating:
            return self.miss / max(1, self.count)
        variance = self.squares - self.sums * self.sums / max(1, self.count)
        return self.miss / variance if variance > 1e-12 * self.squares else math.inf if self.miss > 0 else 0.0


def _summary(tallies: list[_Tally]) -> Distance:
    """Sum up outputs; integers count only where nothing is floating."""
    counted = [t for t in tallies if t.floating] or tallies
    scores = [t.same / t.rows for t in tallies if t.floating and t.classes and t.rows]
    error = float(np.mean([t.error for t in counted])) if counted else 0.0
    return Distance(error, float(np.mean(scores)) if scores else None)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.size > 0
