"""How test_rules.py writes down what an operator does to labels: a record is an operator, its operands, and a spec.

    add("MatMul", [x(2, 5, 8), w(8, 6)], "abK,Kn->abn")

The spec has a term for each input and output, a letter for each axis. A lowercase letter is free, an uppercase one is
mixed (summed, averaged, normalised over), `_` keeps its length, `*` may shrink and says no more. The same letter stands
for the same units everywhere, different letters share none, and a letter has as many units as its first axis has
indices, unless the record counts all `units` itself. Every axis of every `x` comes with labels, and the network behind
the operator mixes every axis of the results: what does not shrink was kept by the operator alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunepass.labels import Policy


@dataclass(frozen=True)
class Value:
    """One operand.

    Shapes
        written: as given; a tuple among the sizes is one axis that was split, as heads are. labelled: positions in it
        of the axes with labels.
    """

    kind: str
    written: tuple[int | tuple[int, ...], ...] = ()
    labelled: frozenset[int] = frozenset()
    domain: str = "real"
    data: np.ndarray | None = None

    @property
    def flat(self) -> list[int]:
        """Sizes before the split."""
        return [math.prod(d) if isinstance(d, tuple) else d for d in self.written]

    @property
    def shape(self) -> list[int]:
        """Sizes after the split."""
        return [size for d in self.written for size in (d if isinstance(d, tuple) else (d,))]


def x(*shape: int | tuple[int, ...], on: str | None = None, of: str = "real") -> Value:
    """Describe an activation with labels on all axes, or on those that `on` lists."""
    chosen = range(len(shape)) if on is None else map(int, on)
    return Value("activation", shape, frozenset(chosen), of)


def g(*shape: int, of: str = "real") -> Value:
    """Describe an activation that cannot shrink."""
    return Value("activation", shape, domain=of)


def w(*shape: int, of: str = "real") -> Value:
    """Describe a constant of random numbers."""
    return Value("constant", shape, domain=of)


def k(data: Any, kind: str = "int64") -> Value:
    """Describe a constant by its contents."""
    return Value("constant", data=np.array(data, kind))


absent = Value("absent")


@dataclass(frozen=True)
class Record:
    """One operator in one form; the fields are those of `add`."""

    op: str
    inputs: Sequence[Value]
    spec: str
    opset: int = 17
    policy: Policy = "balanced"
    units: int | None = None
    barrier: str = ""
    build: Callable[..., list[str]] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def terms(self) -> tuple[list[str], list[str]]:
        """Letters of the inputs and of the outputs."""
        left, _, right = self.spec.partition("->")
        return left.split(","), right.split(",")

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, v.shape if v.data is None else v.data.shape)) for v in self.inputs)
        return f"{self.op} {shapes} {self.spec} {self.policy} {self.opset} {self.attrs or ''}".replace("::", ".")


def adder(records: list[Record]) -> Callable[..., None]:
    """Make the function that appends records to a list."""

    def add(
        ops: str,
        inputs: Sequence[Value],
        spec: str,
        opset: int = 17,
        /,
        *,
        policy: Policy = "balanced",
        units: int | None = None,
        barrier: str = "",
        build: Callable[..., list[str]] | None = None,
        **attrs: Any,
    ) -> None:
        """Add a record for each operator.

        barrier: part of the reason for which the node must be a barrier. build: makes the outputs of several nodes,
        given a net and the inputs. attrs: attributes of the single node.
        """
        for op in ops.split():
            records.append(Record(op, inputs, spec, opset, policy, units, barrier, build, attrs))

    return add
