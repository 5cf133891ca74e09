"""Compare what two models compute: numbers within a tolerance for their type, everything else exactly.

A difference is measured against the largest magnitude in the same row, column or channel of the output (whichever is
smallest), so that small scores are not hidden by large coordinates beside them; a tenth of the largest magnitude of the
whole output is the least that counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

TOLERANCE = {  # end to end, of one node on equal inputs
    "float16": (2e-2, 5e-3),
    "bfloat16": (5e-2, 4e-2),
    "float32": (1e-4, 1e-5),
    "float64": (1e-5, 1e-7),
    "complex64": (1e-4, 1e-5),
    "complex128": (1e-5, 1e-7),
}
"""Largest relative difference by type; types that are not listed must agree exactly."""
_LEAST_SCALE = 0.1
_TINY = 1e-6


@dataclass
class Tally:
    """Collect differences over outputs and runs.

    Units
        per_node: whether single nodes are compared on equal inputs, which is stricter. max_abs: largest difference.
        max_rel, tolerance: of the value that comes nearest to its tolerance. compared: arrays with finite numbers.
        moving: those that are not zero everywhere. faults: what differs by too much, in order of appearance.
    """

    per_node: bool = False
    max_abs: float = 0.0
    max_rel: float = 0.0
    tolerance: float = math.inf
    compared: int = 0
    moving: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def compare(self, expected: Mapping[str, object], found: Mapping[str, object]) -> None:
        """Compare all outputs of one run."""
        for name, value in expected.items():
            self.agree(f"output {name!r}", value, found.get(name))

    def add(self, other: Tally) -> None:
        """Take in the differences of another tally."""
        self._note(other.max_abs, other.max_rel, other.tolerance)
        self.compared += other.compared
        self.moving |= other.moving
        self.faults += other.faults

    def _note(self, absolute: float, relative: float, tolerance: float) -> None:
        self.max_abs = max(self.max_abs, absolute)
        if tolerance < math.inf and relative / tolerance >= self.max_rel / self.tolerance:
            self.max_rel, self.tolerance = relative, tolerance

    def agree(self, what: str, expected: object, found: object) -> bool:
        """Compare one value: an array, a sequence of values, or None."""
        fault = self._fault(what, expected, found)
        if fault:
            self.faults.append(f"{what}: {fault}")
        return not fault

    def _fault(self, what: str, expected: object, found: object) -> str:
        if (expected is None) != (found is None):
            return "only one of the models has it"
        if isinstance(expected, (list, dict)):
            return self._in_sequences(what, expected, found)
        a, b = np.asarray(expected), np.asarray(found)
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}"
        if a.dtype.name in TOLERANCE:
            return self._in_numbers(what, a, b)
        self._seen(what, a)
        wrong = int(np.count_nonzero(a != b))
        return f"{wrong} of {a.size} entries differ" if wrong else ""

    def _seen(self, what: str, array: np.ndarray) -> None:
        self.compared += array.size > 0
        if array.any():
            self.moving.add(what)

    def _in_sequences(self, what: str, expected: object, found: object) -> str:
        if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
            expected, found = list(expected.values()), list(found.values())
        if not (isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found)):
            return "another number of elements"
        faults: Iterable[str] = [self._fault(what, a, b) for a, b in zip(expected, found)]
        return next(filter(None, faults), "")

    def _in_numbers(self, what: str, a: np.ndarray, b: np.ndarray) -> str:
        tolerance = TOLERANCE[a.dtype.name][self.per_node]
        if a.dtype.kind == "c":
            a, b = (np.stack([x.real, x.imag]) for x in (a, b))
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if not np.array_equal(np.where(finite, 0, x), np.where(np.isfinite(y), 0, y), equal_nan=True):
            return "NaN or infinity in other places"
        if not finite.any():
            return ""
        x, y = np.where(finite, x, 0), np.where(finite, y, 0)
        self._seen(what, x)
        difference = np.abs(x - y)
        relative = float((difference / _scale(np.abs(x))).max())
        self._note(float(difference.max()), relative, tolerance)
        if relative > tolerance:
            return f"differs by {float(difference.max()):.3g}, relative {relative:.3g} > {tolerance:g}"
        return ""


def is_finite(value: object) -> bool:
    """Say whether a value has no NaN and no infinity; other things than numbers have none."""
    if not isinstance(value, np.ndarray) or value.dtype.name not in TOLERANCE:
        return True
    return bool(np.isfinite(value).all())


def _scale(size: np.ndarray) -> np.ndarray:
    """Return the magnitude against which the difference of each element is measured."""
    scale = np.full((1,) * size.ndim, size.max())
    for axis in range(size.ndim):
        if size.shape[axis] > 1:
            scale = np.minimum(scale, size.max(axis=tuple(a for a in range(size.ndim) if a != axis), keepdims=True))
    return np.asarray(np.maximum(scale, max(_LEAST_SCALE * float(size.max()), _TINY)))
