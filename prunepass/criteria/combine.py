"""From the scores of many sites to one per unit, and from the scores of a group to ones that compare across groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from prunepass.criteria.weights import Site

Merge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Normaliser = Callable[[np.ndarray], np.ndarray]

REDUCTIONS: dict[str, Merge] = {
    "mean": lambda old, new, first: old + new,
    "sum": lambda old, new, first: old + new,
    "max": lambda old, new, first: np.where(first, new, np.maximum(old, new)),
    "first": lambda old, new, first: np.where(first, new, old),
}
"""How a unit's score grows by that of one more site; the mean divides by the number of its sites at the end.

Source
    "Group reduction" of Torch-Pruning (DepGraph, Fang et al. 2023); the mean there divides by all sites of the
    group, here by those in which the unit is.
"""


def reduce_sites(scored: Iterable[tuple[Site, np.ndarray]], n_units: int, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Reduce scores per site to one per unit; the second result counts the sites of each unit."""
    total, count = np.zeros(n_units), np.zeros(n_units, np.int64)
    for site, values in scored:
        at = site.units
        total[at] = REDUCTIONS[how](total[at], values, count[at] == 0)
        count[at] += 1
    return (total / np.maximum(count, 1) if how == "mean" else total), count


def _over(scores: np.ndarray, whole: float) -> np.ndarray:
    return scores / whole if whole else np.zeros_like(scores)


def lamp(scores: np.ndarray) -> np.ndarray:
    """Divide each score by the sum of those that are not below it; the largest scores 1, so no group can be emptied.

    Source
        Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", eq. 4, with units instead of weights
        (as Torch-Pruning does). Equal scores are told apart by their order.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    surviving = np.cumsum(ordered[::-1])[::-1]
    result = np.zeros_like(scores)
    result[order] = np.divide(ordered, surviving, out=np.zeros_like(ordered), where=surviving != 0)
    return result


NORMALISERS: dict[str, Normaliser] = {
    "mean": lambda scores: _over(scores, float(scores.mean())),
    "max": lambda scores: _over(scores, float(scores.max())),
    "sum": lambda scores: _over(scores, float(scores.sum())),
    "none": lambda scores: scores,
    "lamp": lamp,
    "standardise": lambda scores: _over(scores - scores.mean(), float(scores.std())),
}
"""How the scores of one group become comparable with those of others. A group of equal zeros stays zero."""
