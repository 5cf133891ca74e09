"""Bring a graph into the form that the other passes expect."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prunepass.binding import declared
from prunepass.bodies import enter_bodies, inline_branches
from prunepass.consts import densify
from prunepass.fixed import fold_fixed
from prunepass.graph import Graph, Node
from prunepass.inference import Scope, infer
from prunepass.manager import Facts, Rewrite
from prunepass.rules.folding import GROWS, MOVES, WHOLE_MOVES
from prunepass.rules.values import SHAPE_VALUES, VALUES, evaluate
from prunepass.sequences import unpack_sequences
from prunepass.shuffle import chains, gather_shuffles, is_static
from prunepass.simplify import simplify_more
from prunepass.stored import fold_stored
from prunepass.strides import reshape_views
from prunepass.tidying import bypass_no_ops, remove_dead, remove_unused

Step = Callable[[Graph], int]
_SMALL_BYTES = 1 << 14
_PASSING_BYTES = 1 << 16
_FEW = 64
"""Elements of a tensor that is small whatever it holds."""


@dataclass(frozen=True)
class Canonicalize(Rewrite):
    """Store constants as initializers, fold what is known, bypass no-ops, give each use of a vector its own copy.

    Sharing that is an accident of storage (all zero biases of a fresh model are one initializer) must not couple
    layers; `clean` shares equal tensors again. A weight matrix that several nodes use is tied, and stays tied. A
    channel shuffle becomes one Gather. Sizes that follow from fixed input shapes become constants. What nobody reads
    goes, so that costs are those of the model that runs.

    Units
        thorough: compute equal nodes once, too, fuse MatMul and Add, and drop what changes nothing at these shapes.
        fixed: stored tensors that are inputs, too, as some exporters write all weights, are no inputs any longer.
    """

    name = "canonicalize"

    thorough: bool = False
    fixed: bool = False

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of nodes, constants and uses that changed."""
        fold = fold_stored if self.thorough else fold_constants
        changes = graph.fix_defaults() if self.fixed else 0
        changes += self._usual(graph, facts, fold)
        while self.thorough and (found := simplify_more(graph)):
            facts.invalidate()
            changes += found + simplify(graph, fold)
        return changes

    def _usual(self, graph: Graph, facts: Facts, fold: Step) -> int:
        changes = enter_bodies(graph) + simplify(graph, fold)
        while folded := fold_fixed(graph):
            changes += folded + simplify(graph, fold)
        unpacked = unpack_sequences(graph)
        if unpacked:
            facts.invalidate()  # more shapes can be inferred now
        by_shape = unpacked + use_shapes(graph, facts)
        return changes + by_shape + (simplify(graph, fold) if by_shape else 0)


def simplify(graph: Graph, fold: Step) -> int:
    """Apply what needs no shapes until nothing changes."""
    total = 0
    steps = (
        store_constants,
        bypass_no_ops,
        fold,
        reshape_views,
        inline_branches,
        remove_dead,
        remove_unused,
        unshare,
    )
    while changes := sum([step(graph) for step in steps]):
        total += changes
    return total


def use_shapes(graph: Graph, facts: Facts) -> int:
    """Apply what needs shapes, which are inferred only where there is a candidate.

    Where the inputs have fixed sizes nothing is run: what only a run could tell is not folded, and no shuffle.
    """
    changes = 0
    static = is_static(graph)
    if static and any(node.op in SHAPE_VALUES for node in graph.walk()):
        changes += fold_sizes(graph, _inferred(graph).value)
    if any(True for _ in chains(graph)):
        found = _inferred(graph).shape if static else facts.get("shapes").shape
        changes += gather_shuffles(graph, found)
    return changes


def _inferred(graph: Graph) -> Scope:
    return infer(graph, {info.name: tuple(int(d) for d in declared(info) or ()) for info in graph.inputs})


def store_constants(graph: Graph) -> int:
    """Turn Constant nodes that hold a tensor into initializers."""
    results = graph.results
    stored = (n for n in graph.walk() if n.op == "Constant" and n.outputs[0] not in results and _store(graph, n))
    return graph.remove(list(stored))


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
    if "sparse_value" in node.attrs:
        graph.consts[name] = densify(node.attrs["sparse_value"])
        return True
    return False


def fold_constants(graph: Graph) -> int:
    """Evaluate nodes whose inputs are all constants, where the result is not larger than what it replaces."""
    results = graph.results
    users = {name: len({id(node) for node, _ in found}) for name, found in graph.uses().items()}
    passing = dict[str, np.ndarray]()  # too large to be stored, but what is made of it may not be
    folded = (n for n in graph.walk() if _foldable(graph, n, results, users, passing) and _fold(graph, n, passing))
    return graph.remove(list(folded))


def _foldable(
    graph: Graph, node: Node, results: frozenset[str], users: dict[str, int], passing: dict[str, np.ndarray]
) -> bool:
    given = [name for name in node.inputs if name]
    return (
        node.op in VALUES
        and bool(given)
        and all((name in graph.consts and name not in graph.overridable) or name in passing for name in given)
        and results.isdisjoint(node.outputs)
        and not (node.op in WHOLE_MOVES and users[given[0]] > 1 and _is_weight(graph, given[0]))
    )


def _is_weight(graph: Graph, name: str) -> bool:
    """Whether a constant has several axes: one that is read twice is tied, and a moved copy would untie it."""
    return name in graph.consts and sum(size > 1 for size in graph.consts.shape(name)) > 1


def _fold(graph: Graph, node: Node, passing: dict[str, np.ndarray]) -> bool:
    before = sum(graph.consts.nbytes(name) for name in node.inputs if name in graph.consts)
    grows = node.op in GROWS and not _stays_within(graph, node, _SMALL_BYTES // 8)
    if grows and not _stays_within(graph, node, _PASSING_BYTES // 8):
        return False
    if before > _SMALL_BYTES and node.op not in MOVES:
        return False
    operands = [(passing[name] if name in passing else graph.consts[name]) if name else None for name in node.inputs]
    results = evaluate(node, operands)
    if results is None:
        return False
    size, numbers = sum(a.nbytes for a in results), any(a.dtype.kind == "f" and a.size > _FEW for a in results)
    made = {name: np.asarray(array) for name, array in zip(node.outputs, results) if name}
    if grows or size > (before if numbers else max(before, _SMALL_BYTES)):
        passing.update(made if size <= _PASSING_BYTES else {})
        return False
    graph.consts.update(made)
    return True


def _stays_within(graph: Graph, node: Node, elements: int) -> bool:
    """Bound the size of a result before it is made."""
    name, data = node.inputs[GROWS[node.op]], node.inputs[0]
    if name not in graph.consts or data not in graph.consts:
        return False
    sizes = graph.consts[name]
    if sizes.dtype.kind not in "iu" or sizes.size > 16:
        return False
    grown = math.prod(max(1, int(v)) for v in sizes.reshape(-1))
    return grown * max(1, math.prod(graph.consts.shape(data))) <= elements


def fold_sizes(graph: Graph, values: dict[str, np.ndarray]) -> int:
    """Replace nodes that compute short lists of integers, known from the fixed input shapes, by constants."""
    results, gone = graph.results, []
    fed = set(graph.overridable)  # and what follows from them
    for node in graph.walk():
        if node.op not in SHAPE_VALUES and not fed.isdisjoint((*node.inputs, *node.captured)):
            fed.update(node.outputs)
        made = [name for name in node.outputs if name]
        known = all(name in values and values[name].dtype.kind in "iub" for name in made)
        if known and results.isdisjoint(made) and fed.isdisjoint(made) and all(values[n].size <= _FEW for n in made):
            graph.consts.update({name: values[name] for name in made})
            gone.append(node)
    return graph.remove(gone)


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
