"""Measure a pruned ONNX file against the file that it was made from, the same way for every tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import check
import counting
import numpy as np
import onnx
from pool import Say

REGIONS = 100
"""Regions for which the heads behind a RoiAlign are counted; how many there are depends on random weights."""


@dataclass(frozen=True)
class Case:
    """Two files to compare; inputs: an .npz file, or None for random inputs of the declared shapes."""

    dense: Path
    pruned: Path
    inputs: Path | None


def judge(case: Case, say: Say) -> dict[str, Any]:
    """Return parameters and MACs kept, and why the result is not valid ("" when it is), and the original neither."""
    say("load")
    dense, pruned = onnx.load(case.dense), onnx.load(case.pruned)
    feeds = dict(np.load(case.inputs)) if case.inputs else _random(dense)
    kept = counting.count(pruned).params / counting.count(dense).params
    say("check")
    invalid, outputs = check.invalid(pruned, feeds)
    if invalid:
        return {"params": kept, "invalid": invalid, "invalid before": check.invalid(dense, feeds)[0]}
    changed = check.interface_changed(dense, pruned, ["input"])  # a name for a fixed output axis may go
    say("run the original")
    changed = changed or check.mismatch(dense, check.outputs(dense.SerializeToString(), feeds, False), outputs)
    say("count")
    return {"params": kept, "macs": macs(pruned, feeds) / macs(dense, feeds), "invalid": changed}


def _random(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def macs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> int:
    """Count the multiply-accumulates of one run with prunepass's cost model."""
    from prunepass import cost, graph, manager

    context = manager.Context(shapes={name: array.shape for name, array in feeds.items()}, data=feeds)
    facts = manager.Facts(graph.Graph(model), context)
    manager.Pipeline.parse("canonicalize").run_on(facts)
    shapes = dict(facts.get("shapes").shape)
    behind: set[str] = set()
    for node in facts.graph.nodes:
        if node.op == "RoiAlign" or not behind.isdisjoint(node.inputs):
            behind.update(node.outputs)
    shapes |= {name: (REGIONS, *shapes[name][1:]) for name in behind if shapes.get(name)}
    return cost.CostModel(facts.graph, shapes, {}).total.macs
