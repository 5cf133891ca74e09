"""The constants of a graph as criteria see them: sites, and sums of powers per unit.

A *site* is one place where units sit: the axes of a float constant that one of its factors spans. The rows of a Conv
weight are a site, its input columns another, a bias a third.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prunepass.consts import FLOAT_TYPES
from prunepass.errors import ModelError, PipelineError
from prunepass.labels import spans
from prunepass.rules.cost import MACS
from prunepass.rules.scales import real_weights

if TYPE_CHECKING:
    from prunepass.coupling import Coupling
    from prunepass.graph import Graph

_BLOCK = 1 << 16
"""Elements that are squared at a time: they stay in the processor's cache."""
_DEEP = 512
"""Most numbers that are added up one by one in float32; numpy adds pairwise only along contiguous axes."""


@dataclass(frozen=True, eq=False)
class Site:
    """Hold one place where units sit.

    Shapes
        units: the distinct ids, ascending. entry: for each index of `axes` (C order) the position of its unit in
        `units`; None where the ids stand in that order once each.
    """

    tensor: str
    axes: tuple[int, ...]
    units: np.ndarray
    entry: np.ndarray | None
    produces: bool
    is_weight: bool

    def per_unit(self, values: np.ndarray, fold: np.ufunc = np.add) -> np.ndarray:
        """Combine values, one per index of `axes`, into one per unit."""
        flat = values.reshape(-1)
        if self.entry is None:
            return flat
        if fold is np.add:
            return np.bincount(self.entry, flat, self.units.size)
        found = np.zeros(self.units.size)
        fold.at(found, self.entry, flat)
        return found


class Weights:
    """Show the float constants of a graph as sites, in graph order, producing ones first.

    known: facts that the criterion asked for, by the name of their analysis.
    """

    def __init__(self, graph: Graph, coupling: Coupling, seed: int = 0, known: Mapping[str, Any] | None = None) -> None:
        self.graph, self.coupling, self.seed = graph, coupling, seed
        self._known = dict(known or {})
        self._real = real_weights(graph)
        self._multiplied = {name for node in graph.walk() if node.op in MACS for name in node.inputs}
        found = [site for name in _in_use(graph) for site in self._sites_of(name)]
        self.sites = sorted(found, key=lambda site: not site.produces)

    @property
    def matrices(self) -> list[Site]:
        """Sites of weights: tensors that a product reads, or that have more than the axes of the units."""
        return [site for site in self.sites if site.is_weight]

    @property
    def producers(self) -> list[Site]:
        """Sites of weights on which they produce the units: rows, filters."""
        return [site for site in self.matrices if site.produces]

    def fact(self, name: str) -> Any:
        """Return the fact of an analysis that the criterion names in `needs`.

        Raises
            PipelineError: it was not handed over.
        """
        if name not in self._known:
            raise PipelineError(f"the criterion needs {name!r}; name it in `needs` and score by the pass 'importance'")
        return self._known[name]

    def _sites_of(self, name: str) -> Iterator[Site]:
        if self.graph.consts.elem_type(name) not in FLOAT_TYPES and name not in self._real:
            return
        shape = self.graph.consts.shape(name)
        multiplied = len(shape) > 1 and name in self._multiplied
        producing = self.coupling.producing.get(name, ())
        for factor in self.coupling.factors.get(name, ()):
            axes, ids = spans(factor), factor.reshape(-1)
            if axes and ids.any():
                units, entry = units_of(factor)
                is_weight = multiplied or ids.size < math.prod(shape)
                yield Site(name, axes, units, entry, axes[-1] in producing, is_weight)

    def array(self, name: str) -> np.ndarray:
        """Return a constant as real numbers: a quantised weight is dequantised."""
        return self._real[name]() if name in self._real else self.graph.consts[name]

    def power(self, site: Site, p: int) -> np.ndarray:
        """Return the sum of |w|^p over everything that each unit has at a site, p 1 or 2."""
        return self._fold(site, np.abs if p == 1 else np.square, np.add)

    def largest(self, site: Site) -> np.ndarray:
        """Return the largest |w| of each unit at a site."""
        return self._fold(site, np.abs, np.maximum)

    def power_over(self, name: str, axes: Sequence[int], p: int) -> np.ndarray:
        """Return the sum of |w|^p over all axes of a tensor but `axes`, which keep their length."""
        array = self.array(name)
        sums = marginal(array, sorted(axes), np.abs if p == 1 else np.square, np.add)
        return sums.reshape([size if axis in axes else 1 for axis, size in enumerate(array.shape)])

    def rows(self, site: Site) -> np.ndarray:
        """Return one float32 row per unit: everything that it has at a site.

        Where units have different numbers of entries, one row per entry; `site.entry` says whose it is.
        """
        array = np.moveaxis(self.array(site.tensor), site.axes, range(len(site.axes)))
        entries = site.units.size if site.entry is None else site.entry.size
        matrix = array.reshape(entries, -1).astype(np.float32)
        if not np.isfinite(matrix).all():
            raise self.not_finite(site.tensor)
        counts = np.bincount(site.entry) if site.entry is not None else np.ones(1, int)
        if site.entry is not None and counts.min() == counts.max():
            matrix = matrix[np.argsort(site.entry, kind="stable")].reshape(site.units.size, -1)
        return matrix

    def _fold(self, site: Site, weight: np.ufunc, fold: np.ufunc) -> np.ndarray:
        array = self.array(site.tensor)
        with np.errstate(over="ignore", invalid="ignore"):
            values = site.per_unit(marginal(array, site.axes, weight, fold), fold)
            if not np.isfinite(values).all():  # NaN or infinity, or squares beyond float32
                values = site.per_unit(marginal(array.astype(np.float64), site.axes, weight, fold), fold)
        if not np.isfinite(values).all():
            raise self.not_finite(site.tensor)
        return values

    def not_finite(self, name: str) -> ModelError:
        """Return the error about a tensor that cannot be scored."""
        return ModelError(f"tensor {name!r} holds NaN or infinity, so its units have no importance; repair the model")


def units_of(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the units of a factor as a site holds them: `units` and `entry`."""
    ids = factor.reshape(-1)
    if (ids[1:] <= ids[:-1]).any():
        units, entry = np.unique(ids, return_inverse=True)
        return units, entry.reshape(-1)
    return ids, None


def _in_use(graph: Graph) -> list[str]:
    """Return the names of the constants in the order in which the graph first reads them."""
    names = dict.fromkeys(name for node in graph.walk() for name in (*node.inputs, *node.captured))
    return [name for name in names if name in graph.consts]


def marginal(array: np.ndarray, axes: Sequence[int], weight: np.ufunc, fold: np.ufunc) -> np.ndarray:
    """Fold weight(array) over all axes but `axes`; float64, in blocks that fit the cache.

    float16 and bfloat16 are widened to float32 block by block; within a block sums are float32, across blocks float64.
    """
    first, last = axes[0], axes[-1]
    lead = math.prod(array.shape[:first])
    middle = array.shape[first : last + 1]
    if lead == 1:
        flat = _fold_rows(array.reshape(math.prod(middle), -1), weight, fold)
    else:
        columns = _fold_columns(array.reshape(lead, -1), weight, fold)
        flat = fold.reduce(columns.reshape(math.prod(middle), -1), axis=1)
    mixed = tuple(axis - first for axis in range(first, last + 1) if axis not in axes)
    whole = flat.reshape(middle)
    return np.asarray(fold.reduce(whole, axis=mixed) if mixed else whole)


def _blocks(matrix: np.ndarray, weight: np.ufunc, most: int) -> Iterator[tuple[slice, np.ndarray]]:
    kind = matrix.dtype if matrix.dtype in (np.float32, np.float64) else np.dtype(np.float32)
    step = min(most, max(1, _BLOCK // max(1, matrix.shape[1])))
    for start in range(0, matrix.shape[0], step):
        rows = slice(start, start + step)
        yield rows, weight(matrix[rows].astype(kind, copy=False))


def _fold_rows(matrix: np.ndarray, weight: np.ufunc, fold: np.ufunc) -> np.ndarray:
    found = np.empty(matrix.shape[0])
    for rows, block in _blocks(matrix, weight, _BLOCK):
        found[rows] = fold.reduce(block, axis=1)
    return found


def _fold_columns(matrix: np.ndarray, weight: np.ufunc, fold: np.ufunc) -> np.ndarray:
    found = np.zeros(matrix.shape[1])
    for _, block in _blocks(matrix, weight, _DEEP):
        fold(found, fold.reduce(block, axis=0), out=found)
    return found
