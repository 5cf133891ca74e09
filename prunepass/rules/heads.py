"""Attention on labels: queries, keys and values as (heads, size), and what fused operators do with them.

A fused attention operator is followed as what it stands for: split the hidden axis into heads, contract queries with
keys over the head size, contract the scores with the values, join the heads. So it obeys the same policies as the same
attention written out: `balanced` thins every head, `whole` removes heads with their key and value head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from prunepass.labels import Factor, Factors, spans
from prunepass.rules.layout import reshape_factor, take
from prunepass.rules.step import Letter, Operand, Step

HEADS: list[Letter] = ["h", "d"]


# ---- to heads and back -----------------------------------------------------------------------------------------------
def virtual(shape: Sequence[int], factors: Iterable[Factor | None]) -> Operand:
    """Make an operand of labels alone, for an intermediate result inside a fused operator."""
    own = tuple(f for f in factors if f is not None and f.size > 1)
    return Operand("", tuple(shape), own, tracked=frozenset(a for f in own for a in spans(f)))


def vector(labels: np.ndarray | None, size: int) -> Operand:
    """Make an operand of one axis; without labels it is pinned."""
    return virtual((size,), () if labels is None or not labels.any() else (labels,))


def split_heads(step: Step, factors: Factors, shape: Sequence[int], heads: int) -> Operand:
    """See a tensor (..., heads x size) as (heads, size)."""
    wide = (*shape[:-1], heads, shape[-1] // heads)
    split = [reshape_factor(step, f, shape, wide) for f in factors]
    return pick_heads(step, tuple(f for f in split if f is not None), wide, len(wide) - 2)


def pick_heads(step: Step, factors: Factors, shape: Sequence[int], axis: int) -> Operand:
    """See a tensor that has an axis of heads, and their size as its last axis, as (heads, size)."""
    others = [a for a in range(len(shape)) if a not in (axis, len(shape) - 1)]
    reason = f"{step.node.label}: only heads and their size can shrink"
    left: list[Factor | None] = []
    for factor in factors:
        current: Factor | None = factor
        for other in others:
            current = None if current is None else step.labels.drop_axis(current, other, reason)
        left.append(None if current is None else current.reshape(current.shape[axis], current.shape[-1]))
    return virtual((shape[axis], shape[-1]), left)


def heads_of(step: Step, position: int, heads: int) -> Operand:
    """Read an input as (heads, size): (B, heads, L, size), or (..., heads x size)."""
    shape, factors = step.shape(position), step.factors(position)
    if len(shape) == 4:
        return pick_heads(step, factors, shape, 1)
    return split_heads(step, factors, shape, heads)


def packed_heads(step: Step, position: int, index: int) -> Operand:
    """Read one of the tensors packed in (..., heads, n, size)."""
    shape, rank = step.shape(position), len(step.shape(position))
    part = [take(step, f, rank - 2, np.array([index])) for f in step.factors(position)]
    return pick_heads(step, tuple(f for f in part if f is not None), (*shape[:-2], 1, shape[-1]), rank - 3)


def joined(step: Step, factors: Factors, shape: Sequence[int], lead: int) -> list[Factor | None]:
    """Join (heads, size) to the last of `lead` + 1 axes."""
    wide = [*[1] * lead, *shape]
    flat = [*[1] * lead, shape[0] * shape[1]]
    return [reshape_factor(step, f.reshape([1] * lead + list(f.shape)), wide, flat) for f in factors]


def apart(factors: Factors) -> list[Factor]:
    """Lay (heads, size) out as (B, heads, L, size)."""
    return [f[None, :, None, :] for f in factors]


def matrix(step: Step, operand: Operand) -> np.ndarray:
    """Labels of every index of every head; 0 where it is pinned."""
    if len(operand.factors) > 1:
        step.labels.pin_all(operand.factors, f"{step.node.label}: heads and their size shrink apart")
    if len(operand.factors) != 1:
        return np.zeros(operand.shape, np.int32)
    return np.broadcast_to(operand.factors[0], operand.shape)


# ---- the attention itself --------------------------------------------------------------------------------------------
def repeated(operand: Operand, heads: int) -> Operand:
    """Give every query head a key (or value) head; a single one serves all as it is."""
    own, size = operand.shape
    if own in (1, heads):
        return operand
    times = heads // own
    return virtual((heads, size), [np.repeat(f, times, 0) if f.shape[0] > 1 else f for f in operand.factors])


def attend(
    step: Step, query: Operand, key: Operand, value: Operand, bias: int | None = None, sink: int | None = None
) -> tuple[Factors, Factors]:
    """Return the labels of the result (heads, size), and of the scores (heads, 1).

    bias: position of an input (.., heads or 1, .., ..) that is added to the scores; sink: of one with an entry per
    head.
    """
    heads = query.shape[0]
    key, value = repeated(key, heads), repeated(value, heads)
    if step.labels.policy == "whole":
        query = virtual(query.shape, [step.labels.at_block_site(f) for f in query.factors])
    scores = virtual((heads, 1), step.equate([(query, HEADS), (key, HEADS)], ["h", None]))
    wide: list[Letter] = [None, "h", None, None]
    for position, letters in ((bias, wide), (sink, wide[1:2])):
        if position is not None and step.has(position):
            own = letters[len(letters) - len(step.shape(position)) :]
            pairs: list[tuple[Operand, list[Letter]]] = [(scores, ["h", "s"]), (step.operand(position), own)]
            scores = virtual((heads, 1), step.equate(pairs, ["h", None]))
    if scores.factors:
        shared = tuple(f for f in value.factors if f.shape[0] == 1)
        step.labels.pin_all(shared, f"{step.node.label}: one value head serves all, and whole heads go")
        value = virtual(value.shape, [f for f in value.factors if f.shape[0] > 1])
    return step.equate([(scores, ["h", "s"]), (value, HEADS)], HEADS), scores.factors


def cache(step: Step, operand: Operand, past: int, present: int) -> Operand:
    """Relate keys (or values) with a cache of them, (B, heads, length, size)."""
    if step.has(past):
        before = heads_of(step, past, operand.shape[0])
        if not before.factors:
            reason = f"{step.node.label}: the KV cache {step.node.inputs[past]!r} fixes the heads and their size"
            step.labels.pin_axes(operand.factors, (0, 1), reason)
        operand = virtual(operand.shape, step.equate([(operand, HEADS), (before, HEADS)], HEADS))
    step.set(present, apart(operand.factors))
    return operand


def of_one_size(step: Step, *operands: Operand) -> None:
    """Let the heads of several operands lose the same number of indices: the operator has one head size for all."""
    if step.labels.policy == "whole":
        return
    tables = [matrix(step, operand) for operand in operands]
    if all(table.any() for table in tables):
        step.labels.blocks.append(np.concatenate(tables))
        return
    for operand in operands:
        step.labels.pin_all(operand.factors, f"{step.node.label}: all heads have one size, and some cannot shrink")


def in_chunks(step: Step, operand: Operand, size: int, halves: bool = False) -> None:
    """Let runs of `size` indices of a head go together; `halves`: half of each run lies in each half of the head."""
    head = operand.shape[1]
    half, run = (head // 2, size // 2) if halves else (head, size)
    for factor in operand.factors:
        if factor.shape[1] == 1:
            continue
        if head % size:
            step.labels.pin(factor, f"{step.node.label}: the head size must be a multiple of {size}")
        else:
            first = np.arange(head) % half // run * run
            step.labels.unify(factor, factor[:, first])


# ---- rotary embedding ------------------------------------------------------------------------------------------------
def rotate(step: Step, operand: Operand, size: int, interleaved: bool, tables: Sequence[int]) -> None:
    """Tie the two indices of every rotated pair, alike in all heads, and the entry of the tables that turns them.

    size: how many of the first indices of a head are rotated. tables: positions of cosines and sines (.., size / 2).
    """
    pairs = np.arange(size).reshape(-1, 2).T if interleaved else np.arange(size).reshape(2, -1)
    for factor in operand.factors:
        own = _in_all_heads(step, factor)
        if own is None:
            continue
        step.labels.unify(own[pairs[0]], own[pairs[1]])
        angles: list[tuple[Operand, Sequence[Letter]]] = [(vector(own[pairs[0]], size // 2), ["p"])]
        for position in tables:
            rank = len(step.shape(position))
            angles.append((step.operand(position), [*[None] * (rank - 1), "p"]))
        step.equate(angles, ["p"])


def _in_all_heads(step: Step, factor: Factor) -> np.ndarray | None:
    """Labels of the indices of a head, the same in all heads; None where only whole heads can go."""
    if factor.shape[0] > 1 and step.labels.policy == "whole":
        step.labels.at_block_site(factor)
        return None
    return None if factor.shape[1] == 1 else np.asarray(step.labels.unify_along(factor, [0])[0])
