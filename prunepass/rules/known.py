"""Show one node to the rows of the tables about ranges and contractions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from prunepass.dataflow.ranges import Range, Unknown
from prunepass.graph import Consts, Node

FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16))
LARGE = 1 << 20


@dataclass(frozen=True)
class Known:
    """Show one node to a row: its attributes, and what is known of its operands."""

    node: Node
    opset: int
    consts: Consts
    fed: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    values: Mapping[str, np.ndarray]
    ranges: Mapping[str, Range]

    def has(self, position: int) -> bool:
        """Say whether an optional operand is present."""
        return position < len(self.node.inputs) and bool(self.node.inputs[position])

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Return the shape of an operand."""
        return self._shape(self.node.inputs[position])

    def out_shape(self, position: int = 0) -> tuple[int, ...]:
        """Return the shape of a result."""
        return self._shape(self.node.outputs[position])

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.consts.shape(name) if name in self.consts else self.shapes.get(name)
        if shape is None:
            raise Unknown
        return shape

    def constant(self, position: int) -> np.ndarray | None:
        """Return the contents of an operand that is stored, and that no caller can feed."""
        name = self.node.inputs[position] if self.has(position) else ""
        return self.consts[name] if name in self.consts and name not in self.fed else None

    def weight(self, position: int) -> np.ndarray | None:
        """Return the contents of an operand that is stored, or follows from what is stored."""
        stored = self.constant(position)
        if stored is not None:
            return stored
        found = self.of(position)
        if not found.fixed.all() or math.prod(self.shape(position)) > LARGE:
            return None
        return np.broadcast_to(found.low, self.shape(position))

    def of(self, position: int = 0) -> Range:
        """Return the range of an operand."""
        name = self.node.inputs[position]
        if name in self.ranges:
            return self.ranges[name]
        stored = self.constant(position)
        if stored is not None and stored.size <= LARGE and stored.dtype.kind == "f":
            return Range.exactly(stored)
        return Range.anything(len(self.shape(position)))

    def every(self) -> list[Range]:
        """Return the ranges of all operands."""
        return [self.of(i) for i in range(len(self.node.inputs)) if self.has(i)]

    def ints(self, position: int, attribute: str = "") -> list[int] | None:
        """Return integers given as an attribute or as an operand whose value is known."""
        if attribute and attribute in self.node.attrs:
            return [int(v) for v in np.ravel(self.node.attrs[attribute])]
        if not self.has(position):
            return None
        name = self.node.inputs[position]
        known = self.values.get(name) if name in self.values else self.constant(position)
        if known is None:
            raise Unknown
        return [int(v) for v in np.ravel(known)]
