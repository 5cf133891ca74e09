"""Infer the types, shapes and small contents of values, one node at a time, in topological order."""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, helper, numpy_helper

from prunepass.binding import Shape
from prunepass.graph import Graph, Node
from prunepass.protos import tensor_type
from prunepass.rules.extents import EXTENTS, results
from prunepass.rules.table import Table
from prunepass.rules.values import SHAPE_VALUES, VALUES, element_type, evaluate
from prunepass.turns import visit_bodies

log = logging.getLogger(__name__)

LIMIT = 4096
"""Elements of the largest tensor whose contents are followed."""
_UNKNOWN = -1
_PICKS = frozenset("Gather Slice Squeeze Unsqueeze Identity Cast".split())
FOLLOWS: Table[tuple[int | None, ...]] = Table("the operand whose type and shape each output has")
FOLLOWS("BatchNormalization", (0, 3, 4, 3, 4))
FOLLOWS("GroupNormalization MeanVarianceNormalization", (0,))
FOLLOWS("SimplifiedLayerNormalization com.microsoft::RotaryEmbedding", (0,))
FOLLOWS("com.microsoft::Gelu com.microsoft::BiasGelu com.microsoft::FastGelu com.microsoft::QuickGelu", (0,))
FOLLOWS("com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization", (0, None, None, 0))

STAND_INS: Table[str] = Table("an operator whose shapes an operator without a schema has")
STAND_INS("com.microsoft::FusedConv", "Conv")
STAND_INS("com.microsoft::FusedGemm", "Gemm")


@functools.cache
def _schema(op: str, version: int) -> onnx.defs.OpSchema | None:
    domain, _, op_type = op.rpartition("::")
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:  # onnxruntime puts newer operators into older models
        return onnx.defs.get_schema(op_type, domain=domain) if onnx.defs.has(op_type, domain=domain) else None


def known_shape(kind: TypeProto) -> Shape | None:
    """Return the shape of a tensor type, None unless every size is known."""
    if not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


class Scope:
    """Hold what is known so far about the values of one graph body, and learn from one node at a time."""

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self.opsets = opsets
        self.imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        self.types: dict[str, TypeProto] = {}
        self.shape: dict[str, Shape] = {}
        self.value: dict[str, np.ndarray] = {}
        self.partial: dict[str, np.ndarray] = {}
        self.from_run: set[str] = set()
        self.misfits = 0

    def inner(self) -> Scope:
        """Return a scope for a subgraph, which sees what this one knows."""
        twin = copy.copy(self)
        twin.types, twin.shape, twin.value = dict(self.types), dict(self.shape), dict(self.value)
        twin.from_run, twin.partial = set(self.from_run), dict(self.partial)
        return twin

    def learn(self, name: str, kind: TypeProto) -> None:
        """Note the type of a value, and its shape where the type has it."""
        self.types[name] = kind
        shape = known_shape(kind)
        if shape is not None:
            self.shape[name] = shape

    def learn_value(self, name: str, array: np.ndarray) -> None:
        """Note the contents of a value."""
        self.learn(name, tensor_type(element_type(array), array.shape))
        if array.size <= LIMIT:
            self.value[name] = array

    def adopt(self, other: Scope) -> None:
        """Take over what another scope, which saw what this one knows, has learned."""
        vars(self).update(vars(other))

    def visit(self, node: Node) -> None:
        """Learn the outputs of a node from what is known of its operands."""
        outputs = [name for name in node.outputs if name]
        if node.bodies:
            self._note_run(node)
            visit_bodies(self, node)
            return
        if all(name in self.shape for name in outputs):
            return
        self._note_run(node)
        if self._constant(node) or self._branch(node):
            return
        kinds = self._infer(node)
        for name, kind in kinds.items():
            if name not in self.shape:
                self.learn(name, kind)
        arrays = self._fold(node)
        for name, array in zip(node.outputs, arrays):
            if name:
                self.learn_value(name, array)

    def _note_run(self, node: Node) -> None:
        """Note what follows from values whose shape only a run told."""
        if self.from_run and not self.from_run.isdisjoint((*node.inputs, *node.captured)):
            self.from_run.update(name for name in node.outputs if name)

    def _constant(self, node: Node) -> bool:
        tensor = node.tensor("value") if node.op == "Constant" else None
        if tensor is None:
            return False
        if math.prod(tensor.dims) <= LIMIT:
            self.learn_value(node.outputs[0], node.attr("value"))
        else:
            self.learn(node.outputs[0], tensor_type(tensor.data_type, tensor.dims))
        return True

    def _branch(self, node: Node) -> bool:
        """Walk the branch that an If with a known condition takes."""
        if node.op != "If" or node.inputs[0] not in self.value:
            return False
        body = node.attr("then_branch" if self.value[node.inputs[0]].all() else "else_branch")
        inner = self.inner()
        for tensor in body.initializer:
            inner.learn_value(tensor.name, numpy_helper.to_array(tensor))
        for proto in body.node:
            inner.visit(Node(proto))
        for name, result in zip(node.outputs, body.output):
            if result.name in inner.types:
                self.learn(name, inner.types[result.name])
            if result.name in inner.value:
                self.value[name] = inner.value[result.name]
        self.misfits = inner.misfits
        return True

    def _fold(self, node: Node) -> list[np.ndarray]:
        if node.op in SHAPE_VALUES:
            shape = None if node.inputs[0] in self.from_run else self.shape.get(node.inputs[0])
            return self._sizes(node) if shape is None else SHAPE_VALUES[node.op](node, shape)
        if node.op in _PICKS and any(name in self.partial for name in node.inputs):
            return self._picked(node)
        if node.op not in VALUES or not all(name in self.value for name in node.inputs if name):
            return []
        if any(math.prod(self.shape.get(name, ())) > LIMIT for name in node.outputs):
            return []
        return evaluate(node, [self.value.get(name) for name in node.inputs]) or []

    def _sizes(self, node: Node) -> list[np.ndarray]:
        """Note the sizes that are known of a shape of which only a run tells the others."""
        kind = self.types.get(node.inputs[0])
        if node.op == "Shape" and node.inputs[0] not in self.from_run and kind and kind.tensor_type.HasField("shape"):
            dims = kind.tensor_type.shape.dim
            sizes = tuple(d.dim_value if d.HasField("dim_value") else _UNKNOWN for d in dims)
            self.partial[node.outputs[0]] = SHAPE_VALUES["Shape"](node, sizes)[0]
        return []

    def _picked(self, node: Node) -> list[np.ndarray]:
        """Pick from sizes of which some are known."""
        operands = [self.partial.get(name, self.value.get(name)) for name in node.inputs]
        if any(array is None for name, array in zip(node.inputs, operands) if name):
            return []
        arrays = evaluate(node, operands) or []
        if all((array != _UNKNOWN).all() for array in arrays):
            return arrays
        self.partial.update(zip(node.outputs, arrays))
        return []

    def _infer(self, node: Node) -> dict[str, TypeProto]:
        """Ask the schema of the operator for the types of the outputs."""
        names = [name for name in (*node.inputs, *node.captured) if name]
        if not all(name in self.types for name in names):
            return {}
        if node.op in FOLLOWS:
            pairs = zip(node.outputs, FOLLOWS[node.op])
            return {name: self.types[node.inputs[i]] for name, i in pairs if name and i is not None}
        if node.op in EXTENTS:
            return self._by_row(node)
        proto, schema = self._question(node)
        if schema is None:
            return {}
        data = {name: numpy_helper.from_array(self.value[name]) for name in node.inputs if self._steers(name)}
        try:
            kinds = onnx.shape_inference.infer_node_outputs(
                schema, proto, {name: self.types[name] for name in names}, data, opset_imports=self.imports
            )
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
            log.debug("%s: no shape (%s)", node.label, error)
            self.misfits += 1
            return {}
        shapes = [known_shape(kind) or () for kind in kinds.values()]
        self.misfits += any(len(shape) > 1 and min(shape) < 1 for shape in shapes)
        return kinds

    def _by_row(self, node: Node) -> dict[str, TypeProto]:
        """Compute the shapes that an operator without a schema gives, where those of its operands are known."""
        if not all(name in self.shape for name in node.inputs if name):
            return {}
        found = results(node, [self.shape[name] if name else None for name in node.inputs])
        kinds = {}
        for name, (shape, like) in zip(node.outputs, found):
            kinds[name] = tensor_type(self.types[node.inputs[like]].tensor_type.elem_type, shape)
        return {name: kind for name, kind in kinds.items() if name}

    def _question(self, node: Node) -> tuple[onnx.NodeProto, onnx.defs.OpSchema | None]:
        """Return a node to infer with and its schema: the node itself, or a stand-in with what the schema knows."""
        op = STAND_INS.get(node.op, node.op)
        schema = _schema(op, self.opsets.get(op.rpartition("::")[0], 1))
        if schema is None or op == node.op:
            return node.to_proto(), schema
        attrs = {name: value for name, value in node.attrs.items() if name in schema.attributes}
        ins, outs = node.inputs[: schema.max_input], node.outputs[: schema.max_output]
        return Node.make(op, ins, outs, **attrs).to_proto(), schema

    def _steers(self, name: str) -> bool:
        """Whether the contents of an operand may be sizes, axes or scales that decide a shape."""
        array = self.value.get(name)
        if array is None or array.ndim > 1:
            return False
        return array.size <= (LIMIT if array.dtype.kind in "iu" else 8)


def infer(graph: Graph, inputs: Mapping[str, Shape]) -> Scope:
    """Walk the graph once with these input shapes."""
    scope = Scope(graph.opset_imports)
    for name in graph.consts:
        shape, elem_type = graph.consts.shape(name), graph.consts.elem_type(name)
        scope.learn(name, tensor_type(elem_type, shape))
        if math.prod(shape) <= LIMIT and elem_type != TensorProto.STRING:
            scope.value[name] = graph.consts[name]
    for info in graph.inputs:
        if info.name in inputs:
            scope.learn(info.name, tensor_type(info.type.tensor_type.elem_type, inputs[info.name]))
        else:
            scope.types[info.name] = info.type
    for node in graph.nodes:
        scope.visit(node)
    return scope
