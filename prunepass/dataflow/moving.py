"""Move what removed constants contribute into the bias of whoever reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import helper

from prunepass.coupling import Coupling
from prunepass.dataflow.liveness import Site
from prunepass.graph import Graph, Node
from prunepass.labels import Factors, spans
from prunepass.rules.affine import WITH_BIAS
from prunepass.rules.contractions import Contraction


@dataclass
class Moved:
    """A graph in which biases grow; new values get shapes and labels."""

    graph: Graph
    shapes: dict[str, tuple[int, ...]]
    elem_types: Mapping[str, int]
    factors: dict[str, Factors] = field(default_factory=dict)
    made: dict[int, Sequence[Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.uses = self.graph.uses()

    def constant(self, hint: str, array: np.ndarray, like: str, shift: int) -> str:
        """Add an array whose axis 0 is axis `shift` of a value, and label it alike."""
        name = self.graph.fresh_name(hint)
        self.graph.consts[name] = array
        self.shapes[name] = array.shape
        found = []
        for factor in self.factors.get(like, ()):
            part = factor.shape[shift : shift + array.ndim]
            if factor.size == math.prod(part) and all(a in (1, b) or b == 1 for a, b in zip(part, array.shape)):
                found += [factor.reshape(part)] if all(array.shape[a - shift] > 1 for a in spans(factor)) else []
        if found:
            self.factors[name] = tuple(found)
        return name

    def add(self, node: Node, contraction: Contraction, amount: np.ndarray) -> None:
        """Add a number to each output of a contraction: to its bias, to the sum behind it, or by a new sum."""
        rank = len(self.shapes[node.outputs[0]])
        shaped = amount.reshape((-1,) + (1,) * (rank - contraction.out_axis - 1))
        bias = contraction.bias
        if bias is not None:
            stored = self._stored(node, bias)
            if stored is not None or bias >= len(node.inputs) or not node.inputs[bias]:
                self._into(node, bias, amount / contraction.times, stored, contraction.out_axis)
                return
        behind = self._sum_behind(node, shaped)
        if behind is not None:
            old, new = rename_output(self.graph, node, behind[0])
            self.shapes[new], self.factors[new] = self.shapes[old], self.factors.get(old, ())
            self._into(*behind, shaped, self._stored(*behind), rank - 1)
        else:
            self._behind(node, shaped)

    def _stored(self, node: Node, position: int) -> np.ndarray | None:
        name = node.inputs[position] if position < len(node.inputs) else ""
        return self.graph.consts[name] if name in self.graph.consts and name not in self.graph.overridable else None

    def _into(self, node: Node, position: int, amount: np.ndarray, stored: np.ndarray | None, last: int) -> None:
        """Add to an operand, whose last axis is axis `last` of the result."""
        dtype = self._dtype(node) if stored is None else stored.dtype
        total = amount if stored is None else stored.astype(np.float64) + amount
        node.inputs += [""] * (position + 1 - len(node.inputs))
        hint, out = node.inputs[position] or f"{node.outputs[0]}_bias", node.outputs[0]
        shift = last + 1 - total.ndim
        node.inputs[position] = self.constant(hint, total.astype(dtype), out, shift)

    def _dtype(self, node: Node) -> np.dtype:
        return helper.tensor_dtype_to_np_dtype(self.elem_types.get(node.outputs[0], 1))

    def _sum_behind(self, node: Node, amount: np.ndarray) -> tuple[Node, int] | None:
        """Find an Add that is the only reader and whose other operand is stored and as large as the amount."""
        readers = self.uses.get(node.outputs[0], [])
        if len(readers) != 1 or node.outputs[0] in self.graph.results or readers[0][0].op != "Add":
            return None
        reader, position = readers[0]
        stored = self._stored(reader, 1 - position)
        if stored is None or np.broadcast_shapes(stored.shape, amount.shape) != stored.shape:
            return None
        return reader, 1 - position

    def _behind(self, node: Node, amount: np.ndarray) -> None:
        public = node.outputs[0]
        if node.op in WITH_BIAS and amount.ndim == 1 and self._all_matrices(node):
            constant = self.constant(f"{public}_bias", amount.astype(self._dtype(node)), public, 1)
            made = Node.make(WITH_BIAS[node.op], [*node.inputs, constant], [public], name=node.name)
            self.made[id(node)] = [made]
            return
        raw = self.graph.fresh_name(f"{public}_unshifted")
        self.shapes[raw], self.factors[raw] = self.shapes[public], self.factors.get(public, ())
        shift = len(self.shapes[public]) - amount.ndim
        constant = self.constant(f"{public}_shift", amount.astype(self._dtype(node)), public, shift)
        node.outputs[0] = raw
        self.made[id(node)] = [node, Node.make("Add", [raw, constant], [public], name=raw)]

    def _all_matrices(self, node: Node) -> bool:
        return self.graph.opset >= 7 and all(len(self.shapes[name]) == 2 for name in (*node.inputs, *node.outputs))

    def finish(self) -> None:
        """Put new nodes in."""
        self.graph.replace(self.made)


def rename_output(graph: Graph, node: Node, reader: Node) -> tuple[str, str]:
    """Give the value between two nodes another name, as it is not what it was before; return both names."""
    old = node.outputs[0]
    new = graph.fresh_name(f"{old}_unshifted")
    node.outputs[0] = new
    reader.inputs = [new if name == old else name for name in reader.inputs]
    return old, new


def move_constants(graph: Graph, coupling: Coupling, sites: Sequence[Site], removed: np.ndarray) -> Coupling:
    """Add to every bias what the removed constants contribute; the labels of the new values are in the result."""
    moved = Moved(graph, dict(coupling.shapes), coupling.elem_types, dict(coupling.factors))
    for site in sites:
        gone = removed[site.units] & np.isfinite(site.constants) & (site.constants != 0)
        group, index = np.nonzero(gone & site.contraction.reads.any(axis=1))
        if group.size and site.merged:
            _merge(graph, site, group, index)
        elif group.size:
            values = site.constants[group, index]
            moved.add(site.node, site.contraction, contribution(site.contraction, group, index, values))
    moved.finish()
    return replace(coupling, factors=moved.factors, shapes=moved.shapes)


def _merge(graph: Graph, site: Site, group: np.ndarray, index: np.ndarray) -> None:
    """Add the weights of removed constants to those of the constants that stand for them."""
    name = site.node.inputs[1]
    stored = graph.consts[name]
    groups, outs, ins = site.contraction.reads.shape
    weight = stored.astype(np.float64).reshape(groups, outs, ins, -1)
    for g, i in zip(group.tolist(), index.tolist()):
        into = site.merged[g, i]
        weight[g, :, into] += weight[g, :, i] * (site.values[g, i] / site.values[g, into])
    graph.consts[name] = weight.reshape(stored.shape).astype(stored.dtype)


def contribution(contraction: Contraction, group: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return what some inputs of known value add to each output.

    Shapes
        group, index, values: one entry per input. The result: one entry per output of all groups.
    """
    assert contraction.total is not None
    amount = np.zeros(contraction.reads.shape[:2])
    np.add.at(amount, group, (contraction.total(group, index) * values).T)
    return amount.reshape(-1)
