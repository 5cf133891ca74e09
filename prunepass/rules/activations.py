"""What activations make of a number: continuous functions of one operand, and whether they only rise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import special

from prunepass.graph import Node
from prunepass.rules.table import Table

Function = Callable[[np.ndarray], np.ndarray]
RISING: Table[Callable[[Node], Function]] = Table("a function that never falls")
OTHER: Table[Callable[[Node], tuple[Function, float, float]]] = Table("a function with its least and greatest value")
"""Infinite where there is none, or where nobody worked it out."""

_INF = float("inf")
_PLAIN: Mapping[str, Callable[[Any], Any]] = {
    "Identity": lambda x: x,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": special.expit,
    "Tanh": np.tanh,
    "Erf": special.erf,
    "Exp": np.exp,
    "Sqrt": np.sqrt,
    "Log": np.log,
    "Atan": np.arctan,
    "Asinh": np.arcsinh,
    "Sinh": np.sinh,
    "Softplus": lambda x: np.logaddexp(x, 0),
    "Softsign": lambda x: np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x))),
}


def _plain(function: Function) -> Callable[[Node], Function]:
    return lambda node: function


for _op, _function in _PLAIN.items():
    RISING(_op, _plain(_function))


@RISING.row("HardSigmoid")
def hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.attr("alpha", 0.2), node.attr("beta", 0.5)
    return _falling_too(alpha) or (lambda x: np.clip(alpha * x + beta, 0, 1))


@RISING.row("Elu")
def elu(node: Node) -> Function:
    alpha = node.attr("alpha", 1.0)
    return _falling_too(alpha) or (lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x))


@RISING.row("Celu")
def celu(node: Node) -> Function:
    alpha = node.attr("alpha", 1.0)
    return _falling_too(alpha) or (lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0) / alpha), x))


@RISING.row("Selu")
def selu(node: Node) -> Function:
    alpha, gamma = node.attr("alpha", 1.67326319217681884765625), node.attr("gamma", 1.05070102214813232421875)
    return _falling_too(min(alpha, gamma)) or (lambda x: gamma * np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x))


@RISING.row("LeakyRelu")
def leaky_relu(node: Node) -> Function:
    alpha = node.attr("alpha", 0.01)
    return _falling_too(alpha) or (lambda x: np.where(x < 0, alpha * x, x))


def _falling_too(slope: float) -> Function | None:
    """With a slope that is not positive, say nothing: NaN."""
    return None if slope > 0 else lambda x: np.full_like(x, np.nan)


@OTHER.row("HardSwish")
def hard_swish(node: Node) -> tuple[Function, float, float]:
    return lambda x: x * np.clip(x / 6 + 0.5, 0, 1), -0.375, _INF


@OTHER.row("Gelu")
def gelu(node: Node) -> tuple[Function, float, float]:
    if node.attr("approximate", "none") == "tanh":
        return lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), -0.171, _INF
    return lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2))), -0.170, _INF


@OTHER.row("com.microsoft::Gelu")
def fused_gelu(node: Node) -> tuple[Function, float, float]:
    return lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2))), -0.170, _INF


@OTHER.row("Mish")
def mish(node: Node) -> tuple[Function, float, float]:
    return lambda x: x * np.tanh(np.logaddexp(x, 0)), -0.309, _INF


@OTHER.row("Swish com.microsoft::QuickGelu")
def swish(node: Node) -> tuple[Function, float, float]:
    alpha = node.attr("alpha", 1.0 if node.op == "Swish" else 1.702)
    return lambda x: x * special.expit(alpha * x), -_INF, _INF


@OTHER.row("Sin Cos")
def waves(node: Node) -> tuple[Function, float, float]:
    return {"Sin": np.sin, "Cos": np.cos}[node.op], -1.0, 1.0
