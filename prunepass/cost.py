"""The cost of a model, and of what a plan leaves of it, without cutting anything.

MACs follow `rules/cost.py`. Of the branches of an If the one counts that costs more in the whole model; the body of a
Loop or Scan counts as many times as it runs, once where that is not known before. Parameters are the elements of all
float constants, buffers such as BatchNormalization statistics included, and of quantised (8- and 4-bit) weights.
Bytes are the data of all constants plus what the rest of the file takes (nodes, names), which a plan hardly changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from prunepass import wire
from prunepass.kept import Lengths
from prunepass.repeats import turns
from prunepass.rules.cost import MACS, Shape, embedded_params, is_parameter

if TYPE_CHECKING:
    from prunepass.graph import Graph, Node
    from prunepass.manager import Facts

Factors: TypeAlias = Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True)
class Cost:
    """Hold the size of one model.

    Units
        macs: multiply-accumulates of one run with the bound shapes. params: elements. bytes: of the file.
    """

    macs: int
    params: int
    bytes: int


@dataclass(frozen=True)
class _Data:
    """Describe the constants that a plan can shrink, and the sum of all others.

    Shapes
        starts, bits, floats: one entry per constant: where its lengths begin, bits per element, 1 if it is float.
    """

    starts: np.ndarray
    bits: np.ndarray
    floats: np.ndarray
    end: int
    fixed_params: int
    fixed_bytes: int

    def count(self, lengths: np.ndarray) -> tuple[int, int]:
        """Return parameters and bytes."""
        if not self.starts.size:
            return self.fixed_params, self.fixed_bytes
        elements = np.multiply.reduceat(lengths[: self.end], self.starts)
        size = (elements * self.bits + 7) // 8
        return self.fixed_params + int(elements @ self.floats), self.fixed_bytes + int(size.sum())


class CostModel:
    """Know the cost of a graph, and predict the cost of what a plan leaves of it.

    total: cost of the whole graph. node_macs: MACs of every node, in the order of `Graph.walk`. uncounted: why nodes
    of unknown shape count 0.
    """

    def __init__(self, graph: Graph, shapes: Mapping[str, Shape], factors: Factors) -> None:
        self._lengths = Lengths()
        self._data = _read_data(graph, factors, self._lengths)
        known = {**shapes, **{name: graph.consts.shape(name) for name in graph.consts}}
        self.uncounted: tuple[str, ...] = ()
        self._changing: list[tuple[Node, dict[str, Shape], int]] = []
        self._fixed_macs = 0
        times = turns(graph, known)
        self.node_macs = tuple(self._read_node(node, known, factors, times.get(id(node), 1)) for node in graph.walk())
        self.total = self._cost(self._lengths.after(np.zeros(_unit_count(factors), bool)))

    def predict(self, removed: np.ndarray) -> Cost:
        """Return the cost after a plan.

        Shapes
            removed: boolean, one entry per unit; entry 0 (pinned) is False.
        """
        return self._cost(self._lengths.after(removed))

    def _read_node(self, node: Node, known: Mapping[str, Shape], factors: Factors, times: int) -> int:
        if node.op not in MACS or not times:
            return 0
        shapes, unknown = _shapes(node, known)
        if unknown:
            self.uncounted += (f"{node.label}: the shape of {unknown!r} is unknown",)
            return 0
        macs = times * _apply(node, shapes)
        can_change = [self._lengths.add(name, shape, factors.get(name, ())) for name, shape in shapes.items()]
        if any(can_change):
            self._changing.append((node, shapes, times))
        else:
            self._fixed_macs += macs
        return macs

    def _cost(self, lengths: np.ndarray) -> Cost:
        macs, places, flat = self._fixed_macs, self._lengths.places, lengths.tolist()
        for node, shapes, times in self._changing:
            new = {name: tuple(flat[places[name]]) if name in places else old for name, old in shapes.items()}
            macs += times * _apply(node, new)
        return Cost(macs, *self._data.count(lengths))


def source_cost(facts: Facts) -> Cost:
    """Return what the source weighs; its MACs follow from the first shapes that any pass asked for."""
    graph, shapes = facts.first.get("shapes") or (facts.graph, facts.get("shapes"))
    size = facts.context.source_bytes or sum(map(len, wire.encode(facts.source)))
    params = CostModel(facts.source, {}, {}).total.params
    return Cost(CostModel(graph, shapes.shape, {}).total.macs, params, size)


def _shapes(node: Node, known: Mapping[str, Shape]) -> tuple[dict[str, Shape], str]:
    """Return the shapes of all values of a node, and the first value whose shape is not known."""
    names = [name for name in (*node.inputs, *node.outputs) if name]
    unknown = next((name for name in names if name not in known), "")
    return {name: known[name] for name in names if name in known}, unknown


def _apply(node: Node, shapes: Mapping[str, Shape]) -> int:
    ins = [shapes[name] if name else None for name in node.inputs]
    return MACS[node.op](node, ins, [shapes[name] if name else () for name in node.outputs])


def _read_data(graph: Graph, factors: Factors, lengths: Lengths) -> _Data:
    consts = graph.consts
    fixed_params, fixed_bytes = sum(map(embedded_params, graph.walk())), graph.skeleton().ByteSize()
    rows: list[tuple[int, int, int]] = []
    end = 0
    for name in consts:
        shape, size = consts.shape(name), consts.nbytes(name)
        elements, counts = math.prod(shape), is_parameter(consts.elem_type(name), len(shape))
        if elements and lengths.add(name, shape, factors.get(name, ())):
            rows.append((end, round(8 * size / elements), counts))
            end = lengths.places[name].stop
        else:
            fixed_params += elements * counts
            fixed_bytes += size
    table = np.array(rows, np.int64).reshape(-1, 3)
    return _Data(table[:, 0], table[:, 1], table[:, 2], end, fixed_params, fixed_bytes)


def _unit_count(factors: Factors) -> int:
    return 1 + max((int(f.max()) for fs in factors.values() for f in fs), default=0)
