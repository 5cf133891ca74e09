"""Weights in packed blocks (MatMulNBits) and mixtures of experts, dense and quantised.

A block of quantised weights shares a scale, and several weights share a byte: along the contracted axis, indices go in
runs of whole blocks. The hidden units of an expert are its own; every expert loses the same number, experts stay.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from prunepass.graph import Node
from prunepass.labels import Factor, Factors, spans
from prunepass.rules.cost import MACS, InShapes, OutShapes, shape_of
from prunepass.rules.dims import DIMS
from prunepass.rules.masks import MASKS, Masking
from prunepass.rules.resize import Resizing
from prunepass.rules.sizes import SIZES
from prunepass.rules.step import Operand, Refused, Step

_MS = "com.microsoft::"


def in_runs(step: Step, labels: np.ndarray, size: int, axis: int = -1) -> np.ndarray:
    """Let runs of `size` indices along an axis go together."""
    first = np.arange(labels.shape[axis]) // size * size
    leading = labels.take(first, axis)
    step.labels.unify(labels, leading)
    return leading


def own(step: Step, position: int, *factors: Factor) -> None:
    """Give a stored operand of any type its labels."""
    if not step.has(position):
        return
    step.read.add(position)
    name, fitting = step.node.inputs[position], tuple(f for f in factors if f.size > 1 and f.any())
    known = step.world.states.get(name)
    if known is not None and [f.shape for f in known] != [f.shape for f in fitting]:
        step.labels.pin_all((*known, *fitting), f"{step.node.label}: a weight shared with another kind of layer")
        fitting = ()
    for a, b in zip(known or (), fitting):
        step.labels.unify(a, b)
    step.world.states[name] = fitting


def last_axis(step: Step, position: int) -> tuple[np.ndarray, Factors]:
    """Split the labels of an input into those of its last axis (0 where pinned) and the other factors."""
    rank = len(step.shape(position))
    factors = step.factors(position)
    mine = [f for f in factors if f.shape[-1] > 1]
    rest = tuple(f for f in factors if f.shape[-1] == 1)
    labels = np.zeros(step.shape(position)[-1], np.int32)
    for factor in mine[:1]:
        lead = [a for a in spans(factor) if a < rank - 1]
        labels = step.labels.unify_along(factor, lead).reshape(-1)
    step.labels.pin_all(tuple(mine[1:]), f"{step.node.label}: two kinds of indices on one axis")
    return labels, rest


# ---- a product with a quantised weight -------------------------------------------------------------------------------
_B, _S, _ZERO, _ORDER, _BIAS = 1, 2, 3, 4, 5


@DIMS.row(f"{_MS}MatMulNBits")
def matmul_bits(step: Step) -> None:
    node = step.node
    if node.attr("weight_prepacked", 0) or step.has(_ORDER):
        raise Refused("a weight in an order of its own")
    if any(step.has(i) and node.inputs[i] not in step.world.consts for i in (_B, _S, _ZERO)):
        raise Refused("a quantised weight that is computed")
    count, block, per = int(node.attr("N")), int(node.attr("block_size")), 8 // int(node.attr("bits", 4))
    blocks = step.shape(_B)[1]
    packed = step.has(_ZERO) and step.world.consts.elem_type(node.inputs[_ZERO]) == 2
    inner, rest = last_axis(step, 0)
    inner = in_runs(step, inner, block * per if packed else block)[::block]
    outer = step.labels.fresh((node.inputs[_B], 0), count)
    own(step, _B, outer[:, None, None], inner[None, :, None])
    _table(step, _S, outer, inner, blocks)
    if packed:
        _table(step, _ZERO, outer, inner[::per], -(-blocks // per))
    else:
        _table(step, _ZERO, outer, inner, blocks)
    own(step, _BIAS, outer)
    step.produce(step.operand(_S), 0, outer)
    rank = len(step.out_shape())
    step.set(0, [*rest, outer.reshape([1] * (rank - 1) + [-1])])


def _table(step: Step, position: int, outer: np.ndarray, inner: np.ndarray, blocks: int) -> None:
    """Label scales or zero points, (N, blocks) or flat."""
    if step.has(position) and len(step.shape(position)) == 1:
        own(step, position, np.repeat(outer, blocks), np.tile(inner, outer.size))
    else:
        own(step, position, outer[:, None], inner[None, :])


@SIZES.row(f"{_MS}MatMulNBits")
def matmul_bits_sizes(r: Resizing) -> None:
    r.node.set_attr("N", r.change.shape(r.node.inputs[_B])[0])
    r.node.set_attr("K", r.change.shape(r.node.inputs[0])[-1])


@MASKS.row(f"{_MS}MatMulNBits")
def matmul_bits_masked(m: Masking) -> None:
    m.fill(0, [m.rank() - 1], 0.0)


@DIMS.row(f"{_MS}GatherBlockQuantized")
def gather_blocks(step: Step) -> None:
    """Look rows up in a quantised table; the indices of a row go in runs of whole blocks."""
    node, table, scales = step.node, step.shape(0), step.shape(2)
    block, axes = int(node.attr("block_size", 128)), (node.attr("gather_axis", 0), node.attr("quantize_axis", 1) % 2)
    if len(table) != 2 or axes != (0, 1) or not block or scales[0] != table[0]:
        raise Refused("a table that is not quantised in blocks of its rows")
    if any(step.has(i) and node.inputs[i] not in step.world.consts for i in (0, 2, 3)):
        raise Refused("a quantised table that is computed")
    width = step.out_shape()[-1]
    per = width // table[1]
    zeros = block * -(-scales[1] // step.shape(3)[1]) if step.has(3) else block
    labels = in_runs(step, step.labels.fresh((node.inputs[0], 1), width), math.lcm(zeros, per))[None]
    for position, stride in ((0, per), (2, block), (3, zeros)):
        own(step, position, labels[:, ::stride])
    step.produce(step.operand(2), 1, labels)
    step.set(0, [labels.reshape([1] * (len(step.out_shape()) - 1) + [-1])])


# ---- experts ---------------------------------------------------------------------------------------------------------
_Places: TypeAlias = tuple[int, "int | None", "int | None", int]
_DENSE: tuple[_Places, ...] = ((2, None, None, 3), (4, None, None, 5), (6, None, None, 7))
_QUANTISED: tuple[_Places, ...] = ((2, 3, 11, 4), (5, 6, 12, 7), (8, 9, 13, 10))


class _Layer:
    """One of the products of all experts: weight (E, rows, columns), scales, zero points, bias."""

    def __init__(self, step: Step, number: int) -> None:
        quantised = step.node.op == f"{_MS}QMoE"
        self.step = step
        self.weight, self.scale, self.zero, self.bias = (_QUANTISED if quantised else _DENSE)[number]
        bits = step.node.attr("expert_weight_bits", 4)
        self.bits = int(step.node.attr(f"fc{number + 1}_expert_weight_bits", bits)) if quantised else 8
        self.block = int(step.node.attr("block_size", 0)) if quantised else 0
        self.here = step.has(self.weight)

    @property
    def per(self) -> int:
        """Values in a byte."""
        return 8 // self.bits

    @property
    def rows(self) -> int:
        """Length of the axis that the weight produces."""
        return self.step.shape(self.weight)[1]

    def run(self) -> int:
        """Contracted indices that go together."""
        zeros = self.per if self.zero is not None and self.step.has(self.zero) else 1
        return self.block * zeros if self.block else self.per

    def row_run(self) -> int:
        """Produced indices that go together: those whose zero points share a byte."""
        packed = not self.block and self.zero is not None and self.step.has(self.zero)
        return self.per if packed else 1

    def label(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Label all operands; rows (E or 1, rows), columns (E or 1, columns)."""
        step, block = self.step, self.block
        own(step, self.weight, rows[:, :, None], columns[:, None, :: self.per])
        own(step, self.bias, rows)
        if self.scale is not None:
            own(step, self.scale, *([rows[:, :, None], columns[:, None, ::block]] if block else [rows]))
        if self.zero is not None and block:
            own(step, self.zero, rows[:, :, None], columns[:, None, :: block * self.per])
        elif self.zero is not None:
            own(step, self.zero, rows[:, :: self.per])


@DIMS.row(f"{_MS}MoE {_MS}QMoE")
def experts(step: Step) -> None:
    node = step.node
    if node.attr("quant_type", "int") not in ("int", b"int") or node.attr("weights_prepacked", 0) > 0:
        raise Refused("experts in an order or a type of their own")
    first, second, gate = (_Layer(step, number) for number in range(3))
    if any(step.has(i) and node.inputs[i] not in step.world.consts for i in (2, second.weight)):
        raise Refused("experts whose weights are computed")
    fusion = int(node.attr("swiglu_fusion", 0)) if node.attr("activation_type") in ("swiglu", b"swiglu") else 0
    inner = _hidden(step, first, second, fusion)
    rows = np.repeat(inner, 2, 1) if fusion == 1 else np.tile(inner, (1, 2)) if fusion else inner
    columns, rest = last_axis(step, 0)
    result = step.labels.fresh((node.inputs[second.weight], 1), second.rows)
    run = math.lcm(first.run(), gate.run() if gate.here else 1, second.row_run())
    columns, result = (in_runs(step, labels, run)[None] for labels in (columns, result))
    first.label(rows, columns)
    second.label(result, inner)
    if gate.here:
        gate.label(inner, columns)
    _of_one_width(step, columns, result)
    for layer, labels in ((first, rows), (second, result)):
        position = layer.scale if layer.scale is not None else layer.weight
        step.produce(Operand(node.inputs[position], (), (), derived=True), 1, labels)
    step.set(0, [*rest, result.reshape([1] * (len(step.out_shape()) - 1) + [-1])])


def _hidden(step: Step, first: _Layer, second: _Layer, fusion: int) -> np.ndarray:
    """Labels of the hidden units of all experts; alike in all of them unless each block may lose its own."""
    count = step.shape(first.weight)[0]
    size = first.rows // (2 if fusion else 1)
    labels = step.labels.fresh((step.node.inputs[first.weight], "hidden"), count * size).reshape(count, size)
    if step.labels.policy != "balanced":
        labels = step.labels.unify_along(labels, [0])
    halves = first.row_run() if fusion != 1 else max(1, first.row_run() // 2)
    return in_runs(step, labels, math.lcm(second.run(), halves))


def _of_one_width(step: Step, columns: np.ndarray, result: np.ndarray) -> None:
    """The result is as wide as the input: both lose the same number."""
    if columns.any():
        step.labels.blocks.append(np.concatenate([columns, result]))
    else:
        step.labels.pin(result, f"{step.node.label}: the result is as wide as the input, which cannot shrink")


@MASKS.row(f"{_MS}MoE")
def experts_masked(m: Masking) -> None:
    """Mask the weights, not the input: onnxruntime lets the result overwrite an input that nobody else reads."""
    _fill(m, 2, [1, 2])
    _fill(m, 3, [1])
    _fill(m, 6, [2])


@MASKS.row(f"{_MS}QMoE")
def quantised_experts_masked(m: Masking) -> None:
    m.fill(0, [m.rank() - 1], 0.0)
    _fill(m, 3, [1])
    _fill(m, 4, [1])


def _fill(m: Masking, position: int, axes: list[int]) -> None:
    """Zero weights (or scales) and bias of a hidden unit make it zero behind any of the activations."""
    if position < len(m.node.inputs) and m.node.inputs[position]:
        m.fill(position, axes, 0.0)


@MACS.row(f"{_MS}MoE {_MS}QMoE")
def macs(node: Node, ins: InShapes, outs: OutShapes) -> int:
    """Count the products of the experts that a token is sent to."""
    quantised = node.op == f"{_MS}QMoE"
    rows, gate = shape_of(ins, 2)[1], 8 if quantised else 6
    hidden = rows // (2 if node.attr("swiglu_fusion", 0) else 1)
    products = rows + hidden + (hidden if len(ins) > gate and ins[gate] is not None else 0)
    return math.prod(outs[0]) * int(node.attr("k", 1)) * products
