"""Read operators, attributes and bodies as protobufs hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from onnx import TypeProto, helper, numpy_helper

_DEFAULT_DOMAINS = ("", "ai.onnx")


def op_key(op_type: str, domain: str) -> str:
    """Name an operator as the rule tables do: bare in the default domain, else `domain::Op`."""
    return op_type if domain in _DEFAULT_DOMAINS else f"{domain}::{op_type}"


def domain_name(name: str) -> str:
    """Name an operator domain in one way: the default one is empty."""
    return "" if name in _DEFAULT_DOMAINS else name


def attr_value(attribute: onnx.AttributeProto) -> Any:
    """Return an attribute as a Python value."""
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


def rename_free(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Make a body read `new` where it reads the outer value `old`."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            for sub in subgraphs_of(attribute):
                rename_free(sub, old, new)
    for out in graph.output:
        if out.name == old and old not in {n for node in graph.node for n in node.output}:
            out.name = new


def all_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that a body and the bodies within it define."""
    yield from (i.name for i in graph.input)
    yield from (t.name for t in graph.initializer)
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            for sub in subgraphs_of(attribute):
                yield from all_names(sub)


def tensor_type(elem_type: int, shape: Iterable[int]) -> TypeProto:
    """Describe a tensor of known shape."""
    result = TypeProto()
    result.tensor_type.elem_type = elem_type
    dims = result.tensor_type.shape.dim
    for size in shape:
        dims.add().dim_value = size
    result.tensor_type.shape.SetInParent()
    return result
