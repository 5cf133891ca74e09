"""Networks around one operator that fuses several: what test_attention.py runs through the law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from fixtures.tiny import Net

MS = "com.microsoft"
B, L, D = 2, 5, 6


# ---- networks around one operator ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """A network; `left`: what the operator has when as much is gone as may go, for each policy."""

    build: Callable[[Net], None]
    left: dict[str, dict[str, Any]]
    runs: bool
    opset: int


class Cases(dict[str, Case]):
    """Networks by name."""

    def case(
        self, runs: bool = True, opset: int = 23, **left: dict[str, Any]
    ) -> Callable[[Callable[[Net], None]], None]:
        """Register a network: `balanced`, `whole`, `aligned` say which attributes and weight shapes must come out."""

        def register(build: Callable[[Net], None]) -> None:
            self[build.__name__] = Case(build, left, runs, opset)

        return register


def tokens(net: Net, width: int = D, name: str = "x", length: int = L) -> str:
    """Declare an input, and put a layer behind it whose outputs are free."""
    x = net.input(name, [B, length, D], (B, length, D))
    return net("MatMul", x, net.weight(D, width, fan_in=D, stem="into"))


def project(net: Net, x: str, into: int, width: int, stem: str) -> str:
    return net("Add", net("MatMul", x, net.weight(into, width, fan_in=into, stem=stem)), net.vector(width))


def finish(net: Net, y: str, width: int, *, more: tuple[str, ...] = ()) -> None:
    net.output(net("MatMul", y, net.weight(width, 3, fan_in=width, stem="out")), "y", [None, None, 3])
    for name in more:
        net.outputs.append(helper.make_value_info(name, helper.make_tensor_type_proto(TensorProto.FLOAT, None)))


def int_input(net: Net, name: str, value: np.ndarray) -> str:
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    net.inputs.append(helper.make_tensor_value_info(name, kind, value.shape))
    net.feeds[name] = value
    return name
