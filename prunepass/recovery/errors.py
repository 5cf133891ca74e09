"""What the removal of each unit costs in output error, from calibration data: the readers of all groups, swept."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.coupling import Coupling
from prunepass.graph import Graph
from prunepass.labels import spans
from prunepass.recovery.batches import Batches
from prunepass.recovery.obs import Reader, Sweep
from prunepass.recovery.sensitivity import output_sensitivity
from prunepass.recovery.sequential import Options, Place, places
from prunepass.recovery.staged import Staged, Store

_LEAST_ROWS, _ROWS_PER_FEATURE, _MOST_ROW_BYTES = 16384, 16, 200 << 20


@dataclass(frozen=True)
class UnitErrors:
    """Hold what removing units costs.

    Shapes
        scores: (units,) what a unit adds to the output error when it goes after all cheaper ones of its group.
    Units
        scores: squared error of the outputs relative to their variance, as the noise experiment predicts it.
    """

    scores: np.ndarray
    sensitivity: dict[str, float]


@dataclass
class _Seen:
    """Covariances of one layer, group by group, and the variance of what it makes."""

    place: Place
    covariance: np.ndarray
    rows: int
    weight: np.ndarray
    units: np.ndarray
    variance: float


def unit_errors(
    graph: Graph,
    coupling: Coupling,
    batches: Batches,
    macs: int,
    options: Options,
    tell: Callable[[str, int, int], None] | None = None,
) -> UnitErrors:
    """Sweep every group; units that no layer reads cost nothing."""
    seen = list(_look(graph, coupling, batches, options, tell))
    variance = {layer.place.y: layer.variance for layer in seen if layer.variance > 0}
    weight = output_sensitivity(graph, variance, coupling.elem_types, batches, macs, options.seed) if variance else {}
    readers: dict[int, list[Reader]] = {}
    group_of = np.zeros(coupling.n_units, np.int64)
    for number, group in enumerate(coupling.groups, 1):
        group_of[group.units] = number
    for layer in seen:
        for at, units in enumerate(layer.units):
            if units.any():
                share = weight.get(layer.place.y, 0.0) / layer.weight.shape[2] / len(layer.units)
                reader = Reader.of(layer.covariance[at], layer.rows, layer.weight[at], units, share)
                for number in np.unique(group_of[units[units > 0]]):
                    readers.setdefault(int(number), []).append(reader)
    scores = np.zeros(coupling.n_units)
    for number, group in enumerate(coupling.groups, 1):
        if tell is not None:
            tell("obs", number, len(coupling.groups))
        if number in readers:
            flat = group.units.reshape(-1)
            order, costs = Sweep(readers[number], flat).run(min(len(group.units), flat.size))
            scores[flat] = np.inf
            scores[flat[order]] = np.maximum.accumulate(costs)
            last = costs.max(initial=0.0)
            scores[flat] = np.where(np.isinf(scores[flat]), 2 * last + 1e-12, scores[flat])
    return UnitErrors(scores, weight)


def _look(
    graph: Graph,
    coupling: Coupling,
    batches: Batches,
    options: Options,
    tell: Callable[[str, int, int], None] | None,
) -> Iterator[_Seen]:
    """Run the graph once and yield every layer that reads units."""
    running = Staged(graph, batches.feeds, Store(options.memory))
    todo = [(place, units) for place in places(graph) if (units := feature_units(place, graph, coupling)) is not None]
    for number, (place, units) in enumerate(todo):
        if tell is not None:
            tell("statistics", number, len(todo))
        product = place.product
        weight = product.matrix(graph.consts[product.weight].astype(np.float64))
        if weight.shape[1] > options.most_features:
            continue
        running.need(product.x, place.y)
        found = _covariance(running, place, weight.shape, graph.consts.shape(product.weight), batches, options.seed)
        running.release(product.x, place.y)
        covariance, rows, variance = found
        yield _Seen(place, covariance, rows, weight, units, variance)
    running.close()


def feature_units(place: Place, graph: Graph, coupling: Coupling) -> np.ndarray | None:
    """Return the unit of every feature of a layer, (groups, features); None where it reads none.

    A unit that the layer also makes, as in a depthwise convolution, costs nothing there.
    """
    product = place.product
    shape = graph.consts.shape(product.weight)
    made = [factor.reshape(-1) for factor in coupling.factors.get(product.y, ()) if factor.shape[product.axis] > 1]
    own = np.unique(np.concatenate([np.zeros(1, np.int64), *made]))
    found: np.ndarray | None = None
    for factor in coupling.factors.get(product.weight, ()):
        units = product.matrix(np.broadcast_to(factor.astype(np.float32), shape)).astype(np.int64)
        first = units[:, :, 0]
        if spans(factor) and (units == first[:, :, None]).all():
            first = np.where(np.isin(first, own), 0, first)
            found = first if found is None else np.maximum(found, first)
    return found if found is not None and found.any() else None


def _covariance(
    running: Staged,
    place: Place,
    shape: Sequence[int],
    stored: Sequence[int],
    batches: Batches,
    seed: int,
) -> tuple[np.ndarray, int, float]:
    """Return the covariance of the features of each group, and the mean variance of an output channel."""
    groups, features, outputs = shape
    product, count = place.product, len(batches.feeds)
    wanted = min(max(_LEAST_ROWS, _ROWS_PER_FEATURE * features), _MOST_ROW_BYTES // (4 * groups * features))
    n, sums, squares = 0, np.zeros((groups, features)), np.zeros((groups, features, features))
    y_sum, y_square = np.zeros((groups, outputs)), np.zeros((groups, outputs))
    for batch in range(count):
        y, x = running.value(place.y, batch), running.value(product.x, batch)
        rows = product.count(y)
        take = min(rows, -(-wanted // count))
        rng = np.random.default_rng([seed, zlib.crc32(product.y.encode()), batch])
        pick = np.sort(rng.choice(rows, take, replace=False)) if take < rows else np.arange(rows)
        a = product.rows(x, stored, y.shape, pick).astype(np.float64)
        b = product.targets(y, groups, pick).astype(np.float64)
        n += take
        sums += a.sum(axis=1)
        squares += a.transpose(0, 2, 1) @ a
        y_sum += b.sum(axis=1)
        y_square += np.square(b).sum(axis=1)
    mean = sums / n
    variance = np.maximum(y_square / n - np.square(y_sum / n), 0)
    return squares / n - mean[:, :, None] * mean[:, None, :], n, float(variance.mean())
