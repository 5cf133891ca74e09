"""How many elements and bytes every tensor has, whole and after a plan, all of them at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from prunepass.consts import FLOAT_TYPES, element_bits
from prunepass.kept import Lengths
from prunepass.rules.cost import Shape

if TYPE_CHECKING:
    from prunepass.graph import Graph

Factors: TypeAlias = Mapping[str, Sequence[np.ndarray]]
FLOAT = 1


class Footprint:
    """Know the lengths, elements and bytes of the constants and values of a graph under any plan.

    names: constants first, in their order, then values. Values of unknown shape are missing; one of unknown type
    counts as float32.

    Shapes
        bits, int8_bits: one entry per name: bits per element, and what they are when numbers take 8 bits.
    """

    def __init__(
        self,
        graph: Graph,
        values: Iterable[str],
        shapes: Mapping[str, Shape],
        factors: Factors,
        elem_types: Mapping[str, int],
    ) -> None:
        consts = graph.consts
        own = dict.fromkeys(name for name in values if name in shapes and name not in consts)
        self.names = (*consts, *own)
        self.shapes: dict[str, Shape] = {n: consts.shape(n) if n in consts else tuple(shapes[n]) for n in self.names}
        self.place = {name: number for number, name in enumerate(self.names)}
        self.elements = np.array([math.prod(self.shapes[name]) for name in self.names], np.int64)
        types = [consts.elem_type(n) if n in consts else elem_types.get(n, FLOAT) for n in self.names]
        bits = [element_bits(kind) for kind in types]
        self.bits = np.array(bits, np.int64)
        self.int8_bits = np.array([8 if t in FLOAT_TYPES else b for t, b in zip(types, bits)], np.int64)
        self.lengths = Lengths()
        changing = [
            number
            for number, name in enumerate(self.names)
            if self.elements[number] and self.lengths.add(name, self.shapes[name], factors.get(name, ()))
        ]
        self.changing = np.array(changing, np.int64)
        self._starts = [self.lengths.places[self.names[number]].start for number in changing]
        self._n_units = 1 + max((int(f.max()) for fs in factors.values() for f in fs), default=0)

    def whole(self) -> np.ndarray:
        """Return the plan that removes nothing."""
        return np.zeros(self._n_units, bool)

    def lengths_after(self, removed: np.ndarray) -> np.ndarray:
        """Return the flat array of lengths after a plan; `lengths.places` says where each name is."""
        return self.lengths.after(removed)

    def elements_of(self, lengths: np.ndarray) -> np.ndarray:
        """Return the elements of every tensor, given the flat array of lengths."""
        if not self._starts:
            return self.elements
        elements: np.ndarray = self.elements.copy()
        elements[self.changing] = np.multiply.reduceat(lengths, self._starts)
        return elements
