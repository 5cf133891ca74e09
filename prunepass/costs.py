"""Write down what a model costs: in all, by type of number, at the peak of its memory, per node, per group."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from prunepass.cost import CostModel
from prunepass.coupling import Coupling
from prunepass.graph import Graph

SHOWN_ALIVE = 8


def cost_report(graph: Graph, coupling: Coupling, model: CostModel) -> dict[str, Any]:
    """Return the costs of a graph as plain data.

    Units
        macs, params: ones. bytes: of constants, in `total` of the whole file. ram, traffic: bytes; of a node, what is
        alive while it runs, and what it reads and writes. Of a group: what the model would lose with all of it.
    """
    cost = model.total
    total = {"macs": cost.macs, "params": cost.params, "bytes": cost.bytes, "ram": cost.ram, "traffic": cost.traffic}
    return {
        "total": total | {"ram_int8": int(model.live(int8=True).max(initial=0))},
        "types": stored_by_type(graph),
        "peak": peak(model),
        "nodes": node_costs(model),
        "groups": group_costs(coupling, model),
        "uncounted": list(model.uncounted),
    }


def stored_by_type(graph: Graph) -> list[dict[str, Any]]:
    """Return what the constants take in the file, by element type, the largest first."""
    found: dict[str, list[int]] = {}
    for name in graph.consts:
        kind = onnx.TensorProto.DataType.Name(graph.consts.elem_type(name)).lower()
        row = found.setdefault(kind, [0, 0, 0])
        row[0] += 1
        row[1] += int(np.prod(graph.consts.shape(name), dtype=np.int64))
        row[2] += graph.consts.nbytes(name)
    rows = [{"type": kind, "tensors": n, "elements": size, "bytes": b} for kind, (n, size, b) in found.items()]
    return sorted(rows, key=lambda row: (-row["bytes"], row["type"]))


def peak(model: CostModel, int8: bool = False) -> dict[str, Any]:
    """Return the node at which most is alive, and what that is."""
    sizes = model.sizes(int8=int8)[model.value_places]
    live = model.liveness.live(sizes)
    step = int(np.argmax(live))
    alive = model.liveness.alive_at(step, sizes)
    inside = 0 < step <= len(model.nodes)
    return {
        "node": model.nodes[step - 1].label if inside else "",
        "bytes": int(live[step]),
        "alive": [{"value": name, "bytes": size} for name, size in alive[:SHOWN_ALIVE]],
        "others": max(0, len(alive) - SHOWN_ALIVE),
    }


def node_costs(model: CostModel) -> list[dict[str, Any]]:
    """Return one row per node, in the order of execution."""
    tensors = model.tensors
    sizes, params = model.sizes(), model.elements(tensors.whole())
    live = model.live()[1:-1].tolist()
    rows = []
    for node, macs, alive in zip(model.nodes, model.node_macs, live):
        places = [tensors.place[name] for name in dict.fromkeys(node.inputs) if name in tensors.place]
        weights = [place for place in places if place < model.n_consts]
        moved = sum(int(sizes[tensors.place[name]]) * times for name, times in model.moves(node).items())
        rows.append(
            {
                "node": node.name or node.outputs[0],
                "op": node.op,
                "macs": macs,
                "params": int(params[weights].sum()),
                "bytes": int(sizes[weights].sum()),
                "ram": alive,
                "traffic": 0 if node.bodies else moved * model.times.get(id(node), 1),
            }
        )
    return rows


def group_costs(coupling: Coupling, model: CostModel) -> list[dict[str, Any]]:
    """Return one row per coupling group: what the model would lose with all of its units."""
    rows = []
    for group in coupling.groups:
        removed = np.zeros(coupling.n_units, bool)
        removed[group.units] = True
        left = model.predict(removed)
        kinds = ("macs", "params", "bytes", "ram", "traffic")
        lost = {kind: getattr(model.total, kind) - getattr(left, kind) for kind in kinds}
        rows.append({"group": group.name, "units": int(group.units.size), **lost})
    return rows
