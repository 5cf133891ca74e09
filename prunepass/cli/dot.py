"""A graph with its coupling groups as DOT text, for Graphviz: one colour per group, barriers in red."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np

from prunepass.api import Inspection
from prunepass.graph import Graph

HUE_STEP = 0.618034  # golden ratio: neighbouring groups get colours that are far apart


def to_dot(found: Inspection) -> str:
    """Return the DOT text, the same for the same model."""
    network = operators(found.graph)
    groups = groups_of_values(found)
    blocked = {barrier.node for barrier in found.coupling.barriers}
    lines = ["digraph model {", "  node [shape=box, style=filled, fillcolor=white, fontname=Helvetica];"]
    for index, node in enumerate(found.graph.nodes):
        group = next((groups[name] for name in node.outputs if name in groups), None)
        label = node.op + (f"\n{found.coupling.groups[group].name}" if group is not None else "")
        colour = "white" if group is None else f"{group * HUE_STEP % 1:.3f} 0.25 1.0"
        stop = (node.name or node.outputs[0]) in blocked
        border = ", color=red, penwidth=3" if stop else ""
        lines.append(f'  n{index} [label={json.dumps(label)}, fillcolor="{colour}"{border}];')
    for source, target, value in network.edges(data="value"):
        lines.append(f"  n{source} -> n{target} [label={json.dumps(value)}];")
    return "\n".join([*lines, "}"]) + "\n"


def operators(graph: Graph) -> nx.MultiDiGraph:
    """Return the operators as a network: nodes are positions in the graph, edges carry the value that flows."""
    network = nx.MultiDiGraph()
    network.add_nodes_from(range(len(graph.nodes)))
    producer = {name: index for index, node in enumerate(graph.nodes) for name in node.outputs if name}
    for index, node in enumerate(graph.nodes):
        for name in (*node.inputs, *node.captured):
            if name in producer:
                network.add_edge(producer[name], index, value=name)
    return network


def groups_of_values(found: Inspection) -> dict[str, int]:
    """Return the group whose units each value carries, the first where it carries several."""
    owner = np.full(found.coupling.n_units, -1)
    for number, group in enumerate(found.coupling.groups):
        owner[group.units] = number
    owner[0] = -1
    carried = {}
    for name, factors in found.coupling.factors.items():
        numbers = [int(n) for factor in factors for n in np.unique(owner[factor]) if n >= 0]
        if numbers:
            carried[name] = numbers[0]
    return carried
