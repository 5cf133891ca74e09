"""How labels pass through operators that only move data: the operator is executed on the factors with numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from prunepass.labels import Factor, Factors, collapse, lift, on_axis, spans
from prunepass.rules.dims import DIMS, along_fixed
from prunepass.rules.step import Operand, Refused, Step

Segment = tuple[range, range]


# ---- reshape ---------------------------------------------------------------------------------------------------------
def segments(before: Sequence[int], after: Sequence[int]) -> list[Segment]:
    """Split two shapes of equal size into the shortest runs of axes with equal products."""
    found: list[Segment] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        a = b = 1
        if i < len(before):
            a, i = before[i], i + 1
        if j < len(after):
            b, j = after[j], j + 1
        while a != b:
            if a < b:
                a, i = a * before[i], i + 1
            else:
                b, j = b * after[j], j + 1
        found.append((range(i0, i), range(j0, j)))
    return found


def reshape_factor(step: Step, factor: Factor, before: Sequence[int], after: Sequence[int]) -> Factor | None:
    """Reshape a factor as its tensor is reshaped."""
    axes = set(spans(factor))
    wide, target = [1] * len(before), [1] * len(after)
    for ins, outs in segments(before, after):
        if axes & set(ins):
            for axis in ins:
                wide[axis] = before[axis]
            for axis in outs:
                target[axis] = after[axis]
    full = factor if tuple(wide) == factor.shape else np.broadcast_to(factor, wide)
    return step.labels.tidy(full.reshape(target), f"{step.node.label}: one index covers the whole tensor")


@DIMS.row("Reshape Flatten Squeeze Unsqueeze")
def reshape(step: Step) -> None:
    before, after = step.shape(0), step.out_shape(0)
    _label_merged(step, before, after)
    factors = step.factors(0)
    if math.prod(before) != math.prod(after) or 0 in before:
        raise Refused(f"cannot follow {before} -> {after}")
    _set_merged(step, [reshape_factor(step, f, before, after) for f in factors])


def _set_merged(step: Step, factors: Iterable[Factor | None]) -> None:
    """Store factors that moved onto the same axis as one."""
    step.set(0, step.labels.merge([f for f in factors if f is not None], f"{step.node.label}: axes become one"))


def _label_merged(step: Step, before: Sequence[int], after: Sequence[int]) -> None:
    """Where axes of a constant without labels become one axis, every index of that one axis gets its own label."""
    name, rank = step.node.inputs[0], len(before)
    if name not in step.world.consts or name in step.world.states or math.prod(before) != math.prod(after):
        return
    own: list[Factor] = []
    for ins, outs in segments(before, after):
        long = [axis for axis in ins if before[axis] > 1]
        if len(long) > 1 and sum(after[axis] > 1 for axis in outs) == 1 and step.fresh_factors(name, long[:1]):
            size = math.prod(before[axis] for axis in long)
            shape = [before[axis] if axis in long else 1 for axis in range(rank)]
            own.append(step.labels.fresh((name, "merged", long[0]), size).reshape(shape))
        else:
            own.extend(step.fresh_factors(name, long))
    step.world.states[name] = tuple(own)


@DIMS.row("Transpose")
def transpose(step: Step) -> None:
    rank = len(step.shape(0))
    perm = step.node.attr("perm") or list(range(rank))[::-1]
    step.set(0, [step.labels.transpose(f, perm) for f in step.factors(0)])


def _through(step: Step, factors: Factors, moves: Sequence[tuple[str, Sequence[int]]]) -> Factors:
    """Apply reshapes and transposes in turn to factors of the first input."""
    result: list[Factor] = []
    for factor in factors:
        current: Factor | None = factor
        shape: Sequence[int] = step.shape(0)
        for kind, argument in moves:
            if kind == "reshape":
                current = None if current is None else reshape_factor(step, current, shape, argument)
                shape = argument
            else:
                current = None if current is None else step.labels.transpose(current, argument)
                shape = [shape[a] for a in argument]
        if current is not None:
            result.append(current)
    return tuple(result)


def _fixed_space(step: Step, factors: Factors) -> Factors:
    """The operator computes height and width from its block size: they stay."""
    return step.labels.drop_axes(factors, (2, 3), f"{step.node.label}: the block size is fixed")


@DIMS.row("DepthToSpace")
def depth_to_space(step: Step) -> None:
    n, c, h, w = step.shape(0)
    b = int(step.node.attr("blocksize"))
    out = (n, c // (b * b), h * b, w * b)
    if step.node.attr("mode", "DCR") == "DCR":
        split, perm = (n, b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, perm = (n, c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
    moves = [("reshape", split), ("transpose", perm), ("reshape", out)]
    _set_merged(step, _fixed_space(step, _through(step, step.factors(0), moves)))


@DIMS.row("SpaceToDepth")
def space_to_depth(step: Step) -> None:
    n, c, h, w = step.shape(0)
    b = int(step.node.attr("blocksize"))
    split, perm = (n, c, h // b, b, w // b, b), (0, 3, 5, 1, 2, 4)
    moves = [("reshape", split), ("transpose", perm), ("reshape", (n, c * b * b, h // b, w // b))]
    _set_merged(step, _through(step, _fixed_space(step, step.factors(0)), moves))


# ---- concatenate and split -------------------------------------------------------------------------------------------
@DIMS.row("Concat")
def concat(step: Step) -> None:
    rank = len(step.out_shape())
    axis = step.node.attr("axis", 0) % rank
    operands = [step.operand(i) for i in range(len(step.node.inputs)) if step.has(i)]
    parts: list[Factor | None] = []
    pairs = []
    letters = [None if a == axis else a for a in range(rank)]
    split = [_part(step, operand, axis) for operand in operands]
    taken = {a for _, others in split for f in others for a in spans(f)}
    for operand, (part, others) in zip(operands, split):
        if part is not None and taken & set(spans(part)):  # blocks along the axis meet a part without them
            aligned = step.labels.tidy(step.labels.unify_along(part, [axis]))
            part, others = None, others if aligned is None else (*others, aligned)
        parts.append(part)
        pairs.append((Operand(operand.name, operand.shape, others, operand.adoptable, False, operand.tracked), letters))
    rest = step.equate(pairs, letters)
    for operand, part in zip(operands, parts):
        if operand.adoptable and part is not None:
            step.world.states[operand.name] += (part,)
    joined = _join(parts, [op.shape[axis] for op in operands], axis)
    left = None if joined is None else step.labels.tidy(joined)
    step.set(0, [*rest, left])


def _part(step: Step, operand: Operand, axis: int) -> tuple[Factor | None, Factors]:
    """Split an operand's factors into the one that spans the joined axis and the others."""
    if operand.adoptable:
        own = step.fresh_factors(operand.name, [axis]) if operand.name in step.world.consts else ()
        return (own[0] if own else None), ()
    mine = [f for f in operand.factors if f.shape[axis] > 1]
    others = tuple(f for f in operand.factors if f.shape[axis] == 1)
    return (mine[0] if mine else None), others


def _join(parts: Sequence[Factor | None], sizes: Sequence[int], axis: int) -> Factor | None:
    """Concatenate factors; parts without one are pinned."""
    known = [p for p in parts if p is not None]
    if not known:
        return None
    shape = list(np.broadcast_shapes(*[collapse(p, [axis]).shape for p in known]))
    pieces = []
    for part, size in zip(parts, sizes):
        shape[axis] = size
        pieces.append(np.broadcast_to(np.zeros(1, np.int32) if part is None else part, shape))
    return np.concatenate(pieces, axis)


def take(step: Step, factor: Factor, axis: int, indices: np.ndarray) -> Factor | None:
    """Keep some indices of one axis."""
    if factor.shape[axis] == 1:
        return factor
    result = factor.take(indices, axis=axis)
    if result.size > 1 or len(spans(factor)) > 1:
        return step.labels.tidy(result)
    step.labels.pin(result, f"{step.node.label}: the only index left")
    return None


def window(step: Step, factor: Factor, axis: int, start: int, stop: int) -> Factor | None:
    """Keep a range of one axis.

    On the inner axis of a joint factor every block must lose alike before it, too; a single index must be there in all.
    """
    axes = spans(factor)
    if factor.shape[axis] > 1 and len(axes) > 1 and axis == axes[-1]:
        if stop - start == 1:
            return step.labels.drop_axis(factor, axis, f"{step.node.label}: takes one index of each block")
        if start > 0:
            step.labels.blocks.append(factor.take(np.arange(start), axis=axis))
    return take(step, factor, axis, np.arange(start, stop))


def split_sizes(step: Step) -> list[int]:
    """Sizes of the parts that Split makes."""
    axis = step.node.attr("axis", 0) % len(step.shape(0))
    return [step.out_shape(k)[axis] for k in range(len(step.node.outputs))]


@DIMS.row("Split")
def split(step: Step) -> None:
    axis = step.node.attr("axis", 0) % len(step.shape(0))
    factors, start = step.factors(0), 0
    for position, size in enumerate(split_sizes(step)):
        step.set(position, [window(step, f, axis, start, start + size) for f in factors])
        start += size


# ---- repeat and pad --------------------------------------------------------------------------------------------------
@DIMS.row("Expand")
def expand(step: Step) -> None:
    before, after = step.shape(0), step.out_shape(0)
    if math.prod(before) == 1 and math.prod(after) > 1:
        step.factors(0)
        step.world.soft.add(step.node.outputs[0])
        return
    step.set(0, [lift(f, len(after)) for f in step.factors(0)])
    _stretch(step, before, after)


def _stretch(step: Step, before: Sequence[int], after: Sequence[int]) -> None:
    """Note the axes that come from a single index: copies of it may go like the indices that they meet."""
    small = [1] * (len(after) - len(before)) + list(before)
    step.world.stretched[step.node.outputs[0]] = frozenset(a for a, d in enumerate(after) if d > small[a] == 1)


@DIMS.row("Tile")
def tile(step: Step) -> None:
    before, after = step.shape(0), step.out_shape(0)
    result = []
    for factor in step.factors(0):
        repeats = [after[a] // before[a] if factor.shape[a] > 1 else 1 for a in range(len(before))]
        result.append(np.tile(factor, repeats))
    step.set(0, result)
    _stretch(step, before, after)


def pad_amounts(step: Step) -> dict[int, tuple[int, int]]:
    """Padding before and after each padded axis."""
    rank = len(step.shape(0))
    pads = step.ints(1, "pads")
    if pads is None:
        pads = step.ints(1, "paddings")
    if pads is None:
        before, after = step.shape(0), step.out_shape(0)
        return {a: (-1, -1) for a in range(rank) if before[a] != after[a]}
    axes = step.ints(3) if step.has(3) else None
    chosen = [a % rank for a in axes] if axes is not None else list(range(rank))
    half = len(pads) // 2
    return {a: (pads[i], pads[half + i]) for i, a in enumerate(chosen) if pads[i] or pads[half + i]}


@DIMS.row("Pad")
def pad(step: Step) -> None:
    amounts = pad_amounts(step)
    rank = len(step.shape(0))
    extend = step.node.attr("mode", "constant") == "constant"
    result = []
    for factor in step.factors(0):
        axes = spans(factor)
        hit = [a for a in axes if a in amounts]
        if len(axes) == 1 and hit and extend and min(amounts[hit[0]]) >= 0:
            result.append(_padded(step, factor, hit[0], *amounts[hit[0]], rank))
        else:
            result.extend(step.labels.drop_axes((factor,), hit, f"{step.node.label}: pads this axis"))
    step.set(0, result)


def _padded(step: Step, factor: Factor, axis: int, before: int, after: int, rank: int) -> Factor:
    """Padding with a constant makes new indices, which may go like any other."""
    name = step.node.outputs[0]
    head = step.labels.fresh((name, axis, "head"), before)
    tail = step.labels.fresh((name, axis, "tail"), after)
    return on_axis(np.concatenate([head, factor.reshape(-1), tail]), axis, rank)


@DIMS.row("Resize Upsample")
def resize(step: Step) -> None:
    before, after = step.shape(0), step.out_shape(0)
    changed = [a for a in range(len(before)) if before[a] != after[a]]
    spatial = sorted({*changed, *range(2, len(before))})
    along_fixed(step, spatial, "interpolates along this axis")


@DIMS.row("Col2Im")
def col2im(step: Step) -> None:
    """Overlapping blocks are summed: a channel goes with all positions of its block."""
    n, rows, length = step.shape(0)
    channels = step.out_shape()[1]
    factors = step.labels.pin_axes(step.factors(0), (2,), f"{step.node.label}: one column per position")
    result = []
    for factor in factors:
        split = reshape_factor(step, factor, (n, rows, length), (n, channels, rows // channels, length))
        left = None if split is None else step.labels.drop_axis(split, 2, f"{step.node.label}: positions in a block")
        if left is not None:
            result.append(left.reshape(left.shape[:2] + (1,) * (len(step.out_shape()) - 2)))
    step.set(0, result)
