"""Map removed channels onto kept ones, once for all taps of a kernel: where a full least squares is too large.

Source
    GRAIL (CPAL 2026), section 3: B = (G_SS + lambda mean(diag) I)^-1 G_SH on the Gram matrix of the dense network's
    channels, W' = W B' applied to every tap, lambda = 1e-3, no correction of the bias.
"""

from __future__ import annotations

import numpy as np

from prunepass.recovery.batches import Batches
from prunepass.recovery.staged import Staged
from prunepass.recovery.teacher import Teacher
from prunepass.rules.linear import Linear

RIDGE = 1e-3
_POSITIONS = 4096
"""Positions of a batch that are looked at."""


def folded(product: Linear, teacher: Teacher, dense: Staged, batches: Batches) -> np.ndarray | None:
    """Return the kept columns of a dense layer's matrix, (1, features, outputs), with the removed ones folded in.

    None where the layer has several groups, or loses nothing that is a plain list of channels.
    """
    whole = teacher.graph.consts
    if product.weight not in whole or product.y not in dense.graph.producers():
        return None
    shape = whole.shape(product.weight)
    kept = teacher.channels(product.x, product.axis) if product.groups(shape) == 1 else None
    if kept is None or len(teacher.masks(product.x)) > 1:
        return None
    matrix, taps = product.matrix(whole[product.weight].astype(np.float64)), product.taps(shape)
    if matrix.shape[1] != kept.size * taps:
        return None  # it had several groups before
    outputs = teacher.channels(product.y, product.axis)
    dense.need(product.x)
    gram = _gram(product, dense, len(batches.feeds))
    dense.release(product.x)
    inner = gram[np.ix_(kept, kept)]
    inner.flat[:: len(inner) + 1] += RIDGE * np.trace(inner) / len(inner)
    mapped = np.linalg.solve(inner, gram[kept])
    by_tap = matrix[0].reshape(kept.size, taps, -1)
    found = np.einsum("sh,hto->sto", mapped, by_tap if outputs is None else by_tap[:, :, outputs])
    return np.asarray(found.reshape(1, -1, found.shape[2]))


def _gram(product: Linear, dense: Staged, count: int) -> np.ndarray:
    total: np.ndarray = np.zeros((0, 0))
    for batch in range(count):
        rows = product.channels(np.asarray(dense.value(product.x, batch)), 1)[0]
        rows = rows[:: max(1, len(rows) // _POSITIONS)].astype(np.float64)
        total = rows.T @ rows + (total if total.size else 0.0)
    return total
