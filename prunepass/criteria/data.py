"""What criteria from calibration data share: the layers that read a unit, the values that carry it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from onnx import TensorProto

from prunepass.consts import FLOAT_TYPES
from prunepass.criteria.base import Criterion
from prunepass.criteria.weights import Site, Weights, units_of
from prunepass.labels import spans
from prunepass.rules.cost import MACS

if TYPE_CHECKING:
    from prunepass.recovery.moments import Moments
    from prunepass.recovery.statistics import Statistics
    from prunepass.rules.linear import Linear


@dataclass(frozen=True, eq=False)
class Reader(Site):
    """Hold a place where units are summed over, with the layers that do it."""

    layers: tuple[Linear, ...] = ()

    def entries(self, layer: Linear, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """Return a layer's matrix and where the unit of each entry stands in `units`.

        An entry is 0 where its output goes together with the unit, as all do in a depthwise Conv: nothing that stays
        reads it.

        Shapes
            (groups, features, outputs), both.
        """
        array = weights.array(self.tensor)
        entry = np.arange(self.units.size) if self.entry is None else self.entry
        own = [size if axis in self.axes else 1 for axis, size in enumerate(array.shape)]
        spots = layer.arrange(np.broadcast_to(entry.astype(np.int32).reshape(own), array.shape))
        stays = self.units[spots] != output_units(layer, weights, spots.shape)
        return layer.matrix(array.astype(np.float64)) * stays, spots


@dataclass(frozen=True, eq=False)
class Carrier(Site):
    """Hold a value, `tensor`, that carries units on some of its axes.

    rank: how many axes it has.
    """

    rank: int = 0


class DataCriterion(Criterion):
    """Score by calibration data; a group falls to the next tier where not all of its units are in one.

    The last tier is the L2 norm of the weights: for what no layer or value that can be looked at has.
    """

    needs: ClassVar[tuple[str, ...]] = ("statistics",)

    def tiers(self, weights: Weights) -> dict[str, Sequence[Site]]:
        """Look at the layers that read a unit, then at what its own layers put out, then at the weights."""
        return {"layers that read it": readers(weights), **outputs_and_weights(weights)}

    def scores(self, weights: Weights, sites: Iterable[Site]) -> Iterator[tuple[Site, np.ndarray]]:
        """Score the sites of one tier."""
        sites = list(sites)
        reading = [site for site in sites if isinstance(site, Reader)]
        carrying = [site for site in sites if isinstance(site, Carrier)]
        if reading:
            yield from self.by_readers(weights, reading)
        if carrying:
            yield from self.by_carriers(weights, carrying)
        for site in sites:
            if not isinstance(site, (Reader, Carrier)):
                yield site, weights.power(site, 2)

    def by_readers(self, weights: Weights, sites: Sequence[Reader]) -> Iterator[tuple[Site, np.ndarray]]:
        """Score units by the layers that read them."""
        raise NotImplementedError(self.name)

    def by_carriers(self, weights: Weights, sites: Sequence[Carrier]) -> Iterator[tuple[Site, np.ndarray]]:
        """Score units by the values that carry them."""
        statistics: Statistics = weights.fact("statistics")
        found = statistics.channels([(site.tensor, site.axes) for site in sites])
        for site in sites:
            moments = found[site.tensor, site.axes]
            yield site, self.carried(site, moments)

    def carried(self, site: Carrier, moments: Moments) -> np.ndarray:
        """Return the score of each unit of a value by the moments of its channels."""
        raise NotImplementedError(self.name)


def summed(weights: Weights, scored: Iterable[tuple[Site, np.ndarray]]) -> tuple[Site, np.ndarray]:
    """Sum the scores of sites into one site, so that they add up whatever the reduction."""
    total, seen = np.zeros(weights.coupling.n_units), np.zeros(weights.coupling.n_units, bool)
    for site, values in scored:
        total[site.units] += values
        seen[site.units] = True
    units = np.flatnonzero(seen)
    return Site("", (), units, None, produces=False, is_weight=True), total[units]


def output_units(layer: Linear, weights: Weights, shape: Sequence[int]) -> np.ndarray:
    """Return the unit of each output of a layer, (groups, 1, outputs), or -1 where other axes of it decide too."""
    for factor in weights.coupling.factors.get(layer.y, ()):
        if spans(factor) == (layer.axis % factor.ndim,) and factor.size == shape[0] * shape[2]:
            return factor.reshape(shape[0], 1, shape[2])
    return np.full((1, 1, 1), -1)


def readers(weights: Weights) -> list[Site]:
    """Return the places where layers with a constant matrix sum over units."""
    statistics: Statistics = weights.fact("statistics")
    layers: dict[str, list[Linear]] = {}
    for layer in statistics.layers:
        layers.setdefault(layer.weight, []).append(layer)
    found: list[Site] = []
    for site in weights.matrices:
        if not site.produces and site.tensor in layers:
            all_ = Reader(site.tensor, site.axes, site.units, site.entry, False, True)
            own = tuple(layer for layer in layers[site.tensor] if all_.entries(layer, weights)[0].any())
            if own:
                found.append(replace(all_, layers=own))
    return found


def carriers(weights: Weights, names: Iterable[str]) -> list[Carrier]:
    """Return the units of values that are computed floats as sites."""
    found = []
    computed, kinds = weights.graph.producers(), weights.coupling.elem_types
    for name in dict.fromkeys(names):
        wanted = name in computed and kinds.get(name, TensorProto.FLOAT) in FLOAT_TYPES
        for factor in weights.coupling.factors.get(name, ()) if wanted else ():
            axes = spans(factor)
            if axes and factor.any():
                units, entry = units_of(factor)
                found.append(Carrier(name, axes, units, entry, False, False, factor.ndim))
    return found


def outputs_and_weights(weights: Weights) -> dict[str, Sequence[Site]]:
    """Return the tiers that come last: what products put out, and the weights themselves."""
    products = (node for node in weights.graph.nodes if node.op in MACS)
    return {
        "what its layers put out": carriers(weights, (node.outputs[0] for node in products)),
        "the L2 norm of the weights": [replace(site) for site in weights.matrices],
        "the L2 norm of biases and gains": weights.sites,
    }


def columns(weights: Weights, sites: Sequence[Reader], statistic: str, power: int) -> Iterator[tuple[Site, np.ndarray]]:
    """Sum |W|^power times a statistic of the input over everything that layers read of each unit."""
    statistics: Statistics = weights.fact("statistics")
    moments = statistics.inputs([layer for site in sites for layer in site.layers])
    for site in sites:
        sums = np.zeros(site.units.size)
        for layer in site.layers:
            matrix, spots = site.entries(layer, weights)
            taps = layer.taps(weights.graph.consts.shape(site.tensor))
            given = np.repeat(getattr(moments[layer.y], statistic), taps, axis=1)
            terms = np.abs(matrix) ** power * given[:, :, None]
            sums += np.bincount(spots.ravel(), terms.ravel(), site.units.size)
        if not np.isfinite(sums).all():
            raise weights.not_finite(site.tensor)
        yield site, sums
