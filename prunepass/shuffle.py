"""Find channel shuffles: one axis is split, its parts are permuted and merged again by Reshape, Transpose, Reshape.

Said as one Gather with constant indices, any subset of the channels can be removed; the original form only allows the
same ones in every part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.binding import declared
from prunepass.graph import Graph, Node
from prunepass.inference import infer

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Chain:
    """Three nodes that may be a shuffle: nobody else reads what is between them."""

    split: Node
    turn: Node
    merge: Node

    def order(self, shapes: Mapping[str, Shape]) -> tuple[int, np.ndarray] | None:
        """Return axis and indices of the Gather that does the same, None where there is none."""
        values = (self.split.inputs[0], self.split.outputs[0], self.merge.outputs[0])
        if not all(name in shapes for name in values):
            return None
        before, middle, after = (shapes[name] for name in values)
        perm = self.turn.attr("perm") or list(range(len(middle)))[::-1]
        return shuffle(before, middle, perm) if before == after else None


def chains(graph: Graph) -> Iterator[Chain]:
    """Yield what has the form of a shuffle."""
    uses, results, made = graph.uses(), graph.results, graph.producers()
    single = {name for name, found in uses.items() if len(found) == 1 and name not in results}
    for merge in graph.walk():
        turn = made.get(merge.inputs[0]) if merge.op == "Reshape" else None
        split = made.get(turn.inputs[0]) if turn is not None and turn.op == "Transpose" else None
        if turn is None or split is None or split.op != "Reshape":
            continue
        if single.issuperset([split.outputs[0], turn.outputs[0]]):
            yield Chain(split, turn, merge)


def shuffle(before: Shape, middle: Shape, perm: Sequence[int]) -> tuple[int, np.ndarray] | None:
    """Return the axis that is split into parts which alone change their places, and the order of its indices."""
    extra = len(middle) - len(before)
    for axis in range(len(before) if extra > 0 else 0):
        end = axis + extra + 1
        parts, inner = middle[axis:end], perm[axis:end]
        others_stay = [*perm[:axis], *perm[end:]] == [*range(axis), *range(end, len(middle))]
        if others_stay and (*middle[:axis], math.prod(parts), *middle[end:]) == before:
            order = np.arange(before[axis]).reshape(parts).transpose([a - axis for a in inner])
            return axis, order.reshape(-1)
    return None


def is_static(graph: Graph) -> bool:
    """Say whether the sizes of all graph inputs are fixed."""
    return all(dims is not None and all(isinstance(d, int) for d in dims) for dims in map(declared, graph.inputs))


def gather_shuffles(graph: Graph, shapes: Mapping[str, Shape]) -> int:
    """Replace shuffles by Gather nodes; return their number.

    Shapes
        shapes: of all values, for one choice of the dynamic axes; the nodes must do the same for another choice.
    """
    found = [(chain, order) for chain in chains(graph) if (order := chain.order(shapes)) is not None]
    if found and not is_static(graph):
        other = infer(graph, {name: _larger(graph, name, shapes) for name in graph.input_names if name in shapes}).shape
        found = [(chain, order) for chain, order in found if _same(order, chain.order(other))]
    for chain, (axis, indices) in found:
        out = chain.merge.outputs[0]
        name = graph.fresh_name(f"{out}_order")
        graph.consts[name] = indices
        gather = Node.make("Gather", [chain.split.inputs[0], name], [out], name=chain.merge.name, axis=axis)
        graph.replace({id(chain.merge): [gather], id(chain.split): (), id(chain.turn): ()})
    return len(found)


def _same(order: tuple[int, np.ndarray], other: tuple[int, np.ndarray] | None) -> bool:
    return other is not None and order[0] == other[0] and np.array_equal(order[1], other[1])


def _larger(graph: Graph, name: str, shapes: Mapping[str, Shape]) -> Shape:
    """Choose another size for each dynamic axis of an input: images must stay divisible."""
    info = next(info for info in graph.inputs if info.name == name)
    dims = declared(info) or ["?"] * len(shapes[name])
    return tuple(d if isinstance(d, int) else size + (32 if size >= 32 else 1) for d, size in zip(dims, shapes[name]))
