"""Give a pruned model its accuracy back: refit every layer to what the dense model computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunepass.errors import UnsupportedError
from prunepass.graph import Graph
from prunepass.manager import Facts, Rewrite
from prunepass.recovery.batches import calibration, flat
from prunepass.recovery.judging import attempt, nearer
from prunepass.recovery.sequential import Options, Sequential
from prunepass.recovery.teacher import Teacher


@dataclass(frozen=True)
class Compensate(Rewrite):
    """Refit what slicing left to the dense model, layer by layer, by least squares on calibration data.

    Where the outputs are no nearer to those of the dense model on inputs that are held back, everything is taken back.

    Source
        He, Zhang, Sun 2017, section 3.2; see `recovery/sequential.py`. grail: GRAIL (CPAL 2026). bias: the bias alone,
        An et al. 2024, FLAP, section 3.3. Attention: CORP; see `recovery/logits.py`, `recovery/values.py`.

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
            facts.recovery.append(attempt(self, batches, kept=False, note=note))
            return 0
        before = graph.copy()
        work = Sequential(teacher, graph, batches, Options(facts.context.seed, self.memory << 20, method=self.method))
        layers = work.run(facts.context.tell)
        facts.recovery.append(attempt(self, batches, layers=[vars(layer) for layer in layers]))
        facts.pruned = facts.pruned or before
        if not work.changed:
            return 0
        if not nearer(before, graph, facts):
            graph.nodes, graph.consts = before.copy().nodes, before.consts.copy()
            return 0
        facts.cuts[-1].refitted = work.refitted()
        return len(work.changed)
