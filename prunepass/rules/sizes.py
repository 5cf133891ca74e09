"""Which integers of a node say a size, and how they shrink.

Integers that a model computes at run time from shapes keep the values of the unpruned model everywhere (`Shape` is
scaled back), except in the operands that this table rewrites.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunepass.graph import Node
from prunepass.kept import cut
from prunepass.labels import spans
from prunepass.rules.resize import Resizing
from prunepass.rules.table import Table

SIZES: Table[Callable[[Resizing], None]] = Table("sizes")
_INT64_MAX = np.iinfo(np.int64).max


@SIZES.row("Reshape")
def reshape(r: Resizing) -> None:
    change, (source, out) = r.change, (r.node.inputs[0], r.node.outputs[0])
    axes = change.axes(out)
    before, after = change.shapes[out], change.shape(out)
    target = r.known(1)
    given = change.shape(source)
    copies = not r.node.attr("allowzero", 0)
    entries: dict[int, tuple[int, int]] = {}
    explicit: dict[int, int] = {}
    for axis in range(len(before)):
        entry = before[axis] if target is None else target[axis]
        if entry == -1:
            continue
        if entry == 0 and copies:
            if given[axis] != after[axis]:
                explicit[axis] = after[axis]
        elif axis in axes:
            entries[axis] = axes[axis]
    r.scale(1, "shape", entries, unknown=target is None)
    r.replace(1, "shape", explicit)


@SIZES.row("Squeeze")
def squeeze(r: Resizing) -> None:
    """Without axes, one that shrinks to a single index would go, too."""
    if "axes" not in r.node.attrs and len(r.node.inputs) < 2:
        axes = [a for a, size in enumerate(r.change.shapes[r.node.inputs[0]]) if size == 1]
        if r.graph.opset < 13:
            r.node.set_attr("axes", axes)
        else:
            r.private(1, np.array(axes, np.int64))


@SIZES.row("Expand")
def expand(r: Resizing) -> None:
    axes = r.change.axes(r.node.outputs[0])
    target = r.known(1)
    rank = len(r.change.shapes[r.node.outputs[0]])
    count = len(target) if target is not None else r.change.shapes[r.node.inputs[1]][0]
    shift = rank - count
    entries = {
        a - shift: sizes for a, sizes in axes.items() if a >= shift and (target is None or target[a - shift] != 1)
    }
    r.scale(1, "", entries, unknown=target is None)


@SIZES.row("Tile")
def tile(r: Resizing) -> None:
    before = r.change.shapes[r.node.inputs[0]]
    axes = r.change.axes(r.node.outputs[0])
    r.scale(1, "repeats", {a: sizes for a, sizes in axes.items() if before[a] == 1})


@SIZES.row("ConstantOfShape")
def constant_of_shape(r: Resizing) -> None:
    r.scale(0, "", r.change.axes(r.node.outputs[0]))


@SIZES.row("Resize")
def resize(r: Resizing) -> None:
    if len(r.node.inputs) > 3 and r.node.inputs[3]:
        rank = len(r.change.shapes[r.node.inputs[0]])
        listed = [a % rank for a in r.node.attr("axes", list(range(rank)))]
        axes = r.change.axes(r.node.outputs[0])
        r.scale(3, "", {listed.index(a): sizes for a, sizes in axes.items() if a in listed})


@SIZES.row("Split")
def split(r: Resizing) -> None:
    source = r.node.inputs[0]
    axis = r.node.attr("axis", 0) % len(r.change.shapes[source])
    if axis not in r.change.axes(source):
        return
    sizes = [r.change.shape(out)[axis] for out in r.node.outputs]
    explicit = "split" in r.node.attrs or (len(r.node.inputs) > 1 and r.node.inputs[1])
    if not explicit and len(set(sizes)) == 1:
        return
    r.node.del_attr("num_outputs")
    if r.graph.opset < 13:
        r.node.set_attr("split", sizes)
    else:
        r.private(1, np.array(sizes, np.int64))


@SIZES.row("Slice")
def slice_(r: Resizing) -> None:
    source = r.node.inputs[0]
    changed = r.change.axes(source)
    if not changed:
        return
    shape = r.change.shapes[source]
    starts, ends = r.known(1, "starts"), r.known(2, "ends")
    axes, steps = r.known(3, "axes"), r.known(4)
    if starts is None or ends is None:  # computed at run time: the sliced axes stay
        return
    new_starts, new_ends, new_steps = {}, {}, {}
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        axis %= len(shape)
        kept = r.change.axis_mask(source, axis)
        if kept is None:
            continue
        step = steps[i] if steps is not None else 1
        chosen = np.arange(shape[axis])[_range(shape[axis], starts[i], ends[i], step)]
        if step == 1:
            new_starts[i] = int(kept[: chosen[0]].sum())
            new_ends[i] = int(kept[: chosen[-1] + 1].sum())
        else:
            _pick(r, axis, kept, chosen)
            new_starts[i], new_ends[i], new_steps[i] = 0, _INT64_MAX, 1
    r.replace(1, "starts", new_starts)
    r.replace(2, "ends", new_ends)
    r.replace(4, "", new_steps)


def _range(size: int, start: int, end: int, step: int) -> slice:
    return slice(start, None if step < 0 and end < -size else end, step)


def _pick(r: Resizing, axis: int, kept: np.ndarray, chosen: np.ndarray) -> None:
    """Take the kept ones among strided indices by a Gather in front."""
    places = np.cumsum(kept) - 1
    name = r.graph.fresh_name(f"{r.node.outputs[0]}_indices")
    r.graph.consts[name] = places[chosen[kept[chosen]]].astype(np.int64)
    out = r.graph.fresh_name(f"{r.node.outputs[0]}_picked")
    r.before.append(Node.make("Gather", [r.node.inputs[0], name], [out], name=out, axis=axis))
    r.node.inputs[0] = out


@SIZES.row("Gather")
def gather(r: Resizing) -> None:
    source = r.node.inputs[0]
    axis = r.node.attr("axis", 0) % len(r.change.shapes[source])
    kept = r.change.axis_mask(source, axis)
    if kept is None or kept.all() or r.node.inputs[1] not in r.graph.consts:
        return
    indices = r.graph.consts[r.node.inputs[1]]
    stays = kept[indices]
    places = (np.cumsum(kept) - 1)[indices].astype(indices.dtype)
    if not stays.all():
        places = cut(places, [stays])
    r.private(1, np.asarray(places))


@SIZES.row("Pad")
def pad(r: Resizing) -> None:
    source, out = r.node.inputs[0], r.node.outputs[0]
    axes = r.change.axes(out)
    before, rank = r.change.shapes[source], len(r.change.shapes[out])
    attribute = "pads" if "pads" in r.node.attrs else "paddings"
    pads = r.known(1, attribute)
    if not axes or pads is None:
        return
    listed = r.known(3) if len(r.node.inputs) > 3 and r.node.inputs[3] else None
    order = [a % rank for a in listed] if listed is not None else list(range(rank))
    entries = {}
    for i, axis in enumerate(order):
        kept = r.change.axis_mask(out, axis)
        if kept is not None:
            head, size = pads[i], before[axis]
            entries[i] = int(kept[:head].sum())
            entries[len(order) + i] = int(kept[head + size :].sum())
    r.replace(1, attribute, entries)


@SIZES.row("Conv ConvTranspose ConvInteger QLinearConv com.microsoft::FusedConv")
def conv(r: Resizing) -> None:
    if r.node.attr("group", 1) == 1:
        return
    data, out = r.node.inputs[0], r.node.outputs[0]
    weight = r.node.inputs[3 if r.node.op == "QLinearConv" else 1]
    whole = out if r.node.op == "ConvTranspose" else data
    groups = r.change.shape(whole)[1] // r.change.shape(weight)[1]
    if groups != r.node.attr("group", 1):
        r.node.set_attr("group", groups)


@SIZES.row("GroupNormalization")
def group_norm(r: Resizing) -> None:
    groups = int(r.node.attr("num_groups", 1))
    for mask in r.change.masks(r.node.inputs[0]):
        if spans(mask) == (1,):
            left = int(mask.reshape(groups, -1).any(axis=1).sum())
            if left != groups:
                r.node.set_attr("num_groups", left)


@SIZES.row("Shape")
def shape(r: Resizing) -> None:
    axes = r.change.axes(r.node.inputs[0])
    rank = len(r.change.shapes[r.node.inputs[0]])
    listed = list(range(rank))[slice(r.node.attr("start", 0), r.node.attr("end"))]
    entries = {listed.index(a): sizes for a, sizes in axes.items() if a in listed}
    if entries:
        r.freeze_output(entries, (len(listed),))


@SIZES.row("Size")
def size(r: Resizing) -> None:
    source = r.node.inputs[0]
    if r.change.axes(source):
        before, after = np.prod(r.change.shapes[source]), np.prod(r.change.shape(source))
        r.freeze_output({0: (int(before), int(after))}, ())
