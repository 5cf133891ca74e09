"""The cost of a model, and of what a plan leaves of it, without cutting anything.

MACs follow `rules/cost.py`. Of the branches of an If the one counts that costs more in the whole model; the body of a
Loop or Scan counts as many times as it runs, once where that is not known before. Parameters are the elements of all
float constants, buffers such as BatchNormalization statistics included, and of quantised (8- and 4-bit) weights.
Bytes are the data of all constants plus what the rest of the file takes (nodes, names), which a plan hardly changes.
RAM is the peak of the activations (`memory.py`). Traffic is what all nodes read and write, constants included; views
move nothing, and what is known beforehand does not count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from prunepass import wire
from prunepass.footprint import Factors, Footprint
from prunepass.memory import Liveness, constant_values
from prunepass.repeats import turns
from prunepass.rules.cost import MACS, Shape, embedded_params, is_parameter
from prunepass.rules.memory import READS, REUSE

if TYPE_CHECKING:
    from prunepass.graph import Graph, Node
    from prunepass.manager import Facts


@dataclass(frozen=True)
class Cost:
    """Hold the size of one model.

    Units
        macs: multiply-accumulates of one run with the bound shapes. params: elements. bytes: of the file. ram: bytes
        of activations at the worst moment. traffic: bytes read and written in one run.
    """

    macs: int
    params: int
    bytes: int
    ram: int = 0
    traffic: int = 0


class Known(Protocol):
    """Say what is known about the values of a graph: what the analysis `shapes` returns."""

    @property
    def shape(self) -> Mapping[str, Shape]:
        """Axis lengths."""

    @property
    def elem_type(self) -> Mapping[str, int]:
        """Element types, as onnx.TensorProto numbers them."""

    @property
    def value(self) -> Mapping[str, np.ndarray]:
        """Contents, where they are known."""


class CostModel:
    """Know the cost of a graph, and predict the cost of what a plan leaves of it.

    total: cost of the whole graph. nodes: all of them, in the order of `Graph.walk`. node_macs: their MACs. uncounted:
    why nodes of unknown shape count 0. known: values whose contents are known beforehand.
    """

    def __init__(
        self,
        graph: Graph,
        shapes: Mapping[str, Shape],
        factors: Factors,
        elem_types: Mapping[str, int] | None = None,
        known: Collection[str] = (),
    ) -> None:
        self.nodes = tuple(graph.walk())
        values = [*graph.input_names, *(name for body in graph.bodies for name in body.inputs)]
        values += [name for node in self.nodes for name in node.outputs if name]
        self.tensors = tensors = Footprint(graph, values, shapes, factors, elem_types or {})
        self.uncounted: tuple[str, ...] = ()
        self._changing: list[tuple[Node, dict[str, Shape], int]] = []
        self._fixed_macs = 0
        sized = tensors.shapes
        self.times = turns(graph, sized)
        self.node_macs = tuple(self._read_node(node) for node in self.nodes)
        n_consts = len(graph.consts)
        self.n_consts = n_consts
        self._fixed = sum(map(embedded_params, self.nodes)), graph.skeleton().ByteSize()
        self._floats = np.array([is_parameter(graph.consts.elem_type(n), len(sized[n])) for n in graph.consts], bool)
        constant = constant_values(graph)
        self.liveness = Liveness(graph, sized, constant.union(known))
        self.value_places = np.array([tensors.place[name] for name in self.liveness.names], np.int64)
        self._moves = self._traffic(constant.union(graph.consts), constant.union(known))
        self.total = self.predict(tensors.whole())

    def predict(self, removed: np.ndarray) -> Cost:
        """Return the cost after a plan.

        Shapes
            removed: boolean, one entry per unit; entry 0 (pinned) is False.
        """
        lengths = self.tensors.lengths_after(removed)
        elements = self.tensors.elements_of(lengths)
        size = (elements * self.tensors.bits + 7) // 8
        params, weight = self._fixed
        params += int(elements[: self.n_consts] @ self._floats)
        weight += int(size[: self.n_consts].sum())
        ram = int(self.liveness.live(size[self.value_places]).max(initial=0))
        return Cost(self._macs(lengths), params, weight, ram, int(size @ self._moves))

    def sizes(self, removed: np.ndarray | None = None, int8: bool = False) -> np.ndarray:
        """Return the bytes of every tensor after a plan, in the order of `tensors.names`.

        Units
            int8: every float takes one byte.
        """
        lengths = self.tensors.lengths_after(self.tensors.whole() if removed is None else removed)
        bits = self.tensors.int8_bits if int8 else self.tensors.bits
        sizes: np.ndarray = (self.tensors.elements_of(lengths) * bits + 7) // 8
        return sizes

    def elements(self, removed: np.ndarray) -> np.ndarray:
        """Return the elements of every tensor after a plan; 0 for constants that are no parameters."""
        elements: np.ndarray = self.tensors.elements_of(self.tensors.lengths_after(removed)).copy()
        elements[: self.n_consts] *= self._floats
        return elements

    def live(self, removed: np.ndarray | None = None, int8: bool = False) -> np.ndarray:
        """Return the bytes of activations that are alive at each step; step 0 is before the first node."""
        return self.liveness.live(self.sizes(removed, int8)[self.value_places])

    def macs_after(self, removed: np.ndarray) -> list[int]:
        """Return the MACs of every node after a plan."""
        lengths = self.tensors.lengths_after(removed).tolist()
        changed = {id(node): self._node_macs(node, old, times, lengths) for node, old, times in self._changing}
        return [changed.get(id(node), macs) for node, macs in zip(self.nodes, self.node_macs)]

    def moves(self, node: Node) -> dict[str, int]:
        """Return how often one run of a node moves each of its tensors."""
        found: dict[str, int] = {}
        if REUSE.get(node.op) == "view":
            return found
        reads = READS.get(node.op, "")
        names = [] if reads == "nothing" else list(dict.fromkeys(node.inputs))
        if reads and names:
            names = [name for name in (*node.outputs, *names[1:]) if name]
        for name in (*names, *node.outputs):
            if name in self.tensors.place:
                found[name] = found.get(name, 0) + 1
        return found

    def _traffic(self, stored: frozenset[str], known: frozenset[str]) -> np.ndarray:
        """Return how often one run moves each tensor; what is known is not computed, and read only if it is stored."""
        count = np.zeros(len(self.tensors.names), np.int64)
        for node in self.nodes:
            if not node.bodies and not all(name in known for name in node.outputs if name):
                times = self.times.get(id(node), 1)
                for name, number in self.moves(node).items():
                    if name not in known or name in stored:
                        count[self.tensors.place[name]] += times * number
        return count

    def _read_node(self, node: Node) -> int:
        times = self.times.get(id(node), 1)
        if node.op not in MACS or not times:
            return 0
        shapes, unknown = _shapes(node, self.tensors.shapes)
        if unknown:
            self.uncounted += (f"{node.label}: the shape of {unknown!r} is unknown",)
            return 0
        macs = times * _apply(node, shapes)
        if any(name in self.tensors.lengths.places for name in shapes):
            self._changing.append((node, shapes, times))
        else:
            self._fixed_macs += macs
        return macs

    def _macs(self, lengths: np.ndarray) -> int:
        flat = lengths.tolist()
        return self._fixed_macs + sum(self._node_macs(*entry, flat) for entry in self._changing)

    def _node_macs(self, node: Node, old: Mapping[str, Shape], times: int, flat: list[int]) -> int:
        places = self.tensors.lengths.places
        new = {name: tuple(flat[places[name]]) if name in places else shape for name, shape in old.items()}
        return times * _apply(node, new)


def source_cost(facts: Facts) -> Cost:
    """Return what the source weighs; MACs, RAM and traffic follow from the first shapes that any pass asked for."""
    graph, shapes = facts.first.get("shapes") or (facts.graph, facts.get("shapes"))
    size = facts.context.source_bytes or sum(map(len, wire.encode(facts.source)))
    params = CostModel(facts.source, {}, {}).total.params
    running = cost_of(graph, shapes).total
    return Cost(running.macs, params, size, running.ram, running.traffic)


def cost_of(graph: Graph, known: Known, factors: Factors | None = None) -> CostModel:
    """Return the cost model of a graph under what is known about its values."""
    return CostModel(graph, known.shape, factors or {}, known.elem_type, known.value)


def _shapes(node: Node, known: Mapping[str, Shape]) -> tuple[dict[str, Shape], str]:
    """Return the shapes of all values of a node, and the first value whose shape is not known."""
    names = [name for name in (*node.inputs, *node.outputs) if name]
    unknown = next((name for name in names if name not in known), "")
    return {name: known[name] for name in names if name in known}, unknown


def _apply(node: Node, shapes: Mapping[str, Shape]) -> int:
    ins = [shapes[name] if name else None for name in node.inputs]
    return MACS[node.op](node, ins, [shapes[name] if name else () for name in node.outputs])
