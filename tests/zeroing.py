"""Put zeros and other constants into the channels of a model, as sparse training leaves them."""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import numpy_helper

WEIGHTS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}
NORMS = {"BatchNormalization": (1, 2), "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2)}


def with_zeros(model: onnx.ModelProto, rng: random.Random, share: float = 0.3, ways: str = "wbnrc") -> int:
    """Change a model in place; return how many channels got zeros.

    `ways`: what happens to channels. w: weights 0; b: their bias, too; n: scales of norms 0, at times the shift too;
    r: weights that are all negative; c: nobody reads the channel.
    """
    tensors = {t.name: t for t in model.graph.initializer}
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    count = 0

    def put(name: str, axis: int, chosen: np.ndarray, how: str) -> None:
        array = numpy_helper.to_array(tensors[name]).copy()
        if array.ndim and array.shape[axis] == chosen.size and array.dtype.kind in "fi":
            moved = np.moveaxis(array, axis, 0)
            moved[chosen] = 0 if how == "zero" else -np.abs(moved[chosen])
            tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    for node in model.graph.node:
        given = [name if name in tensors else "" for name in node.input]
        if node.op_type in WEIGHTS and len(given) > 1 and given[1] and len(tensors[given[1]].dims) >= 2:
            size, axis = tensors[given[1]].dims, _output_axis(node)
            how = rng.choice([x for x in "wwbrc" if x in ways] or [""])
            axis = axis if how != "c" else _input_axis(node)
            chosen = numbers.random(size[axis]) < share
            put(given[1], axis, chosen, "negative" if how == "r" else "zero")
            if len(given) > 2 and given[2] and how in "br":
                put(given[2], -1, chosen, "negative" if how == "r" else "zero")
            count += int(chosen.sum())
        elif node.op_type in NORMS and "n" in ways and len(given) > 2 and given[1]:
            chosen = numbers.random(tensors[given[1]].dims[0]) < share
            for name in given[1 : 2 + rng.randrange(2)]:
                if name:
                    put(name, 0, chosen, "zero")
            count += int(chosen.sum())
    return count


def _output_axis(node: onnx.NodeProto) -> int:
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if turned else WEIGHTS[node.op_type]


def _input_axis(node: onnx.NodeProto) -> int:
    return {0: 1, 1: 0, -1: -2}[_output_axis(node)]
