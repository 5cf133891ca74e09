"""Condense a graph for a drawing: nodes into boxes, a long chain of boxes into columns.

A box is a layer with what follows it element by element: Conv, BatchNormalization, Relu, and the Add that joins a
shortcut. What only computes sizes, positions and masks is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import networkx as nx

from prunepass.consts import FLOAT_TYPES
from prunepass.coupling import Coupling
from prunepass.graph import Graph, Node
from prunepass.rules.cost import MACS

COLUMN = (8, 24)  # fewest and most boxes that stand in a row before a drawing goes on in the next column
MOST_CROSSING = 12  # values that lead from one column to others


@dataclass
class Box:
    """Some nodes that are drawn as one: a layer, and what follows it."""

    nodes: list[Node] = field(default_factory=list)
    barrier: bool = False

    @property
    def values(self) -> list[str]:
        """What the nodes make, the latest first."""
        return [name for node in reversed(self.nodes) for name in node.outputs if name]


def boxes(graph: Graph, coupling: Coupling) -> nx.MultiDiGraph:
    """Return the network of boxes, graph inputs and graph outputs that are worth drawing.

    Edges carry the value that flows and, where it does not enter at the first node of a box, the operator it joins at.
    """
    return _Boxes(graph, coupling).network()


class _Boxes:
    """Merge nodes into boxes, in graph order."""

    def __init__(self, graph: Graph, coupling: Coupling) -> None:
        self.graph, self.coupling = graph, coupling
        self.barriers = {(barrier.node, barrier.op) for barrier in coupling.barriers}
        self.uses = {name: len(uses) for name, uses in self.graph.uses().items()}
        self.boxes: list[Box] = []
        self.made_in: dict[str, int] = {}
        self.above: list[set[int]] = []
        self.depth: list[int] = []

    def network(self) -> nx.MultiDiGraph:
        """Return the network."""
        for node in self.graph.nodes:
            if self._is_data(node):
                self._place(node)
        network = nx.MultiDiGraph()
        for number, box in enumerate(self.boxes):
            network.add_node(f"#{number}", box=box)
        for number, box in enumerate(self.boxes):
            self._connect(network, number, box)
        for name in self.graph.output_names:
            if name in self.made_in:
                network.add_edge(f"#{self.made_in[name]}", name, value=name, joins="")
        self._prune(network)
        return network

    def _is_data(self, node: Node) -> bool:
        """Whether a node makes numbers that flow through the network, not sizes, positions or masks of booleans."""
        kinds = self.coupling.elem_types
        names = [name for name in node.outputs if name]
        return any(
            kinds.get(name) in FLOAT_TYPES or name in self.coupling.factors or name in self.graph.output_names
            for name in names
        )

    def _place(self, node: Node) -> None:
        """Put a node into the box of what it reads, or into a new one."""
        read = [name for name in (*node.inputs, *node.captured) if name in self.made_in]
        sources = list(dict.fromkeys(self.made_in[name] for name in read))
        barrier = (node.name or node.outputs[0], node.op) in self.barriers
        number = None if barrier or self._is_layer(node) else self._home(node, read, sources)
        if number is None:
            number = len(self.boxes)
            self.boxes.append(Box(barrier=barrier))
            self.above.append(set())
            self.depth.append(1 + max((self.depth[source] for source in sources), default=0))
        for source in sources:
            if source != number:
                self.above[number] |= self.above[source] | {source}
        self.boxes[number].nodes.append(node)
        self.made_in.update((name, number) for name in node.outputs if name)

    def _is_layer(self, node: Node) -> bool:
        return node.op in MACS or any(name in self.coupling.producing for name in node.inputs)

    def _home(self, node: Node, read: Iterable[str], sources: list[int]) -> int | None:
        """Find the box that a node belongs to: the only one it reads, or the deepest whose result only it reads."""
        if len(sources) == 1:
            return None if self.boxes[sources[0]].barrier else sources[0]
        shapes = self.coupling.shapes
        for name in sorted(read, key=lambda name: -self.depth[self.made_in[name]]):
            number = self.made_in[name]
            fits = shapes.get(name) == shapes.get(node.outputs[0]) and self.uses[name] == 1
            if fits and not self.boxes[number].barrier and not any(number in self.above[s] for s in sources):
                return number
        return None

    def _connect(self, network: nx.MultiDiGraph, number: int, box: Box) -> None:
        seen = set()
        for position, node in enumerate(box.nodes):
            for name in (*node.inputs, *node.captured):
                source = f"#{self.made_in[name]}" if name in self.made_in else name
                inside = source == f"#{number}" or name in self.graph.consts or not name
                if inside or name in seen or not (name in self.made_in or name in self.graph.input_names):
                    continue
                seen.add(name)
                network.add_edge(source, f"#{number}", value=name, joins=node.op if position else "")

    def _prune(self, network: nx.MultiDiGraph) -> None:
        """Remove what only computes masks and positions: boxes without labels, layers or results that nothing feeds."""
        results = set(self.graph.output_names)
        while True:
            idle = [key for key, box in network.nodes(data="box") if box is not None and self._idle(network, key, box)]
            if not idle:
                break
            network.remove_nodes_from(idle)
        lonely = [key for key in network if key not in results and not network.degree(key)]
        network.remove_nodes_from(lonely)

    def _idle(self, network: nx.MultiDiGraph, key: str, box: Box) -> bool:
        feeds = [source for source in network.predecessors(key) if self._is_float(source)]
        last = any(target in self.graph.output_names for target in network.successors(key))
        plain = not any(self._is_layer(node) for node in box.nodes) and not box.barrier
        return plain and not feeds and not last and not any(name in self.coupling.factors for name in box.values)

    def _is_float(self, source: str) -> bool:
        return source not in self.graph.input_names or self.coupling.elem_types.get(source) in FLOAT_TYPES


# ---- columns ---------------------------------------------------------------------------------------------------------
def columns(network: nx.MultiDiGraph, streams: Mapping[str, set[int]]) -> dict[str, int]:
    """Cut a long drawing into columns, where few values cross and no shared group goes on; return each box's."""
    if not nx.is_directed_acyclic_graph(network):
        return dict.fromkeys(network, 0)
    rank = _ranks(network)
    fewest, most = COLUMN
    starts, end = [0], max(rank.values(), default=0) + 1
    while end - starts[-1] > most:
        places = range(starts[-1] + fewest, min(starts[-1] + most, end - 1) + 1)
        costs = {place: _crossing(network, rank, streams, place) for place in places}
        best = min(costs, key=lambda place: (sum(costs[place]), -place))
        if costs[best][0] > MOST_CROSSING:
            return dict.fromkeys(network, 0)
        starts.append(best)
    return {key: bisect_right(starts, number) - 1 for key, number in rank.items()}


def _ranks(network: nx.MultiDiGraph) -> dict[str, int]:
    """Number the rows: each box as far down as its nearest successor allows, which stands as far up as it can."""
    rank = {key: number for number, row in enumerate(nx.topological_generations(network)) for key in row}
    for key in sorted(rank, key=lambda key: -rank[key]):
        rank[key] = min((rank[target] - 1 for target in network.successors(key)), default=rank[key])
    return rank


def _crossing(
    network: nx.MultiDiGraph, rank: Mapping[str, int], streams: Mapping[str, set[int]], place: int
) -> tuple[float, float]:
    """Count the values that cross from above a rank to it, and, half each, the shared groups on both sides."""
    values = {value for source, target, value in network.edges(data="value") if rank[source] < place <= rank[target]}
    above = {number for key, own in streams.items() if rank[key] < place for number in own}
    below = {number for key, own in streams.items() if rank[key] >= place for number in own}
    return len(values), len(above & below) / 2
