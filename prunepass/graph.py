"""Hold an ONNX model in a form that is quick to read and safe to rewrite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from prunepass.errors import ModelError, UnsupportedError

Use = tuple["Node", int]
_DEFAULT_DOMAINS = ("", "ai.onnx")
_ELEMENT_BITS = {
    onnx.TensorProto.DataType.Value(name): bits
    for bits, names in {
        2: "UINT2 INT2",
        4: "UINT4 INT4 FLOAT4E2M1",
        6: "FLOAT6E2M3 FLOAT6E3M2",
        16: "FLOAT16 BFLOAT16 INT16 UINT16",
        32: "FLOAT INT32 UINT32",
        64: "DOUBLE INT64 UINT64 COMPLEX64",
        128: "COMPLEX128",
    }.items()
    for name in names.split()
    if name in onnx.TensorProto.DataType.keys()  # noqa: SIM118  (not a dict)
}


def op_key(op_type: str, domain: str) -> str:
    """Name an operator as the rule tables do: bare in the default domain, else `domain::Op`."""
    return op_type if domain in _DEFAULT_DOMAINS else f"{domain}::{op_type}"


def tensor_bytes(elem_type: int, shape: Iterable[int]) -> int:
    """Bytes that a tensor takes in a file; for strings their number."""
    return -(-math.prod(shape) * _ELEMENT_BITS.get(elem_type, 8) // 8)


class Node:
    """Wrap one NodeProto: lists of names that may be edited, attributes as Python values."""

    __slots__ = ("_attrs", "_captured", "_proto", "inputs", "name", "op", "outputs")

    def __init__(self, proto: onnx.NodeProto) -> None:
        self._proto = proto
        self.op = op_key(proto.op_type, proto.domain)
        self.name = proto.name
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        self._attrs: dict[str, Any] | None = None
        self._captured: tuple[str, ...] | None = None

    @classmethod
    def make(cls, op: str, inputs: Iterable[str], outputs: Iterable[str], name: str = "", **attrs: Any) -> Node:
        """Create a node from its table name, values and attributes."""
        domain, _, op_type = op.rpartition("::")
        return cls(helper.make_node(op_type, list(inputs), list(outputs), name=name, domain=domain, **attrs))

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes as Python values: numbers, strings, lists, arrays, GraphProto for subgraphs. Read only."""
        if self._attrs is None:
            self._attrs = {a.name: _attr_value(a) for a in self._proto.attribute}
        return self._attrs

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or `default` where the node has none of that name."""
        return self.attrs.get(name, default)

    def set_attr(self, name: str, value: Any) -> None:
        """Set an attribute on a private copy of the node."""
        self.del_attr(name)
        self._proto.attribute.append(helper.make_attribute(name, value))
        self._attrs = self._captured = None

    def del_attr(self, name: str) -> None:
        """Remove an attribute if the node has it."""
        proto = onnx.NodeProto()
        proto.CopyFrom(self._proto)
        kept = [a for a in self._proto.attribute if a.name != name]
        del proto.attribute[:]
        proto.attribute.extend(kept)
        self._proto = proto
        self._attrs = self._captured = None

    def tensor(self, name: str) -> onnx.TensorProto | None:
        """Return a tensor attribute undecoded."""
        return next((a.t for a in self._proto.attribute if a.name == name and a.type == a.TENSOR), None)

    @property
    def label(self) -> str:
        """Name the node for a message."""
        return f"{self.op} {self.name or (self.outputs[0] if self.outputs else '?')!r}"

    @property
    def captured(self) -> tuple[str, ...]:
        """Outer values that the subgraphs of this node read."""
        if self._captured is None:
            found: dict[str, None] = {}
            for attribute in self._proto.attribute:
                for sub in subgraphs_of(attribute):
                    found.update(dict.fromkeys(free_names(sub)))
            self._captured = tuple(found)
        return self._captured

    @property
    def subgraphs(self) -> tuple[onnx.GraphProto, ...]:
        """The bodies that this node carries."""
        return tuple(sub for attribute in self._proto.attribute for sub in subgraphs_of(attribute))

    def rename_captured(self, old: str, new: str) -> None:
        """Make the subgraphs read `new` where they read the outer value `old`."""
        proto = onnx.NodeProto()
        proto.CopyFrom(self._proto)
        for attribute in proto.attribute:
            for sub in subgraphs_of(attribute):
                _rename_free(sub, old, new)
        self._proto, self._attrs, self._captured = proto, None, None

    def copy(self) -> Node:
        """Copy the node; attributes are shared until one is set."""
        twin = Node.__new__(Node)
        twin._proto, twin._attrs, twin._captured = self._proto, self._attrs, self._captured
        twin.op, twin.name = self.op, self.name
        twin.inputs, twin.outputs = list(self.inputs), list(self.outputs)
        return twin

    def to_proto(self) -> onnx.NodeProto:
        """Return the NodeProto; do not edit it."""
        proto = self._proto
        if list(proto.input) != self.inputs or list(proto.output) != self.outputs or proto.name != self.name:
            proto = onnx.NodeProto()
            proto.CopyFrom(self._proto)
            proto.input[:], proto.output[:], proto.name = self.inputs, self.outputs, self.name
            self._proto = proto
        return proto

    def __repr__(self) -> str:
        return f"{', '.join(self.outputs)} = {self.op}({', '.join(self.inputs)})"


class Consts(MutableMapping[str, np.ndarray]):
    """Map names to constant tensors, decoded when first read; the arrays are never changed in place.

    An entry is a TensorProto until it is read. A decoded tensor that was stored as raw bytes replaces its
    proto (writing it gives the same bytes); any other storage keeps the proto beside the array.
    """

    def __init__(self, tensors: Iterable[onnx.TensorProto] = ()) -> None:
        self._protos: dict[str, onnx.TensorProto] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._order: dict[str, None] = {}
        for tensor in tensors:
            self.put(tensor.name, tensor)

    def put(self, name: str, tensor: onnx.TensorProto) -> None:
        """Store an undecoded tensor under `name`."""
        self._arrays.pop(name, None)
        self._protos[name] = tensor
        self._order[name] = None

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays.get(name)
        if array is None:
            proto = self._protos[name]
            try:
                array = numpy_helper.to_array(proto)
            except (ValueError, TypeError, KeyError) as error:
                raise ModelError(f"tensor {name!r}: its data cannot be decoded ({error}); export it again") from error
            self._arrays[name] = array
            if proto.HasField("raw_data") and not proto.doc_string:
                del self._protos[name]
        return array

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        self._protos.pop(name, None)
        self._arrays[name] = value
        self._order[name] = None

    def __delitem__(self, name: str) -> None:
        del self._order[name]
        self._protos.pop(name, None)
        self._arrays.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, name: object) -> bool:
        return name in self._order

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without decoding it."""
        array = self._arrays.get(name)
        return tuple(self._protos[name].dims) if array is None else array.shape

    def elem_type(self, name: str) -> int:
        """Element type of a tensor as onnx.TensorProto numbers it, without decoding it."""
        array = self._arrays.get(name)
        if array is None:
            return self._protos[name].data_type
        return int(helper.np_dtype_to_tensor_dtype(array.dtype))

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in a file, without decoding it."""
        return tensor_bytes(self.elem_type(name), self.shape(name))

    def alias(self, name: str, source: str) -> None:
        """Give the tensor `source` a second, independent name; the data is shared until one is replaced."""
        self._order[name] = None
        if source in self._arrays:
            self._arrays[name] = self._arrays[source]
        else:
            self[source]  # decode once for both
            self._arrays[name] = self._arrays[source]

    def stored(self, name: str) -> np.ndarray | onnx.TensorProto:
        """Return a tensor as it is held: encoded until it is read, or the array."""
        proto = self._protos.get(name)
        return self._arrays[name] if proto is None else proto

    def proto(self, name: str) -> onnx.TensorProto:
        """Encode one tensor under its name."""
        proto = self._protos.get(name)
        if proto is None:
            return numpy_helper.from_array(self._arrays[name], name)
        if proto.name != name:
            renamed = onnx.TensorProto()
            renamed.CopyFrom(proto)
            renamed.name = name
            return renamed
        return proto

    def copy(self) -> Consts:
        """Copy the mapping; the data is shared."""
        twin = Consts()
        twin._protos, twin._arrays, twin._order = dict(self._protos), dict(self._arrays), dict(self._order)
        return twin


class Graph:
    """Hold one model: nodes in topological order, constants, graph inputs and outputs.

    Everything that is not nodes, constants or value_info (names, metadata, doc strings, opset imports, dynamic
    axes) stays as it was read and is written back unchanged.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = [Node(n) for n in graph.node]
        self.consts = Consts(graph.initializer)
        for sparse in graph.sparse_initializer:
            self.consts[sparse.values.name] = _densify(sparse)
        self._defaulted = [i.name for i in graph.input if i.name in self.consts]
        self._all_inputs = list(graph.input)
        self.inputs = [i for i in graph.input if i.name not in self.consts]
        self.outputs = list(graph.output)
        self.opset_imports: dict[str, int] = {domain_name(o.domain): o.version for o in model.opset_import}
        self._shell = _shell(model)
        self._taken: set[str] | None = None
        self.external = False  # the weights lie in a file of their own
        self.files: tuple[Path, ...] = ()  # read to make this graph; writing over one of them needs `force`

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.opset_imports.get("", 1)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs that a caller must feed."""
        return tuple(i.name for i in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph outputs."""
        return tuple(o.name for o in self.outputs)

    @property
    def overridable(self) -> frozenset[str]:
        """Constants that a caller may feed instead: they are graph inputs, too (IR version 4 and later)."""
        return frozenset(self._defaulted) if self._shell.ir_version >= 4 else frozenset()

    def producers(self) -> dict[str, Node]:
        """Map each computed value to its node."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def uses(self) -> dict[str, list[Use]]:
        """Map each value to its uses: (node, input position), position -1 for a read inside a subgraph."""
        found: dict[str, list[Use]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.inputs):
                if name:
                    found.setdefault(name, []).append((node, position))
            for name in node.captured:
                found.setdefault(name, []).append((node, -1))
        return found

    def fresh_name(self, hint: str) -> str:
        """Return a name that no value and no node has yet, made from `hint`."""
        if self._taken is None:
            self._taken = {name for node in self.nodes for name in node.outputs}
            self._taken.update(self.consts, self.input_names, (node.name for node in self.nodes))
            for node in self.nodes:
                for sub in node.subgraphs:
                    self._taken.update(_all_names(sub))
        name, count = hint, 0
        while name in self._taken or name in self.consts:
            count += 1
            name = f"{hint}__{count}"
        self._taken.add(name)
        return name

    def add_input(self, name: str, elem_type: int) -> None:
        """Add a graph input of any shape."""
        info = helper.make_tensor_value_info(name, elem_type, None)
        self.inputs, self._all_inputs = [*self.inputs, info], [*self._all_inputs, info]

    def copy(self) -> Graph:
        """Copy the structure; constant data is shared."""
        twin = Graph.__new__(Graph)
        twin.nodes = [n.copy() for n in self.nodes]
        twin.consts = self.consts.copy()
        twin.inputs, twin.outputs = list(self.inputs), list(self.outputs)
        twin._defaulted, twin._all_inputs = self._defaulted, self._all_inputs
        twin.opset_imports, twin._shell = dict(self.opset_imports), self._shell
        twin._taken = None if self._taken is None else set(self._taken)
        twin.external, twin.files = self.external, self.files
        return twin

    def require_opset(self, version: int, domain: str = "") -> None:
        """Raise UnsupportedError where an operator set is older than a rewrite needs."""
        if self.opset_imports.get(domain, 0) < version:
            raise UnsupportedError(f"the model uses opset {self.opset_imports.get(domain)}, this needs {version}")

    def to_proto(self) -> onnx.ModelProto:
        """Encode the whole model. Tensors of 2 GB and more in all do not fit: use `files.save`."""
        model = self.structure()
        model.graph.node.extend(n.to_proto() for n in self.nodes)
        kept = [self.consts.proto(name) for name in self.consts]
        model.graph.initializer.extend(kept)
        return model

    def skeleton(self) -> onnx.ModelProto:
        """Encode the model without weights: constants become graph inputs."""
        model = self.structure()
        model.graph.node.extend(n.to_proto() for n in self.nodes)
        self._list_constants(model.graph)
        return model

    def structure(self) -> onnx.ModelProto:
        """Encode the model without nodes and constants."""
        model = onnx.ModelProto()
        model.CopyFrom(self._shell)
        for info in self._all_inputs:
            if info.name in self._defaulted:
                if info.name not in self.consts:
                    continue
                shape, kind = self.consts.shape(info.name), self.consts.elem_type(info.name)
                info = helper.make_tensor_value_info(info.name, kind, shape, info.doc_string)
            model.graph.input.append(info)
        if self._shell.ir_version < 4:  # every initializer is a graph input there
            self._list_constants(model.graph)
        model.graph.output.extend(self.outputs)
        return model

    def _list_constants(self, graph: onnx.GraphProto) -> None:
        """Declare every constant as a graph input."""
        listed = {info.name for info in graph.input}
        for name in self.consts:
            if name not in listed:
                kind, shape = self.consts.elem_type(name), self.consts.shape(name)
                graph.input.append(helper.make_tensor_value_info(name, kind, shape))


def domain_name(name: str) -> str:
    """Name an operator domain in one way: the default one is empty."""
    return "" if name in _DEFAULT_DOMAINS else name


def _shell(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy everything but nodes, tensors, inputs, outputs and value_info."""
    shell = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            if hasattr(value, "extend"):
                getattr(shell, field.name).extend(value)
            else:
                setattr(shell, field.name, value)
    for name in ("name", "doc_string"):
        if model.graph.HasField(name):
            setattr(shell.graph, name, getattr(model.graph, name))
    shell.graph.metadata_props.extend(model.graph.metadata_props)
    return shell


def _attr_value(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if attribute.type == attribute.TENSOR:
        return numpy_helper.to_array(value)
    if attribute.type == attribute.STRING:
        return value.decode("utf-8", "replace")
    if attribute.type == attribute.STRINGS:
        return [v.decode("utf-8", "replace") for v in value]
    if attribute.type in (attribute.INTS, attribute.FLOATS):
        return list(value)
    return value


def subgraphs_of(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """Bodies that an attribute holds."""
    if attribute.type == attribute.GRAPH:
        return [attribute.g]
    return list(attribute.graphs) if attribute.type == attribute.GRAPHS else []


def walk_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a body and of the bodies within it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in subgraphs_of(attribute):
                yield from walk_nodes(body)


def free_names(graph: onnx.GraphProto) -> list[str]:
    """Names that a subgraph reads from outside, in order of first use."""
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    own |= {s.values.name for s in graph.sparse_initializer} | {""}
    free: dict[str, None] = {}
    for node in graph.node:
        for name in node.input:
            if name not in own:
                free[name] = None
        for attribute in node.attribute:
            for sub in subgraphs_of(attribute):
                free.update(dict.fromkeys(n for n in free_names(sub) if n not in own))
        own.update(node.output)
    free.update(dict.fromkeys(o.name for o in graph.output if o.name not in own))
    return list(free)


def _rename_free(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            for sub in subgraphs_of(attribute):
                _rename_free(sub, old, new)
    for out in graph.output:
        if out.name == old and old not in {n for node in graph.node for n in node.output}:
            out.name = new


def _all_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (i.name for i in graph.input)
    yield from (t.name for t in graph.initializer)
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            for sub in subgraphs_of(attribute):
                yield from _all_names(sub)


def _densify(sparse: onnx.SparseTensorProto) -> np.ndarray:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
