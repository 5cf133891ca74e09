"""Refit layers to mixtures of the channels that they had before: the weights of layers, tried out and refitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from prunepass.graph import Graph
from prunepass.recovery.heads import Refused
from prunepass.recovery.ridge import Fit, Flat, Rows, fit

if TYPE_CHECKING:
    from prunepass.recovery.sequential import Place

TINY = 1e-10  # of the mean moment: directions below it are rounding
RowsOf = Callable[["Place", np.ndarray], "tuple[Rows, Rows] | str"]
"""Rows of a layer, the targets mixed from all channels of the dense one by a matrix (dense, refitted)."""


@dataclass(frozen=True)
class Block:
    """Say what some channels of a layer shall become.

    dense, own: channels of the dense layer, and those of the pruned one that take their place. mix: how to mix the
    first. move: how to get near to that from what the second are.
    """

    dense: np.ndarray
    own: np.ndarray
    mix: np.ndarray
    move: np.ndarray


@dataclass(frozen=True)
class Layered:
    """Hold the matrix and the bias of a layer, as they would be.

    Shapes
        matrix: (1, features, outputs). bias: (1, outputs), None where there is none.
    """

    place: Place
    matrix: np.ndarray
    bias: np.ndarray | None
    ridge: float = 0.0
    rows: int = 0

    def tensors(self, graph: Graph) -> dict[str, np.ndarray]:
        """Return the constants of the layer by name."""
        product, bias = self.place.product, self.place.bias
        old = graph.consts[product.weight]
        found = {product.weight: product.tensor(self.matrix, old.shape).astype(old.dtype)}
        if self.bias is not None and bias is not None:
            found[bias.name] = (self.bias.reshape(-1) / product.bias_scale).astype(old.dtype)
        return found

    def refitted(self, blocks: list[Block], rows: RowsOf, width: int) -> Layered:
        """Refit some channels to mixtures of the dense ones; width: how many of these there are.

        Raises
            Refused: there are no rows.
        """
        columns = np.concatenate([block.own for block in blocks])
        mixed, start = np.zeros((width, columns.size)), np.zeros((*self.matrix.shape[:2], columns.size))
        shift, at = np.zeros((1, columns.size)), 0
        for block in blocks:
            here = slice(at, at + block.own.size)
            mixed[block.dense, here], start[0, :, here] = block.mix, self.matrix[0][:, block.own] @ block.move
            if self.bias is not None:
                shift[0, here] = self.bias[0, block.own] @ block.move
            at += block.own.size
        found = rows(self.place, mixed)
        if isinstance(found, str):
            raise Refused(found)
        fitted = fit(*found, start, None if self.bias is None else shift, Flat())
        matrix, bias = self.matrix.copy(), None if self.bias is None else self.bias.copy()
        matrix[:, :, columns] = fitted.weight
        if bias is not None:
            bias[:, columns] = fitted.bias
        return replace(self, matrix=matrix, bias=bias, ridge=fitted.ridge, rows=found[0].n + found[1].n)

    def as_fit(self) -> Fit:
        """Return matrix and bias as what a regression finds."""
        bias = np.zeros((1, self.matrix.shape[2])) if self.bias is None else self.bias
        return Fit(self.matrix, bias, self.ridge, 0.0, 0.0)


def solved(moments: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve least squares from second moments.

    Raises
        Refused: they are not finite.
    """
    refuse_infinite(moments, right)
    shifted = moments + TINY * (np.trace(moments) / len(moments) or 1.0) * np.eye(len(moments))
    return np.asarray(np.linalg.solve(shifted, right))


def best(queries: np.ndarray, keys: np.ndarray, rank: int) -> np.ndarray:
    """Return how to mix keys so that queries times keys lose least where only so many are left.

    Raises
        Refused: the moments are not finite.
    """
    refuse_infinite(queries, keys)
    halves = []
    for moments in (queries, keys):
        values, vectors = np.linalg.eigh(moments)
        halves.append((np.sqrt(np.maximum(values, TINY * max(values.max(), 1e-30))), vectors))
    (of_queries, left), (of_keys, right) = halves
    both = (left * of_queries) @ left.T @ (right * of_keys) @ right.T
    _, sizes, turned = np.linalg.svd(both)
    scale = np.sqrt(np.maximum(sizes[:rank], TINY * sizes.max(initial=1e-30)))
    return np.asarray((right / of_keys) @ right.T @ turned[:rank].T * scale)


def refuse_infinite(*arrays: np.ndarray) -> None:
    """Refuse NaN and infinity."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise Refused("what is multiplied is not finite")
