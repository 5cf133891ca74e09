"""Where a linear operator takes a scale per channel into its weight: behind it, or in front of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from prunepass.graph import Node
from prunepass.rules.table import Table

Scaling = Callable[[Node, np.ndarray, np.ndarray], "np.ndarray | None"]
SCALE_OUTPUTS: Table[Scaling] = Table("the weight with which each output is multiplied by a number")
SCALE_INPUTS: Table[Scaling] = Table("the weight that reads each input multiplied by a number")
"""None where the operator cannot. The data is operand 0, the weight operand 1."""
WITH_BIAS: Table[str] = Table("the operator that does the same on matrices and has a bias")
WITH_BIAS("MatMul", "Gemm")


def _column(factor: np.ndarray, rank: int) -> np.ndarray:
    return factor.reshape((-1,) + (1,) * (rank - 1))


def _blocks(node: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Scale axis 1 of a weight whose axis 0 runs through the groups."""
    groups = int(node.attr("group", 1))
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    scaled = split * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
    return np.asarray(scaled).reshape(weight.shape)


def _turned(node: Node) -> bool:
    return bool(node.attr("transB", 0))


def _rows(node: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.asarray(weight * _column(factor, weight.ndim))


SCALE_OUTPUTS("Conv", _rows)
SCALE_OUTPUTS("ConvTranspose", _blocks)
SCALE_INPUTS("Conv", _blocks)
SCALE_INPUTS("ConvTranspose", _rows)


@SCALE_OUTPUTS.row("Gemm")
def gemm_outputs(node: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.asarray(weight * (_column(factor, 2) if _turned(node) else factor))


@SCALE_INPUTS.row("Gemm")
def gemm_inputs(node: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray | None:
    if node.attr("transA", 0):
        return None
    return np.asarray(weight * (factor if _turned(node) else _column(factor, 2)))


@SCALE_OUTPUTS.row("MatMul")
def matmul_outputs(node: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray | None:
    return np.asarray(weight * factor) if weight.ndim == 2 else None


@SCALE_INPUTS.row("MatMul")
def matmul_inputs(node: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray | None:
    return np.asarray(weight * _column(factor, 2)) if weight.ndim == 2 else None


# ---- what is a scale and a shift -------------------------------------------------------------------------------------
Affine = Callable[[Node, "tuple[int, ...]", Mapping[str, np.ndarray]], "tuple[np.ndarray, np.ndarray] | None"]
AFFINE: Table[Affine] = Table("scale and shift per channel (axis 1) of the first input, of this shape")
COMMUTES = frozenset(("Add", "Mul"))


@AFFINE.row("BatchNormalization")
def batch_norm(
    node: Node, shape: tuple[int, ...], stored: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    if not stored.keys() >= set(node.inputs[1:5]):
        return None
    scale, bias, mean, var = (stored[name].astype(np.float64).reshape(-1) for name in node.inputs[1:5])
    factor = scale / np.sqrt(var + node.attr("epsilon", 1e-5))
    return factor, bias - mean * factor


def _vector(node: Node, shape: tuple[int, ...], stored: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return a stored operand that holds a number per channel, or one for all, and does not stretch the data."""
    array = stored.get(node.inputs[1])
    if array is None or array.dtype.kind != "f" or array.ndim > len(shape):
        return None
    sizes = (1,) * (len(shape) - array.ndim) + array.shape
    if any(size not in ((1, shape[1]) if axis == 1 else (1,)) for axis, size in enumerate(sizes)):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), shape[1:2])


@AFFINE.row("Mul Div")
def scaled(
    node: Node, shape: tuple[int, ...], stored: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    vector = _vector(node, shape, stored)
    if vector is None:
        return None
    return (vector if node.op == "Mul" else 1 / vector), np.zeros(vector.shape)


@AFFINE.row("Add Sub")
def shifted(
    node: Node, shape: tuple[int, ...], stored: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    vector = _vector(node, shape, stored)
    return None if vector is None else (np.ones(vector.shape), vector if node.op == "Add" else -vector)
