"""What it costs to remove units, when all that reads them is refitted: optimal brain surgeon on whole groups.

Removing the features p of a layer Y = X W and refitting the others costs tr(W_p' ([H^-1]_pp)^-1 W_p), H the covariance
of X. Units are taken one after the other, the cheapest first; after each one W and H^-1 are updated, so that what the
removed one shared with others is not lost twice. One sweep gives the error for every width.

Source
    Hassibi, Stork 1992, Optimal Brain Surgeon; Meng et al. 2024, OSSCAR, section 3.1, for groups of columns and the
    update. Here the cost is summed over all layers that read a unit, each weighted by what an error there does to the
    output of the network (`sensitivity`), and H is centred, since a bias is refitted too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

DAMPING = 1e-2
"""Multiple of the mean variance that is added to the diagonal: OSSCAR's default."""
SPREAD = 2.0
"""The same per feature and row: with few rows, features seem to explain each other that do not."""
_DEAD = 1e-8
"""Variance relative to the mean up to which a feature never changes; it is not damped, and costs nothing."""


@dataclass
class Reader:
    """A layer as its inputs are seen: features of units, one group of the layer.

    Shapes
        inverse: (features, features), of the covariance. weight: (features, outputs). units: (features,) ids, 0 pinned.
    """

    inverse: np.ndarray
    weight: np.ndarray
    units: np.ndarray

    @classmethod
    def of(cls, covariance: np.ndarray, rows: int, weight: np.ndarray, units: np.ndarray, importance: float) -> Reader:
        """Start from a covariance that was found from so many rows; errors count `importance` times."""
        scale = np.trace(covariance) / len(covariance)
        damping = max(DAMPING, SPREAD * len(covariance) / rows)
        share = np.where(np.diagonal(covariance) > _DEAD * scale, damping, _DEAD)
        damped = covariance + np.diag(np.maximum(share * scale, 1e-12))
        inverse = cho_solve(cho_factor(damped, check_finite=False), np.eye(len(damped)), check_finite=False)
        return cls(inverse, weight * np.sqrt(importance), units)


class Sweep:
    """Remove the units of one group from all readers, the cheapest first."""

    def __init__(self, readers: list[Reader], units: np.ndarray) -> None:
        self.units = units
        self._parts = [_Part(reader, units) for reader in readers]

    def run(self, least: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the order in which units go, as positions, and what each costs; the last `least` stay."""
        count = self.units.size
        order, costs = np.zeros(count - least, np.int64), np.zeros(count - least)
        live = np.ones(count, bool)
        for step in range(count - least):
            cost = np.zeros(count)
            for part in self._parts:
                cost += part.costs(live)
            cost[~live] = np.inf
            chosen = int(np.argmin(cost))
            order[step], costs[step] = chosen, cost[chosen]
            live[chosen] = False
            for part in self._parts:
                part.remove(chosen)
        return order, np.maximum(costs, 0)


class _Part:
    """The features of the swept units in one reader, all others kept."""

    def __init__(self, reader: Reader, units: np.ndarray) -> None:
        self.inverse, self.weight = reader.inverse.copy(), reader.weight.copy()
        position = np.full(max(int(reader.units.max()), int(units.max())) + 1, -1)
        position[units] = np.arange(units.size)
        self.where = position[reader.units]
        self.features = [np.flatnonzero(self.where == at) for at in range(units.size)]
        sizes = {f.size for f in self.features}
        self.table = np.stack(self.features) if len(sizes) == 1 else None

    def costs(self, live: np.ndarray) -> np.ndarray:
        """Return what the removal of each live unit would cost now."""
        found = np.zeros(live.size)
        if self.table is not None:
            own = self.table[live]
            if own.size:
                blocks = self.inverse[own[:, :, None], own[:, None, :]]
                weight = self.weight[own]
                found[live] = (weight * np.linalg.solve(blocks, weight)).sum(axis=(1, 2))
            return found
        for at in np.flatnonzero(live):
            own = self.features[at]
            if own.size:
                weight = self.weight[own]
                found[at] = (weight * np.linalg.solve(self.inverse[np.ix_(own, own)], weight)).sum()
        return found

    def remove(self, at: int) -> None:
        """Take the features of one unit out, and let the others make up for them."""
        own = self.features[at]
        if not own.size:
            return
        column = self.inverse[:, own]
        gain = np.linalg.solve(self.inverse[np.ix_(own, own)], np.concatenate([self.weight[own], column.T], axis=1))
        outputs = self.weight.shape[1]
        self.weight -= column @ gain[:, :outputs]
        self.inverse -= column @ gain[:, outputs:]
        self.inverse[own, own] = 1.0  # never looked at again; keeps the blocks regular
