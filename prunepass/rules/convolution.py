"""How labels pass through convolutions and group normalisation, where channels come in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.labels import Factor, Factors, on_axis, spans
from prunepass.rules.dims import DIMS
from prunepass.rules.step import Letter, Operand, Refused, Step


@dataclass(frozen=True)
class Roles:
    """Positions of the operands: data, weight, and vectors with an entry per output channel."""

    x: int = 0
    w: int = 1
    vectors: tuple[int, ...] = (2,)
    transposed: bool = False


def convolve(step: Step, roles: Roles) -> None:
    """Follow labels through any convolution; `step` may be a float, integer or fused one."""
    if step.node.attr("group", 1) == 1:
        _plain(step, roles)
    else:
        _grouped(step, roles)


@DIMS.row("Conv ConvTranspose")
def conv(step: Step) -> None:
    convolve(step, Roles(transposed=step.node.op == "ConvTranspose"))


def _plain(step: Step, roles: Roles) -> None:
    x, w = step.operand(roles.x), step.operand(roles.w)
    spatial: list[Letter] = [None] * (len(x.shape) - 2)
    kernel: list[Letter] = [*(("c", "o") if roles.transposed else ("o", "c")), *spatial]
    operands: list[tuple[Operand, Sequence[Letter]]] = [(x, ["n", "c", *spatial]), (w, kernel)]
    for position in roles.vectors:
        if step.has(position) and step.shape(position):
            operands.append((step.operand(position), ["o"]))
    step.set(0, step.equate(operands, ["n", "o", *spatial]))


def _grouped(step: Step, roles: Roles) -> None:
    groups = int(step.node.attr("group", 1))
    x, w = step.operand(roles.x), step.operand(roles.w)
    outs, key_axis = step.out_shape()[1], 1 if roles.transposed else 0
    inner, batch = channel_labels(step, x)
    outer = _own_outputs(step, w, key_axis, outs, groups)
    inner, outer, tied = _tie_groups(step, inner, outer, step.shape(roles.x)[1] // groups, outs // groups, groups)
    outer = outer if outer is not None and outer.any() else None
    own = _grouped_weight(w, inner, outer, tied, groups, roles.transposed)
    known = step.world.states.get(w.name)
    if known is None:
        step.world.states[w.name] = own
    else:
        _meet(step, known, own)
    if outer is not None and w.derived and not (tied and inner is not None):
        step.produce(w, key_axis, outer.reshape(groups, -1))
    for position in roles.vectors:
        if step.has(position) and step.shape(position):
            _vector(step, position, outer)
    step.set(0, batch if outer is None else [*batch, on_axis(outer, 1, len(step.out_shape()))])


def _meet(step: Step, known: Factors, own: Factors) -> None:
    """Equate the labels that a weight has with those that it needs; an axis that only one side tracks stays."""
    needed = {spans(f)[-1]: f for f in own}
    for factor in known:
        partner = needed.pop(spans(factor)[-1], None)
        if partner is None:
            step.labels.pin(factor, f"{step.node.label}: an axis of the weight cannot shrink")
        else:
            step.labels.unify(factor, partner)
    step.labels.pin_all(tuple(needed.values()), f"{step.node.label}: an axis of the weight cannot shrink")


def _own_outputs(step: Step, w: Operand, axis: int, outs: int, groups: int) -> np.ndarray | None:
    """Labels of the output channels: fresh ones for a stored weight, those that it has for a computed one."""
    if w.adoptable or w.name in step.world.consts:
        return step.labels.fresh((w.name, axis), outs)
    kernel = range(2, len(w.shape))
    factors = step.labels.pin_axes(w.factors, kernel, f"{step.node.label}: the kernel keeps its size")
    own = [f for f in factors if spans(f) == (axis,)]
    if any(len(spans(f)) > 1 for f in factors):
        raise Refused("a grouped convolution whose computed weight has blocks")
    if not own:
        return None
    labels = own[0].reshape(-1)
    return labels if labels.size == outs else np.tile(labels, groups)


def channel_labels(step: Step, x: Operand) -> tuple[np.ndarray | None, Factors]:
    """Split the labels of an activation that is worked on channel by channel.

    Returns the labels of the channel axis (None where pinned) and the factors of the batch axis. The weights are the
    same for the whole batch, so labels that differ along it are unified; all other axes cannot shrink.
    """
    fixed = range(2, len(x.shape))
    left = step.labels.pin_axes(x.factors, fixed, f"{step.node.label}: slides over this axis")
    batch = tuple(f for f in left if f.shape[1] == 1)
    for factor in left:
        if factor.shape[1] > 1:
            aligned = step.labels.unify_along(factor, [0])
            return aligned.reshape(-1), batch
    return None, batch


def _tie_groups(
    step: Step, inner: np.ndarray | None, outer: np.ndarray | None, ig: int, og: int, groups: int
) -> tuple[np.ndarray | None, np.ndarray | None, bool]:
    """Apply the block policy to the input and output channels of a grouped convolution."""
    labels = step.labels
    if outer is None:
        outer = np.zeros(groups * og, np.int32)
    blocks_out = outer.reshape(groups, og)
    if inner is None:
        if og == 1 or labels.policy == "whole":
            labels.pin(outer, f"{step.node.label}: whole groups would go, and they are fixed by its input")
            return None, None, False
        return None, labels_flat(labels.at_block_site(blocks_out, heads=False), blocks_out), False
    blocks_in = inner.reshape(groups, ig)
    if ig == 1 or og == 1 or labels.policy == "whole":
        first = labels.unify_along(blocks_in, [1])
        labels.unify(labels.unify_along(blocks_out, [1]), first)
        block = first.reshape(-1)
        return np.repeat(block, ig), np.repeat(block, og), True
    new_in, new_out = labels.at_block_site(blocks_in, heads=False), labels.at_block_site(blocks_out, heads=False)
    return labels_flat(new_in, blocks_in), labels_flat(new_out, blocks_out), False


def labels_flat(factor: Factor | None, like: Factor) -> np.ndarray | None:
    """Spread a reduced block factor over all channels again."""
    return None if factor is None else np.broadcast_to(factor, like.shape).reshape(-1)


def _grouped_weight(
    w: Operand, inner: np.ndarray | None, outer: np.ndarray | None, tied: bool, groups: int, transposed: bool
) -> Factors:
    """Factors of a grouped weight: (O, I/g, ...) for Conv, (I, O/g, ...) for ConvTranspose."""
    rank = len(w.shape)
    first, second = (inner, outer) if transposed else (outer, inner)
    factors: list[Factor] = []
    if first is not None:
        factors.append(on_axis(first, 0, rank))
    if second is not None and not tied:
        blocks = second.reshape(groups, 1, -1)
        joint = np.repeat(blocks, w.shape[0] // groups, axis=1).reshape(w.shape[0], -1)
        factors.append(joint.reshape(joint.shape + (1,) * (rank - 2)))
    return tuple(factors)


def _vector(step: Step, position: int, labels: np.ndarray | None) -> None:
    """Give a per-channel operand the labels of its channels."""
    operand = step.operand(position)
    if operand.shape == () or operand.shape[0] == 1:
        return
    size = operand.shape[0]
    channels = Operand(
        "", (size,), () if labels is None else (labels,), tracked=frozenset(() if labels is None else (0,))
    )
    step.equate([(channels, ["c"]), (operand, ["c"])], ["c"])


@DIMS.row("GroupNormalization")
def group_norm(step: Step) -> None:
    x = step.operand(0)
    groups = int(step.node.attr("num_groups", 1))
    channels, batch = channel_labels(step, x)
    if channels is None:
        return step.set(0, batch)
    blocks = channels.reshape(groups, -1)
    left = step.labels.at_block_site(blocks, heads=False) if groups > 1 and blocks.shape[1] > 1 else blocks
    flat = labels_flat(left, blocks)
    for position in (1, 2):
        _vector(step, position, flat)
    step.set(0, batch if flat is None else [*batch, on_axis(flat, 1, len(x.shape))])
