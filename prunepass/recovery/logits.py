"""Refit queries and keys to their products: where heads have lost some of their size, to the scores of the dense model.

What is left of a head gives scores of lower rank. The best ones of that rank follow from the second moments A of the
dense queries and B of the dense keys: with A^1/2 B^1/2 = P S R^T cut off behind the size that is left, keys K U with
U = B^-1/2 R S^1/2, and queries Q T with T = B^1/2 R S^-1/2. Both layers are refitted to that by least squares, the
queries with the T that fits the keys as they came out, so that each makes up for what the other could not. Their
ridge pulls toward what a small matrix per head, folded into the weights, makes of those that are there.

Source
    CORP: min |Q K^T - Q_S M K_S^T|, one matrix M per head in closed form. Here M is where the ridge starts from; the
    least squares are over all inputs of both layers, which still know what the removed channels knew. Keys are centred
    where Softmax makes shares of the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph
from prunepass.recovery.batches import Batches
from prunepass.recovery.heads import Heads, Refused, Side
from prunepass.recovery.mixing import Block, Layered, RowsOf, best, solved
from prunepass.recovery.staged import Staged
from prunepass.rules.attending import Scores

_MOST_QUERIES = 64  # of a head, for judging
Layers = dict[str, Layered]
"""Layers by their output."""


@dataclass
class Outcome:
    """Hold the refitted layers, and the errors of the scores on held-back batches."""

    layers: Layers
    before: float
    after: float


class LogitRefit:
    """Refit the layers of queries and keys; nothing is changed, `run` returns the new weights.

    heads: how they lie. start: the layers as they are. rows: see `RowsOf`.
    """

    def __init__(
        self, heads: Heads, graph: Graph, dense: Staged, pruned: Staged, batches: Batches, start: Layers, rows: RowsOf
    ) -> None:
        self.heads, self.graph, self.dense, self.pruned = heads, graph, dense, pruned
        self.pair, self.start, self.rows = heads.pair, start, rows
        self.train, self.held = batches.parts
        self.centred = self.pair.scores.centred(np.ndim(dense.value(self.pair.query.value, 0)))
        keys = [int(head.key[0]) for head in heads.heads]
        self.groups = [[at for at, key in enumerate(keys) if key == first] for first in dict.fromkeys(keys)]
        """Numbers of heads that share their keys."""

    def run(self) -> Outcome:
        """Try the keys as they are and mixed ones, each with queries that fit; keeps the best.

        Raises
            Refused: there is nothing to judge by.
        """
        if not self.held or not self.train:
            raise Refused("too few batches to judge what is fitted")
        error = self._error(self.start)
        found = Outcome(self.start, error, error)
        for mixed in (False, True):
            layers = self._fitting_queries(self._mixed_keys(self.start) if mixed else self.start)
            error = self._error(layers)
            if error < found.after:
                found.after, found.layers = error, layers
        return found

    # ---- values ------------------------------------------------------------------------------------------------------
    def _tried(self, layers: Layers) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """Return what computes the stacks of queries and keys of a batch with these layers."""
        tensors = {name: new for layer in layers.values() for name, new in layer.tensors(self.graph).items()}
        trials = [self.pruned.trial(side.value, tensors) for side in self.pair.sides]
        return lambda batch: self._stacks(self.pair.scores, *(trial.run(batch) for trial in trials))

    def _known(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        values = [self.dense.value(side.value, batch) for side in self.pair.sides]
        return self._stacks(self.heads.dense, *values)

    def _stacks(self, scores: Scores, query: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        query, key = (x.astype(np.float64) for x in scores.split(query, key))
        return query, key - key.mean(axis=1, keepdims=True) if self.centred else key

    def _error(self, layers: Layers) -> float:
        """Return the error of the scores on held-back batches, relative to those of the dense model."""
        tried = self._tried(layers)
        miss = signal = 0.0
        for batch in self.held:
            (query, key), (own_query, own_key) = self._known(batch), tried(batch)
            step = -(-query.shape[1] // _MOST_QUERIES)
            for dense, own in self.heads.members[batch]:
                wanted = query[dense, ::step] @ key[dense].swapaxes(1, 2)
                found = own_query[own, ::step] @ own_key[own].swapaxes(1, 2)
                miss, signal = miss + np.square(found - wanted).sum(), signal + np.square(wanted).sum()
        return float(miss / max(signal, 1e-30))

    def _moments(self, layers: Layers) -> list[_Moments]:
        """Return second moments of the operands with these layers, and with the dense ones, head by head."""
        tried = self._tried(layers)
        found = [_Moments() for _ in self.heads.heads]
        for batch in self.train:
            (query, key), (own_query, own_key) = self._known(batch), tried(batch)
            for moments, (dense, own) in zip(found, self.heads.members[batch]):
                moments.add(query[dense], own_query[own], key[dense], own_key[own])
        return found

    # ---- weights -----------------------------------------------------------------------------------------------------
    def _mixed_keys(self, layers: Layers) -> Layers:
        """Refit the keys to the best mixtures of the dense ones."""
        moments, blocks = self._moments(layers), []
        for group in self.groups:
            head, own = self.heads.heads[group[0]], moments[group[0]]
            mix = best(np.sum([moments[at].queries for at in group], axis=0), own.keys, head.key.size)
            blocks.append(Block(head.dense_key, head.key, mix, solved(own.own_keys, own.key_cross.T @ mix)))
        y = self.pair.key.place.y
        return {**layers, y: layers[y].refitted(blocks, self.rows, self._width(self.pair.key))}

    def _width(self, side: Side) -> int:
        return int(np.shape(self.dense.value(side.place.y, 0))[side.place.product.axis])

    def _fitting_queries(self, layers: Layers) -> Layers:
        """Refit the queries to mixtures that give the dense scores with these keys."""
        blocks = []
        for head, own in zip(self.heads.heads, self._moments(layers)):
            mix = solved(own.own_keys, own.key_cross.T).T
            blocks.append(Block(head.dense_query, head.query, mix, solved(own.own_queries, own.query_cross.T @ mix)))
        y = self.pair.query.place.y
        return {**layers, y: layers[y].refitted(blocks, self.rows, self._width(self.pair.query))}


class _Moments:
    """Sum up second moments of one head: of dense queries and keys, of those of the pruned model, and across."""

    def __init__(self) -> None:
        self.queries = self.own_queries = self.query_cross = np.zeros((1, 1))
        self.keys = self.own_keys = self.key_cross = np.zeros((1, 1))

    def add(self, query: np.ndarray, own_query: np.ndarray, key: np.ndarray, own_key: np.ndarray) -> None:
        """Take in stacks of rows."""
        query, own_query, key, own_key = (x.reshape(-1, x.shape[-1]) for x in (query, own_query, key, own_key))
        self.queries, self.own_queries = self.queries + query.T @ query, self.own_queries + own_query.T @ own_query
        self.keys, self.own_keys = self.keys + key.T @ key, self.own_keys + own_key.T @ own_key
        self.query_cross, self.key_cross = self.query_cross + query.T @ own_query, self.key_cross + key.T @ own_key
