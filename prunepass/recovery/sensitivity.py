"""What an error in a layer does to the output of the network: noise is added there, and the output compared.

Source
    This project. Where OBS-like methods take a second derivative of the loss, this takes one more forward pass.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import helper

from prunepass.graph import Graph, Node
from prunepass.recovery.batches import Batches
from prunepass.runtime import session

NOISE = 0.05
"""Variance of the noise, relative to that of the layer's output."""
_MOST_MACS = 1.5e12


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
    running = session(_with_noise(graph, taps, elem_types), optimise="basic")
    types = {tap: helper.tensor_dtype_to_np_dtype(elem_types.get(value, 1)) for value, tap in taps.items()}
    silence = {tap: np.zeros((), kind) for tap, kind in types.items()}
    found = dict.fromkeys(variance, 0.0)
    for number, feeds in enumerate(chosen):
        clean = running.run({**feeds, **silence})
        power = {name: _power(clean[name]) for name in graph.output_names if clean[name].dtype.kind == "f"}
        for value, tap in taps.items():
            rng = np.random.default_rng([seed, zlib.crc32(value.encode()), number])
            noise = rng.standard_normal(clean[f"{tap}_shape"]) * math.sqrt(NOISE * variance[value])
            hurt = running.run({**feeds, **silence, tap: noise.astype(types[tap])})
            misses = [
                _power(hurt[name] - clean[name]) / own
                for name, own in power.items()
                if own > 0 and hurt[name].shape == clean[name].shape
            ]
            found[value] += float(np.mean(misses)) if misses else 0.0
    scale = {value: max(NOISE * variance[value], 1e-30) * len(chosen) for value in variance}
    return {value: total / scale[value] for value, total in found.items()}


def _power(value: np.ndarray) -> float:
    """Return the variance around the mean of each sample: what a constant cannot explain."""
    rows = value.astype(np.float64).reshape(len(value) if value.ndim else 1, -1)
    rows = rows - rows.mean(axis=1, keepdims=True) if rows.shape[1] > 1 else rows
    return float(np.nan_to_num(np.square(rows).sum()))


def _with_noise(graph: Graph, taps: Mapping[str, str], elem_types: Mapping[str, int]) -> Graph:
    """Add an input to each value, and an output `<input>_shape` that says how large it must be."""
    noisy = graph.copy()
    producers = noisy.producers()
    made: dict[int, list[Node]] = {}
    for value, tap in taps.items():
        node = producers[value]
        plain = noisy.fresh_name(f"{value}__plain")
        node.outputs = [plain if name == value else name for name in node.outputs]
        noisy.add_input(tap, elem_types.get(value, 1))
        behind = [Node.make("Add", [plain, tap], [value]), Node.make("Shape", [plain], [f"{tap}_shape"])]
        made.setdefault(id(node), [node]).extend(behind)
        noisy.outputs = [*noisy.outputs, helper.make_tensor_value_info(f"{tap}_shape", 7, None)]
    noisy.replace(made)
    return noisy
