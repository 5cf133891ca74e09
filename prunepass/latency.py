"""Latency: predict what a plan takes on this machine, and measure the finished model against the source.

The prediction of a kernel is a + b x MACs + c x traffic, fitted to its measured times (`optable.py`) in the whole model
and in a few models in which every group is smaller. What the sum of all kernels misses, a measurement of the whole
model corrects (`choice.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.sparse import csr_matrix

from prunepass.cost import CostModel, Known, cost_of
from prunepass.coupling import Coupling
from prunepass.feeds import random_inputs
from prunepass.graph import Graph
from prunepass.manager import Context, Facts
from prunepass.optable import Table, kernels
from prunepass.stopwatch import Setting, in_turn_ms

SAMPLED = (0.0, 0.25, 0.5, 0.75)
"""Shares of every group that are removed in the models whose kernels are measured."""
FEW_MS = 1e-6


@dataclass(frozen=True)
class Fit:
    """Hold a, b and c of every node.

    Shapes
        fixed, per_mac, per_byte: one entry per node of the cost model, 0 for nodes within another's kernel.
    """

    fixed: np.ndarray
    per_mac: np.ndarray
    per_byte: np.ndarray


def input_shapes(graph: Graph, shapes: Mapping[str, Sequence[int]], batch: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the inputs, with `batch` as first length where that is free."""
    found = {}
    for info in graph.inputs:
        if info.name in shapes:
            shape, dims = tuple(shapes[info.name]), info.type.tensor_type.shape.dim
            free = len(dims) == len(shape) > 0 and not dims[0].HasField("dim_value")
            found[info.name] = (batch, *shape[1:]) if free and batch > 1 else shape
    return found


class LatencyModel:
    """Predict milliseconds for plans, and measure finished models.

    before_ms: what the source takes, measured.
    """

    def __init__(self, facts: Facts, coupling: Coupling, setting: Setting, folder: Path) -> None:
        setting.check()
        self.setting, self.context, self.source = setting, facts.context, facts.source
        self.shapes = input_shapes(facts.graph, facts.get("shapes").shape, setting.batch)
        self.table = Table(setting, folder)
        self.cost: CostModel = cost_of(facts.graph, self._known(facts.graph), coupling.factors)
        self.traffic = _traffic_by_node(self.cost)
        self.feeds = self._feeds(facts)
        self.session = setting.session(self.source)
        self.before_ms = in_turn_ms((self.session, self.session), self.feeds, setting.clock)[0]
        self.fit = Fit(*np.zeros((3, len(self.cost.nodes))))
        self.scale = 1.0

    def learn(self, plans: Sequence[np.ndarray], carry_out: Callable[[np.ndarray], Graph]) -> None:
        """Measure the kernels of some plans and fit the times of every node to them; the first removes nothing."""
        rows: dict[str, list[tuple[int, float, float]]] = {}
        for number, removed in enumerate(plans):
            self.context.tell("measure operators", number, len(plans))
            graph = carry_out(removed)
            known = self._known(graph)
            cost = cost_of(graph, known)
            macs = {node.outputs[0]: value for node, value in zip(cost.nodes, cost.node_macs)}
            moved = dict(zip((node.outputs[0] for node in cost.nodes), self._moved(cost)))
            for chain in kernels(graph):
                first = chain[0]
                if first.bodies or all(name in known.value for name in first.outputs if name):
                    continue
                ms = self.table.time_ms(graph, chain, known.shape, known.elem_type)
                if ms is not None:
                    rows.setdefault(first.outputs[0], []).append((macs[first.outputs[0]], moved[first.outputs[0]], ms))
        self.table.save()
        self.fit = _fitted(self.cost, rows) if rows else _by_macs(self.cost)
        self.scale = self.before_ms / max(self._sum(plans[0]), FEW_MS)

    def predict(self, removed: np.ndarray) -> float:
        """Return what a plan is likely to take in milliseconds."""
        return self.scale * self._sum(removed)

    def weigh(self, graph: Graph) -> float:
        """Return what a finished model takes, from its ratio to the source in the same runs."""
        before, after = in_turn_ms((self.session, self.setting.session(graph)), self.feeds, self.setting.clock)
        return self.before_ms * after / before

    def shares(self, removed: np.ndarray) -> dict[str, float]:
        """Return how much of the predicted time depends on MACs, on traffic, and on neither."""
        macs, moved = self._costs(removed)
        parts = {
            "compute": float(self.fit.per_mac @ macs),
            "memory": float(self.fit.per_byte @ moved),
            "overhead": float(self.fit.fixed.sum()),
        }
        total = max(sum(parts.values()), FEW_MS)
        return {name: ms / total for name, ms in parts.items()}

    def _sum(self, removed: np.ndarray) -> float:
        macs, moved = self._costs(removed)
        return float(self.fit.fixed.sum() + self.fit.per_mac @ macs + self.fit.per_byte @ moved)

    def _costs(self, removed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.cost.macs_after(removed), float), self.traffic @ self.cost.sizes(removed)

    def _moved(self, cost: CostModel) -> np.ndarray:
        moved: np.ndarray = _traffic_by_node(cost) @ cost.sizes()
        return moved

    def _known(self, graph: Graph) -> Known:
        """Return what is known about the values of a graph under the batch that is measured."""
        context = Context(seed=self.context.seed, shapes=dict(self.shapes))
        known: Known = Facts(graph, context).get("shapes")
        return known

    def _feeds(self, facts: Facts) -> dict[str, np.ndarray]:
        feeds = random_inputs(facts.source, self.shapes, self.context.seed)
        given = facts.context.data or {}
        return feeds | {name: given[name] for name in feeds if name in given and given[name].shape == feeds[name].shape}


def _traffic_by_node(cost: CostModel) -> Any:
    """Return a sparse matrix: how often each node moves each tensor in all of its runs."""
    entries = [
        (row, cost.tensors.place[name], number * cost.times.get(id(node), 1))
        for row, node in enumerate(cost.nodes)
        if not node.bodies
        for name, number in cost.moves(node).items()
    ]
    rows, columns, numbers = np.array(entries, np.int64).reshape(-1, 3).T
    return csr_matrix((numbers, (rows, columns)), shape=(len(cost.nodes), len(cost.tensors.names)))


def _fitted(cost: CostModel, rows: Mapping[str, Sequence[tuple[int, float, float]]]) -> Fit:
    found = np.zeros((3, len(cost.nodes)))
    for number, node in enumerate(cost.nodes):
        own = np.array(rows.get(node.outputs[0], ()), float).reshape(-1, 3)
        if len(own):
            found[:, number] = _fit(own[:, 0], own[:, 1], own[:, 2])
    return Fit(*found)


def _by_macs(cost: CostModel) -> Fit:
    """Take time to go with MACs and traffic where no kernel could be measured."""
    ones = np.ones(len(cost.nodes))
    return Fit(0 * ones, ones, ones)


def _fit(macs: np.ndarray, moved: np.ndarray, ms: np.ndarray) -> tuple[float, float, float]:
    """Fit a, b, c >= 0 to the times of one node, by relative error."""
    scales = np.array([1.0, max(macs.max(), 1.0), max(moved.max(), 1.0)])
    table = np.stack([np.ones(len(ms)), macs, moved], axis=1) / scales
    weight = 1 / np.maximum(ms, FEW_MS)
    a, b, c = (nnls(table * weight[:, None], ms * weight)[0] / scales).tolist()
    return a, b, c
