"""Execute normalisations in numpy: weights that exporters standardise in the graph."""

from __future__ import annotations

import numpy as np

from prunepass.graph import Node
from prunepass.rules.values import VALUES, Operands


@VALUES.row("BatchNormalization")
def batch_norm(node: Node, xs: Operands) -> list[np.ndarray]:
    """Normalise axis 1 by stored statistics, or by those of the data in training mode."""
    x, *vectors = (v.astype(np.float64) for v in xs)
    over, shape = tuple(axis for axis in range(x.ndim) if axis != 1), (-1, *(1,) * (x.ndim - 2))
    scale, bias, mean, var = vectors
    running, training = [], node.attr("training_mode", 0)
    if any(node.outputs[1:]) and not training:
        raise ValueError("an old training mode")
    if training:
        keep, own = node.attr("momentum", 0.9), (x.mean(axis=over), x.var(axis=over))
        running = [keep * old + (1 - keep) * new for old, new in zip((mean, var), own)]
        mean, var = own
    deviation = np.sqrt(var.reshape(shape) + node.attr("epsilon", 1e-5))
    result = (x - mean.reshape(shape)) / deviation * scale.reshape(shape) + bias.reshape(shape)
    return [v.astype(xs[0].dtype) for v in (result, *running)][: len(node.outputs)]


@VALUES.row("LayerNormalization")
def layer_norm(node: Node, xs: Operands) -> list[np.ndarray]:
    """Normalise over the axes from `axis` on."""
    if any(node.outputs[1:]):
        raise ValueError("its statistics are read")
    x, scale, *bias = (v.astype(np.float64) for v in xs if v is not None)
    over = tuple(range(node.attr("axis", -1) % xs[0].ndim, xs[0].ndim))
    deviation = np.sqrt(x.var(axis=over, keepdims=True) + node.attr("epsilon", 1e-5))
    result = (x - x.mean(axis=over, keepdims=True)) / deviation * scale + sum(bias)
    return [result.astype(xs[0].dtype)]


@VALUES.row("Softmax LogSoftmax")
def softmax(node: Node, xs: Operands) -> list[np.ndarray]:
    """Normalise over one axis; before opset 13 over all from one on, which only the last one is certain to be alike."""
    axis = node.attr("axis", -1)
    if axis not in (-1, xs[0].ndim - 1) or "axis" not in node.attrs:
        raise ValueError("means something else in another opset")
    shifted = xs[0].astype(np.float64) - xs[0].max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    result = np.exp(shifted) / total if node.op == "Softmax" else shifted - np.log(total)
    return [result.astype(xs[0].dtype)]
