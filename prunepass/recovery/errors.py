"""What the removal of each unit costs in output error, from calibration data: the readers of all groups, swept.

Units that no layer reads which could be refitted (queries and keys, which meet in a product of two values) cost the
power of what they carry instead, where it is made. Channels of heads of attention whose products are refitted cost what
these lose, see `head_errors.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.coupling import Coupling, Group
from prunepass.graph import Graph
from prunepass.labels import spans
from prunepass.manager import Progress
from prunepass.recovery.batches import Batches
from prunepass.recovery.head_errors import Behind, HeadErrors, Loss, by_width, lost
from prunepass.recovery.moments import Gram, Moments
from prunepass.recovery.obs import Path, Reader, Sweep
from prunepass.recovery.quantised import as_floats
from prunepass.recovery.sensitivity import output_sensitivity
from prunepass.recovery.sequential import Options, Place, steps
from prunepass.recovery.staged import Staged, Store
from prunepass.recovery.threads import one_thread
from prunepass.rules.gates import Gates

_LEAST_ROWS, _ROWS_PER_FEATURE, _MOST_ROW_BYTES = 16384, 16, 200 << 20


@dataclass(frozen=True)
class UnitErrors:
    """Hold what removing units costs.

    Shapes
        scores: (units,) what a unit adds to the output error when it goes after all cheaper ones of its group.
        sets: units of a group, and (widths, units) which of them go best when 0, 1, ... of them go.
    Units
        scores: squared error of the outputs relative to their variance, as the noise experiment predicts it.
        sensitivity: of each value, that error per squared error in it.
    """

    scores: np.ndarray
    sensitivity: dict[str, float]
    sets: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


@dataclass
class _Seen:
    """What was seen of one product with a constant matrix.

    value: where an error of it counts. gain: mean squared error there per mean squared error of the product.

    Shapes
        covariance: (groups, features, features), from `rows` rows. weight: (groups, features, outputs). units: (groups,
        features) ids.
    """

    value: str
    covariance: np.ndarray
    rows: int
    weight: np.ndarray
    units: np.ndarray
    gain: float = 1.0


class _Look:
    """Run a graph once over all batches and keep what was seen of its layers.

    power: mean squared output by unit, with the value that carries it. variance: of the values where errors count.
    """

    def __init__(self, graph: Graph, coupling: Coupling, batches: Batches, options: Options) -> None:
        self.graph, self.coupling, self.batches, self.options = graph, coupling, batches, options
        self.running = Staged(graph, batches.feeds, Store(options.memory))
        self.seen: list[_Seen] = []
        self._read = {*graph.results, *(name for node in graph.walk() for name in node.inputs)}
        self.variance: dict[str, float] = {}
        self.power: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def run(self, tell: Progress | None) -> None:
        """Look at every layer."""
        todo = list(steps(self.graph))
        for number, step in enumerate(todo):
            if tell is not None:
                tell("errors", number, len(todo))
            if isinstance(step, Gates):
                self._gates(step)
            else:
                self._place(step)
        self.running.close()

    def losses(self, given: Graph) -> list[Loss]:
        """Return what heads of attention lose, once all layers have been looked at; given: weights as they are kept."""
        units = {value: made for value, (made, _) in self.power.items()}
        behind = {
            own.value: Behind(own.covariance[0], own.weight[0], own.rows) for own in self.seen if len(own.units) == 1
        }
        layers = [step for step in steps(self.graph) if isinstance(step, Place) and step.product.weight in given.consts]
        found = HeadErrors(self.graph, self.batches, self.options.memory, units, behind).run(layers)
        for loss in found:
            self.variance.setdefault(loss.value, loss.variance)
        return found

    def _place(self, place: Place) -> None:
        product = place.product
        units, made = feature_units(place, self.graph, self.coupling)
        weight = product.matrix(self.graph.consts[product.weight].astype(np.float64))
        if (units is None and made is None) or weight.shape[1] > self.options.most_features:
            return
        self.running.need(product.x, place.y)
        groups, features, _ = weight.shape
        stored = self.graph.consts.shape(product.weight)
        inputs, made_rows = Gram(), Moments()
        wanted = max(_LEAST_ROWS, _ROWS_PER_FEATURE * features)
        wanted = min(wanted, _MOST_ROW_BYTES // (4 * groups * features))
        for batch in range(len(self.batches.feeds)):
            y = self.batches.checked(place.y, self.running.value(place.y, batch), batch)
            x = self.batches.checked(product.x, self.running.value(product.x, batch), batch)
            pick = self.batches.sampled(product.y, batch, product.count(y), wanted, self.options.seed)
            made_rows.add(product.targets(y, groups, pick))
            if units is not None:
                inputs.add(product.rows(x, stored, y.shape, pick))
        self.running.release(product.x, place.y)
        self.variance[place.y] = float(made_rows.variance.mean())
        if units is not None:
            self.seen.append(_Seen(place.y, inputs.covariance, inputs.count, weight, units))
        if made is not None and made.size == made_rows.square.size:
            self.power[place.y] = made, made_rows.square.reshape(-1) / made.size

    def _gates(self, layer: Gates) -> None:
        w, r = (self.graph.consts[name].astype(np.float64) for name in (layer.w, layer.r))
        self.running.need(layer.x, layer.y)
        seen_x, seen_y = Gram(), Gram()
        for batch in range(len(self.batches.feeds)):
            x, y = self.running.value(layer.x, batch), self.running.value(layer.y, batch)
            y = y.transpose(1, 2, 0, 3) if layer.batch_first else y
            seen_x.add(x.reshape(1, -1, x.shape[-1]))
            seen_y.add(y.transpose(1, 0, 2, 3).reshape(y.shape[1], -1, y.shape[3]))
        self.running.release(layer.x, layer.y)
        of_x, of_y = np.repeat(seen_x.covariance, len(w), axis=0), seen_y.covariance
        shown = next((name for name in layer.node.outputs[:2] if name in self._read), layer.y)
        self.variance[shown] = float(np.trace(of_y, axis1=1, axis2=2).mean() / of_y.shape[1])
        before = sum(float(np.einsum("dgi,dij,dgj->dg", m, c, m).mean()) for m, c in ((w, of_x), (r, of_y)))
        gain = self.variance[shown] / max(before, 1e-30)
        for name, covariance, matrix in ((layer.w, of_x, w), (layer.r, of_y, r)):
            units = np.zeros((len(matrix), matrix.shape[2]), np.int64)
            for factor in self.coupling.factors.get(name, ()):
                if factor.shape[1] == 1 and factor.shape[2] > 1:
                    units = np.maximum(units, np.broadcast_to(factor[:, 0], units.shape))
            self.seen.append(_Seen(shown, covariance, seen_x.count, matrix.transpose(0, 2, 1), units, gain))


def feature_units(place: Place, graph: Graph, coupling: Coupling) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the unit of every feature that a layer reads, (groups, features), and of every channel that it makes.

    None where there are none. A unit that the layer both reads and makes, as in a depthwise convolution, is not read.
    """
    product = place.product
    shape = graph.consts.shape(product.weight)
    own_axis = [f for f in coupling.factors.get(product.y, ()) if f.ndim >= -product.axis and f.shape[product.axis] > 1]
    made = [factor.reshape(-1) for factor in own_axis]
    own = np.unique(np.concatenate([np.zeros(1, np.int64), *made]))
    found: np.ndarray | None = None
    for factor in coupling.factors.get(product.weight, ()):
        units = product.arrange(np.broadcast_to(factor, shape))
        first = units[:, :, 0]
        if spans(factor) and (units == first[:, :, None]).all():
            first = np.where(np.isin(first, own), 0, first)
            found = first if found is None else np.maximum(found, first)
    return found if found is not None and found.any() else None, made[0] if len(made) == 1 else None


@one_thread()
def unit_errors(
    graph: Graph, coupling: Coupling, batches: Batches, macs: int, options: Options, tell: Progress | None = None
) -> UnitErrors:
    """Sweep every group. macs: of one run of the graph."""
    given, graph = graph, as_floats(graph)
    look = _Look(graph, coupling, batches, options)
    look.run(tell)
    losses = look.losses(given)
    variance = {value: size for value, size in look.variance.items() if size > 0}
    weight = output_sensitivity(graph, variance, coupling.elem_types, batches, macs, options.seed) if variance else {}
    group_of = np.zeros(coupling.n_units, np.int64)
    for number, group in enumerate(coupling.groups, 1):
        group_of[group.units] = number
    readers: dict[int, list[Reader]] = {}
    for number, reader in _readers(look.seen, weight, group_of):
        readers.setdefault(number, []).append(reader)
    power = _carried(look.power, weight, coupling.n_units)
    scores = np.zeros(coupling.n_units)
    sets = []
    for number, group in enumerate(coupling.groups, 1):
        if tell is not None:
            tell("errors", number, len(coupling.groups))
        flat = group.units.reshape(-1)
        scores[flat] = power[flat]
        own = readers.pop(number, [])
        read = np.isin(group.units, np.concatenate([np.zeros(0, np.int64), *(reader.units for reader in own)]))
        if own:
            units = group.units[read]
            path = Sweep(own, units).run(min(int(read.any(axis=-1).sum()), units.size), len(group.units) == 1)
            scores[units] = _marginal(path, units.size)
        total = _of_heads(group, losses, weight, look) if losses else None
        if total is not None:
            scores[group.units] = by_width(scores[group.units], total)
        elif own and len(group.units) == 1 and read.all():
            sets.append((units, path.gone))
    return UnitErrors(scores, weight, tuple(sets))


def _of_heads(group: Group, losses: Sequence[Loss], weight: dict[str, float], look: _Look) -> np.ndarray | None:
    """Return what heads lose by how many units of each row of a group go, where nothing else makes or reads these."""
    made = (value for value, (units, _) in look.power.items() if np.isin(units, group.units).any())
    read = (layer.value for layer in look.seen if np.isin(layer.units, group.units).any())
    return lost(group, losses, weight, made, read)


def _readers(seen: Sequence[_Seen], weight: dict[str, float], group_of: np.ndarray) -> Iterator[tuple[int, Reader]]:
    """Yield every group of units with what reads it."""
    for layer in seen:
        share = weight.get(layer.value, 0.0) * layer.gain / layer.weight.shape[2] / len(layer.units)
        for at, units in enumerate(layer.units):
            if units.any():
                reader = Reader.of(layer.covariance[at], layer.rows, layer.weight[at], units, share)
                for number in np.unique(group_of[units[units > 0]]):
                    yield int(number), reader


def _marginal(path: Path, count: int) -> np.ndarray:
    """Return what each unit of a group costs; the last of each row costs more than all others."""
    costs = np.diff(path.costs)
    found = np.full(count, 2 * costs.max(initial=0.0) + 1e-12)
    found[path.order] = np.maximum.accumulate(costs)
    return found


def _carried(power: dict[str, tuple[np.ndarray, np.ndarray]], weight: dict[str, float], n_units: int) -> np.ndarray:
    """Return the power that each unit carries where it is made, as output error."""
    found = np.zeros(n_units)
    for value, (units, squares) in power.items():
        np.add.at(found, units, squares * weight.get(value, 0.0))
    found[0] = 0.0
    return found
