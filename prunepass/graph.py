"""Hold an ONNX model in a form that is quick to read and safe to rewrite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper

from prunepass.consts import Consts, densify, tensor_bytes
from prunepass.errors import UnsupportedError
from prunepass.node import Body, Node
from prunepass.protos import all_names, domain_name, op_key, subgraphs_of, walk_nodes

__all__ = ["Body", "Consts", "Graph", "Node", "domain_name", "op_key", "subgraphs_of", "tensor_bytes", "walk_nodes"]

Use = tuple[Node, int]


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
            self.consts[sparse.values.name] = densify(sparse)
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

    def fix_defaults(self) -> int:
        """Take stored tensors that a caller may feed for fixed, so that these inputs go; return how many."""
        fixed = self.overridable
        self._defaulted = [name for name in self._defaulted if name not in fixed]
        self._all_inputs = [info for info in self._all_inputs if info.name not in fixed]
        return len(fixed)

    @property
    def bodies(self) -> list[Body]:
        """All bodies that were entered, inner ones first."""
        return list(_bodies(self.nodes))

    @property
    def results(self) -> frozenset[str]:
        """Names that have to stay: the graph outputs, and what bodies return."""
        return frozenset((*self.output_names, *(name for body in self.bodies for name in body.outputs)))

    def walk(self) -> Iterator[Node]:
        """Yield all nodes in the order of execution; those in the bodies of a node come before it."""
        return _walk(self.nodes)

    def replace(self, made: Mapping[int, Sequence[Node]]) -> int:
        """Put other nodes in the place of some, which are given by their id, wherever they stand; return how many."""
        if made:
            for body in self.bodies:
                body.nodes = _replaced(body.nodes, made)
            self.nodes = _replaced(self.nodes, made)
        return len(made)

    def remove(self, nodes: Iterable[Node]) -> int:
        """Remove nodes, wherever they stand; return how many."""
        return self.replace({id(node): () for node in nodes})

    def producers(self) -> dict[str, Node]:
        """Map each computed value to its node."""
        return {name: node for node in self.walk() for name in node.outputs if name}

    def uses(self) -> dict[str, list[Use]]:
        """Map each value to its uses: (node, input position), -1 for a read in a body that was not entered."""
        found: dict[str, list[Use]] = {}
        for node in self.walk():
            for position, name in enumerate(node.inputs):
                if name:
                    found.setdefault(name, []).append((node, position))
            for name in () if node.bodies else node.captured:
                found.setdefault(name, []).append((node, -1))
        return found

    def fresh_name(self, hint: str) -> str:
        """Return a name that no value and no node has yet, made from `hint`."""
        if self._taken is None:
            self._taken = {name for node in self.walk() for name in (*node.outputs, node.name)}
            self._taken.update(self.consts, self.input_names, (name for b in self.bodies for name in b.inputs))
            for node in self.walk():
                for sub in () if node.bodies else node.subgraphs:
                    self._taken.update(all_names(sub))
        name, count = hint, 0
        while name in self._taken or name in self.consts:
            count += 1
            name = f"{hint}__{count}"
        self._taken.add(name)
        return name

    def add_input(self, name: str, elem_type: int, shape: Sequence[int] | None = None) -> None:
        """Add a graph input, of any shape where none is given."""
        info = helper.make_tensor_value_info(name, elem_type, shape)
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

    def part(
        self,
        nodes: Iterable[Node],
        inputs: Mapping[str, tuple[int, Sequence[int] | None] | None],
        outputs: Iterable[str],
    ) -> Graph:
        """Copy some nodes, in their order, and the constants that they read, into a graph of its own.

        Shapes
            inputs: element type and shape by name; the shape may be None, and the pair where it is no tensor.
        """
        twin = self.copy()
        twin.nodes = [node.copy() for node in nodes]
        read = {name for node in twin.nodes for name in (*node.inputs, *node.captured)}
        for name in [name for name in twin.consts if name not in read]:
            del twin.consts[name]
        twin.inputs, twin._all_inputs, twin._defaulted = [], [], []
        given = {info.name: info for info in self.inputs}
        for name, kind in inputs.items():
            if name in given or kind is None:
                info = given.get(name, onnx.ValueInfoProto(name=name))
                twin.inputs, twin._all_inputs = [*twin.inputs, info], [*twin._all_inputs, info]
            else:
                twin.add_input(name, *kind)
        twin.outputs = [onnx.ValueInfoProto(name=name) for name in outputs]
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


def _bodies(nodes: Iterable[Node]) -> Iterator[Body]:
    for node in nodes:
        for body in node.bodies:
            yield from _bodies(body.nodes)
            yield body


def _walk(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        for body in node.bodies:
            yield from _walk(body.nodes)
        yield node


def _replaced(nodes: list[Node], made: Mapping[int, Sequence[Node]]) -> list[Node]:
    return [new for node in nodes for new in made.get(id(node), (node,))]


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
