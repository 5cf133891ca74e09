"""What it costs to remove units, when all that reads them is refitted: optimal brain surgeon on whole groups.

Removing the features p of a layer Y = X W and refitting the others costs tr(W_p' ([H^-1]_pp)^-1 W_p), H the covariance
of X. Units are taken one after the other, the cheapest first; after each one W and H^-1 are updated, so that what the
removed one shared with others is not lost twice. A unit that went comes back where that gives a better set than the one
known of that size. One sweep gives a set, and its error, for every width.

The update is a principal pivot of H^-1 with W beside it. A second one takes it back, so that one step removes a unit
and returns it, and one expression is what that costs or, below 0, saves.

Source
    Hassibi, Stork 1992, Optimal Brain Surgeon; Meng et al. 2024, OSSCAR, section 3.1, for groups of columns and the
    update; Pudil, Novovicova, Kittler 1994, Floating search methods in feature selection, for what comes back, where
    OSSCAR swaps at one width. Here the cost is summed over all layers that read a unit, each weighted by what an error
    there does to the output of the network (`sensitivity`), and H is centred, since a bias is refitted too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from prunepass.recovery.threads import threads_for

DAMPING = 1e-2
"""Multiple of the mean variance that is added to the diagonal: OSSCAR's default."""
SPREAD = 2.0
"""The same per feature and row: with few rows, features seem to explain each other that do not."""
_LEAST_GAIN, _MOST_RETURNS = 0.02, 4
"""A set must be better by this share for a unit to come back; how often that may happen, for each unit."""
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
        whole = damped(covariance, rows)
        with threads_for(len(whole)):
            inverse = cho_solve(cho_factor(whole, check_finite=False), np.eye(len(whole)), check_finite=False)
        return cls(inverse, weight * np.sqrt(importance), units)


def damped(covariance: np.ndarray, rows: int) -> np.ndarray:
    """Return a covariance from so many rows with a larger diagonal."""
    scale = np.trace(covariance) / len(covariance)
    damping = max(DAMPING, SPREAD * len(covariance) / rows)
    share = np.where(np.diagonal(covariance) > _DEAD * scale, damping, _DEAD)
    return np.asarray(covariance + np.diag(np.maximum(share * scale, 1e-12)))


@dataclass(frozen=True)
class Path:
    """Hold what a sweep found: the sets to remove, from none to all that may go.

    Shapes
        costs: (widths,) what each set costs, from 0. gone: (widths, units) which units it holds.
    """

    costs: np.ndarray
    gone: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """The units that go, as positions, those first that are in most sets."""
        return np.argsort(-self.gone.sum(axis=0), kind="stable")[: len(self.costs) - 1]


class Sweep:
    """Remove the units of one group from all readers, the cheapest first."""

    def __init__(self, readers: list[Reader], units: np.ndarray) -> None:
        self.units = units
        self._parts = [_Part(reader, units) for reader in readers]

    def run(self, least: int, floating: bool = True) -> Path:
        """Return the best set found for each width; `least` units stay. floating: units may come back."""
        count = self.units.size
        widths = count - least + 1
        found = Path(np.full(widths, np.inf), np.zeros((widths, count), bool))
        found.costs[0] = total = 0.0
        live, size, returns_left = np.ones(count, bool), 0, _MOST_RETURNS * count
        while True:
            costs = self._costs()
            at = int(np.argmin(np.where(live, np.inf, costs)))
            returns = floating and size > 1 and returns_left > 0
            returns = returns and total + costs[at] < found.costs[size - 1] * (1 - _LEAST_GAIN)
            if returns:
                returns_left -= 1
            elif size == widths - 1:
                return Path(np.maximum.accumulate(found.costs), found.gone)
            else:
                at = int(np.argmin(np.where(live, costs, np.inf)))
            for part in self._parts:
                part.pivot(at)
            live[at] = returns
            size += -1 if returns else 1
            total += float(costs[at])
            if total < found.costs[size]:
                found.costs[size], found.gone[size] = total, ~live

    def _costs(self) -> np.ndarray:
        """Return what each unit would cost if it went now; of those that are gone, what their return would save."""
        return np.asarray(sum((part.costs() for part in self._parts), np.zeros(self.units.size)))


class _Part:
    """The features of the swept units in one reader, all others kept."""

    def __init__(self, reader: Reader, units: np.ndarray) -> None:
        self.inverse, self.weight = reader.inverse.copy(), reader.weight.copy()
        position = np.full(max(int(reader.units.max()), int(units.max())) + 1, -1)
        position[units] = np.arange(units.size)
        where = position[reader.units]
        self.features = [np.flatnonzero(where == at) for at in range(units.size)]
        by_size: dict[int, list[int]] = {}
        for at, own in enumerate(self.features):
            by_size.setdefault(own.size, []).append(at)
        self.alike = [(np.array(ats), np.stack([self.features[at] for at in ats])) for n, ats in by_size.items() if n]

    def costs(self) -> np.ndarray:
        """Return w' (T_uu)^-1 w of every unit u, T what pivots have made of the inverse."""
        found = np.zeros(len(self.features))
        for ats, own in self.alike:
            weight = self.weight[own]
            blocks = self.inverse[own[:, :, None], own[:, None, :]]
            turned = weight / blocks if own.shape[1] == 1 else np.linalg.solve(blocks, weight)
            found[ats] = np.einsum("ubo,ubo->u", weight, turned)
        return found

    def pivot(self, at: int) -> None:
        """Take the features of one unit out, and let the others make up for them; or the reverse."""
        own = self.features[at]
        if not own.size:
            return
        block = np.linalg.inv(self.inverse[np.ix_(own, own)])
        column = self.inverse[:, own]
        share = column @ block
        gain = block @ self.weight[own]
        self.weight -= column @ gain
        self.weight[own] = gain
        self.inverse -= share @ column.T
        self.inverse[:, own], self.inverse[own, :] = share, share.T
        self.inverse[np.ix_(own, own)] = -block
