"""Give a pruned model its accuracy back: refit every layer to what the dense model computes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

from prunepass.errors import UnsupportedError
from prunepass.graph import Graph
from prunepass.manager import Facts, Rewrite
from prunepass.recovery.batches import Batches, calibration, flat
from prunepass.recovery.judging import distances, judging_batches
from prunepass.recovery.sequential import Options, Sequential
from prunepass.recovery.teacher import Teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compensate(Rewrite):
    """Refit what slicing left to the dense model, layer by layer, by least squares on calibration data.

    Where the outputs are no nearer to those of the dense model on inputs that are held back, everything is taken back.

    Source
        He, Zhang, Sun 2017, section 3.2; see `recovery/sequential.py`. grail: GRAIL (CPAL 2026). bias: the bias alone,
        An et al. 2024, FLAP, section 3.3.

    Units
        memory: MB of activations that are held; beyond it they go to files. method: auto is ls, grail where a layer has
        too many features for it.
    """

    name = "compensate"
    idempotent = False

    method: Literal["auto", "ls", "grail", "bias"] = "auto"
    memory: int = 1024

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of layers whose weights changed."""
        if not facts.cuts and facts.last_plan is None:
            raise UnsupportedError("compensate: nothing was pruned; put select and slice-channels before it")
        if not facts.cuts:
            return 0
        if facts.cuts[-1].lossless:
            raise UnsupportedError("compensate: the last cut was a lossless one; put fold-zero-filters behind it")
        teacher = Teacher(facts.cuts)
        batches, _ = calibration(facts).parted()
        if flat(batches, facts.source):
            note = "the data are one value throughout: no weight was refitted; give typical inputs"
            facts.recovery.append({**self._entry(batches), "kept": False, "note": note})
            return 0
        before = graph.copy()
        work = Sequential(teacher, graph, batches, Options(facts.context.seed, self.memory << 20, method=self.method))
        layers = work.run(facts.context.tell)
        facts.recovery.append({**self._entry(batches), "layers": [vars(layer) for layer in layers]})
        facts.pruned = facts.pruned or before
        if not work.changed:
            return 0
        if not _better(before, graph, facts):
            graph.nodes, graph.consts = before.copy().nodes, before.consts.copy()
            return 0
        facts.cuts[-1].refitted = work.refitted()
        return len(work.changed)

    def _entry(self, batches: Batches) -> dict[str, Any]:
        return {"pass": str(self), "samples": batches.samples, "kept": True, "note": "", "layers": []}


def _better(before: Graph, after: Graph, facts: Facts) -> bool:
    """Say whether the outputs have come nearer to those of the dense model; note what was found."""
    judged = judging_batches(facts)
    facts.context.tell("judge", 0, 1)
    found = distances(facts.source, {"before": before, "after": after}, judged.feeds)
    old, new = found["before"].error, found["after"].error
    noted = facts.recovery[-1]
    noted |= {"judged_on": judged.samples, "drawn": judged.drawn, "before": old, "after": new}
    if not new < old:
        noted["kept"] = False
        kind = "drawn" if judged.drawn else "held-back"
        noted["note"] = (
            f"the refit was taken back: on {judged.samples} {kind} inputs the outputs are no nearer to those of the "
            f"dense model (squared error {new:.3g}, {old:.3g} without); give more data"
        )
        log.warning("compensate: %s", noted["note"])
    return bool(noted["kept"])
