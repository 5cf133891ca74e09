"""Build the ephemeral form of a plan: the whole model, with removed indices masked during computation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import helper

from prunepass.graph import Graph, Node
from prunepass.labels import Factors
from prunepass.rules.masks import MASKS, Masking


def mask_graph(
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    elem_types: Mapping[str, int],
    factors: Mapping[str, Factors],
    removed: np.ndarray,
    values: Mapping[str, np.ndarray] | None = None,
) -> Graph:
    """Return a copy of the graph that computes, with whole tensors, what the sliced graph computes.

    `values`: contents of small tensors, where they are known without being stored.
    """
    result = graph.copy()
    dtypes = Dtypes(elem_types, graph)
    made: dict[int, list[Node]] = {}
    for node in result.walk():
        row = MASKS.get(node.op)
        if row is None or node.inputs[0] not in shapes:
            continue
        masking = Masking(result, node, shapes, dtypes, factors, removed, values or {})
        row(masking)
        made[id(node)] = [*masking.before, *([] if masking.replaced else [node]), *masking.after]
    result.replace(made)
    return result


class Dtypes(dict[str, np.dtype]):
    """Look up the numpy type of a value; float32 where nothing is known."""

    def __init__(self, elem_types: Mapping[str, int], graph: Graph) -> None:
        super().__init__()
        self._elem_types, self._consts = elem_types, graph.consts

    def __missing__(self, name: str) -> np.dtype:
        kind = self._consts.elem_type(name) if name in self._consts else self._elem_types.get(name, 1)
        self[name] = helper.tensor_dtype_to_np_dtype(kind)
        return self[name]
