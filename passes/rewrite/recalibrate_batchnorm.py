"""Measure again what BatchNormalization subtracts and divides by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph
from prunepass.manager import Facts, Rewrite
from prunepass.recovery.batches import calibration
from prunepass.recovery.judging import attempt, nearer
from prunepass.recovery.staged import Staged, Store
from prunepass.recovery.teacher import Teacher
from prunepass.rules.statistics import stored_statistics


@dataclass(frozen=True)
class RecalibrateBatchnorm(Rewrite):
    """Set the mean and variance of every BatchNormalization behind something pruned to those of calibration data.

    Where the outputs are no nearer to those of the dense model on inputs that are held back, everything is taken back:
    behind `compensate` there is nothing left to do.

    Source
        Li et al. 2020, EagleEye, section 3.3 (adaptive BatchNorm); here layer after layer, so that each sees inputs
        that are recalibrated already.

    Units
        memory: MB of activations that are held; beyond it they go to files.
    """

    name = "recalibrate-batchnorm"
    idempotent = False

    memory: int = 1024

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of nodes whose statistics changed; 0 where nothing was pruned."""
        if not facts.cuts or facts.cuts[-1].lossless:
            return 0
        teacher, read = Teacher(facts.cuts), Counter(name for node in graph.walk() for name in node.inputs)
        found = [stored_statistics(node, graph) for node in graph.nodes]
        chosen = [names for names in found if names and read[names[1]] == read[names[2]] == 1]
        behind = teacher.behind(graph)
        chosen = [names for names in chosen if names[0] in behind]
        if not chosen:
            return 0
        batches, _ = calibration(facts).parted()
        before = graph.copy()
        running = Staged(graph, batches.feeds, Store(self.memory << 20))
        changed: dict[str, np.ndarray] = {}
        for number, (x, mean, variance) in enumerate(chosen):
            facts.context.tell(self.name, number, len(chosen))
            running.need(x)
            measured = _moments([running.value(x, batch) for batch in range(len(batches.feeds))])
            running.release(x)
            for name, value in zip((mean, variance), measured):
                if np.isfinite(value).all():
                    graph.consts[name] = changed[name] = value.astype(graph.consts[name].dtype)
        running.close()
        facts.recovery.append(attempt(self, batches, nodes=len(chosen)))
        facts.pruned = facts.pruned or before
        if not nearer(before, graph, facts):
            graph.consts = before.consts.copy()
            return 0
        cut = facts.cuts[-1]
        whole = (cut.refitted or cut.before).copy()
        for name, narrow in changed.items():
            whole.consts[name] = teacher.widened(name, narrow, whole.consts[name])
        cut.refitted = whole
        return len(chosen)


def _moments(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each channel, axis 1, over all values."""
    count, total, squares = 0, np.zeros(values[0].shape[1]), np.zeros(values[0].shape[1])
    for value in values:
        rows = np.moveaxis(np.asarray(value, np.float64), 1, -1).reshape(-1, value.shape[1])
        count, total, squares = count + len(rows), total + rows.sum(axis=0), squares + np.square(rows).sum(axis=0)
    mean = total / count
    return mean, np.maximum(squares / count - np.square(mean), 0.0)
