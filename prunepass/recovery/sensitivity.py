"""What an error in a layer does to the output of the network: noise is added there, and the output compared.

The noise is the layer's own output for another sample, centred: it has the covariance of real activations, in space
too. White noise would vanish in the next pool, which errors of pruning do not.

Source
    This project. Where OBS-like methods take a second derivative of the loss, this takes one more forward pass.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from onnx import ValueInfoProto, helper

from prunepass.feeds import Feeds
from prunepass.graph import Graph, Node
from prunepass.recovery.batches import Batches
from prunepass.runtime import Session, seed_random_nodes, session

NOISE = 0.05
"""Variance of the noise, relative to that of the layer's output."""
_MOST_MACS = 1.5e12
_MOST_BYTES = 256 << 20


def output_sensitivity(
    graph: Graph,
    variance: Mapping[str, float],
    elem_types: Mapping[str, int],
    batches: Batches,
    macs: int,
    seed: int,
) -> dict[str, float]:
    """Return, for each value in `variance`, the relative squared error of the outputs per squared error in it.

    macs: of one sample; fewer samples are used where a run is dear.
    """
    samples = int(np.clip(_MOST_MACS / max(1, macs * len(variance)), 2, 64))
    chosen = batches.first(samples).feeds
    taps = {value: graph.fresh_name(f"{value}__noise") for value in variance}
    running = session(seed_random_nodes(_with_noise(graph, taps, elem_types)), optimise="basic")
    silence = {
        tap: np.zeros((), helper.tensor_dtype_to_np_dtype(elem_types.get(value, 1))) for value, tap in taps.items()
    }
    found = dict.fromkeys(variance, 0.0)
    before: dict[str, np.ndarray] = {}
    for number, feeds in enumerate(chosen):
        quiet = {**feeds, **silence}
        clean = running.run(quiet, graph.output_names)
        power = {name: _power(value) for name, value in clean.items() if value.dtype.kind == "f"}
        for value, plain in _activations(running, taps, quiet):
            rng = np.random.default_rng([seed, zlib.crc32(value.encode()), number])
            noise = _noise(plain, before.get(value), rng) * math.sqrt(NOISE * variance[value])
            before[value] = plain[-1:]
            hurt = running.run({**quiet, taps[value]: noise.astype(plain.dtype)}, list(power))
            misses = [
                _power(hurt[name] - clean[name]) / own
                for name, own in power.items()
                if own > 0 and hurt[name].shape == clean[name].shape
            ]
            found[value] += float(np.mean(misses)) if misses else 0.0
    return {value: total / len(chosen) / max(NOISE * variance[value], 1e-30) for value, total in found.items()}


def _activations(running: Session, taps: Mapping[str, str], feeds: Feeds) -> Iterator[tuple[str, np.ndarray]]:
    """Yield values with what they are without noise, a portion at a time."""
    portion: list[str] = []
    values, size = list(taps), 0
    for at, value in enumerate(values):
        portion.append(value)
        if size == 0:
            plain = running.run(feeds, [f"{taps[value]}_plain"])[f"{taps[value]}_plain"]
            size = max(1, plain.nbytes)
        if len(portion) * size > _MOST_BYTES or at == len(values) - 1:
            found = running.run(feeds, [f"{taps[name]}_plain" for name in portion])
            yield from ((name, found[f"{taps[name]}_plain"]) for name in portion)
            portion, size = [], 0


def _noise(plain: np.ndarray, before: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Return noise of variance 1 in the shape of a value."""
    white = rng.standard_normal(plain.shape)
    if not plain.ndim:
        return white
    if len(plain) > 1:
        alike = np.roll(plain, 1, axis=0).astype(np.float64) - plain.mean(axis=0, dtype=np.float64)
    else:
        other = before if before is not None and before.shape == plain.shape else plain[..., ::-1]
        alike = other.astype(np.float64) - other.mean(dtype=np.float64)
    spread = float(np.sqrt(np.square(alike).mean()))
    return white if spread == 0 else alike / spread


def _power(value: np.ndarray) -> float:
    """Return the sum of squares around the mean of each sample: what a constant cannot explain."""
    rows = value.astype(np.float64).reshape(len(value) if value.ndim else 1, -1)
    rows = rows - rows.mean(axis=1, keepdims=True) if rows.shape[1] > 1 else rows
    return float(np.nan_to_num(np.square(rows).sum()))


def _with_noise(graph: Graph, taps: Mapping[str, str], elem_types: Mapping[str, int]) -> Graph:
    """Add an input to each value, and an output `<input>_plain` that shows it without."""
    noisy = graph.copy()
    producers = noisy.producers()
    made: dict[int, list[Node]] = {}
    for value, tap in taps.items():
        node, plain = producers[value], f"{tap}_plain"
        node.outputs = [plain if name == value else name for name in node.outputs]
        noisy.add_input(tap, elem_types.get(value, 1))
        made.setdefault(id(node), [node]).append(Node.make("Add", [plain, tap], [value]))
        noisy.outputs = [*noisy.outputs, ValueInfoProto(name=plain)]
    noisy.replace(made)
    return noisy
