"""Sequential least squares: refit every layer behind something pruned to what the dense network computes there.

Layers are taken in topological order. The inputs of a layer come from the network that is pruned and refitted so far,
its targets from the dense one (asymmetric), so that each layer also repairs what the layers before it could not. Where
a layer feeds a residual sum, the target is the dense sum minus the pruned shortcut, so that errors do not pile up
along the stream.

Source
    He, Zhang, Sun 2017, Channel Pruning for Accelerating Very Deep Neural Networks, sections 3.2 and 3.3: least squares
    on the inputs of the pruned network. Here with an intercept, a ridge toward the gathered weights that held-back
    rows choose, the residual target for any graph, and layers in any operator of `rules/linear.py`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from prunepass.graph import Graph, Node
from prunepass.manager import Progress
from prunepass.recovery.attention import Attention
from prunepass.recovery.batches import Batches
from prunepass.recovery.gains import norms, refit_gain
from prunepass.recovery.grail import folded
from prunepass.recovery.mixing import Layered
from prunepass.recovery.quantised import Grid, Grids
from prunepass.recovery.recurrent import RecurrentRefit
from prunepass.recovery.ridge import Fit, Flat, Rows, fit, judge
from prunepass.recovery.staged import Staged, Store
from prunepass.recovery.teacher import Teacher
from prunepass.recovery.threads import one_thread
from prunepass.rules.flat import flat_range
from prunepass.rules.gains import Gain
from prunepass.rules.gates import Gates, gates
from prunepass.rules.linear import Bias, Linear, bias_of, linear, residual

log = logging.getLogger(__name__)
_LEAST_ROWS, _ROWS_PER_FEATURE = 32768, 40
_MOST_ROW_BYTES = 400 << 20
_TRAIN_SHARE = 4  # fifths of the rows, as of the batches
_OTHER_SHAPES = "shapes differ from those of the dense model"
_ROUNDING, _ROUNDING_HALF = 1e-12, 1e-6  # relative squared errors that may come from rounding alone


@dataclass(frozen=True)
class Options:
    """Say how much work a refit may be.

    Units
        memory: bytes of activations in memory, beyond it they go to files. most_features: a layer with more keeps its
        weights unless channels can be folded. least_gain: share of the held-back error that a refit must save.
        method: ls, grail or bias; auto is ls, grail for a layer of too many features.
    """

    seed: int = 0
    memory: int = 1 << 30
    most_features: int = 6144
    least_gain: float = 1e-3
    method: str = "auto"


@dataclass
class Layer:
    """Say what happened to one layer.

    Units
        before, after: squared error on held-back rows, relative to the variance of the targets, with the gathered and
        with the refitted weights. seconds: wall-clock time.
    """

    name: str
    op: str
    method: str = "kept"
    before: float = 0.0
    after: float = 0.0
    ridge: float = 0.0
    rows: int = 0
    features: int = 0
    seconds: float = 0.0
    note: str = ""

    def is_better(self, least_gain: float, rounding: float = _ROUNDING) -> bool:
        """Say whether the refit is worth it, and note if not; errors below `rounding` may come from rounding alone."""
        if self.before < rounding:
            self.note = "exact as it is"
        elif not self.after < self.before * (1 - least_gain):
            self.note = "no better on held-back rows"
        return not self.note


@dataclass(frozen=True)
class Place:
    """Hold where a layer stands: its product, its bias, and the value in which its error counts.

    y: the value that is fitted, behind the bias. total, shortcut: the residual sum that y goes into and what else it
    adds; "" where there is none.
    """

    product: Linear
    bias: Bias | None
    y: str
    total: str = ""
    shortcut: str = ""

    @property
    def node(self) -> Node:
        """The node of the product."""
        return self.product.node

    @property
    def x(self) -> str:
        """What is multiplied."""
        return self.product.x


@dataclass(frozen=True)
class NewBias:
    """Record that a node reads a new bias, for channels along an axis of a value."""

    node: str
    at: int
    name: str
    y: str
    axis: int


def places(graph: Graph) -> Iterator[Place]:
    """Yield the layers of a graph whose weight is their own, in topological order."""
    uses = graph.uses()
    for node in graph.nodes:
        product = linear(node, graph)
        if product is None or len(uses[product.weight]) > 1:
            continue
        bias = bias_of(product, graph, uses)
        y = product.y if bias is None else bias.y
        yield Place(product, bias, y, *(residual(y, graph, uses) or ("", "")))


def steps(graph: Graph) -> Iterator[Place | Gates]:
    """Yield the layers that can be refitted, in topological order."""
    found: dict[int, Place | Gates] = {id(place.node): place for place in places(graph)}
    uses = graph.uses()
    for node in graph.nodes:
        layer = gates(node, graph)
        if layer is not None and all(len(uses[n]) == 1 for n in (layer.w, layer.r, layer.b) if n):
            found[id(node)] = layer
        if id(node) in found:
            yield found[id(node)]


Step = Place | Gates | Gain


def all_steps(graph: Graph) -> Iterator[Step]:
    """Yield layers, and norms that no layer makes up for, in topological order."""
    found: dict[int, Step] = {id(layer.node): layer for layer in steps(graph)}
    found |= {id(norm.node): norm for norm in norms(graph, found.keys())}
    yield from (found[id(node)] for node in graph.nodes if id(node) in found)


class Sequential:
    """Refit a sliced graph in place, layer by layer.

    teacher: the dense model. graph: what slicing left of it; its weights are replaced.
    """

    def __init__(self, teacher: Teacher, graph: Graph, batches: Batches, options: Options) -> None:
        self.teacher, self.graph, self.batches, self.options = teacher, graph, batches, options
        self.store, self.grids = Store(options.memory), Grids(graph)
        self.dense = Staged(teacher.graph, batches.feeds, self.store)
        self.pruned = Staged(graph, batches.feeds, self.store)
        self.changed: dict[str, np.ndarray] = {}
        self.biases: list[NewBias] = []
        self.layers: list[Layer] = []
        self._known = teacher.graph.producers()
        self._uses = graph.uses()

    @cached_property
    def channels(self) -> Staged:
        """A run of the dense model that is never ahead of the layers: for what asks for their dense inputs."""
        return Staged(self.teacher.graph, self.batches.feeds, self.store)

    @one_thread()
    def run(self, progress: Progress | None = None) -> list[Layer]:
        """Refit every layer behind something pruned; returns what was done, in order."""
        whole = self.options.method in ("auto", "ls")
        todo: list[Step] = list(all_steps(self.graph) if whole else steps(self.graph))
        waiting = {id(step.node) for step in todo}
        touched = self.teacher.behind(self.graph)
        layers = [step for step in todo if isinstance(step, Place) and step.product.weight not in self.grids]
        attention = Attention(self, layers if whole else [])
        for number, step in enumerate(self._ordered(todo)):
            if progress is not None:
                progress("compensate", number, len(todo))
            waiting.discard(id(step.node))
            if step.x in touched or any(self.teacher.loses(name) for name in step.node.inputs if name):
                start = time.perf_counter()
                layer = self.layer(step.node)
                if isinstance(step, Gates):
                    self._refit_states(step, layer)
                elif isinstance(step, Gain):
                    refit_gain(self, step, layer)
                else:
                    attention.look(step)
                    place = self._with_target(step, waiting)
                    self.layers += attention.before(place)
                    self._refit(place, layer)
                layer.seconds = time.perf_counter() - start
                self.layers.append(layer)
                log.debug("compensate: %s", layer)
            self.layers += attention.behind(waiting)
        self.grids.close()
        return self.layers

    @staticmethod
    def layer(node: Node) -> Layer:
        """Start the record of a node."""
        return Layer(node.name or node.outputs[0], node.op)

    def known(self, node: Node) -> Node | None:
        """Return the node of the dense model that computes what this one computes."""
        return self._known.get(node.outputs[0])

    def knows(self, *names: str) -> bool:
        """Say whether the dense model computes values of all these names."""
        return all(name in self._known for name in names)

    def _ordered(self, todo: Sequence[Step]) -> Iterator[Step]:
        """Yield the layers in topological order, but of two that meet in a residual sum first what fits less."""
        waiting = {id(step.node): step for step in todo}
        for step in todo:
            if isinstance(step, Place) and step.total and id(step.node) in waiting:
                ahead = [waiting[id(node)] for node in self.pruned.pending(step.shortcut) if id(node) in waiting]
                less = [other for other in ahead if isinstance(other, Place)]
                if (
                    less
                    and not any(isinstance(other, Gates) for other in ahead)
                    and step not in ahead
                    and all(_features(self.graph, o) < _features(self.graph, step) for o in less)
                ):
                    for other in ahead:
                        del waiting[id(other.node)]
                        yield other
            if waiting.pop(id(step.node), None) is not None:
                yield step

    def _with_target(self, place: Place, waiting: set[int]) -> Place:
        """Aim at the residual sum where the other summand is final, else at the output of the layer."""
        if place.total and place.total in self._known:
            pending = self.pruned.pending(place.shortcut)
            final = not any(id(node) in waiting or node is place.product.node for node in pending)
            if final and self._sums_alike(place):
                return place
        return replace(place, total="", shortcut="")

    def _sums_alike(self, place: Place) -> bool:
        """Say whether a residual sum adds values of one shape, so that its rows are those of the layer."""
        if place.y not in self._known:
            return False
        self.dense.need(place.y)
        self.pruned.need(place.shortcut)
        own = self.teacher.narrowed(place.y, self.dense.value(place.y, 0))
        alike: bool = own.shape == self.pruned.value(place.shortcut, 0).shape
        self.dense.release(place.y)
        self.pruned.release(place.shortcut)
        return alike

    def _refit(self, place: Place, layer: Layer) -> None:
        product, graph = place.product, self.graph
        target = place.total or place.y
        if target not in self._known or place.product.y not in self._known:
            layer.note = "the dense model has no such value"
            return
        weight = graph.consts[product.weight]
        start = product.matrix(weight.astype(np.float64))
        layer.features = start.shape[1]
        self.dense.need(target)
        self.pruned.need(product.x, *([place.shortcut] if place.shortcut else []))
        rows = self.rows(place, target, start.shape)
        self.dense.release(target)
        self.pruned.release(product.x, place.shortcut)
        if isinstance(rows, str):
            layer.note = rows
            return
        train, held = rows
        layer.rows = train.n + held.n
        old = self.bias_vector(place, start.shape)
        flat = Flat(*flat_range(self._uses.get(target, []), graph)) if target not in graph.results else Flat()
        found = self._fitted(place, rows, start, old, flat, layer)
        stored: tuple[Grid, Grid | None] | None = None
        if product.weight in self.grids:
            tensor, bias_name = product.tensor(found.weight, weight.shape), place.bias.name if place.bias else ""
            stored = self.grids.fitting(product.weight, tensor, bias_name)
            nearest = product.matrix(stored[0].real(stored[0].stored(tensor)).astype(np.float64))
            after = judge(*rows, start, None if old is None else found.bias, flat, nearest).after
            found = replace(found, weight=nearest, after=after)
        layer.before, layer.after, layer.ridge = found.before, found.after, found.ridge
        if layer.is_better(self.options.least_gain, _ROUNDING if weight.dtype.itemsize >= 4 else _ROUNDING_HALF):
            self.install(place, found, stored)
        else:
            layer.method = "kept"

    def _fitted(
        self,
        place: Place,
        rows: tuple[Rows, Rows],
        start: np.ndarray,
        bias: np.ndarray | None,
        flat: Flat,
        layer: Layer,
    ) -> Fit:
        """Return what the chosen method makes of a layer."""
        train, held = rows
        method = self.options.method
        if method == "auto":
            method = "ls" if start.shape[1] <= self.options.most_features else "grail"
        layer.method = method
        if method == "ls":
            return fit(train, held, start, bias, flat)
        weight = folded(place.product, self.teacher, self.channels, self.batches) if method == "grail" else None
        if weight is not None and weight.shape != start.shape:
            weight = None
        return judge(train, held, start, bias, flat, weight)

    def _refit_states(self, gates: Gates, layer: Layer) -> None:
        """Refit a recurrent layer."""
        if gates.y not in self._known or gates.x not in (*self._known, *self.teacher.graph.input_names):
            layer.note = "the dense model has no such value"
            return
        given = [name for name in gates.node.inputs if name and name not in self.graph.consts]
        self.dense.need(gates.x, gates.y, *([gates.initial] if gates.initial else []))
        self.pruned.need(*given)
        outcome = RecurrentRefit(gates, self.graph, self.teacher, self.dense, self.pruned, self.batches).run()
        self.dense.release(gates.x, gates.y, gates.initial)
        self.pruned.release(*given)
        layer.before, layer.after, layer.rows = outcome.before, outcome.after, outcome.rows
        if not outcome.tensors:
            layer.note = "no better on held-back rows"
            return
        layer.method = "ls"
        for name, new in outcome.tensors.items():
            self.put(name, new)

    def bias_vector(self, place: Place, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the bias as (groups, outputs), zeros where there is none yet, None where there can be none."""
        if place.bias is None or (place.product.weight in self.grids and not place.bias.name):
            return None  # a float beside integers would keep onnxruntime from computing with integers
        outputs = np.zeros((shape[0], shape[2]))
        if place.bias.name:
            vector = self.graph.consts[place.bias.name].astype(np.float64) * place.product.bias_scale
            outputs += np.broadcast_to(vector.reshape(-1), outputs.size).reshape(outputs.shape)
        return outputs

    def layered(self, place: Place) -> Layered:
        """Return matrix and bias of a layer as they are."""
        matrix = place.product.matrix(self.graph.consts[place.product.weight].astype(np.float64))
        return Layered(place, matrix, self.bias_vector(place, matrix.shape))

    def mixed(self, place: Place, mixed: np.ndarray) -> tuple[Rows, Rows] | str:
        """Return rows of a layer whose targets are mixed from all channels of the dense one."""
        weight = self.graph.consts[place.product.weight]
        return self.rows(place, place.y, (1, place.product.matrix(weight).shape[1], mixed.shape[1]), mixed)

    def rows(
        self,
        place: Place,
        target: str,
        shape: tuple[int, ...],
        mixed: np.ndarray | None = None,
        read: Callable[[int], np.ndarray] | None = None,
    ) -> tuple[Rows, Rows] | str:
        """Return rows for fitting and for judging, or why there are none.

        mixed: a matrix for the targets, from all channels of the dense layer. read: what gives the inputs, by batch.
        """
        product, count = place.product, len(self.batches.feeds)
        train, held = Rows(), Rows()
        wanted = min(max(_LEAST_ROWS, _ROWS_PER_FEATURE * shape[1]), _MOST_ROW_BYTES // (4 * shape[0] * shape[1]))
        weight = self.graph.consts.shape(product.weight)
        for batch in range(count):
            whole = self.batches.checked(target, self.dense.value(target, batch), batch)
            y = self.teacher.narrowed(target, whole)
            x = self.pruned.value(product.x, batch) if read is None else read(batch)
            pick = self.batches.sampled(product.y, batch, product.count(y), wanted, self.options.seed)
            try:
                a = product.rows(x, weight, y.shape, pick)
                b = product.targets(y, shape[0], pick) if mixed is None else product.targets(whole, 1, pick) @ mixed
                c = (
                    product.targets(self.pruned.value(place.shortcut, batch), shape[0], pick)
                    if place.shortcut
                    else None
                )
            except (ValueError, IndexError):
                return _OTHER_SHAPES
            if a.shape[2] != shape[1] or b.shape[2] != shape[2] or (c is not None and c.shape != b.shape):
                return _OTHER_SHAPES
            if not np.isfinite(a).all() or (c is not None and not np.isfinite(c).all()):
                return "its inputs are not finite in the pruned model"
            first = 0 if self.batches.held_back(batch) else pick.size
            if count == 1:  # the last rows, not some between: neighbours in an image are much alike
                first = _TRAIN_SHARE * pick.size // 5
            train.add(a[:, :first], b[:, :first], None if c is None else c[:, :first])
            held.add(a[:, first:], b[:, first:], None if c is None else c[:, first:])
        return (train, held) if train.n and held.n else "too few rows to judge what is fitted"

    def install(self, place: Place, found: Fit, stored: tuple[Grid, Grid | None] | None = None) -> None:
        """Put what was found in the place of the weights of a layer."""
        product, graph = place.product, self.graph
        grid, bias_grid = stored or (None, None)
        old = graph.consts[product.weight]
        self.put(product.weight, product.tensor(found.weight, old.shape).astype(old.dtype), grid)
        if place.bias is None or (place.product.weight in self.grids and not place.bias.name):
            return
        node, at, name = place.bias.node, place.bias.at, place.bias.name
        vector = (found.bias.reshape(-1) / product.bias_scale).astype(old.dtype)
        if name and graph.consts.shape(name)[-1:] == vector.shape:
            vector = vector.reshape(graph.consts.shape(name))
        if name in self.grids:
            self.put(name, vector, bias_grid)
            return
        if not name or len(self._uses.get(name, ())) > 1:
            name = self._fresh(f"{product.weight}__bias")
            node.inputs += [""] * (at + 1 - len(node.inputs))
            node.inputs[at] = name
        graph.consts[name] = vector
        self.biases.append(NewBias(node.outputs[0], at, name, product.y, product.axis))

    def put(self, name: str, new: np.ndarray, grid: Grid | None = None) -> None:
        """Replace a weight; of one that is stored as integers, these, and the scale if it changes."""
        if name in self.grids:
            self.changed |= self.grids.put(name, grid or self.grids[name], new)
        else:
            self.graph.consts[name] = self.changed[name] = new

    def _fresh(self, hint: str) -> str:
        """Return a name that is free in the sliced and in the whole graph."""
        name = self.graph.fresh_name(hint)
        while name in self.teacher.last.consts or name in self._known:
            name = self.graph.fresh_name(f"{name}_")
        return name

    def refitted(self) -> Graph:
        """Return the whole graph before the last cut with everything that was refitted, for the masked execution."""
        whole = self.teacher.last.copy()
        for name, narrow in self.changed.items():
            whole.consts[name] = self.teacher.widened(name, narrow, whole.consts[name])
        nodes = {node.outputs[0]: node for node in whole.walk()}
        for new in self.biases:
            node = nodes[new.node]
            node.inputs += [""] * (new.at + 1 - len(node.inputs))
            node.inputs[new.at] = new.name
            whole.consts[new.name] = self._wide_bias(new)
        return whole

    def _wide_bias(self, new: NewBias) -> np.ndarray:
        narrow, kept = self.graph.consts[new.name], self.teacher.channels(new.y, new.axis)
        if kept is None:
            return narrow
        wide = np.zeros((*narrow.shape[:-1], kept.size), narrow.dtype)
        wide[..., kept] = narrow
        return wide


def _features(graph: Graph, place: Place) -> int:
    shape = graph.consts.shape(place.product.weight)
    return math.prod(shape) // max(1, shape[0])
