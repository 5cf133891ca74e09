"""Write small models down as ONNX text, with their weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def model(body: str, opset: int = 17, ir: int = 8, domains: str = "", **weights: np.ndarray) -> onnx.ModelProto:
    """Return the model `<ir, opset> graph body`; weights become initializers, as raw data."""
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}{domains}]> {body}'
    made: onnx.ModelProto = onnx.parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    return made


def weight(*shape: int) -> np.ndarray:
    """Return the same float32 noise for the same shape."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def chain(**changes: str) -> onnx.ModelProto:
    """Return x -> MatMul w -> Relu -> Add b -> y with weights of 8 kB and 128 bytes; `old=new` edits the text."""
    text = "g (float[n, 64] x) => (float[n, 32] y) { h = MatMul(x, w)  r = Relu(h)  y = Add(r, b) }"
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return model(text, w=weight(64, 32), b=weight(32))
