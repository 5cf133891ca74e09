"""Which operators multiply queries with keys, and which only carry what a layer puts out to them: one row per operator.

`SCORES[op](node, graph)` sees a node as products of queries and keys, head by head. It is None where something that no
weight can take in stands between what the node reads and the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph, Node, Use
from prunepass.rules.table import Table

Heads = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Scores:
    """See a node as products of queries and keys.

    query, key: the values that are multiplied. shares: the axis along which Softmax makes shares of the scores, None
    where anything else reads them.
    """

    node: Node
    query: str
    key: str
    shares: int | None

    def split(self, query: np.ndarray, key: np.ndarray) -> Heads:
        """Return queries as (heads, length, size) and keys as (heads, keys, size), for each sample its heads."""
        raise NotImplementedError

    def centred(self, rank: int) -> bool:
        """Say whether what all keys have in common makes no difference; rank: of the queries."""
        return self.shares is not None and self.shares in (-1, rank - 1)


SCORES: Table[Callable[[Node, Graph, Mapping[str, Sequence[Use]]], Scores | None]] = Table("products with keys")


def scores(node: Node, graph: Graph, uses: Mapping[str, Sequence[Use]]) -> Scores | None:
    """Return a node as products of queries and keys, None where it is none."""
    row = SCORES.get(node.op)
    return None if row is None else row(node, graph, uses)


@dataclass(frozen=True)
class Product(Scores):
    """A product of two stacks of matrices: queries in the rows of the left, keys in the columns of the right."""

    def split(self, query: np.ndarray, key: np.ndarray) -> Heads:
        """Return queries as (heads, length, size) and keys as (heads, keys, size), for each sample its heads."""
        key = np.swapaxes(key, -1, -2)
        lead = np.broadcast_shapes(query.shape[:-2], key.shape[:-2])
        wide = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (query, key))
        query, key = (x.reshape(-1, *x.shape[-2:]) for x in wide)
        return query, key


@SCORES.row("MatMul")
def _matmul(node: Node, graph: Graph, uses: Mapping[str, Sequence[Use]]) -> Scores | None:
    left, right = node.inputs
    if left in graph.consts or right in graph.consts or left == right:
        return None
    return Product(node, left, right, _shares(node.outputs[0], graph, uses))


@dataclass(frozen=True)
class Joined(Scores):
    """Queries and keys of a fused operator: (batch, length, heads x size), or (batch, heads, length, size).

    heads: how many query and key heads lie in the last axis.
    """

    heads: tuple[int, int] = (0, 0)

    def split(self, query: np.ndarray, key: np.ndarray) -> Heads:
        """Return queries as (heads, length, size) and keys as (heads, keys, size), for each sample its heads."""
        query, key = (self._apart(x, heads) for x, heads in zip((query, key), self.heads))
        key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
        query, key = (x.reshape(-1, *x.shape[2:]) for x in (query, key))
        return query, key

    @staticmethod
    def _apart(x: np.ndarray, heads: int) -> np.ndarray:
        return x if x.ndim == 4 else x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _has(node: Node, *inputs: int) -> bool:
    return any(at < len(node.inputs) and node.inputs[at] for at in inputs)


@SCORES.row("Attention")
def _attention(node: Node, graph: Graph, uses: Mapping[str, Sequence[Use]]) -> Scores | None:
    if _has(node, 4, 5) or any(node.outputs[1:]) or node.attr("softcap", 0.0):
        return None  # keys from a cache, or put into one
    heads = node.attr("q_num_heads", 0), node.attr("kv_num_heads", 0)
    return Joined(node, node.inputs[0], node.inputs[1], -1, heads)


@SCORES.row("com.microsoft::MultiHeadAttention")
def _multi_head(node: Node, graph: Graph, uses: Mapping[str, Sequence[Use]]) -> Scores | None:
    if not _has(node, 1) or _has(node, 3, 6, 7) or any(node.outputs[1:]):
        return None  # packed, with a bias of its own, or with a cache
    heads = int(node.attr("num_heads"))
    return Joined(node, node.inputs[0], node.inputs[1], -1, (heads, heads))


# ---- sums of values --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Weighted:
    """See a node as sums of values with computed weights: rows are mixed, channels of a head are not.

    value, y: what is summed up, and the sums. heads: of the values, in the last axis; 0 where they have an axis.
    """

    node: Node
    value: str
    y: str
    heads: int = 0

    def split(self, value: np.ndarray) -> np.ndarray:
        """Return values as (heads, length, size), for each sample its heads."""
        if self.heads and value.ndim == 3:
            value = value.reshape(*value.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)
        return value.reshape(-1, *value.shape[-2:])


WEIGHTED: Table[Callable[[Node, Graph], Weighted | None]] = Table("sums of values with computed weights")


def weighted(node: Node, graph: Graph) -> Weighted | None:
    """Return a node as sums of values, None where it is none."""
    row = WEIGHTED.get(node.op)
    return None if row is None else row(node, graph)


@WEIGHTED.row("MatMul")
def _weighted_matmul(node: Node, graph: Graph) -> Weighted | None:
    left, right = node.inputs
    if left in graph.consts or right in graph.consts or left == right:
        return None
    return Weighted(node, right, node.outputs[0])


@WEIGHTED.row("Attention")
def _weighted_attention(node: Node, graph: Graph) -> Weighted | None:
    heads = node.attr("kv_num_heads", 0)
    cached = _has(node, 4, 5) or any(node.outputs[1:])
    return None if cached else Weighted(node, node.inputs[2], node.outputs[0], heads)


@WEIGHTED.row("com.microsoft::MultiHeadAttention")
def _weighted_multi_head(node: Node, graph: Graph) -> Weighted | None:
    if not _has(node, 2) or _has(node, 3, 6, 7) or any(node.outputs[1:]):
        return None
    return Weighted(node, node.inputs[2], node.outputs[0], int(node.attr("num_heads")))


# ---- what makes shares of scores -------------------------------------------------------------------------------------
SHARES: Table[int] = Table("makes shares that add up to 1: the axis where none is given, before opset 13")
SHARES("Softmax", 1)
SHIFTED = frozenset("Add Sub Mul Div Where Identity Cast".split())
"""Scores that are shifted alike stay so: masks and biases that are added, factors that are one number."""


def _shares(name: str, graph: Graph, uses: Mapping[str, Sequence[Use]]) -> int | None:
    """Return the axis along which Softmax reads a value, behind masks and one scale for all; None if others read it."""
    readers = uses.get(name, ())
    found = {_share_axis(node, name, graph, uses) for node, _ in readers}
    return found.pop() if len(found) == 1 and name not in graph.results else None


def _share_axis(node: Node, name: str, graph: Graph, uses: Mapping[str, Sequence[Use]]) -> int | None:
    if node.op in SHARES:
        return int(node.attr("axis", -1 if graph.opset >= 13 else SHARES[node.op]))
    if node.op not in SHIFTED or (node.op in SCALED and not one_number(node, name, graph)):
        return None
    return _shares(node.outputs[0], graph, uses)


# ---- what carries ----------------------------------------------------------------------------------------------------
CARRIED = frozenset("Reshape Transpose Split Slice Gather Squeeze Unsqueeze Flatten Identity Expand".split())
"""Operators that put entries of their first input somewhere else, and compute nothing."""
SCALED = frozenset(("Mul", "Div"))
UNREAD = frozenset(("Shape", "Size"))
"""Operators that do not look at numbers."""


def one_number(node: Node, name: str, graph: Graph) -> bool:
    """Say whether a node multiplies a value by, or divides it by, one constant number."""
    others = [other for other in node.inputs if other != name]
    one = len(others) == 1 and others[0] in graph.consts and np.prod(graph.consts.shape(others[0])) == 1
    return one and (node.op == "Mul" or node.inputs[0] == name)


def carries(node: Node, at: int, graph: Graph) -> bool:
    """Say whether a node only moves the entries of an input, or multiplies all by one number."""
    if node.op in CARRIED:
        return at == 0
    return node.op in SCALED and one_number(node, node.inputs[at], graph)


def carried(name: str, graph: Graph, uses: Mapping[str, Sequence[Use]]) -> dict[str, list[Use]]:
    """Follow a value through nodes that carry it: every value that holds its entries, with who else reads that."""
    found: dict[str, list[Use]] = {}
    waiting = [name]
    while waiting:
        value = waiting.pop()
        found[value] = []
        for node, at in uses.get(value, ()):
            if at >= 0 and carries(node, at, graph):
                waiting += [out for out in node.outputs if out and out not in found]
            elif node.op not in UNREAD:
                found[value].append((node, at))
    return found
