"""Bring a graph into the form that the other passes expect."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph, Node
from prunepass.manager import Facts, Rewrite
from prunepass.rules.values import VALUES
from prunepass.sequences import unpack_sequences

_SMALL_BYTES = 1 << 14


@dataclass(frozen=True)
class Canonicalize(Rewrite):
    """Store constants as initializers, fold what is known, bypass no-ops, give each use of a vector its own copy.

    Sharing that is an accident of storage (all zero biases of a fresh model are one initializer) must not couple
    layers; `clean` shares equal tensors again. A weight matrix that several nodes use is tied, and stays tied.
    """

    name = "canonicalize"

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of nodes and uses that changed."""
        changes = store_constants(graph)
        changes += fold_constants(graph)
        changes += unpack_sequences(graph)
        changes += bypass_identities(graph)
        return changes + unshare(graph)


def store_constants(graph: Graph) -> int:
    """Turn Constant nodes that hold a tensor into initializers."""
    outputs, kept = set(graph.output_names), []
    for node in graph.nodes:
        if node.op != "Constant" or node.outputs[0] in outputs or not _store(graph, node):
            kept.append(node)
    changes = len(graph.nodes) - len(kept)
    graph.nodes = kept
    return changes


def _store(graph: Graph, node: Node) -> bool:
    name = node.outputs[0]
    tensor = node.tensor("value")
    if tensor is not None:
        graph.consts.put(name, tensor)
        return True
    for attribute, kind in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if attribute in node.attrs:
            graph.consts[name] = np.array(node.attrs[attribute], kind)
            return True
    return False


def fold_constants(graph: Graph) -> int:
    """Evaluate nodes whose inputs are all constants, where the result is not larger than what it replaces."""
    outputs, kept = set(graph.output_names), []
    for node in graph.nodes:
        if not _foldable(graph, node, outputs) or not _fold(graph, node):
            kept.append(node)
    changes = len(graph.nodes) - len(kept)
    graph.nodes = kept
    return changes


def _foldable(graph: Graph, node: Node, outputs: set[str]) -> bool:
    given = [name for name in node.inputs if name]
    return (
        node.op in VALUES
        and bool(given)
        and all(name in graph.consts for name in given)
        and not outputs & set(node.outputs)
        and not set(given) & graph.overridable
    )


def _fold(graph: Graph, node: Node) -> bool:
    before = sum(graph.consts.nbytes(name) for name in node.inputs if name)
    if node.op in ("Expand", "Tile", "ConstantOfShape", "OneHot", "EyeLike") and not _stays_small(graph, node):
        return False
    if before > _SMALL_BYTES and node.op not in _MOVES:
        return False
    inputs = [graph.consts[name] if name else None for name in node.inputs]
    with np.errstate(all="ignore"):
        results = VALUES[node.op](node, inputs)
    size, numbers = sum(a.nbytes for a in results), any(a.dtype.kind == "f" and a.size > 64 for a in results)
    if size > (before if numbers else max(before, _SMALL_BYTES)):
        return False
    for name, array in zip(node.outputs, results):
        if name:
            graph.consts[name] = np.asarray(array)
    return True


_MOVES = frozenset("Concat Flatten Gather Identity Reshape Slice Split Squeeze Transpose Unsqueeze".split())


def _stays_small(graph: Graph, node: Node) -> bool:
    """Bound the size of a result before it is made."""
    sizes = graph.consts[node.inputs[-1]] if node.op != "OneHot" else graph.consts[node.inputs[1]]
    if sizes.dtype.kind not in "iu" or sizes.size > 16:
        return False
    grown = math.prod(max(1, int(v)) for v in sizes.reshape(-1))
    return grown * max(1, math.prod(graph.consts.shape(node.inputs[0]))) <= _SMALL_BYTES // 8


def bypass_identities(graph: Graph) -> int:
    """Let the users of a node that changes nothing read its input."""
    outputs, names, kept = set(graph.output_names), dict[str, str](), []
    for node in graph.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]
        for name in node.captured:
            if name in names:
                node.rename_captured(name, names[name])
        if _does_nothing(node) and node.outputs[0] not in outputs:
            names[node.outputs[0]] = node.inputs[0]
        else:
            kept.append(node)
    changes = len(graph.nodes) - len(kept)
    graph.nodes = kept
    return changes


def _does_nothing(node: Node) -> bool:
    single = not any(node.outputs[1:])
    if node.op == "Dropout":
        return single and len(node.inputs) < 3
    if node.op == "Transpose":
        perm = node.attr("perm")
        return perm is not None and list(perm) == sorted(perm)
    return node.op == "Identity" or (node.op in ("Concat", "Sum", "Max", "Min", "Mean") and len(node.inputs) == 1)


def unshare(graph: Graph) -> int:
    """Give every use of a float vector, and of a matrix that holds one number, a copy of its own."""
    changes = 0
    for name, uses in graph.uses().items():
        if len(uses) < 2 or name not in graph.consts or not _by_accident(graph, name):
            continue
        for node, position in uses[1:]:
            if position >= 0:
                own = graph.fresh_name(name)
                graph.consts.alias(own, name)
                node.inputs[position] = own
                changes += 1
    return changes


def _by_accident(graph: Graph, name: str) -> bool:
    if name in graph.overridable:
        return False
    shape = graph.consts.shape(name)
    if math.prod(shape) < 2:
        return False
    if sum(size > 1 for size in shape) < 2:
        return True
    array = graph.consts[name]
    return array.dtype.kind == "f" and bool((array == array.reshape(-1)[0]).all())
