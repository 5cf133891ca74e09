"""Find which channels of two layers meet in which heads of attention, in the dense and in the pruned model.

What lies between a layer and the product of queries and keys only moves entries. So numbers of channels are sent
through it in the place of what the layer puts out, whatever the exporter made of the heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prunepass.graph import Graph, Use
from prunepass.recovery.staged import Staged, Trial
from prunepass.recovery.teacher import Teacher
from prunepass.rules.attending import Scores, Weighted, carried, scores, weighted

if TYPE_CHECKING:
    from prunepass.recovery.sequential import Place

_ROW_NUMBERS = 251


@dataclass(frozen=True)
class Side:
    """Hold one operand of a product of queries and keys: the layer that makes it, and what else reads that layer."""

    place: Place
    value: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Hold a product of queries and keys with the layers that make them."""

    scores: Scores
    query: Side
    key: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        """Queries and keys."""
        return self.query, self.key


def pairs(graph: Graph, layers: Iterable[Place]) -> list[Pair]:
    """Find the products of queries and keys that nothing but moves and one scale separates from their layers."""
    sides = _sides(graph, layers)
    uses = graph.uses()
    found = [scores(node, graph, uses) for node in graph.nodes]
    return [Pair(s, sides[s.query], sides[s.key]) for s in found if s and s.query in sides and s.key in sides]


def _sides(graph: Graph, layers: Iterable[Place]) -> dict[str, Side]:
    """Return where layers are read by one other node, behind what only carries them."""
    uses, sides = graph.uses(), dict[str, Side]()
    for place in layers:
        if place.product.groups(graph.consts.shape(place.product.weight)) > 1:
            continue
        ends = _ends(place.y, graph, uses)
        for value, readers in ends.items():
            if readers == 1:
                sides[value] = Side(place, value, tuple(other for other in ends if other != value))
    return sides


def _ends(name: str, graph: Graph, uses: Mapping[str, Sequence[Use]]) -> dict[str, int]:
    """Return where a value ends up behind what only carries it, and how many read it there; 0 for graph outputs."""
    reached = carried(name, graph, uses)
    ends = {value: len(readers) for value, readers in reached.items() if readers}
    return ends | {value: 0 for value in reached if value in graph.results}


@dataclass(frozen=True)
class Mixed:
    """Hold values that attention sums up, between the layer that makes them and the layer that reads the sums."""

    sums: Weighted
    value: Side
    reader: Place


def mixed_values(graph: Graph, layers: Sequence[Place]) -> list[Mixed]:
    """Find the values that go through sums of attention into one layer, and are carried only on the way there."""
    uses, sides = graph.uses(), _sides(graph, layers)
    readers = {place.x: place for place in layers}
    found = []
    for node in graph.nodes:
        sums = weighted(node, graph)
        if sums is None or sums.value not in sides:
            continue
        ends = _ends(sums.y, graph, uses)
        reader = readers.get(next(iter(ends)))
        if len(ends) == 1 and reader is not None and ends[reader.x] == 1:
            weight = graph.consts.shape(reader.product.weight)
            if reader.product.groups(weight) == reader.product.taps(weight) == 1:
                found.append(Mixed(sums, sides[sums.value], reader))
    return found


class Refused(Exception):
    """Say why queries and keys cannot be refitted."""


@dataclass(frozen=True)
class Head:
    """Hold which channels of the layers a head is made of, in the dense and in the pruned model.

    Shapes
        dense_query, dense_key: (size before,). query, key: (size left,).
    """

    dense_query: np.ndarray
    dense_key: np.ndarray
    query: np.ndarray
    key: np.ndarray


class Heads:
    """List the heads of a product; `members` says for each batch where each head lies in the operands.

    dense: the product as it is in the dense model.
    Raises
        Refused: the operands are not made of channels in a way that weights could take in a matrix per head.
    """

    def __init__(self, pair: Pair, dense: Scores, teacher: Teacher, runs: tuple[Staged, Staged], batches: int) -> None:
        self.pair, self.dense, self.teacher, self.runs = pair, dense, teacher, runs
        self._before, self._after = ([Numbers(run, side.value, side.place) for side in pair.sides] for run in runs)
        self.members: list[list[tuple[np.ndarray, np.ndarray]]] = []
        for batch in range(batches):
            whole, kept, own = self._numbered(batch)
            if not batch:
                self._refuse_mixed(*whole, *own, *self._rows())
                self.heads = self._heads(whole, kept, own)
                self._refuse_shared()
            at = [(whole[0][:, 0, 0] == h.dense_query[0], own[0][:, 0, 0] == h.query[0]) for h in self.heads]
            self.members.append([(np.flatnonzero(a), np.flatnonzero(b)) for a, b in at])
            if any(a.size != b.size for a, b in self.members[-1]):
                raise Refused("heads of the dense and of the pruned model do not correspond")

    def _shapes(self, batch: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Return the shapes of what both layers put out, before and after."""
        known = [(side.place.y, self.runs[0].value(side.place.y, batch)) for side in self.pair.sides]
        return [np.shape(y) for _, y in known], [np.shape(self.teacher.narrowed(name, y)) for name, y in known]

    def _numbered(self, batch: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Return stacks of channel numbers: dense, what is kept of these, and own ones of the pruned model."""
        before, after = self._shapes(batch)
        wide = [numbers.sent(batch, shape) for numbers, shape in zip(self._before, before)]
        kept = [self.teacher.narrowed(side.value, numbers) for side, numbers in zip(self.pair.sides, wide)]
        own = [numbers.sent(batch, shape) for numbers, shape in zip(self._after, after)]
        split = self.pair.scores.split
        return self.dense.split(*wide), split(*kept), split(*own)

    def _rows(self) -> Iterator[np.ndarray]:
        """Yield stacks of row numbers, turned."""
        rows = [numbers.rows(0, shape) for numbers, shape in zip(self._after, self._shapes(0)[1])]
        return (np.swapaxes(stack, 1, 2) for stack in self.pair.scores.split(*rows))

    @staticmethod
    def _refuse_mixed(*stacks: np.ndarray) -> None:
        if any((stack != stack[:, :1]).any() for stack in stacks):
            raise Refused("a head is not made of the same channels everywhere")

    @staticmethod
    def _heads(whole: Sequence[np.ndarray], kept: Sequence[np.ndarray], own: Sequence[np.ndarray]) -> list[Head]:
        dense_query, dense_key, kept_query, kept_key, query, key = (x[:, 0] for x in (*whole, *kept, *own))
        found = []
        for at in np.unique(query[:, 0], return_index=True)[1]:
            origin = (dense_query == kept_query[at, 0]).any(axis=1).argmax()
            head = Head(dense_query[origin], dense_key[origin], query[at], key[at])
            if not (np.isin(kept_query[at], head.dense_query).all() and np.isin(kept_key[at], head.dense_key).all()):
                raise Refused("heads of the dense and of the pruned model do not correspond")
            found.append(head)
        return found

    def _refuse_shared(self) -> None:
        """Refuse channels that more than one head of queries, or anything but the product, reads."""
        queries, keys = (np.concatenate([getattr(head, part) for head in self.heads]) for part in ("query", "key"))
        firsts = {int(head.key[0]): head.key for head in self.heads}
        own = np.concatenate(list(firsts.values()))
        if len(set(queries)) < queries.size or len(set(own)) < own.size or not np.isin(keys, own).all():
            raise Refused("heads share channels")
        for side, channels, shape in zip(self.pair.sides, (queries, keys), self._shapes(0)[1]):
            for other in side.others:
                if np.isin(Numbers(self.runs[1], other, side.place).sent(0, shape), channels).any():
                    raise Refused("something else reads queries or keys")


class Numbers:
    """Send numbers through what lies between a layer and a value."""

    def __init__(self, run: Staged, value: str, place: Place) -> None:
        self.axis = place.product.axis
        self.trial: Trial = run.trial(value, given=place.y, kind=run.graph.consts.elem_type(place.product.weight))

    def sent(self, batch: int, shape: Sequence[int]) -> np.ndarray:
        """Return the numbers of channels, each as often as its entries arrive."""
        numbers = np.arange(1, 1 + shape[self.axis])
        wide = np.swapaxes(
            np.broadcast_to(numbers, np.swapaxes(np.empty(shape, bool), self.axis, -1).shape), self.axis, -1
        )
        return self._through(batch, wide) - 1

    def rows(self, batch: int, shape: Sequence[int]) -> np.ndarray:
        """Return numbers that differ from row to row, and are alike in all channels."""
        lines = list(shape)
        lines[self.axis] = 1
        numbers = np.arange(np.prod(lines)).reshape(lines) % _ROW_NUMBERS
        return self._through(batch, np.broadcast_to(numbers, shape))

    def _through(self, batch: int, numbers: np.ndarray) -> np.ndarray:
        """Divide by what becomes of ones: the scale."""
        dtype = self.trial.dtype
        if numbers.max(initial=0) > 2 / np.finfo(dtype).eps:
            raise Refused("more channels than their type can count")
        scale = self.trial.run(batch, np.ones(numbers.shape, dtype))
        return np.rint(self.trial.run(batch, numbers.astype(dtype)) / scale.astype(np.float64)).astype(np.int64)
