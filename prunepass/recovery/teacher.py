"""The model before pruning, as a teacher: what its values would be if only the kept indices were there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunepass.graph import Graph
from prunepass.kept import cut, element_mask, kept_masks
from prunepass.manager import Cut
from prunepass.recovery.quantised import as_floats


class Teacher:
    """Narrow values of the graph before a chain of cuts to what the graph after it has of them.

    graph: before the first cut, weights that are integers as floats. last: before the last cut.
    """

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self.graph, self.last = as_floats(cuts[0].before), cuts[-1].before
        self._cuts = list(cuts)
        self._masks: dict[str, list[list[np.ndarray]]] = {}

    def masks(self, name: str) -> list[list[np.ndarray]]:
        """Return the masks of a value, one list for each cut that took something."""
        if name not in self._masks:
            found = [self._masks_of(step, name) for step in self._cuts]
            self._masks[name] = [masks for masks in found if masks]
        return self._masks[name]

    @staticmethod
    def _masks_of(step: Cut, name: str) -> list[np.ndarray]:
        """Return what one cut takes of a value."""
        coupling, removed = step.plan.coupling, step.plan.removed
        assert coupling is not None and removed is not None
        return kept_masks([f for f in coupling.factors.get(name, ()) if removed[f].any()], removed)

    def narrowed(self, name: str, value: np.ndarray) -> np.ndarray:
        """Return what is left of a value."""
        for masks in self.masks(name):
            value = cut(value, masks)
        return value

    def loses(self, name: str) -> bool:
        """Say whether a value has lost anything."""
        return bool(self.masks(name))

    def behind(self, graph: Graph) -> set[str]:
        """Return the values of the last graph that pruning may have changed: everything behind what lost something."""
        found: set[str] = set()
        for node in graph.nodes:
            names = (*node.inputs, *node.captured)
            if any(name in found or self.loses(name) for name in names if name):
                found.update(node.outputs)
        return found

    def widened(self, name: str, narrow: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Put the elements that the last cut left of a tensor into the whole one; the rest keeps its value."""
        masks = self._masks_of(self._cuts[-1], name)
        wide = whole.copy()
        wide[element_mask(whole.shape, masks)] = narrow.reshape(-1)
        return wide

    def channels(self, name: str, axis: int) -> np.ndarray | None:
        """Return which channels of a value the last cut left; None where all, or where other axes decide too."""
        masks = self._masks_of(self._cuts[-1], name)
        along = [mask for mask in masks if mask.shape[axis] > 1]
        if not along or any(mask.size != mask.shape[axis] for mask in along):
            return None
        kept: np.ndarray = np.logical_and.reduce([mask.reshape(-1) for mask in along])
        return kept

    def left(self, name: str, shape: Sequence[int], axis: int) -> np.ndarray:
        """Return which channels are left of a dense value of this shape, in order."""
        turned = [1] * len(shape)
        turned[axis] = shape[axis]
        numbers = self.narrowed(name, np.broadcast_to(np.arange(shape[axis]).reshape(turned), shape))
        return np.asarray(np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1)[:, 0])


class Uncut(Teacher):
    """A model from which nothing was cut: its values are what they are."""

    def __init__(self, graph: Graph) -> None:
        self.graph = self.last = graph
        self._cuts = []
        self._masks = {}
