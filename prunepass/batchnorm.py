"""Take the scale and shift of a BatchNormalization into the linear operator behind or in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunepass.dataflow.forward import view
from prunepass.dataflow.moving import Moved, contribution, rename_output
from prunepass.dataflow.ranges import Unknown
from prunepass.graph import Graph, Node
from prunepass.rules.affine import AFFINE, COMMUTES, SCALE_INPUTS, SCALE_OUTPUTS, WITH_BIAS, Scaling
from prunepass.rules.contractions import CONTRACTIONS, Contraction
from prunepass.rules.dims import trains
from prunepass.rules.linear import SUMS
from prunepass.rules.statistics import STATISTICS


@dataclass
class Fold:
    """One BatchNormalization of a graph, or a part of one: y = x * scale + shift, channel by channel.

    Shapes
        scale, shift: (channels,), float64. shapes: of all values; those of new ones are added.
    """

    graph: Graph
    shapes: Any
    node: Node
    source: str
    scale: np.ndarray
    shift: np.ndarray

    def __post_init__(self) -> None:
        self.uses, self.results = self.graph.uses(), self.graph.results

    def into_producer(self, makers: dict[str, Node]) -> bool:
        """Fold into the operator that makes the input, with a stored sum between them or without."""
        source = self.source
        maker, between = makers.get(source), None
        if maker is not None and maker.op in SUMS and self._private(source):
            between = self._stored_sum(maker)
            maker = makers.get(maker.inputs[1 - between[1]]) if between else None
        if maker is None or maker.op not in SCALE_OUTPUTS or not self._private(source):
            return False
        if between and not (self._private(maker.outputs[0]) and maker.op in WITH_BIAS):
            return False
        bias = self._bias(maker)
        contraction = self._contraction(maker)
        if bias is None or contraction is None or contraction.out_axis != 1:
            return False
        if not between and self._grows(maker, contraction, self.shift):
            return False
        weight = self._scaled(maker, SCALE_OUTPUTS[maker.op], self.scale)
        if weight is None:
            return False
        self._store(maker, 1, weight)
        for node, position in [*bias, *([between] if between else [])]:
            stored = self.graph.consts[node.inputs[position]]
            vector = np.broadcast_to(stored.astype(np.float64).reshape(-1), self.scale.shape)
            shape = stored.shape if stored.size == self.scale.size else self.scale.shape
            self._store(node, position, (vector * self.scale).reshape(shape).astype(stored.dtype))
        if between:
            old, new = rename_output(self.graph, maker, between[0])
            self.shapes.shape[new] = self.shapes.shape[old]
        last = between[0] if between else maker
        last.outputs[0] = self.node.outputs[0]
        self.graph.remove([self.node])
        self._shift(maker, contraction, self.shift)
        return True

    def into_reader(self) -> bool:
        """Fold into the only operator that reads the output."""
        out = self.node.outputs[0]
        if not self._private(out):
            return False
        reader, position = self.uses[out][0]
        if position != 0 or reader.op not in SCALE_INPUTS:
            return False
        contraction = self._contraction(reader)
        if contraction is None or contraction.axis != 1 or contraction.data != 0:
            return False
        group, index = np.nonzero(self.shift.reshape(contraction.reads.shape[0], -1))
        if group.size and contraction.total is None:
            return False
        weight = self._scaled(reader, SCALE_INPUTS[reader.op], self.scale)
        if weight is None:
            return False
        values = self.shift.reshape(contraction.reads.shape[0], -1)[group, index]
        amount = contribution(contraction, group, index, values) if group.size else np.zeros(1)
        if self._grows(reader, contraction, amount):
            return False
        self._store(reader, 1, weight)
        reader.inputs[0] = self.source
        self.graph.remove([self.node])
        self._shift(reader, contraction, amount)
        return True

    # ---- what may be touched -------------------------------------------------------------------------------------
    def _private(self, name: str) -> bool:
        """Whether a value has one reader and is no output."""
        return len(self.uses.get(name, [])) == 1 and self.uses[name][0][1] >= 0 and name not in self.results

    def _own(self, node: Node, position: int) -> bool:
        """Whether an operand is stored, for this node alone."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        consts = self.graph.consts
        return name in consts and name not in self.graph.overridable and len(self.uses.get(name, [])) == 1

    def _stored_sum(self, node: Node) -> tuple[Node, int] | None:
        """Find the operand of an Add that holds a number per channel of the last axis."""
        for position in (0, 1):
            if self._own(node, position) and self.graph.consts[node.inputs[position]].size == self.scale.size:
                shape = self.graph.consts[node.inputs[position]].shape
                return (node, position) if shape[-1] == self.scale.size else None
        return None

    def _bias(self, node: Node) -> list[tuple[Node, int]] | None:
        """List the bias of an operator, none where it has none; None where it is not its own."""
        if len(node.inputs) < 3 or not node.inputs[2]:
            return []
        if not self._own(node, 2) or self.graph.consts[node.inputs[2]].size not in (1, self.scale.size):
            return None
        return [(node, 2)]

    def _grows(self, node: Node, contraction: Contraction, amount: np.ndarray) -> bool:
        """Whether a bias that is not there yet would be larger than all that goes."""
        at = contraction.bias
        name = node.inputs[at] if at is not None and at < len(node.inputs) else ""
        behind = self.uses.get(node.outputs[0], [])
        if not amount.any() or (name and self.graph.consts[name].size == amount.size):
            return False
        if len(behind) == 1 and behind[0][0].op in SUMS and self._stored_vector(behind[0][0], amount.size):
            return False
        gone = [name for at, name in enumerate(self.node.inputs) if self._own(self.node, at)]
        return amount.size > sum(self.graph.consts[name].size for name in gone)

    def _stored_vector(self, node: Node, size: int) -> bool:
        return any(self._own(node, at) and self.graph.consts[node.inputs[at]].size == size for at in (0, 1))

    def _contraction(self, node: Node) -> Contraction | None:
        known = view(self.graph, node, self.shapes.shape, self.shapes.value, {})
        try:
            return next(iter(CONTRACTIONS[node.op](known)), None)
        except Unknown:
            return None

    # ---- changes -------------------------------------------------------------------------------------------------
    def _scaled(self, node: Node, scaling: Scaling, factor: np.ndarray) -> np.ndarray | None:
        """Return a new weight in the type of the old one; None where that is shared, or the new one overflows."""
        if not self._own(node, 1):
            return None
        old = self.graph.consts[node.inputs[1]]
        weight = scaling(node, old, factor) if old.dtype.kind == "f" else None
        if weight is None:
            return None
        with np.errstate(over="ignore"):
            found = weight.astype(old.dtype)
        return found if np.isfinite(found).all() else None

    def _store(self, node: Node, position: int, array: np.ndarray) -> None:
        self.graph.consts[node.inputs[position]] = np.ascontiguousarray(array)

    def _shift(self, node: Node, contraction: Contraction, amount: np.ndarray) -> None:
        if amount.any():
            moved = Moved(self.graph, self.shapes.shape, self.shapes.elem_type)
            moved.add(node, contraction, amount)
            moved.finish()


def affine(graph: Graph, node: Node, shapes: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the scale and shift per channel that a node applies to its first input; None where it does not."""
    row = AFFINE.get(node.op)
    shape = shapes.shape.get(node.inputs[0], ())
    stored = {name: graph.consts[name] for name in node.inputs if name in graph.consts.keys() - graph.overridable}
    if row is None or len(shape) < 2 or any(node.outputs[1:]) or trains(node, graph.opset):
        return None
    with np.errstate(all="ignore"):
        found = row(node, shape, stored)
    return found if found is not None and all(np.isfinite(v).all() for v in found) else None


def untie(graph: Graph, shapes: Any) -> dict[str, str]:
    """Give each user of a shared weight a copy where the same BatchNormalization follows all; map copies to weights.

    Folded, the copies are equal again, and are shared again when tensors are stored.
    """
    uses, results, copies = graph.uses(), graph.results, dict[str, str]()
    main = {id(node) for node in graph.nodes}
    for name, users in uses.items():
        if len(users) < 2 or name not in graph.consts or name in graph.overridable or name in results:
            continue
        follows = [_alone_behind(graph, uses, node) for node, _ in users]
        if any(n is None or n.op not in STATISTICS or id(n) not in main for n in follows):
            continue
        if len({(node.op, position, *_attributes(node)) for node, position in users}) > 1 or users[0][1] != 1:
            continue
        ranks = {len(shapes.shape.get(node.outputs[0], ())) for node, _ in users}
        if users[0][0].op not in SCALE_OUTPUTS or any(len(node.inputs) > 2 for node, _ in users) or len(ranks) > 1:
            continue
        found = [affine(graph, node, shapes) for node in follows if node is not None]
        if all(f is not None and all(map(np.array_equal, f, found[0] or ())) for f in found):
            for node, position in users[1:]:
                node.inputs[position] = graph.fresh_name(name)
                graph.consts.alias(node.inputs[position], name)
                copies[node.inputs[position]] = name
    return copies


def tie(graph: Graph, copies: Mapping[str, str]) -> None:
    """Let those who kept their copy as it was read the weight again."""
    same = {copy: name for copy, name in copies.items() if graph.consts[copy] is graph.consts[name]}
    for node in graph.walk() if same else ():
        node.inputs = [same.get(name, name) for name in node.inputs]
    for copy in same:
        del graph.consts[copy]


def _alone_behind(graph: Graph, uses: Any, node: Node) -> Node | None:
    """Return the only node that reads a result, as its data."""
    readers = uses.get(node.outputs[0], [])
    alone = len(readers) == 1 and readers[0][1] == 0 and node.outputs[0] not in graph.results
    return readers[0][0] if alone else None


def _attributes(node: Node) -> tuple[bytes, ...]:
    return tuple(sorted(attribute.SerializeToString() for attribute in node.to_proto().attribute))


def swap_stored(graph: Graph, node: Node) -> Node:
    """Return a node that commutes with its stored operand behind the other one."""
    if node.op not in COMMUTES or len(node.inputs) != 2 or node.inputs[0] not in graph.consts:
        return node
    turned = node.copy()
    turned.inputs = node.inputs[::-1]
    return turned
