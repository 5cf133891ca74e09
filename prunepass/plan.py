"""The plan: which units go, as kept indices of named tensors. JSON in and out; docs/plan.md describes the schema."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np

from prunepass.coupling import Coupling
from prunepass.errors import ModelError
from prunepass.graph import Graph
from prunepass.kept import kept_masks, new_shape
from prunepass.labels import Policy, spans

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TensorPlan:
    """What stays of one constant: an element is kept when every entry keeps it.

    Shapes
        kept: pairs (axes, indices): for one axis a list of indices, for several a list of coordinates.
    """

    shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    kept: tuple[tuple[tuple[int, ...], np.ndarray], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain lists."""
        kept = [{"axes": list(axes), "indices": indices.tolist()} for axes, indices in self.kept]
        return {"shape": list(self.shape), "new_shape": list(self.new_shape), "kept": kept}

    def entry_masks(self) -> list[np.ndarray]:
        """Return one boolean array per entry, with the rank of the tensor."""
        return [_entry_mask(self.shape, axes, indices) for axes, indices in self.kept]


@dataclass(frozen=True)
class GroupPlan:
    """What one group loses."""

    name: str
    units: int
    removed: int
    sites: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Which indices of which tensors are removed, and why.

    `coupling` and `removed` (boolean, one entry per unit) bind the plan to an analysed graph; they are not part of the
    document. `bind` makes them for a plan that was read from a file.
    """

    tensors: Mapping[str, TensorPlan]
    groups: tuple[GroupPlan, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "balanced"
    source_sha256: str = ""
    coupling: Coupling | None = field(default=None, repr=False, compare=False)
    removed: np.ndarray | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        graph: Graph,
        coupling: Coupling,
        removed: np.ndarray,
        scores: np.ndarray | None = None,
        options: Mapping[str, Any] | None = None,
        source_sha256: str = "",
    ) -> Plan:
        """Write down the removal of some units of an analysed graph."""
        tensors = {}
        for name in graph.consts:
            factors = [f for f in coupling.factors.get(name, ()) if removed[f].any()]
            if factors:
                shape = graph.consts.shape(name)
                masks = kept_masks(factors, removed)
                kept = tuple((spans(mask), _indices(mask)) for mask in masks)
                tensors[name] = TensorPlan(shape, new_shape(shape, masks), kept)
        groups = tuple(_group_plan(g, removed, scores) for g in coupling.groups)
        return cls(tensors, groups, dict(options or {}), coupling.policy, source_sha256, coupling, removed)

    def bind(self, graph: Graph, coupling: Coupling) -> Plan:
        """Find the units that a plan read from a file removes.

        Raises
            ModelError: the plan was made for another model.
        """
        removed = np.zeros(coupling.n_units, bool)
        for name, tensor in self.tensors.items():
            if name not in graph.consts or graph.consts.shape(name) != tensor.shape:
                raise ModelError(f"the plan does not fit: it slices tensor {name!r} of shape {tensor.shape}")
            for mask in tensor.entry_masks():
                match = [f for f in coupling.factors.get(name, ()) if f.shape == mask.shape]
                if len(match) != 1:
                    raise ModelError(f"the plan does not fit: tensor {name!r} cannot lose axes {spans(mask)} here")
                removed[match[0][~mask]] = True
        again = Plan.of(graph, coupling, removed, options=self.options, source_sha256=self.source_sha256)
        if removed[0] or not _same_tensors(again.tensors, self.tensors):
            raise ModelError("the plan does not fit: it removes indices that go only together with others")
        return replace(again, groups=self.groups or again.groups)

    def to_json(self) -> dict[str, Any]:
        """Return the document as plain Python data."""
        return {
            "version": SCHEMA_VERSION,
            "source_sha256": self.source_sha256,
            "policy": self.policy,
            "options": dict(self.options),
            "groups": [
                {
                    "name": g.name,
                    "units": g.units,
                    "removed": g.removed,
                    "sites": list(g.sites),
                    "scores": [float(f"{score:.6g}") for score in g.scores],
                }
                for g in self.groups
            ],
            "tensors": {name: tensor.to_json() for name, tensor in self.tensors.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """Read a document; `bind` it before use.

        Raises
            ModelError: the document is not a plan of this version.
        """
        try:
            if document["version"] != SCHEMA_VERSION:
                raise ModelError(f"the plan has version {document['version']}, this tool reads {SCHEMA_VERSION}")
            policy, sha256, options = document["policy"], document.get("source_sha256", ""), document.get("options", {})
            if policy not in get_args(Policy) or not isinstance(sha256, str) or not isinstance(options, dict):
                raise ValueError("the policy, source_sha256 or options make no sense")
            tensors = {name: _read_tensor(name, entry) for name, entry in document["tensors"].items()}
            groups = tuple(_read_group(entry) for entry in document.get("groups", ()))
            return cls(tensors, groups, options, policy, sha256)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"not a plan: {type(error).__name__} {error}; write one with --plan") from error


def _indices(mask: np.ndarray) -> np.ndarray:
    """Kept indices of a one-axis mask, kept coordinates of a joint one."""
    axes = spans(mask)
    found = np.argwhere(mask.reshape([mask.shape[a] for a in axes]))
    return found[:, 0] if len(axes) == 1 else found


def _entry_mask(shape: tuple[int, ...], axes: tuple[int, ...], indices: np.ndarray) -> np.ndarray:
    mask = np.zeros([shape[a] for a in axes], bool)
    mask[tuple(indices.reshape(-1, len(axes)).T)] = True
    return mask.reshape([shape[a] if a in axes else 1 for a in range(len(shape))])


def _read_tensor(name: str, entry: Mapping[str, Any]) -> TensorPlan:
    shape, after = (tuple(map(int, _integers(entry[key], f"{key} of {name!r}"))) for key in ("shape", "new_shape"))
    kept = tuple(_read_entry(name, shape, part) for part in entry["kept"])
    return TensorPlan(shape, after, kept)


def _read_entry(name: str, shape: tuple[int, ...], part: Mapping[str, Any]) -> tuple[tuple[int, ...], np.ndarray]:
    axes = tuple(map(int, _integers(part["axes"], f"axes of {name!r}")))
    if not axes or list(axes) != sorted(set(axes)) or not 0 <= axes[0] <= axes[-1] < len(shape):
        raise ValueError(f"tensor {name!r} of shape {shape} has no axes {axes}")
    indices = _integers(part["indices"], f"indices of {name!r}", 1 if len(axes) == 1 else 2)
    rows = indices.reshape(len(indices), -1)
    if rows.shape[1] != len(axes) or (rows < 0).any() or (rows >= [shape[axis] for axis in axes]).any():
        raise ValueError(f"an index of tensor {name!r} is outside of shape {shape}")
    if not np.array_equal(np.unique(rows, axis=0), rows):
        raise ValueError(f"the indices of tensor {name!r} are not in ascending order")
    return axes, indices


def _integers(value: Any, what: str, rank: int = 1) -> np.ndarray:
    array = np.array(value)
    if array.dtype.kind != "i" or array.ndim != rank or not array.size:
        raise ValueError(f"the {what} are no list of integers")
    return array.astype(np.int64)


def _read_group(entry: Mapping[str, Any]) -> GroupPlan:
    name, sites, scores = entry["name"], entry["sites"], entry["scores"]
    units, removed = _integers([entry["units"], entry["removed"]], f"sizes of group {name!r}").tolist()
    if not isinstance(sites, list) or not isinstance(scores, list) or not 0 <= removed <= units:
        raise ValueError(f"group {name!r} loses {removed} of {units} units")
    return GroupPlan(name, units, removed, tuple(sites), tuple(math.nan if s is None else float(s) for s in scores))


def _same_tensors(a: Mapping[str, TensorPlan], b: Mapping[str, TensorPlan]) -> bool:
    return a.keys() == b.keys() and all(a[k].to_json() == b[k].to_json() for k in a)


def _group_plan(group: Any, removed: np.ndarray, scores: np.ndarray | None) -> GroupPlan:
    units = group.units.reshape(-1)
    listed = () if scores is None else tuple(scores[units].tolist())
    sites = tuple(f"{tensor}[{axis}]" for tensor, axis in group.axes)
    return GroupPlan(group.name, int(units.size), int(removed[units].sum()), sites, listed)
