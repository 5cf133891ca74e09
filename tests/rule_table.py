"""The records that test_rules.py checks: what may shrink around each operator, written as a spec in letters.

    Record("MatMul", [x(2, 5, 8), w(8, 6)], "abK,Kn->abn")

One term per input and output, one letter per axis. A lowercase letter is free, an uppercase one is mixed (summed, averaged,
normalised over), `_` keeps its length, `*` may shrink and says no more. The same letter is the same set of units
everywhere, different letters share none; each letter has as many units as its axis has indices, unless `units` says
otherwise. The network around the operator produces labels on every axis of every `x`, and mixes every axis of the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunepass.labels import Policy


@dataclass(frozen=True)
class Value:
    """One input of the operator.

    Shapes
        shape: a tuple among the sizes is one axis that was split (heads). on: positions of `shape` with labels.
    """

    kind: str
    shape: tuple[int | tuple[int, ...], ...] = ()
    on: tuple[int, ...] = ()
    domain: str = "real"
    data: np.ndarray | None = None


def x(*shape: int | tuple[int, ...], on: str | None = None, of: str = "real") -> Value:
    """Describe an activation with labels on all axes, or on those that `on` lists."""
    return Value("activation", shape, tuple(range(len(shape))) if on is None else tuple(map(int, on)), of)


def g(*shape: int, of: str = "real") -> Value:
    """Describe an activation that cannot shrink."""
    return Value("activation", shape, (), of)


def w(*shape: int, of: str = "real") -> Value:
    """Describe a constant of random numbers."""
    return Value("constant", shape, (), of)


def k(data: Any, kind: str = "int64") -> Value:
    """Describe a constant with given contents."""
    return Value("constant", data=np.array(data, kind))


absent = Value("absent")


@dataclass(frozen=True)
class Record:
    """One operator in one form.

    `build` replaces the single node where an operator stands for several; `raw` leaves out canonicalize, which would
    remove the node; `barrier` is part of the reason for which the node must be a barrier.
    """

    op: str
    inputs: Sequence[Value]
    axes: str
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    policy: Policy = "balanced"
    units: int | None = None
    build: Callable[..., list[str]] | None = None
    raw: bool = False
    barrier: str = ""

    @property
    def terms(self) -> tuple[list[str], list[str]]:
        """Letters of the inputs and of the outputs."""
        left, _, right = self.axes.partition("->")
        return left.split(","), right.split(",")
