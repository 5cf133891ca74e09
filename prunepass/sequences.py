"""Replace sequences that are only picked apart again by plain tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prunepass.fixed import Dims, fixed_shapes
from prunepass.graph import Graph, Node


def unpack_sequences(graph: Graph) -> int:
    """Turn SplitToSequence whose parts are read at fixed positions into Split or Gather; return how many.

    Left alone: sequences that are graph outputs, read at a computed position, or by anything but SequenceAt, and
    those whose split axis has no fixed size.
    """
    if not any(node.op == "SplitToSequence" for node in graph.nodes):
        return 0
    fixed = fixed_shapes(graph)
    uses, outputs, outer = graph.uses(), set(graph.output_names), set(map(id, graph.nodes))
    made: dict[int, list[Node]] = {}
    gone: set[int] = set()
    for node in graph.nodes:
        if node.op != "SplitToSequence" or node.outputs[0] in outputs:
            continue
        readers = [reader for reader, _ in uses.get(node.outputs[0], ())]
        picks = [_position(graph, reader) if id(reader) in outer else None for reader in readers]
        parts = _parts(graph, node, fixed)
        if parts is None or any(p is None or not -len(parts) <= p < len(parts) for p in picks):
            continue
        made[id(node)] = _plain(
            graph, node, parts, [(r, p % len(parts)) for r, p in zip(readers, picks) if p is not None]
        )
        gone.update(id(reader) for reader in readers)
    graph.replace({**made, **{number: [] for number in gone}})
    return len(made)


def _position(graph: Graph, reader: Node) -> int | None:
    """Index that a SequenceAt reads; None where it is anything else, or computed."""
    if reader.op != "SequenceAt" or reader.inputs[1] not in graph.consts:
        return None
    return int(graph.consts[reader.inputs[1]].reshape(-1)[0])


def _parts(graph: Graph, node: Node, fixed: Mapping[str, Dims]) -> list[int] | None:
    """Sizes of the parts; None where they are not known for certain."""
    split = node.inputs[1] if len(node.inputs) > 1 else ""
    if split in graph.consts and graph.consts[split].ndim == 1:
        return [int(size) for size in graph.consts[split]]
    shape = fixed.get(node.inputs[0])
    size = shape[node.attr("axis", 0)] if shape else None
    if not size or (split and split not in graph.consts):
        return None
    step = int(graph.consts[split]) if split else 1
    return [min(step, size - start) for start in range(0, size, step)]


def _plain(graph: Graph, node: Node, parts: list[int], readers: list[tuple[Node, int]]) -> list[Node]:
    axis = node.attr("axis", 0)
    if len(node.inputs) < 2 or not node.inputs[1]:  # parts of one index each
        found = []
        for reader, position in readers:
            index = graph.fresh_name(f"{reader.outputs[0]}_index")
            graph.consts[index] = np.array([position] if node.attr("keepdims", 1) else position, np.int64)
            found.append(Node.make("Gather", [node.inputs[0], index], reader.outputs, name=reader.name, axis=axis))
        return found
    outputs = [graph.fresh_name(f"{node.outputs[0]}_{i}") for i in range(len(parts))]
    split = Node.make("Split", [node.inputs[0]], outputs, name=node.name, axis=axis)
    if graph.opset < 13:
        split.set_attr("split", parts)
    else:
        sizes = graph.fresh_name(f"{node.outputs[0]}_sizes")
        graph.consts[sizes] = np.array(parts, np.int64)
        split.inputs.append(sizes)
    return [split, *(Node.make("Identity", [outputs[p]], r.outputs, name=r.name) for r, p in readers)]
