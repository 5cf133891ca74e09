"""Refit scale and shift of norms, channel by channel, to what the dense model puts out there.

A norm whose input has lost channels takes mean and variance over those that are left.

Source
    This project; one regression with intercept per channel, by the same ridge as for layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunepass.graph import Graph
from prunepass.recovery.ridge import Flat, Rows, fit
from prunepass.recovery.staged import Gone
from prunepass.rules.attending import UNREAD
from prunepass.rules.flat import flat_range
from prunepass.rules.gains import Gain, gain

if TYPE_CHECKING:
    from prunepass.recovery.sequential import Layer, Sequential

_ROWS = 4096


def norms(graph: Graph, layers: Collection[int]) -> Iterator[Gain]:
    """Yield the norms that something else reads than layers (ids of their nodes), which take in any scale."""
    uses, producers = graph.uses(), graph.producers()
    for node in graph.nodes:
        found = gain(node, graph, uses, producers)
        if found is not None:
            readers = [id(reader) for reader, _ in uses.get(found.y, ()) if reader.op not in UNREAD]
            if found.y in graph.results or any(reader not in layers for reader in readers):
                yield found


def refit_gain(work: Sequential, gain: Gain, layer: Layer) -> None:
    """Refit scale and shift of a norm, and put them in place where held-back rows are better by that."""
    grid = gain.scale in work.grids or gain.shift in work.grids
    if grid or not work.knows(gain.y) or work.pruned.has_run(gain.node):
        layer.note = "its numbers are integers" if grid else "the dense model has no such value"
        return
    results, uses = work.graph.results, work.graph.uses()
    flat = Flat() if gain.y in results else Flat(*flat_range(uses.get(gain.y, []), work.graph))
    work.dense.need(gain.y)
    work.pruned.need(gain.x)
    try:
        found = GainRefit(gain, work).run(flat)
    except Gone as reason:
        found = str(reason)
    work.dense.release(gain.y)
    work.pruned.release(gain.x)
    if isinstance(found, str):
        layer.note = found
        return
    layer.before, layer.after, layer.ridge, layer.rows = found.before, found.after, found.ridge, found.rows
    if not layer.is_better(work.options.least_gain):
        return
    layer.method = "gains"
    for name, new in found.tensors.items():
        work.put(name, new)


@dataclass
class Outcome:
    """Hold new constants by name, and the errors on held-back rows."""

    tensors: dict[str, np.ndarray]
    before: float
    after: float
    ridge: float
    rows: int


class GainRefit:
    """Refit one scale and shift; nothing is changed, `run` returns the new ones, or why there are none."""

    def __init__(self, gain: Gain, work: Sequential) -> None:
        self.gain, self.graph, self.teacher, self.batches = gain, work.graph, work.teacher, work.batches
        self.dense, self.pruned, self.seed = work.dense, work.pruned, work.options.seed

    def run(self, flat: Flat) -> Outcome | str:
        """Fit the output of the dense model to the own one; asks for the dense output and the input to be there."""
        train, held = self._rows()
        if not train.n or not held.n:
            return "too few rows to judge what is fitted"
        scale = self.graph.consts[self.gain.scale]
        size = scale.size
        shift = np.zeros((size, 1)) if self.gain.shift else None
        found = fit(train, held, np.ones((size, 1, 1)), shift, flat)
        factor = found.weight.reshape(scale.shape)
        tensors = {self.gain.scale: (scale * factor).astype(scale.dtype)}
        if self.gain.shift:
            old = self.graph.consts[self.gain.shift]
            tensors[self.gain.shift] = (old * factor.reshape(old.shape) + found.bias.reshape(old.shape)).astype(
                old.dtype
            )
        return Outcome(tensors, found.before, found.after, found.ridge, train.n + held.n)

    def _rows(self) -> tuple[Rows, Rows]:
        """Return rows of own and dense outputs, each channel a group."""
        train, held, y = Rows(), Rows(), self.gain.y
        trial = self.pruned.trial(y)
        for batch in range(len(self.batches.feeds)):
            dense = self.teacher.narrowed(y, self.batches.checked(y, self.dense.value(y, batch), batch))
            sides = [self._columns(trial.run(batch)), self._columns(dense)]
            pick = self.batches.sampled(y, batch, sides[0].shape[1], _ROWS, self.seed)
            (held if self.batches.held_back(batch) else train).add(*(side[:, pick, None] for side in sides))
        return train, held

    def _columns(self, value: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(value, self.gain.axis, 0)
        return moved.reshape(moved.shape[0], -1)
