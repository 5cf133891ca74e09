"""Compare two models node by node, each on equal inputs: what rounding and near-ties cannot blur.

End to end, two correct models may differ: a deep network amplifies the last bit of a sum, and where two candidates are
almost equal, ArgMax, TopK, NonMaxSuppression or a comparison decides either way. Here every node of the second model
reads the values that the first one computed, so nothing adds up. If all nodes agree, the models compute the same
function, and the comparison is stricter than the one end to end, since an error has to show where it is made.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ValueInfoProto, helper

from prunepass.compare import Tally
from prunepass.errors import PruneError
from prunepass.graph import Graph
from prunepass.kept import cut, kept_masks
from prunepass.labels import Factors
from prunepass.runtime import Feeds, session

_LARGEST_BYTES = 1 << 31


@dataclass(frozen=True)
class Pair:
    """Two models that must compute the same: the second has lost what `removed` says of the values of the first.

    Shapes
        shapes: of the values of the first, where known. factors, removed: as in Coupling and Plan; empty where nothing
        is cut.
    """

    what: str
    first: Graph
    second: Graph
    shapes: Mapping[str, tuple[int, ...]]
    factors: Mapping[str, Factors] = field(default_factory=dict)
    removed: np.ndarray = field(default_factory=lambda: np.zeros(1, bool))


@dataclass
class Finding:
    """What a comparison node by node says.

    Units
        nodes: differences on equal inputs. values: how many of them each run compared. start: the node at which the
        models part end to end.
    """

    nodes: Tally
    values: int = 0
    start: str = ""


def compare_nodes(pair: Pair, trials: Sequence[Feeds], where: bool = True) -> Finding | None:
    """Compare all nodes on equal inputs; None where onnxruntime cannot run the models that way.

    where: look for the node at which the models part end to end, too, which takes one more session.
    """
    names = _common_values(pair, trials[0])
    finding = Finding(Tally(per_node=True))
    try:
        first = session(pair.first, optimise="off", taps=names)
        second = session(pair.second, optimise="off", taps=names) if where else None
        alone: Alone | None = None
        for feeds in trials:
            values = _kept_values(pair, first.run(feeds))
            if alone is None or _sizes(values) != alone.given:
                alone = Alone(pair.second, values)
            _compare_run(finding, alone, feeds, values)
            if second is not None:
                finding.start = finding.start or _parting(pair.second, values, second.run(feeds))
    except PruneError:
        return None
    return finding


class Alone:
    """A model in which every node reads given values, and shows under another name what it makes of them."""

    def __init__(self, graph: Graph, values: Mapping[str, object]) -> None:
        self.given = _sizes(values)
        twin = graph.copy()
        made = [name for node in twin.nodes for name in node.outputs if isinstance(values.get(name), np.ndarray)]
        self.own = {name: twin.fresh_name(f"{name}__own") for name in made}
        self.labels = {name: node.label for node in graph.nodes for name in node.outputs}
        for node in twin.nodes:
            node.outputs = [self.own.get(name, name) for name in node.outputs]
        for name in made:
            twin.add_input(name, int(helper.np_dtype_to_tensor_dtype(np.asarray(values[name]).dtype)), self.given[name])
        twin.outputs = [info for info in twin.outputs if info.name not in self.own]
        self.free = twin.output_names
        twin.outputs += [ValueInfoProto(name=name) for name in self.own.values()]
        self.session = session(twin, optimise="off")

    def run(self, feeds: Feeds, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what each node computes from the given values, by the name of its value."""
        found = self.session.run({**feeds, **{name: values[name] for name in self.own}})
        return {**{name: found[name] for name in self.free}, **{name: found[own] for name, own in self.own.items()}}


def _sizes(values: Mapping[str, object]) -> dict[str, tuple[int, ...] | None]:
    """Return the shapes of integer vectors, which may be sizes: Resize must know how many; None for all else."""
    vectors = {k: v for k, v in values.items() if isinstance(v, np.ndarray) and v.dtype == np.int64 and v.ndim == 1}
    return {name: vectors[name].shape if name in vectors else None for name in values}


def _compare_run(finding: Finding, alone: Alone, feeds: Feeds, values: Mapping[str, Any]) -> None:
    found = alone.run(feeds, values)
    finding.values = len(found)
    for name, value in found.items():
        finding.nodes.agree(f"{alone.labels.get(name, name)} from equal inputs", values.get(name), value)


def _parting(graph: Graph, values: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the first node whose free result differs."""
    for node in graph.nodes:
        for name in node.outputs:
            if name in values and not Tally().agree(name, values[name], found[name]):
                return node.label
    return ""


def _kept_values(pair: Pair, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of the values of the first model that the second one has.

    A value that the mask does not fit is left out, and the second model computes it: with two samples, an axis into
    which the batch was merged is longer than the plan says.
    """
    found = {}
    for name, value in values.items():
        factors = [f for f in pair.factors.get(name, ()) if pair.removed[f].any()]
        with contextlib.suppress(ValueError):
            found[name] = cut(value, kept_masks(factors, pair.removed)) if factors else value
    return found


def _common_values(pair: Pair, feeds: Feeds) -> list[str]:
    """Return what both models compute under one name, without the largest where they would fill the memory."""
    made = {name for node in pair.first.nodes for name in node.outputs}
    names = [name for node in pair.second.nodes for name in node.outputs if name in made]
    if not pair.shapes:
        return names
    names = [name for name in names if name in pair.shapes]
    batch = max([value.size / max(1, math.prod(pair.shapes.get(name, ()))) for name, value in feeds.items()], default=1)
    room = _LARGEST_BYTES / (4 * max(1, batch))
    for name in sorted(names, key=lambda name: math.prod(pair.shapes[name])):
        room -= math.prod(pair.shapes[name])
        if room < 0:
            names.remove(name)
    return names
