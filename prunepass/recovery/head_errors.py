"""What it costs in output error that heads of attention lose channels, when their products are refitted.

Queries and keys that are refitted to their products, and values that are refitted to mixtures, lose what the best
product of lower rank loses, whichever channels go. With the second moments A of the dense queries of a head and B of
its keys, that is for r of d channels the sum of the last d - r eigenvalues of A^1/2 B A^1/2, as squared error of the
scores. For values, A is the covariance of their sums and B = W W' with the weights W of the layer behind.

Scores may lie inside a fused operator. So the experiment with noise is done on the queries, and what the noise does to
the scores is computed.

Source
    Eckart, Young 1936, The approximation of one matrix by another of lower rank; what is refitted, and to what, is in
    `logits.py` and `values.py`. That it predicts the costs of widths is this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from prunepass.coupling import Group
from prunepass.graph import Graph
from prunepass.recovery.batches import Batches
from prunepass.recovery.heads import Heads, Mixed, Pair, Refused, mixed_values, pairs
from prunepass.recovery.mixing import best, refuse_infinite, solved
from prunepass.recovery.obs import damped
from prunepass.recovery.staged import Gone, Staged, Store
from prunepass.recovery.teacher import Uncut
from prunepass.recovery.values import ValueRefit

if TYPE_CHECKING:
    from prunepass.recovery.sequential import Place

_MOST_ROWS = 256  # of a head and a sample
_CONSTANT = 1e-12  # variance relative to the mean square that rounding may leave


@dataclass(frozen=True)
class Loss:
    """Hold what the heads of one product lose.

    made, read: outputs of the layers that make these channels, and that read them.
    value: where errors count. variance: of what stands there.

    Shapes
        units: (heads, size) ids of the channels. errors: (heads, size + 1), by how many of them go, as squared error at
        the value.
    """

    made: frozenset[str]
    read: frozenset[str]
    value: str
    variance: float
    units: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class Behind:
    """Hold what a layer reads, and its weight.

    Shapes
        covariance: (features, features), from `rows` rows. weight: (features, outputs).
    """

    covariance: np.ndarray
    weight: np.ndarray
    rows: int


class HeadErrors:
    """Find what heads lose, in a graph from which nothing was cut.

    Shapes
        units: of each value that a layer makes, (channels,) ids. behind: layers by their output.
    """

    def __init__(
        self, graph: Graph, batches: Batches, memory: int, units: Mapping[str, np.ndarray], behind: Mapping[str, Behind]
    ) -> None:
        self.graph, self.batches, self.memory = graph, batches, memory
        self.units, self.behind = units, behind

    def run(self, layers: Sequence[Place]) -> list[Loss]:
        """Return what is lost where these layers are refitted; products that would be left alone are not in it."""
        known = pairs(self.graph, layers)
        keys = {(id(pair.scores.node), pair.key.value) for pair in known}
        values = [m for m in mixed_values(self.graph, layers) if (id(m.sums.node), m.value.value) not in keys]
        order = {id(node): at for at, node in enumerate(self.graph.nodes)}
        todo: list[tuple[int, Callable[[Staged], Loss], set[str]]] = []
        for pair in known:
            made = {side.place.y for side in pair.sides}
            if made <= self.units.keys():
                todo.append((order[id(pair.scores.node)], partial(self._scores, pair), made))
        for mixed in values:
            if mixed.value.place.y in self.units and mixed.reader.y in self.behind:
                todo.append((order[id(mixed.sums.node)], partial(self._values, mixed), {mixed.value.place.y}))
        todo.sort(key=lambda entry: entry[0])
        return list(self._found([look for _, look, _ in todo], [made for *_, made in todo])) if todo else []

    def _found(self, todo: Sequence[Callable[[Staged], Loss]], made: Sequence[set[str]]) -> Iterator[Loss]:
        """Look at products in order; made: what each of them needs, which others may need once more."""
        running = Staged(self.graph, self.batches.feeds, Store(self.memory))
        running.keep(*set[str]().union(*made))
        for at, look in enumerate(todo):
            try:
                yield look(running)
            except (Refused, Gone):
                continue
            finally:
                running.let_go(*made[at].difference(*made[at + 1 :]))
        running.close()

    # ---- queries and keys --------------------------------------------------------------------------------------------
    def _scores(self, pair: Pair, running: Staged) -> Loss:
        made, names = [side.place.y for side in pair.sides], [side.value for side in pair.sides]
        running.need(*made)
        try:
            heads = Heads(pair, pair.scores, Uncut(self.graph), (running, running), len(self.batches.feeds))
            running.need(*names)
            moments = self._moments(heads, running)
        finally:
            running.release(*names, *made)
        shared: dict[int, list[int]] = {}
        for at, head in enumerate(heads.heads):
            shared.setdefault(int(head.key[0]), []).append(at)
        units, errors = [], []
        for group in shared.values():
            own = [self.units[y][getattr(heads.heads[at], k)] for at in group for y, k in zip(made, ("query", "key"))]
            units.append(_distinct(own))
            queries = np.sum([moments[at].queries.damped for at in group], axis=0)
            errors.append(_tail(queries, moments[group[0]].keys.damped) / len(heads.heads))
        variance, gain = _probed(moments)
        return Loss(frozenset(made), frozenset(), names[0], variance, np.stack(units), np.stack(errors) / gain)

    def _moments(self, heads: Heads, running: Staged) -> list[_Moments]:
        """Return second moments of dense queries and keys, head by head."""
        found, pair = [_Moments(_Second(), _Second(), _Second()) for _ in heads.heads], heads.pair
        for batch in range(len(self.batches.feeds)):
            query, key = (np.asarray(running.value(side.value, batch)) for side in pair.sides)
            mean = query.mean(axis=0 if len(query) > 1 else None, dtype=np.float64)
            noise, centred = pair.scores.split(query - mean, key)[0], pair.scores.centred(query.ndim)
            query, key = pair.scores.split(query, key)
            means = key.mean(axis=1, keepdims=True, dtype=np.float64) * centred
            of_queries, of_keys = (-(-x.shape[1] // _MOST_ROWS) for x in (query, key))
            for own, (at, _) in zip(found, heads.members[batch]):
                own.queries.add(query[at, ::of_queries])
                own.noise.add(noise[at, ::of_queries])
                own.keys.add(key[at, ::of_keys] - means[at])
        return found

    # ---- values ------------------------------------------------------------------------------------------------------
    def _values(self, mixed: Mixed, running: Staged) -> Loss:
        y, behind = mixed.value.place.y, self.behind[mixed.reader.y]
        running.need(y)
        try:
            heads = ValueRefit(mixed, mixed.sums, Uncut(self.graph), running, running, self.batches).heads
        finally:
            running.release(y)
        units = [_distinct([self.units[y][head.dense]]) for head in heads]
        errors = [_mixtures(behind, head.read) / behind.weight.shape[1] for head in heads]
        made, read = frozenset((y,)), frozenset((mixed.reader.y,))
        return Loss(made, read, mixed.reader.y, 0.0, np.stack(units), np.stack(errors))


class _Second:
    """Hold mean second moments of rows that stream by."""

    def __init__(self) -> None:
        self._sum, self._count = np.zeros((1, 1)), 0

    def add(self, stack: np.ndarray) -> None:
        """Take in a stack of rows."""
        rows = stack.reshape(-1, stack.shape[-1]).astype(np.float64)
        self._sum, self._count = self._sum + rows.T @ rows, self._count + len(rows)

    @property
    def mean(self) -> np.ndarray:
        """As they are."""
        return np.asarray(self._sum / max(1, self._count))

    @property
    def damped(self) -> np.ndarray:
        """Damped like the covariances of all layers."""
        return damped(self.mean, max(1, self._count))


@dataclass(frozen=True)
class _Moments:
    """Hold moments of one head; noise: as it is put on the queries."""

    queries: _Second
    noise: _Second
    keys: _Second


def _probed(heads: Sequence[_Moments]) -> tuple[float, float]:
    """Return the variance of noise on queries, and the squared error of scores that noise of variance 1 makes."""
    queries, noises = ([getattr(own, name).mean for own in heads] for name in ("queries", "noise"))
    power, variance = (float(np.mean([np.diagonal(own).mean() for own in of])) for of in (queries, noises))
    if variance <= _CONSTANT * power:  # queries that are the same for all samples get white noise
        noises, variance = [np.eye(len(own)) * power for own in noises], power
    made = float(np.mean([(noise * own.keys.mean).sum() for noise, own in zip(noises, heads)]))
    if not made > 0:
        raise Refused("queries or keys are 0")
    return variance, made / variance


def _distinct(channels: Sequence[np.ndarray]) -> np.ndarray:
    """Return the units of a head."""
    units = channels[0]
    if any((other != units).any() for other in channels) or not units.all() or len(set(units.tolist())) < units.size:
        raise Refused("channels of a head do not go one by one")
    return units


def _tail(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return what the best approximation of lower rank loses of a product, by how many dimensions it lacks."""
    refuse_infinite(left, right)
    values, vectors = np.linalg.eigh(left)
    half = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.concatenate([[0.0], np.cumsum(np.maximum(np.linalg.eigvalsh(half.T @ right @ half), 0.0))])


def _mixtures(behind: Behind, read: np.ndarray) -> np.ndarray:
    """Return what mixtures lose of the layer behind, summed over its outputs; read: (size, uses) features."""
    parts = [(damped(behind.covariance[np.ix_(own, own)], behind.rows), behind.weight[own]) for own in read.T]
    if len(parts) == 1:
        covariance, weight = parts[0]
        return _tail(covariance, weight @ weight.T)
    squares = [weight @ weight.T for _, weight in parts]
    mix = best(np.sum(squares, axis=0), np.sum([covariance for covariance, _ in parts], axis=0), len(read))
    found = np.zeros(len(read) + 1)
    for (covariance, _), square in zip(parts, squares):
        seen = covariance @ square @ covariance
        reached = [_reached(covariance, seen, mix[:, :left]) for left in range(len(read), -1, -1)]
        found += (covariance * square).sum() - np.array(reached)
    return np.maximum.accumulate(np.maximum(found, 0.0))


def _reached(covariance: np.ndarray, seen: np.ndarray, mix: np.ndarray) -> float:
    """Return how much of what a layer makes some mixtures explain; seen: its products with what it reads, squared."""
    return float(np.trace(solved(mix.T @ covariance @ mix, mix.T @ seen @ mix))) if mix.shape[1] else 0.0


def lost(
    group: Group, losses: Sequence[Loss], weight: Mapping[str, float], made: Iterable[str], read: Iterable[str]
) -> np.ndarray | None:
    """Return what all heads of a group lose by how many units of each row go; None where not they alone lose.

    made, read: outputs of all layers that make units of the group, and that read any.
    """
    rows = {frozenset(row): at for at, row in enumerate(group.units.tolist())}
    own = [loss for loss in losses if np.isin(loss.units, group.units).any()]
    covered, total = set[int](), np.zeros(group.units.shape[1] + 1)
    for loss in own:
        for units, errors in zip(loss.units, loss.errors):
            row = rows.get(frozenset(units.tolist()))
            if row is not None:
                covered.add(row)
                total += errors * weight.get(loss.value, 0.0)
            elif np.isin(units, group.units).any():
                return None
    others = ({*made} - {y for loss in own for y in loss.made}) | ({*read} - {y for loss in own for y in loss.read})
    return None if others or len(covered) < len(rows) else total


def by_width(costs: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return costs of units (rows, size), the order of which stays, so that they add up to no more than a total.

    total: (size + 1,), of all rows by how many units of each go; no matter which.
    """
    order = np.argsort(costs, axis=1, kind="stable")
    one_by_one = np.cumsum(np.sort(costs, axis=1).sum(axis=0))
    steps = np.diff(np.minimum(total, np.concatenate([[0.0], one_by_one]))) / len(costs)
    found = np.empty_like(costs)
    np.put_along_axis(found, order, np.broadcast_to(np.maximum.accumulate(steps), costs.shape), axis=1)
    return found
