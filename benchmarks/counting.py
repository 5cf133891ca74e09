"""Count the parameters of a model as it is stored, and those of its body (no embeddings, no output layers)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, inliner

TYPES = dict(TensorProto.DataType.items())
FLOATS = {v for k, v in TYPES.items() if k.startswith(("FLOAT", "BFLOAT", "DOUBLE"))}
QUANTISED = {v for k, v in TYPES.items() if k.removeprefix("U") in ("INT2", "INT4", "INT8", "INT16")}
# Operators that hand a weight on as it is, or in another layout.
FORWARDING = {"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "DequantizeLinear"}


@dataclass(frozen=True)
class Count:
    """Stored numbers (elements, not bytes) of a model.

    Units
        params: elements of float tensors and of quantised weights. body: the same without embeddings (tables that a
        Gather reads with computed indices) and output layers (the last weights before each graph output).
        empty: tensors with an axis of length 0. nodes: of the main graph.
    """

    params: int
    body: int
    empty: int
    nodes: int


def count(model: onnx.ModelProto) -> Count:
    """Count the weights of one model; local functions are inlined first, so each use of one counts."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    dims = _weights(model.graph)
    outside = _Structure(model.graph, dims).outside()
    inner = sum(_subgraph_params(node) for node in model.graph.node)
    total = sum(map(math.prod, dims.values())) + inner
    left_out = sum(math.prod(dims[name]) for name in outside)
    return Count(total, total - left_out, sum(0 in d for d in dims.values()), len(model.graph.node))


def _weights(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Map the name of each constant weight of one graph to its dims."""
    found = {t.name: tuple(t.dims) for t in graph.initializer if _is_weight(t)}
    found |= {s.values.name: tuple(s.values.dims) for s in graph.sparse_initializer if _is_weight(s.values)}
    constants = (n for n in graph.node if n.op_type == "Constant" and n.attribute[0].name == "value")
    found |= {n.output[0]: tuple(n.attribute[0].t.dims) for n in constants if _is_weight(n.attribute[0].t)}
    return found


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS or (tensor.data_type in QUANTISED and len(tensor.dims) >= 2)


def _subgraph_params(node: onnx.NodeProto) -> int:
    graphs = [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else ()), *a.graphs)]
    return sum(
        sum(map(math.prod, _weights(g).values())) + sum(_subgraph_params(inner) for inner in g.node) for g in graphs
    )


class _Structure:
    """Answer which weights are embeddings or output layers, from the edges of one graph."""

    def __init__(self, graph: onnx.GraphProto, dims: dict[str, tuple[int, ...]]) -> None:
        self.graph, self.dims = graph, dims
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.constant = {t.name for t in graph.initializer}
        self.constant |= {name for name, node in self.producer.items() if node.op_type == "Constant"}

    def outside(self) -> set[str]:
        tables = [
            self._source(n.input[0]) for n in self.graph.node if n.op_type == "Gather" and self._computed(n.input[1])
        ]
        return {name for name in tables if len(self.dims.get(name, ())) >= 2} | self._output_layers()

    def _source(self, name: str) -> str:
        """Follow a value back to the constant that it is a copy or another layout of, if it is one."""
        while name not in self.dims and (node := self.producer.get(name)) and node.op_type in FORWARDING:
            name = node.input[0]
        return name

    def _computed(self, name: str) -> bool:
        return self._source(name) not in self.constant

    def _output_layers(self) -> set[str]:
        """Walk back from each graph output to the nearest node with a weight matrix; give up where two paths meet."""
        found: set[str] = set()
        seen: set[str] = set()
        stack = [o.name for o in self.graph.output]
        while stack:
            name = stack.pop()
            node = self.producer.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            weights = [w for w in map(self._source, node.input) if w in self.dims]
            if any(len(self.dims[w]) >= 2 for w in weights):
                found.update(weights)
            else:
                stack.extend(self._data_inputs(node))
        return found

    def _data_inputs(self, node: onnx.NodeProto) -> Sequence[str]:
        computed = [name for name in node.input if name and self._computed(name)]
        if node.op_type in ("Concat", "QLinearConcat"):
            return computed
        if node.op_type in ("Add", "Sub", "Mul", "Div", "MatMul", "Where", "Max", "Min", "Pow", "Einsum"):
            return computed if len(computed) == 1 else ()
        return list(node.input[:1])
