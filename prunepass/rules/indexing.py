"""How labels pass through operators that pick, gather and scatter."""

from __future__ import annotations

import numpy as np

from prunepass.labels import Factor, spans
from prunepass.rules.dims import DIMS
from prunepass.rules.layout import take, window
from prunepass.rules.step import Letter, Operand, Refused, Step


# ---- slice -----------------------------------------------------------------------------------------------------------
def slice_ranges(step: Step) -> dict[int, range]:
    """Indices that Slice keeps, for each sliced axis.

    Raises
        Refused: the bounds are computed at run time.
    """
    shape = step.shape(0)
    starts, ends = step.ints(1, "starts"), step.ints(2, "ends")
    if starts is None or ends is None:
        raise Refused("the bounds are computed at run time")
    axes = step.ints(3, "axes")
    steps = step.ints(4)
    if (axes is None and step.has(3)) or (steps is None and step.has(4)):
        raise Refused("the sliced axes are computed at run time")
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    found = {}
    for axis, start, end, stride in zip(axes, starts, ends, steps):
        size = shape[axis % len(shape)]
        stop: int | None = end
        if stride < 0 and end < -size:
            stop = None
        found[axis % len(shape)] = range(size)[start:stop:stride]
    return found


@DIMS.row("Slice")
def slice_(step: Step) -> None:
    factors = step.factors(0)
    if not factors:
        return step.set(0, [])
    axes = step.ints(3, "axes")
    if axes is not None and (step.ints(1, "starts") is None or step.ints(2, "ends") is None):
        reason = f"{step.node.label}: the bounds are computed at run time"
        return step.set(0, step.labels.drop_axes(factors, {a % len(step.shape(0)) for a in axes}, reason))
    ranges = {a: r for a, r in slice_ranges(step).items() if len(r) != step.shape(0)[a] or r.step != 1}
    result = []
    for factor in factors:
        current: Factor | None = factor
        for axis, kept in ranges.items():
            if current is not None and current.shape[axis] > 1:
                current = _sliced(step, current, axis, kept)
        result.append(current)
    step.set(0, result)


def _sliced(step: Step, factor: Factor, axis: int, kept: range) -> Factor | None:
    if len(kept) == 0:
        step.labels.pin(factor, f"{step.node.label}: takes nothing")
        return None
    if kept.step == 1:
        return window(step, factor, axis, kept.start, kept.stop)
    aligned = _same_in_all_blocks(step, factor, axis)
    return None if aligned is None else take(step, aligned, axis, np.array(kept))


def _same_in_all_blocks(step: Step, factor: Factor, axis: int) -> Factor | None:
    """A pick along the inner axis is one list of indices for all blocks."""
    axes = spans(factor)
    if len(axes) > 1 and axis == axes[-1]:
        return step.labels.tidy(step.labels.unify_along(factor, axes[:-1]))
    return factor


# ---- gather ----------------------------------------------------------------------------------------------------------
@DIMS.row("Gather")
def gather(step: Step) -> None:
    data, indices = step.shape(0), step.shape(1)
    axis = step.node.attr("axis", 0) % len(data)
    known = step.constant(1)
    name = step.node.inputs[0]
    stored = name in step.world.consts
    if stored and known is None and name not in step.world.states:
        rest = [a for a in range(len(data)) if a != axis]
        step.world.states[name] = step.fresh_factors(name, rest)
    factors = step.factors(0)
    _produce_rows(step, factors, axis)
    result = []
    for factor in factors:
        left = factor if factor.shape[axis] == 1 else _picked(step, factor, axis, known)
        if left is None:
            continue
        if left.shape[axis] > 1:
            assert known is not None
            result.append(_gathered(step, left, axis, known))
        else:
            result.append(left.reshape(left.shape[:axis] + (1,) * len(indices) + left.shape[axis + 1 :]))
    step.set(0, result)


def _produce_rows(step: Step, factors: tuple[Factor, ...], axis: int) -> None:
    """An embedding table produces the axes that are not looked up."""
    operand = step.operand(0)
    if operand.derived and len(operand.shape) > 1:
        for factor in factors:
            for other in spans(factor):
                if other != axis:
                    step.produce(operand, other, factor)


def _picked(step: Step, factor: Factor, axis: int, known: np.ndarray | None) -> Factor | None:
    if known is None:
        return step.labels.drop_axis(factor, axis, f"{step.node.label}: the indices come at run time")
    axes = spans(factor)
    if known.size > 1 or len(axes) == 1:
        return _same_in_all_blocks(step, factor, axis)
    if axis == axes[-1]:
        return step.labels.pin_axis(factor, axis, f"{step.node.label}: picks one index")
    return factor


def _gathered(step: Step, factor: Factor, axis: int, known: np.ndarray) -> Factor | None:
    picked = factor.take(known, axis=axis)
    if picked.size == 1 or (known.size == 1 and len(spans(factor)) == 1):
        step.labels.pin(picked, f"{step.node.label}: the only index left")
        return None
    return step.labels.tidy(np.asarray(picked))


@DIMS.row("GatherElements")
def gather_elements(step: Step) -> None:
    _along_axis(step, (0, 1))


@DIMS.row("ScatterElements Scatter")
def scatter_elements(step: Step) -> None:
    _along_axis(step, (0, 1, 2))


def _along_axis(step: Step, positions: tuple[int, ...]) -> None:
    """Axes of equal size run in parallel; the indexed one stays."""
    operands = [step.operand(i) for i in positions]
    rank = len(operands[0].shape)
    axis = step.node.attr("axis", 0) % rank
    equal = {a for a in range(rank) if a != axis and len({op.shape[a] for op in operands}) == 1}
    letters: list[Letter] = [a if a in equal else None for a in range(rank)]
    step.set(0, step.equate([(op, letters) for op in operands], letters))


@DIMS.row("GatherND")
def gather_nd(step: Step) -> None:
    data, indices = step.operand(0), step.operand(1)
    batch, depth = step.node.attr("batch_dims", 0), indices.shape[-1]
    lead: list[Letter] = [("b", i) for i in range(batch)]
    rest: list[Letter] = [("r", i) for i in range(len(data.shape) - batch - depth)]
    loose: list[Letter] = [None] * (len(indices.shape) - 1 - batch)
    pairs: list[tuple[Operand, list[Letter]]] = [(data, lead + [None] * depth + rest), (indices, [*lead, *loose, None])]
    step.set(0, step.equate(pairs, lead + loose + rest))


@DIMS.row("ScatterND")
def scatter_nd(step: Step) -> None:
    data, indices, updates = (step.operand(i) for i in range(3))
    depth = indices.shape[-1]
    rest: list[Letter] = [("r", i) for i in range(len(data.shape) - depth)]
    loose: list[Letter] = [None] * (len(indices.shape) - 1)
    fixed: list[Letter] = [None] * depth
    step.set(0, step.equate([(data, fixed + rest), (indices, [*loose, None]), (updates, loose + rest)], fixed + rest))
