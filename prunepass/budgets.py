"""Budgets: what may be left of a model, as shares or amounts of several kinds at once, and what a plan uses of them.

Everything that chooses units asks one question, `Budgets.used(removed)`: the largest share that a plan takes of any
limit. A plan fits when it is at most 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from prunepass.cost import CostModel
from prunepass.errors import PipelineError

Amount: TypeAlias = float | str
"""A share of the source, 0 < share <= 1, or an amount: `120M`, `256KB`, `8ms`."""
Meter: TypeAlias = Callable[[np.ndarray], float]

KINDS = ("macs", "params", "bytes", "ram", "latency")
UNITS: dict[str, dict[str, float]] = {
    "count": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "bytes": {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "time": {"us": 1e-3, "ms": 1.0, "s": 1e3},
}
"""What an amount may end with, and how much of the unit of its kind that is: one, a byte, a millisecond."""
UNITS_OF = {"macs": "count", "params": "count", "bytes": "bytes", "ram": "bytes", "latency": "time"}
EXAMPLES = {"count": "120M", "bytes": "256KB", "time": "8ms"}


@dataclass(frozen=True)
class Budget:
    """One limit: a share of the source, or an amount.

    Units
        share: of what the source has, 0 where an amount is given. amount: in ones, bytes or milliseconds.
    """

    kind: str
    share: float = 0.0
    amount: float = 0.0

    @classmethod
    def parse(cls, kind: str, value: Amount) -> Budget:
        """Read a limit.

        Raises
            PipelineError: it is neither a share nor an amount of this kind.
        """
        units = UNITS[UNITS_OF[kind]]
        if isinstance(value, str):
            match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?([A-Za-z]*)", value)
            unit = {name.lower(): size for name, size in units.items()}.get(match[2].lower()) if match else None
            if match and unit is not None and float(match[1]) > 0:
                return cls(kind, amount=float(match[1]) * unit)
        elif 0 < value <= 1:
            return cls(kind, share=float(value))
        elif value > 1 and "" in units and float(value).is_integer():
            return cls(kind, amount=float(value))
        example = EXAMPLES[UNITS_OF[kind]]
        raise PipelineError(f"{kind}={value} must be above 0 and at most 1, or an amount such as {example}")

    def limit(self, whole: float, progress: float = 1.0, exponential: bool = False) -> float:
        """Return the limit, given what the source has.

        Units
            progress: how much of the way to the limit is to be covered, 0 to 1; in equal steps, or by equal factors.
        """
        goal = self.amount or self.share * whole
        if not 0 < goal < whole:
            return goal
        return whole * (goal / whole) ** progress if exponential else whole - (whole - goal) * progress


def amount_text(kind: str, value: float) -> str:
    """Write an amount for a message."""
    if UNITS_OF[kind] == "time":
        return f"{value:.3g} ms"
    return f"{round(value):,}" + (" bytes" if UNITS_OF[kind] == "bytes" else "")


@dataclass(frozen=True)
class Budgets:
    """Hold several limits and measure plans by them.

    Units
        limits: by kind. meters: what a plan costs of kinds that the cost model does not know.
    """

    model: CostModel
    limits: Mapping[str, float]
    meters: Mapping[str, Meter] = field(default_factory=dict)

    def costs(self, removed: np.ndarray) -> dict[str, float]:
        """Return what a plan leaves, of each kind that is limited."""
        counted = [kind for kind in self.limits if kind not in self.meters]
        cost = self.model.predict(removed) if counted else None
        return {
            kind: float(getattr(cost, kind)) if kind in counted else self.meters[kind](removed) for kind in self.limits
        }

    def used(self, removed: np.ndarray) -> float:
        """Return the largest share of a limit that a plan takes; it fits when that is at most 1."""
        return max((_share(cost, self.limits[kind]) for kind, cost in self.costs(removed).items()), default=0.0)

    def broken(self, removed: np.ndarray) -> list[str]:
        """Return the kinds whose limit a plan does not keep to."""
        return [kind for kind, cost in self.costs(removed).items() if cost > self.limits[kind]]

    def only(self, kinds: Sequence[str]) -> Budgets:
        """Return some of the limits."""
        return replace(self, limits={kind: limit for kind, limit in self.limits.items() if kind in kinds})

    def at(self, kind: str, limit: float) -> Budgets:
        """Return the same limits but for one."""
        return replace(self, limits={**self.limits, kind: limit})


def _share(cost: float, limit: float) -> float:
    """Return cost / limit; a limit of nothing at all is reached by nothing only."""
    return cost / limit if limit > 0 else math.inf if cost > 0 else 0.0


def what_remains(model: CostModel, kind: str, removed: np.ndarray, shown: int = 3) -> str:
    """Say what the rest of a model that cannot get smaller is made of."""
    if kind == "ram":
        sizes = model.sizes(removed)[model.value_places]
        step = int(np.argmax(model.liveness.live(sizes)))
        node = model.nodes[min(max(step, 1), len(model.nodes)) - 1].label
        return f"while {node} runs, {_listed(model.liveness.alive_at(step, sizes), shown)} bytes are alive"
    if kind in ("params", "bytes"):
        numbers = model.sizes(removed) if kind == "bytes" else model.elements(removed)
        rows, unit = list(zip(model.tensors.names[: model.n_consts], numbers.tolist())), kind
    else:
        rows, unit = [(node.label, macs) for node, macs in zip(model.nodes, model.macs_after(removed))], "MACs"
    return f"most {unit} are left in {_listed(sorted(rows, key=lambda row: -row[1]), shown)}"


def _listed(rows: Sequence[tuple[str, int]], shown: int) -> str:
    return ", ".join(f"{name} ({size:,})" for name, size in rows[:shown])
