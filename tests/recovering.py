"""Build graphs in one line per node, cut chosen channels out of them, and compare what is left with the dense model."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto, helper, numpy_helper, shape_inference

from prunepass.graph import Graph
from prunepass.manager import Context, Facts, Pipeline
from prunepass.plan import Plan
from prunepass.recovery.batches import from_arrays
from prunepass.runtime import session


def graph_of(nodes, consts, shapes, outputs=("y",), opset=17, elem_type=TensorProto.FLOAT):
    """Make a graph from nodes (operator, inputs, outputs, attributes); `shapes` are those of its inputs."""
    protos = [
        helper.make_node(op, ins, [outs] if isinstance(outs, str) else outs, name=f"node{at}", **attrs)
        for at, (op, ins, outs, attrs) in enumerate(nodes)
    ]
    arrays = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in consts.items()]
    inputs = [helper.make_tensor_value_info(name, elem_type, shape) for name, shape in shapes.items()]
    results = [helper.make_tensor_value_info(name, elem_type, None) for name in outputs]
    graph = helper.make_graph(protos, "g", inputs, results, arrays)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    return Graph(shape_inference.infer_shapes(model))


def drawn(*shape, seed=0):
    """Draw float32 noise; other shapes give other numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def weights(*shape, seed=0):
    """Draw a weight that keeps the scale of what it multiplies, if its inputs are on the second axis."""
    return (drawn(*shape, seed=seed) / math.sqrt(math.prod(shape[1:]))).astype(np.float32)


def start(graph, data, **context):
    """Return facts of a graph with calibration data."""
    return Facts(graph.copy(), Context(calibration=from_arrays(data, graph), data=data, **context))


def cut(facts, chosen, verify=True):
    """Slice channels off: `chosen` maps (tensor, axis) to indices."""
    coupling = facts.get("coupling")
    removed = np.zeros(coupling.n_units, bool)
    for (name, axis), indices in chosen.items():
        factors = [factor for factor in coupling.factors[name] if factor.shape[axis] > 1]
        for factor in factors:
            removed[np.take(factor, indices, axis)] = True
    removed[0] = False
    facts.plan = Plan.of(facts.graph, coupling, removed)
    Pipeline.parse("slice-channels").run_on(facts, verify_each=verify)
    return facts


def run(facts, text, verify=True):
    """Run passes; returns the changes of the last one."""
    Pipeline.parse(text).run_on(facts, verify_each=verify)
    return [timing.changes for timing in facts.timing if timing.changes is not None][-1]


def error(dense, graph, data):
    """Return the squared error of all outputs, relative to their variance."""
    wanted, found = (session(g, optimise="off").run(data) for g in (dense, graph))
    total = [
        np.square(found[name].astype(float) - w).sum() / np.square(w - w.mean(dtype=float)).sum()
        for name, w in wanted.items()
    ]
    return float(np.mean(total))
