"""Open the bodies of If, Loop and Scan, so that passes see the nodes in them as they see all others.

Names become unique over the whole model, and initializers of bodies constants of the graph. Then a body reads outer
values, weights included, by their names, and no pass has to know about scopes.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from prunepass.consts import densify
from prunepass.graph import Graph
from prunepass.node import Body, Node
from prunepass.rules.control import ENTERED, origin, ports


def enter_bodies(graph: Graph) -> int:
    """Open all bodies that labels can flow through; return the number of nodes that changed."""
    waiting = [node for node in graph.nodes if _opens(graph, node)]
    if not waiting:
        return 0
    entrance = _Entrance(graph)
    for node in waiting:
        entrance.enter(node, {})
    return entrance.changes + free_invariants(graph)


def _opens(graph: Graph, node: Node) -> bool:
    """Whether a node has bodies that are still closed; Scan had a batch axis and lengths before opset 9."""
    return node.op in ENTERED and not node.bodies and (node.op != "Scan" or graph.opset >= 9)


class _Entrance:
    """Names that are taken, while bodies are opened."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.seen = {*graph.input_names, *graph.consts, *graph.producers()}
        self.changes = 0

    def enter(self, node: Node, scope: Mapping[str, str]) -> None:
        """Open the bodies of a node, inner ones included."""
        before = node.to_proto()
        closed = {name: value for name, value in node.attrs.items() if isinstance(value, onnx.GraphProto)}
        node.enter([self._body(name, proto, dict(scope)) for name, proto in closed.items()])
        self.changes += before != node.to_proto()

    def _body(self, attribute: str, proto: onnx.GraphProto, scope: dict[str, str]) -> Body:
        stored = {t.name for t in proto.initializer} | {s.values.name for s in proto.sparse_initializer}
        infos = [info for info in proto.input if info.name not in stored]
        inputs = [self._own(info.name, scope) for info in infos]
        for tensor in proto.initializer:
            self.graph.consts.put(self._own(tensor.name, scope), tensor)
        for sparse in proto.sparse_initializer:
            self.graph.consts[self._own(sparse.values.name, scope)] = densify(sparse)
        nodes = [self._node(inner, scope) for inner in proto.node]
        outputs = [scope.get(info.name, info.name) for info in proto.output]
        made = {*inputs, *(name for node in nodes for name in node.outputs)}
        for position, name in enumerate(outputs):
            if name not in made:  # onnxruntime wants a body to return values of its own
                outputs[position] = self.graph.fresh_name(f"{name}_returned")
                nodes.append(Node.make("Identity", [name], [outputs[position]]))
        typed = zip([*inputs, *outputs], [*infos, *proto.output])
        kinds = {new: _rank_only(info.type) for new, info in typed if info.type.WhichOneof("value")}
        shell = onnx.GraphProto(name=proto.name, doc_string=proto.doc_string, metadata_props=proto.metadata_props)
        return Body(attribute, shell, nodes, inputs, outputs, kinds)

    def _node(self, proto: onnx.NodeProto, scope: dict[str, str]) -> Node:
        node = Node(proto)
        node.inputs = [scope.get(name, name) for name in node.inputs]
        if _opens(self.graph, node):
            self.enter(node, scope)
        else:
            for name in node.captured:
                if scope.get(name, name) != name:
                    node.rename_captured(name, scope[name])
        node.outputs = [self._own(name, scope) if name else "" for name in node.outputs]
        return node

    def _own(self, name: str, scope: dict[str, str]) -> str:
        """Name a value that a body defines: as it was, unless another body or the graph has that name, too."""
        scope[name] = self.graph.fresh_name(name) if name in self.seen else name
        self.seen.add(scope[name])
        return scope[name]


def _rank_only(kind: onnx.TypeProto) -> onnx.TypeProto:
    """Return a type without the sizes of its axes, which slicing changes."""
    result = onnx.TypeProto()
    result.CopyFrom(kind)
    for dim in result.tensor_type.shape.dim if result.tensor_type.HasField("shape") else ():
        dim.Clear()
    return result


def free_invariants(graph: Graph) -> int:
    """Let bodies read what a Loop or Scan merely passes from turn to turn from outside; return how many values."""
    results, names, changes = graph.results, dict[str, str](), 0
    for node in graph.walk():
        if node.op not in ("Loop", "Scan") or not node.bodies:
            continue
        body = node.bodies[0]
        for state in ports(node).states:
            if not state.initial or origin(body, state.returned) != state.taken:
                continue
            body.rename(state.taken, state.initial)
            if state.outer not in results:
                names[state.outer] = state.initial
                _drop(node, state.taken, state.outer)
            changes += 1
    for old in names:
        while names[old] in names:
            names[old] = names[names[old]]
    for node in graph.walk() if names else ():
        node.inputs = [names.get(name, name) for name in node.inputs]
    return changes


def _drop(node: Node, taken: str, outer: str) -> None:
    """Take one state out of a Loop or Scan."""
    body = node.bodies[0]
    at, first = body.inputs.index(taken), 1 if node.op == "Loop" else 0
    state = at - 2 * first
    del node.inputs[at], body.inputs[at], body.outputs[state + first]
    if state < len(node.outputs):
        del node.outputs[state]


def inline_branches(graph: Graph) -> int:
    """Put the branch that a known condition takes in the place of the If; return the number of If nodes replaced."""
    changes = 0
    while made := {id(node): _branch(graph, node) for node in graph.walk() if _decided(graph, node)}:
        changes += graph.replace(made)
    return changes


def _decided(graph: Graph, node: Node) -> bool:
    name = node.inputs[0] if node.op == "If" and node.bodies else ""
    return name in graph.consts and name not in graph.overridable


def _branch(graph: Graph, node: Node) -> list[Node]:
    taken = "then_branch" if graph.consts[node.inputs[0]].all() else "else_branch"
    body = next(body for body in node.bodies if body.attribute == taken)
    for inner in body.nodes:  # onnxruntime wants names that no other node of the graph has
        inner.name = graph.fresh_name(inner.name) if inner.name else ""
    return [*body.nodes, *(Node.make("Identity", [a], [b]) for a, b in zip(body.outputs, node.outputs))]
