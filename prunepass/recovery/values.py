"""Refit values to their product with the layer behind attention: where heads have lost some of their size.

Attention mixes rows and no channels, so values V U, mixed within a head, come out as mixed sums Z U, and a layer behind
it can read them as well as any that were kept. What it can make of them is nearest to what the dense layer W makes of
Z where U = A^-1/2 P, with the covariance A of the dense sums and A^1/2 W = P S R^T cut off behind the size that is
left. The layer of the values is refitted to V U; the layer behind follows in its turn.

Source
    This project: the low rank of the product of V and the output layer, weighted by what is read; all else as for
    queries and keys in `logits.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunepass.recovery.batches import Batches
from prunepass.recovery.heads import Mixed, Numbers, Refused
from prunepass.recovery.mixing import Block, Layered, RowsOf, best, solved
from prunepass.recovery.moments import Gram
from prunepass.recovery.staged import Staged
from prunepass.recovery.teacher import Teacher
from prunepass.rules.attending import Weighted


@dataclass(frozen=True)
class ValueHead:
    """Hold which channels of the layer a head of values is made of, and where the sums of the dense ones are read.

    Shapes
        dense: (size before,). own: (size left,). read: (size before, uses), inputs of the dense layer behind.
        left: (size left, uses), those of the pruned one.
    """

    dense: np.ndarray
    own: np.ndarray
    read: np.ndarray
    left: np.ndarray


class ValueRefit:
    """Refit the layer of the values; nothing is changed, `run` returns it.

    sums: what sums the values up in the dense model.

    Raises
        Refused: values are not mixed as heads, or something else reads them.
    """

    def __init__(
        self, mixed: Mixed, sums: Weighted, teacher: Teacher, dense: Staged, pruned: Staged, batches: Batches
    ) -> None:
        self.mixed, self.sums, self.teacher = mixed, sums, teacher
        self.dense, self.pruned = dense, pruned
        self.train, _ = batches.parts
        place = mixed.value.place
        self.shape = np.shape(dense.value(place.y, 0))
        self.left = teacher.narrowed(place.y, dense.value(place.y, 0)).shape
        self.heads = self._heads()

    @property
    def cut(self) -> bool:
        """Whether any head has lost some of its size."""
        return any(head.own.size < head.dense.size for head in self.heads)

    def _heads(self) -> list[ValueHead]:
        side, sums = self.mixed.value, self.mixed.sums
        whole = Numbers(self.dense, side.value, side.place).sent(0, self.shape)
        kept = sums.split(self.teacher.narrowed(side.value, whole))
        dense = self.sums.split(whole)
        own = sums.split(Numbers(self.pruned, side.value, side.place).sent(0, self.left))
        read, own_read = (self._read(run, shape) for run, shape in ((self.dense, self.shape), (self.pruned, self.left)))
        if any((stack != stack[:, :1]).any() for stack in (dense, kept, own)):
            raise Refused("a head is not made of the same channels everywhere")
        found = []
        for at in np.unique(own[:, 0, 0], return_index=True)[1]:
            origin = (dense[:, 0] == kept[at, 0, 0]).any(axis=1).argmax()
            channels = dense[origin, 0]
            places = [np.flatnonzero(read == channel) for channel in channels]
            left = [np.flatnonzero(own_read == channel) for channel in own[at, 0]]
            if len({p.size for p in (*places, *left)}) != 1 or not np.isin(kept[at, 0], channels).all():
                raise Refused("heads of the dense and of the pruned model do not correspond")
            found.append(ValueHead(channels, own[at, 0], np.stack(places), np.stack(left)))
        columns = np.concatenate([head.own for head in found])
        if len(set(columns)) < columns.size or set(columns) != set(own_read):
            raise Refused("heads share channels, or not all that is read are values")
        for other in side.others:
            if np.isin(Numbers(self.pruned, other, side.place).sent(0, self.left), columns).any():
                raise Refused("something else reads values")
        return found

    def _read(self, run: Staged, shape: Sequence[int]) -> np.ndarray:
        """Return which channel of the values each input of the layer behind is a sum of."""
        reader = self.mixed.reader
        sent = Numbers(run, reader.x, self.mixed.value.place).sent(0, shape)
        rows = reader.product.channels(sent, 1)[0]
        if (rows != rows[:1]).any():
            raise Refused("the layer behind does not read the same channels everywhere")
        return np.asarray(rows[0])

    def run(self, start: Layered, reader: Layered, target: str, rows: RowsOf) -> tuple[Layered, Layered]:
        """Return the layer of the values, refitted to the best mixtures, and the one behind with weights for these.

        target: what the layer behind is fitted to. It and the dense sums have to be there.
        """
        product = self.mixed.reader.product
        matrix = product.matrix(self.teacher.graph.consts[product.weight].astype(np.float64))[0]
        matrix = matrix[:, self.teacher.left(target, np.shape(self.dense.value(target, 0)), product.axis)]
        turned, blocks = reader.matrix.copy(), []
        for head, covariances, (cross, own) in zip(self.heads, self._covariances(), self._moments(start)):
            weight = np.concatenate(list(matrix[head.read].swapaxes(0, 1)), axis=1)
            mix = best(weight @ weight.T, np.sum(covariances, axis=0), head.own.size)
            blocks.append(Block(head.dense, head.own, mix, solved(own, cross.T @ mix)))
            for use, covariance in enumerate(covariances):
                right = mix.T @ covariance @ matrix[head.read[:, use]]
                turned[0, head.left[:, use]] = solved(mix.T @ covariance @ mix, right)
        width = self.shape[self.mixed.value.place.product.axis]
        return start.refitted(blocks, rows, width), replace(reader, matrix=turned)

    def _covariances(self) -> list[list[np.ndarray]]:
        """Return covariances of the dense sums, head by head and use by use."""
        reader = self.mixed.reader
        grams = [[Gram() for _ in range(head.read.shape[1])] for head in self.heads]
        for batch in self.train:
            sums = reader.product.channels(np.asarray(self.dense.value(reader.x, batch)), 1)
            for head, uses in zip(self.heads, grams):
                for use, gram in enumerate(uses):
                    gram.add(sums[:, :, head.read[:, use]])
        return [[gram.xx[0] for gram in uses] for uses in grams]

    def _moments(self, layer: Layered) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return moments of the dense values with those of the layer, and of these, about their means."""
        place = self.mixed.value.place
        trial = self.pruned.trial(place.y, layer.tensors(self.pruned.graph))
        grams = [Gram() for _ in self.heads]
        for batch in self.train:
            dense, own = np.asarray(self.dense.value(place.y, batch)), trial.run(batch)
            every = np.arange(place.product.count(own))
            known, found = place.product.targets(dense, 1, every), place.product.targets(own, 1, every)
            for head, gram in zip(self.heads, grams):
                gram.add(found[:, :, head.own], known[:, :, head.dense])
        return [(gram.xy[0].T, gram.xx[0]) for gram in grams]
