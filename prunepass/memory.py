"""Peak memory of the activations, for the order in which the nodes stand in the graph.

A value needs its bytes from the node that computes it to the last node that reads it; while a node runs, its inputs and
its outputs are both there. Rules of reuse (`rules/memory.py`): a view shares the buffer of what it views; an
element-wise result overwrites the first input that has its size, is read for the last time here, and was computed in
this graph. Graph inputs are there from the start to their last use and are never overwritten, graph outputs stay to
the end. Not counted: constants and what is computed from them alone (they lie in flash, or in the file), the working
memory of kernels, and values that are known beforehand, such as sizes. The peak is what a planner with perfect
placement reaches.

Bodies: what a body reads from outside lives until its node ends; its own values live for one turn; one branch of an If
runs at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from prunepass.rules.folding import IMPURE
from prunepass.rules.memory import REUSE

if TYPE_CHECKING:
    from prunepass.graph import Graph, Node


def constant_values(graph: Graph) -> frozenset[str]:
    """Return the values that are computed from constants alone, such as a transposed weight."""
    found: set[str] = set()
    for node in graph.walk():
        read = [name for name in (*node.inputs, *node.captured) if name]
        pure = node.op not in IMPURE and not node.bodies
        if pure and read and all(name in graph.consts or name in found for name in read):
            found.update(name for name in node.outputs if name)
    return frozenset(found)


@dataclass(frozen=True)
class Buffers:
    """Hold the buffers of a graph under one choice of what is overwritten.

    Shapes
        owner: for each value, the number of its buffer. size_of, birth, death: for each buffer, the value that says its
        size, and the first and last step at which it is there.
    """

    owner: np.ndarray
    size_of: np.ndarray
    birth: np.ndarray
    death: np.ndarray


class Liveness:
    """Know which values are alive at which node.

    names: values that take memory. nodes: the order of execution; step 0 is before the first of them.

    Shapes
        live: one entry per step, in the unit of the sizes given.
    """

    def __init__(self, graph: Graph, sized: Collection[str], known: Collection[str]) -> None:
        self.nodes = list(graph.walk())
        self._read(graph)
        self.names = tuple(name for name in self._birth if name in sized and name not in known)
        self._number = {name: number for number, name in enumerate(self.names)}
        self._roots = self._views()
        self._pairs = self._candidates(set(graph.input_names))
        self._overwritten = np.array([value for _, value, _ in self._pairs], np.int64)
        self._results = np.array([result for _, _, result in self._pairs], np.int64)
        self._laid: tuple[bytes, Buffers] | None = None

    def _read(self, graph: Graph) -> None:
        """Find the step at which each value appears, and the last at which it is read."""
        self._birth = dict.fromkeys(graph.input_names, 0)
        self._death = dict.fromkeys(graph.input_names, 0)
        step_of = {id(node): step for step, node in enumerate(self.nodes, 1)}
        for body in graph.bodies:
            first = min((step_of[id(node)] for node in _inner(body.nodes)), default=0)
            self._birth.update(dict.fromkeys(body.inputs, first))
            self._death.update(dict.fromkeys(body.inputs, first))
        for step, node in enumerate(self.nodes, 1):
            for name in (*node.inputs, *node.captured):
                if name in self._birth:
                    self._death[name] = max(self._death[name], step)
            for name in node.outputs:
                if name:
                    self._birth[name] = self._death[name] = step
        for body in graph.bodies:
            last = max((step_of[id(node)] for node in body.nodes), default=0)
            for name in body.outputs:
                if name in self._birth:
                    self._death[name] = max(self._death[name], last)
        for name in graph.output_names:
            if name in self._birth:
                self._death[name] = len(self.nodes) + 1

    def _views(self) -> np.ndarray:
        """Return for each value the number of the value whose buffer it views: its own where it is no view."""
        roots = np.arange(len(self.names))
        for node in self.nodes:
            pair = [self._number.get(name, -1) for name in (*node.inputs[:1], *node.outputs[:1])]
            if REUSE.get(node.op) == "view" and len(pair) == 2 and min(pair) >= 0:
                roots[pair[1]] = roots[pair[0]]
        return roots

    def _candidates(self, given: set[str]) -> list[tuple[int, int, int]]:
        """Return (step, value, result): what an element-wise result might overwrite, in the order of execution."""
        computed = {name for node in self.nodes for name in node.outputs}
        found = []
        for step, node in enumerate(self.nodes, 1):
            result = self._number.get(node.outputs[0], -1) if node.outputs else -1
            if REUSE.get(node.op) != "in place" or result < 0:
                continue
            for name in dict.fromkeys(node.inputs):
                value = self._number.get(name, -1)
                root = self.names[self._roots[value]] if value >= 0 else ""
                if root in computed and root not in given:
                    found.append((step, value, result))
        return found

    def buffers(self, sizes: np.ndarray) -> Buffers:
        """Return the buffers, given the size of every value; what is overwritten follows from equal sizes."""
        equal: np.ndarray = sizes[self._overwritten] == sizes[self._results]
        key = equal.tobytes()
        if self._laid is None or self._laid[0] != key:
            self._laid = key, self._lay(equal)
        return self._laid[1]

    def _lay(self, equal: np.ndarray) -> Buffers:
        roots = self._roots
        birth = np.array([self._birth[name] for name in self.names], np.int64)
        death = np.zeros(len(self.names), np.int64)
        np.maximum.at(death, roots, [self._death[name] for name in self.names])
        into = np.arange(len(self.names))
        done: set[int] = set()
        for (step, value, result), fits in zip(self._pairs, equal.tolist()):
            buffer = into[roots[value]]
            if fits and result not in done and death[buffer] == step:
                into[result] = buffer
                death[buffer] = death[result]
                done.add(result)
        owner = into[roots]
        used = np.unique(owner)
        return Buffers(np.searchsorted(used, owner), used, birth[used], death[used])

    def live(self, sizes: np.ndarray) -> np.ndarray:
        """Return what is alive at each step, given the size of every value."""
        found = self.buffers(sizes)
        steps = len(self.nodes) + 2
        own = sizes[found.size_of].astype(float)
        change = np.bincount(found.birth, own, steps + 1) - np.bincount(found.death + 1, own, steps + 1)
        alive: np.ndarray = np.cumsum(change)[:-1].astype(np.int64)
        return alive

    def alive_at(self, step: int, sizes: np.ndarray) -> list[tuple[str, int]]:
        """Return the buffers that are there at a step, by the value that says their size, the largest first."""
        found = self.buffers(sizes)
        there = np.flatnonzero((found.birth <= step) & (step <= found.death))
        rows = [(self.names[found.size_of[b]], int(sizes[found.size_of[b]])) for b in there]
        return sorted(rows, key=lambda row: -row[1])

    @cached_property
    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last step of every value by itself."""
        return (
            np.array([self._birth[name] for name in self.names], np.int64),
            np.array([self._death[name] for name in self.names], np.int64),
        )


def _inner(nodes: Iterable[Node]) -> Iterable[Node]:
    for node in nodes:
        for body in node.bodies:
            yield from _inner(body.nodes)
        yield node
