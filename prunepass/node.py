"""Wrap one node, and the bodies that it carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import helper

from prunepass.protos import attr_value, free_names, op_key, rename_free, subgraphs_of


class Node:
    """Wrap one NodeProto: lists of names that may be edited, attributes as Python values."""

    __slots__ = ("_attrs", "_captured", "_proto", "bodies", "inputs", "name", "op", "outputs")

    def __init__(self, proto: onnx.NodeProto) -> None:
        self._proto = proto
        self.op = op_key(proto.op_type, proto.domain)
        self.name = proto.name
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        self._attrs: dict[str, Any] | None = None
        self._captured: tuple[str, ...] | None = None
        self.bodies: tuple[Body, ...] = ()

    @classmethod
    def make(cls, op: str, inputs: Iterable[str], outputs: Iterable[str], name: str = "", **attrs: Any) -> Node:
        """Create a node from its table name, values and attributes."""
        domain, _, op_type = op.rpartition("::")
        return cls(helper.make_node(op_type, list(inputs), list(outputs), name=name, domain=domain, **attrs))

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes as Python values: numbers, strings, lists, arrays, GraphProto for subgraphs. Read only."""
        if self._attrs is None:
            self._attrs = {a.name: attr_value(a) for a in self._proto.attribute}
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
        if self.bodies:
            return tuple(dict.fromkeys(name for body in self.bodies for name in body.captured))
        if self._captured is None:
            found: dict[str, None] = {}
            for attribute in self._proto.attribute:
                for sub in subgraphs_of(attribute):
                    found.update(dict.fromkeys(free_names(sub)))
            self._captured = tuple(found)
        return self._captured

    @property
    def subgraphs(self) -> tuple[onnx.GraphProto, ...]:
        """The bodies that this node carries, encoded."""
        if self.bodies:
            return tuple(body.to_proto() for body in self.bodies)
        return tuple(sub for attribute in self._proto.attribute for sub in subgraphs_of(attribute))

    def rename_captured(self, old: str, new: str) -> None:
        """Make the subgraphs read `new` where they read the outer value `old`."""
        if self.bodies:
            for body in self.bodies:
                body.rename(old, new)
            return
        proto = onnx.NodeProto()
        proto.CopyFrom(self._proto)
        for attribute in proto.attribute:
            for sub in subgraphs_of(attribute):
                rename_free(sub, old, new)
        self._proto, self._attrs, self._captured = proto, None, None

    def copy(self) -> Node:
        """Copy the node; attributes are shared until one is set."""
        twin = Node.__new__(Node)
        twin._proto, twin._attrs, twin._captured = self._proto, self._attrs, self._captured
        twin.op, twin.name, twin.bodies = self.op, self.name, tuple(body.copy() for body in self.bodies)
        twin.inputs, twin.outputs = list(self.inputs), list(self.outputs)
        return twin

    def to_proto(self) -> onnx.NodeProto:
        """Return the NodeProto; do not edit it."""
        proto = self._proto
        if list(proto.input) != self.inputs or list(proto.output) != self.outputs or proto.name != self.name:
            proto = onnx.NodeProto()
            proto.CopyFrom(self._proto)
            proto.input[:], proto.output[:] = self.inputs, self.outputs
            if proto.name != self.name:
                proto.name = self.name
            self._proto = proto
        return self._with_bodies(proto) if self.bodies else proto

    def enter(self, bodies: Iterable[Body]) -> None:
        """Hold the bodies as nodes that may be edited; from now on they are what counts."""
        self.bodies = tuple(bodies)
        proto = onnx.NodeProto()
        proto.CopyFrom(self._proto)
        for attribute in proto.attribute:
            attribute.ClearField("g")
        self._proto, self._attrs, self._captured = proto, None, None

    def _with_bodies(self, bare: onnx.NodeProto) -> onnx.NodeProto:
        proto = onnx.NodeProto()
        proto.CopyFrom(bare)
        found = {body.attribute: body for body in self.bodies}
        for attribute in proto.attribute:
            if attribute.name in found:
                attribute.g.CopyFrom(found[attribute.name].to_proto())
        return proto

    def __repr__(self) -> str:
        return f"{', '.join(self.outputs)} = {self.op}({', '.join(self.inputs)})"


class Body:
    """Hold a body of If, Loop or Scan: nodes that may be edited, and the names of what it takes and returns.

    `bodies.enter_bodies` makes them. Names are unique over the whole model then, so that a body reads an outer value,
    a constant included, by its name. Types of inputs and outputs say the rank and no sizes.
    """

    __slots__ = ("_shell", "attribute", "inputs", "kinds", "nodes", "outputs")

    def __init__(
        self,
        attribute: str,
        shell: onnx.GraphProto,
        nodes: list[Node],
        inputs: list[str],
        outputs: list[str],
        kinds: Mapping[str, onnx.TypeProto],
    ) -> None:
        self.attribute, self._shell, self.nodes, self.kinds = attribute, shell, nodes, kinds
        self.inputs, self.outputs = inputs, outputs

    @property
    def captured(self) -> tuple[str, ...]:
        """Outer values that the body reads, in order of first use."""
        own, read = {"", *self.inputs}, dict[str, None]()
        for node in self.nodes:
            read.update(dict.fromkeys(name for name in (*node.inputs, *node.captured) if name not in own))
            own.update(node.outputs)
        read.update(dict.fromkeys(name for name in self.outputs if name not in own))
        return tuple(read)

    def rename(self, old: str, new: str) -> None:
        """Read `new` instead of the value `old`."""
        for node in self.nodes:
            node.inputs = [new if name == old else name for name in node.inputs]
            node.rename_captured(old, new)

    def copy(self) -> Body:
        """Copy the body and its nodes."""
        nodes = [node.copy() for node in self.nodes]
        return Body(self.attribute, self._shell, nodes, list(self.inputs), list(self.outputs), self.kinds)

    def to_proto(self) -> onnx.GraphProto:
        """Encode the body."""
        proto = onnx.GraphProto()
        proto.CopyFrom(self._shell)
        proto.node.extend(node.to_proto() for node in self.nodes)
        for names, infos in ((self.inputs, proto.input), (self.outputs, proto.output)):
            infos.extend(onnx.ValueInfoProto(name=name, type=self.kinds.get(name)) for name in names)  # None: unknown
        return proto
