"""Refit what attention multiplies as products: queries with keys, values with the layer behind.

Layers that feed attention are refitted on their own first, like any other. What is found here goes on from there, and
is kept where held-back rows come nearer to the dense model than with these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from prunepass.graph import Node
from prunepass.recovery.heads import Heads, Mixed, Pair, Refused, Side, mixed_values, pairs
from prunepass.recovery.logits import LogitRefit
from prunepass.recovery.mixing import Layered
from prunepass.recovery.ridge import Flat, fit
from prunepass.recovery.staged import Gone
from prunepass.recovery.values import ValueRefit
from prunepass.rules.attending import scores, weighted

if TYPE_CHECKING:
    from prunepass.recovery.sequential import Layer, Place, Sequential


class Attention:
    """Refit the products of attention, for a sequential refit that asks at every layer."""

    def __init__(self, work: Sequential, layers: Sequence[Place]) -> None:
        self.work, self.seen = work, list[_Values]()
        loses = work.teacher.loses
        self.pairs = [p for p in pairs(work.graph, layers) if any(loses(side.value) for side in p.sides)]
        self.values = [mixed for mixed in mixed_values(work.graph, layers) if loses(mixed.value.value)]
        keys = {(id(pair.scores.node), pair.key.value) for pair in self.pairs}
        self.values = [mixed for mixed in self.values if (id(mixed.sums.node), mixed.value.value) not in keys]
        work.dense.keep(*(mixed.value.place.y for mixed in self.values))

    def behind(self, waiting: set[int]) -> Iterator[Layer]:
        """Refit queries and keys whose layers have both been refitted; yields what was done."""
        ready = [pair for pair in self.pairs if not {id(side.place.node) for side in pair.sides} & waiting]
        self.pairs = [pair for pair in self.pairs if pair not in ready]
        for pair in ready:
            yield from self._noted(pair.scores.node, _Logits(self.work, pair).run)

    def look(self, place: Place) -> None:
        """Look at the values that a layer is about to read, as long as nothing has read them."""
        self.seen = [_Values(self.work, mixed) for mixed in self.values if mixed.reader.node is place.node]
        for values in self.seen:
            values.look()

    def before(self, place: Place) -> Iterator[Layer]:
        """Refit the values that were looked at for a layer with a target; yields what was done."""
        for values in self.seen:
            yield from self._noted(values.mixed.sums.node, partial(values.run, place))

    def _noted(self, node: Node, refit: Callable[[Layer], bool]) -> Iterator[Layer]:
        layer, start = self.work.layer(node), time.perf_counter()
        try:
            tried = refit(layer)
        except (Refused, Gone) as reason:
            layer.note, tried = str(reason), True
        layer.seconds = time.perf_counter() - start
        if tried:
            yield layer


class _Logits:
    def __init__(self, work: Sequential, pair: Pair) -> None:
        self.work = work
        self.pair = replace(pair, query=_current(pair.query), key=_current(pair.key))

    def run(self, layer: Layer) -> bool:
        """Refit one product of queries and keys; says whether there was anything to refit."""
        work, pair = self.work, self.pair
        values = [side.value for side in pair.sides]
        known = work.known(pair.scores.node)
        outputs, inputs = ([getattr(side.place, name) for side in pair.sides] for name in ("y", "x"))
        dense = scores(known, work.teacher.graph, work.teacher.graph.uses()) if known else None
        settled = any(work.pruned.has_run(side.place.node) for side in pair.sides)
        if settled or dense is None or [dense.query, dense.key] != values or not work.knows(*outputs, *values):
            return False
        work.dense.need(*outputs)
        work.pruned.need(*inputs)
        try:
            heads = Heads(pair, dense, work.teacher, (work.dense, work.pruned), len(work.batches.feeds))
            if all(head.query.size == head.dense_query.size for head in heads.heads):
                return False
            work.dense.need(*values)
            start = {side.place.y: work.layered(side.place) for side in pair.sides}
            found = LogitRefit(heads, work.graph, work.dense, work.pruned, work.batches, start, work.mixed).run()
        finally:
            work.dense.release(*values, *outputs)
            work.pruned.release(*inputs)
        layer.before, layer.after = found.before, found.after
        layer.rows, layer.ridge = (getattr(found.layers[pair.query.place.y], name) for name in ("rows", "ridge"))
        _settle(work, layer, "logits", found.layers.values())
        return True


class _Values:
    def __init__(self, work: Sequential, mixed: Mixed) -> None:
        self.work, self.mixed = work, replace(mixed, value=_current(mixed.value))
        self.found: ValueRefit | Refused | Gone | None = None

    def look(self) -> None:
        """Find the heads of the values."""
        work, side, reader = self.work, self.mixed.value, self.mixed.reader
        known = work.known(self.mixed.sums.node)
        dense = weighted(known, work.teacher.graph) if known else None
        known_all = work.knows(side.place.y, side.value, reader.x, reader.y)
        if work.pruned.has_run(side.place.node) or dense is None or dense.value != side.value or not known_all:
            return
        work.dense.need(side.place.y)
        work.pruned.need(side.place.x)
        try:
            found = ValueRefit(self.mixed, dense, work.teacher, work.dense, work.pruned, work.batches)
            self.found = found if found.cut else None
        except (Refused, Gone) as reason:
            self.found = reason
        if isinstance(self.found, ValueRefit):
            work.dense.keep(reader.x)

    def run(self, reader: Place, layer: Layer) -> bool:
        """Refit the values for a layer with a target; says whether there was anything to refit."""
        work, side, target = self.work, self.mixed.value, reader.total or reader.y
        shortcut = [reader.shortcut] if reader.shortcut else []
        try:
            if not isinstance(self.found, ValueRefit):
                if self.found is not None:
                    raise self.found
                return False
            work.dense.need(reader.x, target)  # the layer asks for the target again, and releases it
            work.pruned.need(side.place.x, *shortcut)
            start, behind = work.layered(side.place), work.layered(reader)
            found, turned = self.found.run(start, behind, target, work.mixed)
            layer.before, layer.after = self._error(start, behind, target), self._error(found, turned, target)
        finally:
            work.dense.let_go(side.place.y, reader.x)
            work.dense.release(side.place.y, reader.x)
            work.pruned.release(side.place.x, *shortcut)
        layer.rows, layer.ridge = found.rows, found.ridge
        _settle(work, layer, "values", [found, turned])
        return True

    def _error(self, layer: Layered, reader: Layered, target: str) -> float:
        """Return the error of the layer behind with these values, refitted to them."""
        trial = self.work.pruned.trial(reader.place.x, layer.tensors(self.work.graph))
        rows = self.work.rows(reader.place, target, reader.matrix.shape, read=trial.run)
        if isinstance(rows, str):
            raise Refused(rows)
        found = fit(*rows, reader.matrix, reader.bias, Flat())
        return min(found.before, found.after)


def _current(side: Side) -> Side:
    """Look up which bias a layer has by now."""
    bias = side.place.bias
    if bias is not None:
        name = bias.node.inputs[bias.at] if len(bias.node.inputs) > bias.at else ""
        bias = replace(bias, name=name) if name else None
    return replace(side, place=replace(side.place, bias=bias, total="", shortcut=""))


def _settle(work: Sequential, layer: Layer, method: str, found: Iterable[Layered]) -> None:
    """Put in what was found, where it is better than what is there."""
    if not layer.is_better(work.options.least_gain, rounding=0.0):
        return
    layer.method = method
    for own in found:
        work.install(own.place, own.as_fit())
