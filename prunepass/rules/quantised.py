"""Quantised operators: scales and zero points go with their axis, and zero is the zero point.

A removed index contributes nothing to an integer contraction when its value equals the zero point.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunepass.rules.convolution import Roles, convolve
from prunepass.rules.dims import DIMS, along_fixed, broadcast
from prunepass.rules.experts import in_runs, own
from prunepass.rules.masks import MASKS, Masking
from prunepass.rules.step import Letter, Operand, Refused, Step

_MS = "com.microsoft::"


# ---- between float and integer ---------------------------------------------------------------------------------------
@DIMS.row(f"QuantizeLinear DequantizeLinear {_MS}QuantizeLinear {_MS}DequantizeLinear")
def quantise(step: Step) -> None:
    if _blocks_are_stored(step):
        dequantise_blocks(step)
        return
    x = step.operand(0)
    rank = len(x.shape)
    axis = step.node.attr("axis", 1) % max(rank, 1)
    letters: list[Letter] = list(range(rank))
    scale = step.shape(1)
    blocked = len(scale) == rank > 1
    if blocked:
        letters[axis] = None
    operands: list[tuple[Operand, Sequence[Letter]]] = [(x, letters)]
    for position in (1, 2):
        if step.has(position) and step.shape(position) not in ((), (1,)):
            operands.append((step.operand(position), letters if blocked else [letters[axis]]))
    step.set(0, step.equate(operands, letters))


def _blocks_are_stored(step: Step) -> bool:
    rank, consts = len(step.shape(0)), step.world.consts
    given = [name for name in step.node.inputs if name]
    return rank > 1 and len(step.shape(1)) == rank and all(name in consts for name in given)


def dequantise_blocks(step: Step) -> None:
    """Let the indices of a stored weight that share a scale go together."""
    shape, scale = step.shape(0), step.shape(1)
    axis = step.node.attr("axis", 1) % len(shape)
    block = step.node.attr("block_size", 0) or -(-shape[axis] // scale[axis])
    factors = step.factors(0)
    short = [
        f if f.shape[axis] == 1 else in_runs(step, f, block, axis).take(range(0, shape[axis], block), axis)
        for f in factors
    ]
    for position in (1, 2):
        own(step, position, *short)
    step.set(0, factors)


@DIMS.row("DynamicQuantizeLinear")
def dynamic_quantise(step: Step) -> None:
    step.set(0, step.factors(0))
    step.set(1, [])
    step.set(2, [])


@MASKS.row("DynamicQuantizeLinear")
def zero_range(m: Masking) -> None:
    """The range over all elements always includes zero."""
    m.fill(0, range(m.rank()), 0.0)


# ---- convolutions ----------------------------------------------------------------------------------------------------
@DIMS.row("QLinearConv")
def qlinear_conv(step: Step) -> None:
    convolve(step, Roles(x=0, w=3, vectors=(4, 5, 8)))


@DIMS.row("ConvInteger")
def conv_integer(step: Step) -> None:
    convolve(step, Roles(x=0, w=1, vectors=(3,)))


def _fill_with_zero_point(m: Masking, axes: Sequence[int], zero_point: int) -> None:
    name = m.node.inputs[zero_point] if zero_point < len(m.node.inputs) else ""
    mask = m.mask(0, axes)
    if mask is not None:
        fill = name or m.constant(np.zeros((), m.dtype(0)), "zero")
        m.node.inputs[0] = m.add("Where", [m.constant(mask), m.node.inputs[0], fill])


@MASKS.row("QLinearConv ConvInteger")
def conv_zero(m: Masking) -> None:
    _fill_with_zero_point(m, [1], 2)


# ---- matrix products -------------------------------------------------------------------------------------------------
def _product(step: Step, left: int, right: int, columns: Sequence[int], rows: Sequence[int] = ()) -> None:
    """A batched product whose further operands have one entry per column (or row), or one in all."""
    a, b = step.operand(left), step.operand(right)
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise Refused("a quantised product of vectors")
    batch = list(range(max(len(a.shape), len(b.shape)) - 2))
    operands: list[tuple[Operand, Sequence[Letter]]] = [
        (a, [*batch[len(batch) - len(a.shape) + 2 :], "m", "k"]),
        (b, [*batch[len(batch) - len(b.shape) + 2 :], "k", "n"]),
    ]
    for positions, letter in ((columns, "n"), (rows, "m")):
        for position in positions:
            if step.has(position) and step.shape(position) not in ((), (1,)):
                rank = len(step.shape(position))
                operands.append((step.operand(position), [*([None] * (rank - 1)), letter]))
    step.set(0, step.equate(operands, [*batch, "m", "n"]))


@DIMS.row("MatMulInteger")
def matmul_integer(step: Step) -> None:
    _product(step, 0, 1, columns=(3,), rows=(2,))


@DIMS.row("QLinearMatMul")
def qlinear_matmul(step: Step) -> None:
    _product(step, 0, 3, columns=(4, 5), rows=(1, 2))


@DIMS.row(f"{_MS}DynamicQuantizeMatMul")
def dynamic_matmul(step: Step) -> None:
    _product(step, 0, 1, columns=(2, 3, 4))


@DIMS.row(f"{_MS}MatMulIntegerToFloat")
def matmul_to_float(step: Step) -> None:
    _product(step, 0, 1, columns=(3, 5, 6), rows=(2, 4))


@MASKS.row("MatMulInteger QLinearMatMul")
def product_zero(m: Masking) -> None:
    _fill_with_zero_point(m, [m.rank() - 1], 2)


@MASKS.row(f"{_MS}MatMulIntegerToFloat")
def float_product_zero(m: Masking) -> None:
    _fill_with_zero_point(m, [m.rank() - 1], 4)


@MASKS.row(f"{_MS}DynamicQuantizeMatMul")
def dynamic_product_zero(m: Masking) -> None:
    m.fill(0, range(m.rank()), 0.0)


@DIMS.row(f"{_MS}QGemm")
def qgemm(step: Step) -> None:
    a = "km" if step.node.attr("transA", 0) else "mk"
    b = "nk" if step.node.attr("transB", 0) else "kn"
    operands: list[tuple[Operand, Sequence[Letter]]] = [(step.operand(0), list(a)), (step.operand(3), list(b))]
    for position in (4, 5, 6):
        if step.has(position) and step.shape(position) not in ((), (1,)):
            rank = len(step.shape(position))
            operands.append((step.operand(position), [*([None] * (rank - 1)), "n"]))
    step.set(0, step.equate(operands, list("mn")))


@MASKS.row(f"{_MS}QGemm")
def qgemm_zero(m: Masking) -> None:
    _fill_with_zero_point(m, [0 if m.node.attr("transA", 0) else 1], 2)


# ---- element by element ----------------------------------------------------------------------------------------------
@DIMS.row(f"{_MS}QLinearAdd {_MS}QLinearMul")
def qlinear_binary(step: Step) -> None:
    step.set(0, broadcast(step, [step.operand(0), step.operand(3)], len(step.out_shape())))


@DIMS.row(f"{_MS}QLinearSigmoid {_MS}QLinearLeakyRelu")
def qlinear_unary(step: Step) -> None:
    step.set(0, step.factors(0))


@DIMS.row(f"{_MS}QLinearAveragePool {_MS}QLinearGlobalAveragePool")
def qlinear_pool(step: Step) -> None:
    rank = len(step.shape(0))
    last = step.node.attr("channels_last", 0)
    along_fixed(step, list(range(1, rank - 1)) if last else list(range(2, rank)), "slides over this axis")
