"""Refit recurrent layers: W and R of every gate to the pre-activations of the dense layer.

The dense layer's states give its pre-activations at every step. The first round takes the dense states, narrowed, as
the previous states of the pruned layer; further rounds take those that the refitted layer itself reaches, so that it
learns to correct its own drift. The round whose states come nearest to the dense ones on held-back batches stays.

Source
    This project; least squares per gate as for any layer (He et al. 2017), the rounds in the manner of DAgger (Ross,
    Gordon, Bagnell 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import helper
from scipy.special import expit

from prunepass.graph import Graph
from prunepass.recovery.batches import Batches
from prunepass.recovery.ridge import Flat, Rows, fit
from prunepass.recovery.staged import Staged
from prunepass.recovery.teacher import Teacher
from prunepass.rules.gates import Gates
from prunepass.runtime import session

ROUNDS = 3


@dataclass
class Outcome:
    """Hold new weights by name, and the error of the states on held-back batches with the old and the new ones."""

    tensors: dict[str, np.ndarray]
    before: float
    after: float
    rows: int


class RecurrentRefit:
    """Refit one recurrent node of a sliced graph; nothing is changed, `run` returns the new weights."""

    def __init__(
        self, layer: Gates, graph: Graph, teacher: Teacher, dense: Staged, pruned: Staged, batches: Batches
    ) -> None:
        self.layer, self.graph, self.teacher, self.batches = layer, graph, teacher, batches
        self.dense, self.pruned = dense, pruned
        self.count = len(batches.feeds)
        self.train, held = batches.parts
        self.held = held or list(range(self.count))
        whole = teacher.graph.consts
        self._dense_weights = [whole[n].astype(np.float64) if n else None for n in (layer.w, layer.r, layer.b)]

    def run(self) -> Outcome:
        """Fit round by round; keeps the best."""
        layer = self.layer
        names = [n for n in (layer.w, layer.r, layer.b) if n]
        start = {name: self.graph.consts[name] for name in names}
        targets = [self._targets(at) for at in range(self.count)]
        known = [self.batches.checked(layer.y, self.dense.value(layer.y, at), at) for at in range(self.count)]
        wanted = [self.teacher.narrowed(layer.y, value) for value in known]
        states = wanted
        before = self._error(self._states(start), wanted)
        best, error = start, before
        for _ in range(ROUNDS):
            found = self._fitted(start, states, targets)
            states = self._states(found)
            reached = self._error(states, wanted)
            if reached < error:
                best, error = found, reached
        rows = sum(len(t) for target in targets for t in target[0][:1])
        changed = {name: best[name] for name in names if best[name] is not start[name]}
        return Outcome(changed, before, error, rows)

    # ---- the dense layer ---------------------------------------------------------------------------------------------
    def _targets(self, batch: int) -> list[list[np.ndarray]]:
        """Return, for each direction, narrowed pre-activations (rows, hidden): joint ones, then parts of x and h."""
        layer = self.layer
        w, r, b = self._dense_weights
        assert w is not None and r is not None
        x, y = self._sequence(self.dense, layer.x, batch), self._steps(self.dense.value(layer.y, batch))
        hidden, rows = r.shape[2], w.shape[1]
        found = []
        for d, backwards in enumerate(layer.reverse):
            before = self._previous(y[:, d], self._initial(self.dense, batch, d, y), backwards)
            parts: list[np.ndarray] = []
            bias = np.zeros(2 * rows) if b is None else b[d]
            for gate in layer.joint:
                at, late = _places(gate, hidden, rows)
                seen = self._seen(gate, (w[d], r[d], bias), x, before)
                parts.append(x @ w[d, at].T + seen @ r[d, at].T + bias[at] + bias[late])
            for gate in layer.apart:
                at, late = _places(gate, hidden, rows)
                parts.append(x @ w[d, at].T + bias[at])
                parts.append(before @ r[d, at].T + bias[late])
            found.append([self._narrowed(part, d, y.shape) for part in parts])
        return found

    def _narrowed(self, part: np.ndarray, direction: int, shape: tuple[int, ...]) -> np.ndarray:
        """Narrow a (time, batch, hidden) array as the states are, and join its rows."""
        whole = np.zeros(shape, part.dtype)
        whole[:, direction] = part
        value = whole.transpose(2, 0, 1, 3) if self.layer.batch_first else whole
        kept = self._steps(self.teacher.narrowed(self.layer.y, value))[:, direction]
        return kept.reshape(-1, kept.shape[-1])

    # ---- the pruned layer --------------------------------------------------------------------------------------------
    def _fitted(
        self,
        start: dict[str, np.ndarray],
        states: Sequence[np.ndarray],
        targets: Sequence[Sequence[Sequence[np.ndarray]]],
    ) -> dict[str, np.ndarray]:
        layer = self.layer
        w, r = (start[name].astype(np.float64) for name in (layer.w, layer.r))
        hidden, rows = r.shape[2], w.shape[1]
        b = start[layer.b].astype(np.float64) if layer.b else None
        for d, backwards in enumerate(layer.reverse):
            inputs = []
            for batch in range(self.count):
                x, y = self._sequence(self.pruned, layer.x, batch), self._steps(states[batch])
                before = self._previous(y[:, d], self._initial(self.pruned, batch, d, y), backwards)
                inputs.append((x.reshape(-1, x.shape[-1]), before.reshape(-1, hidden)))
            own = np.zeros(2 * rows) if b is None else b[d]
            for number, gate in enumerate(layer.joint):
                at, late = _places(gate, hidden, rows)
                both = [np.concatenate([x, self._seen(gate, (w[d], r[d], own), x, h)], axis=1) for x, h in inputs]
                bias = None if b is None else own[at] + own[late]
                weight, bias = self._solve(
                    both, [t[d][number] for t in targets], np.concatenate([w[d, at], r[d, at]], 1), bias
                )
                w[d, at], r[d, at] = weight[:, : w.shape[2]], weight[:, w.shape[2] :]
                if bias is not None:
                    own[at] = bias - own[late]
            for number, gate in enumerate(layer.apart):
                at, late = _places(gate, hidden, rows)
                first = len(layer.joint) + 2 * number
                for part, matrix, where in ((0, w, at), (1, r, late)):
                    bias = None if b is None else own[where]
                    weight, bias = self._solve(
                        [p[part] for p in inputs], [t[d][first + part] for t in targets], matrix[d, at], bias
                    )
                    matrix[d, at] = weight
                    if bias is not None:
                        own[where] = bias
        found = {layer.w: w.astype(start[layer.w].dtype), layer.r: r.astype(start[layer.r].dtype)}
        if b is not None:
            found[layer.b] = b.astype(start[layer.b].dtype)
        return found

    def _seen(
        self, gate: int, weights: tuple[np.ndarray, np.ndarray, np.ndarray], x: np.ndarray, before: np.ndarray
    ) -> np.ndarray:
        """Return what a gate reads of the state before a step: all of it, or what the reset gate leaves."""
        if self.layer.reset is None or gate != self.layer.reset[0]:
            return before
        w, r, bias = weights
        at, late = _places(self.layer.reset[1], r.shape[1], len(w))
        return np.asarray(before * expit(x @ w[at].T + before @ r[at].T + bias[at] + bias[late]))

    def _solve(
        self, x: Sequence[np.ndarray], y: Sequence[np.ndarray], start: np.ndarray, bias: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Fit one gate, start (hidden, features)."""
        train, held = Rows(), Rows()
        for at in self.train:
            train.add(x[at][None], y[at][None])
        for at in self.held:
            held.add(x[at][None], y[at][None])
        found = fit(train, held, start.T[None], None if bias is None else bias[None], Flat())
        if found.after >= found.before:
            return start, bias
        return found.weight[0].T, None if bias is None else found.bias[0]

    def _states(self, weights: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the node with some weights on the inputs that the pruned network gives it."""
        node = self.layer.node
        part = self.graph.copy()
        for name, value in weights.items():
            part.consts[name] = value
        given = sorted({name for name in node.inputs if name and name not in self.graph.consts})
        types = {n: (int(helper.np_dtype_to_tensor_dtype(self.pruned.value(n, 0).dtype)), None) for n in given}
        running = session(part.part([node], types, [self.layer.y]))
        runs = (running.run({n: np.asarray(self.pruned.value(n, at)) for n in given}) for at in range(self.count))
        return [found[self.layer.y] for found in runs]

    def _error(self, states: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
        miss = sum(float(np.square(states[at].astype(np.float64) - wanted[at]).sum()) for at in self.held)
        mean = np.mean([wanted[at].mean(axis=(0, 1, 2)) for at in self.held], axis=0)
        return miss / max(sum(float(np.square(wanted[at] - mean).sum()) for at in self.held), 1e-30)

    # ---- layouts -----------------------------------------------------------------------------------------------------
    def _sequence(self, run: Staged, name: str, batch: int) -> np.ndarray:
        """Return an input as (time, batch, features)."""
        value = np.asarray(run.value(name, batch), np.float64)
        return value.transpose(1, 0, 2) if self.layer.batch_first else value

    def _steps(self, value: np.ndarray) -> np.ndarray:
        """Return states as (time, directions, batch, hidden)."""
        value = np.asarray(value, np.float64)
        return value.transpose(1, 2, 0, 3) if self.layer.batch_first else value

    def _initial(self, run: Staged, batch: int, direction: int, states: np.ndarray) -> np.ndarray:
        """Return the first hidden state of a direction, (batch, hidden)."""
        if not self.layer.initial:
            return np.zeros(states.shape[2:])
        value = np.asarray(run.value(self.layer.initial, batch), np.float64)
        return value[:, direction] if self.layer.batch_first else value[direction]

    @staticmethod
    def _previous(states: np.ndarray, initial: np.ndarray, backwards: bool) -> np.ndarray:
        """Return the state before each step of (time, batch, hidden)."""
        if backwards:
            return np.concatenate([states[1:], initial[None]])
        return np.concatenate([initial[None], states[:-1]])


def _places(gate: int, hidden: int, rows: int) -> tuple[slice, slice]:
    """Return where a gate stands in W, R and the first half of the bias, and where in the second half."""
    return slice(gate * hidden, (gate + 1) * hidden), slice(rows + gate * hidden, rows + (gate + 1) * hidden)
