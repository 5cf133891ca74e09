"""Statistics of the values of a graph on calibration data: each question costs at most one forward pass.

The graph is run piece by piece (`Staged`); what is tapped is an output of its piece, so no optimisation of onnxruntime
can fuse it away. Nothing but the statistics stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph
from prunepass.recovery.batches import Batches
from prunepass.recovery.moments import Gram, Moments
from prunepass.recovery.staged import Staged, Store
from prunepass.recovery.threads import one_thread
from prunepass.rules.linear import Linear, linear

Channels = tuple[str, tuple[int, ...]]
"""A value and the axes that are its channels."""
_LEAST_ROWS, _ROWS_PER_FEATURE = 16384, 20
_TYPICAL = 1 << 24
"""Bytes of a value whose shape is not known."""


@dataclass(frozen=True)
class Tap:
    """Say which values are wanted together, and who gets them, as (batch, value, value ...)."""

    names: tuple[str, ...]
    visit: Callable[..., None]


class Statistics:
    """Answer for one graph and its calibration data; what was computed once is kept.

    layers: its products with constant matrices (`rules/linear.py`), in topological order. drawn: the data are random.

    Units
        memory: bytes of activations in memory, beyond it they go to files.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Batches,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        seed: int = 0,
        memory: int = 1 << 30,
        tell: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.graph, self.batches, self.seed, self.memory, self.tell = graph, batches, seed, memory, tell
        found = (linear(node, graph) for node in graph.nodes)
        self.layers = tuple(product for product in found if product is not None)
        self.drawn = batches.drawn
        self._shapes = shapes or {}
        self._position = {name: at for at, node in enumerate(graph.nodes) for name in node.outputs}
        self._inputs: dict[str, Moments] = {}
        self._channels: dict[Channels, Moments] = {}

    def inputs(self, layers: Sequence[Linear]) -> dict[str, Moments]:
        """Return the moments of what layers read, by the name of what they put out.

        All positions count, once each; the taps of a kernel share the moments of their channel.

        Shapes
            (groups, channels of a group).
        """
        missing = [(layer, Moments()) for layer in layers if layer.y not in self._inputs]
        self.stream([self._input_tap(*pair) for pair in missing])
        self._inputs.update((layer.y, found) for layer, found in missing)
        return {layer.y: self._inputs[layer.y] for layer in layers}

    def channels(self, wanted: Sequence[Channels]) -> dict[Channels, Moments]:
        """Return the moments of values over all axes but some.

        Shapes
            (1, product of the lengths of these axes).
        """
        missing = {key: Moments() for key in wanted if key not in self._channels}
        self.stream([self._channel_tap(*pair) for pair in missing.items()])
        self._channels.update(missing)
        return {key: self._channels[key] for key in wanted}

    def grams(self, layers: Sequence[Linear], targets: Mapping[str, str] | None = None) -> dict[str, Gram]:
        """Return Gram matrices of the rows (im2col patches) of layers at sampled positions, by what they put out.

        targets: for such a name another value, of the same shape, whose cross products with the rows are wanted too.
        """
        found = {layer.y: Gram() for layer in layers}
        self.stream([self._gram_tap(layer, found[layer.y], (targets or {}).get(layer.y)) for layer in layers])
        return found

    def first(self, samples: int) -> Statistics:
        """Return the same for about the first samples only."""
        few = self.batches.first(samples)
        return Statistics(self.graph, few, self._shapes, self.seed, self.memory, self.tell)

    def rows(self, layer: Linear, batch: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a layer for one batch, (groups, n, features), and their positions; seeded by its name."""
        shape = self.graph.consts.shape(layer.weight)
        features = layer.arrange(np.zeros(shape, np.int8)).shape[1]
        wanted = max(_LEAST_ROWS, _ROWS_PER_FEATURE * features)
        pick = self.batches.sampled(layer.y, batch, layer.count(y), wanted, self.seed)
        return layer.rows(x, shape, y.shape, pick), pick

    @one_thread()
    def stream(self, taps: Sequence[Tap]) -> None:
        """Run the graph once, as far as the taps need it, and hand them their values batch by batch.

        Raises
            ModelError: a value is not finite.
        """
        if not taps:
            return
        ordered = sorted(taps, key=lambda tap: max(self._position.get(name, -1) for name in tap.names))
        names = {name for tap in taps for name in tap.names}
        staged = Staged(self.graph, self.batches.feeds, Store(self.memory), names)
        left = {name: sum(name in tap.names for tap in taps) for name in names}
        done = 0
        for stage in self._stages(ordered):
            staged.need(*(name for tap in stage for name in tap.names))
            for batch in range(len(self.batches.feeds)):
                for tap in stage:
                    tap.visit(batch, *(self._checked(name, staged.value(name, batch), batch) for name in tap.names))
            for name in [name for tap in stage for name in tap.names]:
                left[name] -= 1
            staged.release(*(name for name, count in left.items() if not count))
            done += len(stage)
            if self.tell is not None:
                self.tell("statistics", done, len(taps))
        staged.close()

    def _stages(self, taps: Sequence[Tap]) -> Iterator[list[Tap]]:
        """Cut taps into runs whose values fit half of the memory."""
        stage: list[Tap] = []
        names: set[str] = set()
        for tap in taps:
            wider = {*names, *tap.names}
            if stage and sum(map(self._size, wider)) > self.memory / 2:
                yield stage
                stage, wider = [], {*tap.names}
            stage.append(tap)
            names = wider
        yield stage

    def _size(self, name: str) -> float:
        """Estimate the bytes of a value over all batches, from its shape for the chosen sizes of the inputs."""
        own = next(iter(self.graph.input_names), "")
        if name not in self._shapes or own not in self._shapes:
            return _TYPICAL
        times = sum(feeds[own].size for feeds in self.batches.feeds) / max(1, math.prod(self._shapes[own]))
        return 4 * math.prod(self._shapes[name]) * times

    def _checked(self, name: str, value: np.ndarray, batch: int) -> np.ndarray:
        return self.batches.checked(name, value, batch)

    def _input_tap(self, layer: Linear, found: Moments) -> Tap:
        groups = layer.groups(self.graph.consts.shape(layer.weight))
        return Tap((layer.x,), lambda batch, x: found.add(layer.channels(x, groups)))

    def _channel_tap(self, key: Channels, found: Moments) -> Tap:
        return Tap((key[0],), lambda batch, value: found.add(by_channel(value, key[1])))

    def _gram_tap(self, layer: Linear, found: Gram, target: str | None) -> Tap:
        groups = layer.groups(self.graph.consts.shape(layer.weight))

        def visit(batch: int, x: np.ndarray, y: np.ndarray, other: np.ndarray | None = None) -> None:
            rows, pick = self.rows(layer, batch, x, y)
            found.add(rows, None if other is None else layer.targets(other, groups, pick))

        return Tap((layer.x, layer.y, *([target] if target else [])), visit)


def by_channel(value: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Turn a value into (1, the rest, what the axes count in C order)."""
    last = range(value.ndim - len(axes), value.ndim)
    return np.moveaxis(value, axes, last).reshape(1, -1, math.prod(value.shape[axis] for axis in axes))
