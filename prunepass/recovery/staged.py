"""Run a graph piece by piece over all batches: every node once, whatever is asked for on the way.

Least squares in sequence needs the inputs of a layer after all layers before it were refitted. Running the model from
its start for each layer would cost as many forward passes as there are layers; here the values at the boundary between
what ran and what did not are held instead, in memory or, beyond a limit, in files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from prunepass.errors import PruneError
from prunepass.feeds import Feeds
from prunepass.graph import Graph, Node
from prunepass.runtime import seed_random_nodes, session

_MOST_SIZES = 64


class Gone(PruneError):
    """Say that a value cannot be computed any more."""


class Store:
    """Hold values by name, one array per batch; beyond the limit they lie in memory-mapped files.

    Units
        limit: bytes in memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held, self.most = limit, 0, 0
        self._values: dict[tuple[object, int], Any] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def put(self, name: object, batch: int, value: Any) -> None:
        """Keep a value."""
        if isinstance(value, np.ndarray) and value.nbytes > 4096:
            if self.held + value.nbytes > self.limit:
                value = self._spill(value)
            else:
                self.held += value.nbytes
                self.most = max(self.most, self.held)
        self._values[name, batch] = value

    def get(self, name: object, batch: int) -> Any:
        """Return a value."""
        return self._values[name, batch]

    def drop(self, name: object, batches: int) -> None:
        """Forget a value."""
        for batch in range(batches):
            value = self._values.pop((name, batch), None)
            if isinstance(value, np.memmap):
                Path(str(value.filename)).unlink()
            elif isinstance(value, np.ndarray) and value.nbytes > 4096:
                self.held -= value.nbytes

    def _spill(self, value: np.ndarray) -> np.ndarray:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="prunepass-")
        self._files += 1
        path = Path(self._folder.name) / f"{self._files}.bin"
        mapped: np.ndarray = np.memmap(path, value.dtype, "w+", shape=value.shape)
        mapped[...] = value
        return mapped


class Staged:
    """Compute values of one graph over all batches, each node once.

    A weight may be changed as long as no node that reads it has run. wanted: values that stay until `release`.
    """

    def __init__(self, graph: Graph, batches: Sequence[Feeds], store: Store, wanted: Iterable[str] = ()) -> None:
        self.graph, self.batches, self.store = graph, batches, store
        self._wanted = {*wanted}
        self._producer = graph.producers()
        self._order = {id(node): at for at, node in enumerate(graph.nodes)}
        self._readers: dict[str, set[int]] = {}
        for at, node in enumerate(graph.nodes):
            for name in (*node.inputs, *node.captured):
                self._readers.setdefault(name, set()).add(at)
        self._held: set[str] = set()
        self._kept: set[str] = set()
        self._done: set[int] = set()
        for name in graph.input_names:
            self._hold(name, [feeds[name] for feeds in batches])

    def need(self, *names: str) -> None:
        """Compute values and hold them until they are released or, where nobody wanted them, the next call."""
        missing = [name for name in names if name not in self._held and name not in self.graph.consts]
        self._wanted.update(names)
        if missing:
            self._run(self._pending(missing), missing)

    def keep(self, *names: str) -> None:
        """Hold values once they are computed, whoever releases them, until `let_go`."""
        self._kept.update(names)

    def let_go(self, *names: str) -> None:
        """Hold values no longer than others."""
        self._kept.difference_update(names)
        self._sweep()

    def value(self, name: str, batch: int) -> Any:
        """Return a value for one batch."""
        return self.graph.consts[name] if name in self.graph.consts else self.store.get((id(self), name), batch)

    def release(self, *names: str) -> None:
        """Let go of values, as soon as no node that has not run reads them."""
        self._wanted.difference_update(names)
        self._sweep()

    def has_run(self, node: Node) -> bool:
        """Say whether a node has run: its weights are settled."""
        return self._order.get(id(node)) in self._done

    def pending(self, name: str) -> list[Node]:
        """Return the nodes that have to run to compute a value."""
        return [self.graph.nodes[at] for at in self._pending([name])]

    def close(self) -> None:
        """Forget everything."""
        for name in list(self._held):
            self._drop(name)

    def _behind(self, given: str) -> set[str]:
        """Return what is computed from a value."""
        found, waiting = set[str](), [given]
        while waiting:
            for at in self._readers.get(waiting.pop(), ()):
                new = {out for out in self.graph.nodes[at].outputs if out} - found
                found |= new
                waiting += new
        return found

    def _pending(self, names: Iterable[str], given: Collection[str] = (), anew: Collection[str] = ()) -> list[int]:
        found: set[int] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            node = self._producer.get(name)
            if (
                (name in self._held and name not in anew)
                or name in given
                or node is None
                or id(node) not in self._order
            ):
                continue
            at = self._order[id(node)]
            if at not in found:
                found.add(at)
                waiting += (*node.inputs, *node.captured)
        return sorted(found)

    def _run(self, chosen: Sequence[int], missing: Sequence[str]) -> None:
        nodes = [self.graph.nodes[at] for at in chosen]
        made, given = self._around(nodes)
        self._done.update(chosen)
        kept = sorted(name for name in made if name in missing or name in self._wanted or self._alive(name))
        types = {name: _type_of(self.value(name, 0)) for name in given}
        running = _start(self.graph.part(nodes, types, kept))
        for batch in range(len(self.batches)):
            found = running.run({name: _loaded(self.value(name, batch)) for name in given})
            for name in kept:
                self.store.put((id(self), name), batch, found[name])
        self._held.update(kept)
        self._sweep()

    def _around(self, nodes: Sequence[Node]) -> tuple[set[str], list[str]]:
        """Return what some nodes compute, and what they read that is held."""
        made = {name for node in nodes for name in node.outputs if name}
        read = {name for node in nodes for name in (*node.inputs, *node.captured) if name}
        return made, sorted(read & self._held - made)

    def trial(
        self, name: str, weights: Mapping[str, np.ndarray] | None = None, given: str = "", kind: int = 1
    ) -> Trial:
        """Prepare to compute a value that is not held, with other weights, or from another value that is given.

        No node counts as run by that. kind: element type of what is given.

        Raises
            Gone: something that is read was let go of.
        """
        anew = self._behind(given) if given else set[str]()
        nodes = [self.graph.nodes[at] for at in self._pending([name], {given}, anew)]
        made, held = self._around(nodes)
        known = {given, *made, *held, *self.graph.consts}
        gone = [n for node in nodes for n in (*node.inputs, *node.captured) if n and n not in known]
        if gone:
            raise Gone(f"{name!r} is computed from {gone[0]!r}, which was let go of")
        held = [n for n in held if n != given]
        types = {n: _type_of(self.value(n, 0)) for n in held} | ({given: (kind, None)} if given else {})
        part = self.graph.part(nodes, types, [name])
        for weight, new in (weights or {}).items():
            part.consts[weight] = new
        try:
            running = _start(part)
        except PruneError as error:
            raise Gone(f"{name!r} cannot be computed apart: {error}") from error
        return Trial(self, name, held, given, helper.tensor_dtype_to_np_dtype(kind), running)

    def _alive(self, name: str) -> bool:
        return name in self._wanted or name in self._kept or not self._readers.get(name, set()) <= self._done

    def _sweep(self) -> None:
        for name in [name for name in self._held if not self._alive(name)]:
            if not _is_shape(self.value(name, 0)):  # cheap, and trials may ask for it once more
                self._drop(name)

    def _hold(self, name: str, values: Sequence[np.ndarray]) -> None:
        for batch, value in enumerate(values):
            self.store.put((id(self), name), batch, value)
        self._held.add(name)

    def _drop(self, name: str) -> None:
        self.store.drop((id(self), name), len(self.batches))
        self._held.discard(name)


@dataclass(frozen=True)
class Trial:
    """Compute a value on the side; made by `Staged.trial`. dtype: of what is given."""

    staged: Staged
    name: str
    held: Sequence[str]
    given: str
    dtype: np.dtype
    running: Any

    def run(self, batch: int, given: np.ndarray | None = None) -> np.ndarray:
        """Return the value for one batch.

        Raises
            Gone: the part does not run.
        """
        feeds = {name: _loaded(self.staged.value(name, batch)) for name in self.held}
        try:
            return np.asarray(self.running.run(feeds | ({} if given is None else {self.given: given}))[self.name])
        except PruneError as error:
            raise Gone(f"{self.name!r} cannot be computed apart: {error}") from error


def _is_shape(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "i" and value.ndim <= 1 and value.size <= _MOST_SIZES


def _start(part: Graph) -> Any:
    part = seed_random_nodes(part)
    try:
        return session(part)
    except PruneError:  # an optimisation that breaks on a piece of a model
        return session(part, optimise="off")


def _loaded(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, np.memmap) else value


def _type_of(value: Any) -> tuple[int, tuple[int, ...] | None] | None:
    """Return element type and shape of a value; the shape of vectors of integers only, as Resize must know it."""
    if not isinstance(value, np.ndarray):
        return None
    sizes = value.shape if value.dtype == np.int64 and value.ndim <= 1 else None
    return int(helper.np_dtype_to_tensor_dtype(value.dtype)), sizes
