"""Random inputs on the scale that the graph itself tells: where its stored statistics say what inputs were like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph, Node
from prunepass.rules.inputs import PASSES, STORED, UNDO, Stored
from prunepass.rules.linear import bias_of, linear

Undo = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Scale:
    """Turn noise into an input: the noise, scaled and shifted per channel, then every step on its way undone."""

    mean: np.ndarray
    deviation: np.ndarray
    axis: int
    steps: tuple[Undo, ...]

    def of(self, noise: np.ndarray) -> np.ndarray:
        """Return noise N(0, 1) as an input, or the noise itself where shapes do not fit."""
        value = noise.astype(np.float64)
        if self.mean.size > 1:
            if value.ndim < 2 or value.shape[self.axis] != self.mean.size:
                return noise
            wide = [-1 if axis == self.axis % value.ndim else 1 for axis in range(value.ndim)]
            value = value * self.deviation.reshape(wide) + self.mean.reshape(wide)
        else:
            value = value * self.deviation + self.mean
        for step in reversed(self.steps):
            value = step(value)
        good = value.shape == noise.shape and np.isfinite(value).all()
        return np.asarray(value.astype(noise.dtype)) if good else noise


def scale_of(graph: Graph, name: str) -> Scale | None:
    """Find what the graph stores about the values of an input; None where it stores nothing.

    From the input on, steps with a constant (x - mean, x / 255) are followed. If a BatchNormalization comes next, its
    mean and variance are those of its input. If a layer and then a BatchNormalization come next, the means of the
    channels of its input and one variance for all are fitted to them by least squares, as if the input were white
    noise. Else the result of the steps, if there are any, is taken to be N(0, 1).

    Source
        Yin et al. 2020, "Dreaming to Distill", section 3.2, for the idea that stored statistics tell the data; here
        for the first normalisation only, in closed form and without gradients.
    """
    uses, value = graph.uses(), name
    steps: list[Undo] = []
    while len(readers := uses.get(value, [])) == 1 and value not in graph.results:
        node, at = readers[0]
        undo = _undone(node, at, graph)
        if undo is None:
            break
        steps += undo
        value = node.outputs[0]
    found = _stored(graph, uses.get(value, [])) or _behind_layer(graph, value)
    if found is not None:
        return Scale(found.mean, np.sqrt(found.variance), found.axis, tuple(steps))
    return Scale(np.zeros(1), np.ones(1), 1, tuple(steps)) if steps else None


def _undone(node: Node, at: int, graph: Graph) -> list[Undo] | None:
    """Return what undoes a step; None where it cannot be undone."""
    if node.op in PASSES and at == 0:
        return []
    if node.op not in UNDO or at != 0 or node.inputs[1] not in graph.consts:
        return None
    constant, row = graph.consts[node.inputs[1]].astype(np.float64), UNDO[node.op]
    return [lambda value: row(value, constant)]


def _stored(graph: Graph, readers: list[tuple[Node, int]]) -> Stored | None:
    for node, at in readers:
        if node.op in STORED and at == 0:
            return STORED[node.op](node, graph)
    return None


def _behind_layer(graph: Graph, value: str) -> Stored | None:
    """Fit the moments of a layer's input to those that are stored of its output."""
    uses = graph.uses()
    layers = [linear(node, graph) for node, at in uses.get(value, []) if at == 0]
    for layer in layers:
        stored = None if layer is None else _stored(graph, uses.get(layer.y, []))
        if layer is None or stored is None:
            continue
        weight = graph.consts[layer.weight]
        matrix = layer.matrix(weight.astype(np.float64))
        taps = layer.taps(weight.shape)
        groups, features, outputs = matrix.shape
        if groups != 1 or outputs != stored.mean.size or not np.isfinite(matrix).all():
            continue
        by_channel = matrix[0].reshape(features // taps, taps, outputs)
        bias = bias_of(layer, graph, uses)
        added = graph.consts[bias.name].astype(np.float64).reshape(-1) if bias is not None and bias.name else 0.0
        mean = np.linalg.lstsq(by_channel.sum(axis=1).T, stored.mean - added, rcond=1e-6)[0]
        gain = np.square(matrix[0]).sum(axis=0)
        if gain.any():
            variance = float(gain @ stored.variance / (gain @ gain))
            return Stored(mean, np.full(mean.size, variance), layer.axis)
    return None
