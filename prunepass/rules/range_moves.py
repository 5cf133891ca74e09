"""How pools, reductions and operators that move data pass the range of each channel on."""

from __future__ import annotations

import numpy as np

from prunepass.dataflow.ranges import Range, Unknown, reshape, whole
from prunepass.rules.known import LARGE, Known
from prunepass.rules.ranges import RANGES, absolute, channels, pads, sum_of
from prunepass.rules.values import evaluate, numbers


# ---- pools, reductions, resizing -------------------------------------------------------------------------------------
@RANGES.row("GlobalAveragePool GlobalMaxPool MaxPool AveragePool")
def pool(k: Known) -> list[Range]:
    space = range(2, len(k.shape()))
    if k.node.op == "AveragePool" and k.node.attr("count_include_pad", 0) and pads(k):
        return [k.of().with_number(0.0, space)]
    return [k.of().hull(space)][: len(k.node.outputs)]


def _reduced(k: Known) -> list[int]:
    rank, given = len(k.shape()), k.ints(1, "axes")
    if not given:
        return [] if k.node.attr("noop_with_empty_axes", 0) else list(range(rank))
    return [a % rank for a in given]


def _dropped(k: Known, data: Range, axes: list[int]) -> list[Range]:
    if k.node.attr("keepdims", 1):
        return [data]
    return [data.apply(lambda v: v.squeeze(tuple(axes)))]


@RANGES.row("ReduceMean ReduceMax ReduceMin")
def reduce_within(k: Known) -> list[Range]:
    axes = _reduced(k)
    return _dropped(k, k.of().hull(axes), axes)


@RANGES.row("ReduceSum")
def reduce_sum(k: Known) -> list[Range]:
    axes = _reduced(k)
    return _dropped(k, sum_of(k.of().hull(axes)), axes)


@RANGES.row("ReduceL1 ReduceL2 ReduceSumSquare")
def reduce_size(k: Known) -> list[Range]:
    axes = _reduced(k)
    return _dropped(k, sum_of(absolute(k)[0].hull(axes)), axes)


@RANGES.row("Resize Upsample")
def resize(k: Known) -> list[Range]:
    """Nearest and linear interpolation stay between their neighbours; others may overshoot."""
    if k.node.attr("mode", "nearest") not in ("nearest", "linear"):
        raise Unknown
    if k.node.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Unknown
    return [k.of().hull(a for a, (b, c) in enumerate(zip(k.shape(), k.out_shape())) if b != c)]


# ---- moves -----------------------------------------------------------------------------------------------------------
@RANGES.row("Reshape Flatten Squeeze Unsqueeze")
def reshaped(k: Known) -> list[Range]:
    return [reshape(k.of(), k.shape(), k.out_shape())]


@RANGES.row("Transpose")
def transpose(k: Known) -> list[Range]:
    perm = k.node.attr("perm")
    return [k.of().apply(lambda x: x.transpose(perm))]


@RANGES.row("Expand")
def expand(k: Known) -> list[Range]:
    rank = len(k.out_shape())
    return [k.of().apply(lambda x: x.reshape((1,) * (rank - x.ndim) + x.shape))]


@RANGES.row("Concat")
def concat(k: Known) -> list[Range]:
    axis = k.node.attr("axis", 1) % len(k.shape())
    parts = [whole(part, k.shape(i), [axis]) for i, part in enumerate(k.every())]
    rest = [max(p.low.shape[a] for p in parts) for a in range(len(k.shape()))]
    target = [[p.low.shape[axis] if a == axis else size for a, size in enumerate(rest)] for p in parts]
    low = np.concatenate([np.broadcast_to(p.low, t) for p, t in zip(parts, target)], axis)
    high = np.concatenate([np.broadcast_to(p.high, t) for p, t in zip(parts, target)], axis)
    return [Range.of(low, high)]


def _moved(k: Known, axes: list[int]) -> list[Range]:
    """Execute a move on both bounds, spelled out along some axes."""
    x = whole(k.of(), k.shape(), axes)
    sizes = [None if not k.has(i) else np.array(k.ints(i), np.int64) for i in range(1, len(k.node.inputs))]
    if k.node.op == "Gather":
        sizes = [np.asarray(k.values[k.node.inputs[1]] if k.constant(1) is None else k.constant(1))]
    low, high = (evaluate(k.node, [v, *sizes]) for v in (x.low, x.high))
    if low is None or high is None:
        raise Unknown
    return [Range.of(a, b) for a, b in zip(low, high)]


@RANGES.row("Slice")
def slices(k: Known) -> list[Range]:
    starts = k.ints(1, "starts") or []
    axes = k.ints(3, "axes") or list(range(len(starts)))
    return _moved(k, [a % len(k.shape()) for a in axes])


@RANGES.row("Split")
def split(k: Known) -> list[Range]:
    axis = k.node.attr("axis", 0) % len(k.shape())
    return _moved(k, [axis])


@RANGES.row("Gather")
def gather(k: Known) -> list[Range]:
    axis = k.node.attr("axis", 0) % len(k.shape())
    if k.node.inputs[1] in k.values or k.constant(1) is not None:
        return _moved(k, [axis])
    found, count = k.of().hull([axis]), len(k.shape(1))  # indices that only a run tells: any of them
    shape = (*found.low.shape[:axis], *(1,) * count, *found.low.shape[axis + 1 :])
    return [found.apply(lambda v: v.reshape(shape))]


@RANGES.row("Tile")
def tile(k: Known) -> list[Range]:
    times = numbers(k.node, [None, np.array(k.ints(1))], 1, "repeats") or []
    x = whole(k.of(), k.shape(), [a for a, n in enumerate(times) if n > 1])
    return [x.apply(lambda v: np.tile(v, [n if v.shape[a] > 1 else 1 for a, n in enumerate(times)]))]


@RANGES.row("Pad")
def pad(k: Known) -> list[Range]:
    widths = k.ints(1, "pads" if "pads" in k.node.attrs else "paddings")
    if widths is None or k.has(3):
        raise Unknown
    rank = len(k.shape())
    padded = [a for a in range(rank) if widths[a] or widths[a + rank]]
    if k.node.attr("mode", "constant") != "constant":
        return [k.of().hull(padded)]
    number = k.node.attr("value", 0.0)
    if k.has(2):
        known = k.weight(2)
        if known is None:
            raise Unknown
        number = float(known.reshape(-1)[0])
    return [_bordered(k, padded, widths, number)]


def _bordered(k: Known, axes: list[int], widths: list[int], number: float) -> Range:
    """Pad one axis that the range tells apart index by index; along all others the border is one more possibility."""
    x, rank = k.of(), len(k.shape())
    told = [a for a in axes if x.low.shape[a] > 1]
    if len(told) != 1 or len(axes) != 1 or min(widths) < 0:
        return x.with_number(number, axes)
    around = [(widths[a], widths[a + rank]) if a in told else (0, 0) for a in range(rank)]
    return x.apply(lambda v: np.pad(v, around, constant_values=number))


@RANGES.row("DepthToSpace SpaceToDepth")
def blocks(k: Known) -> list[Range]:
    """Channels and positions change places: bound each channel of the result by those that it is made of."""
    c = k.shape()[1]
    b = k.node.attr("blocksize")
    x = channels(k.of(), 1)
    low, high = (np.broadcast_to(v.reshape(-1), c) for v in (x.low, x.high))
    if k.node.op == "SpaceToDepth":
        return [Range.of(np.tile(low, b * b).reshape(1, -1, 1, 1), np.tile(high, b * b).reshape(1, -1, 1, 1))]
    outer = k.node.attr("mode", "DCR") == "DCR"
    shape, over = ((b * b, c // (b * b)), 0) if outer else ((c // (b * b), b * b), 1)
    low, high = low.reshape(shape).min(axis=over), high.reshape(shape).max(axis=over)
    return [Range.of(low.reshape(1, -1, 1, 1), high.reshape(1, -1, 1, 1))]


@RANGES.row("DequantizeLinear")
def dequantise(k: Known) -> list[Range]:
    data, scale = k.constant(0), k.weight(1)
    zero = k.weight(2) if k.has(2) else np.zeros(())
    if data is None or scale is None or zero is None or k.node.attr("block_size", 0) or data.size > LARGE:
        raise Unknown
    shape = [1] * data.ndim
    if scale.size > 1:
        shape[k.node.attr("axis", 1)] = -1
    scale, zero = (np.asarray(v, np.float64).reshape(shape if v.size > 1 else ()) for v in (scale, zero))
    return [Range.exactly((data.astype(np.float64) - zero) * scale)]
