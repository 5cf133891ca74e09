"""Choose sizes for the dynamic axes of the inputs: given ones, then defaults that nearly every model takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx

from prunepass.graph import Graph
from prunepass.inputs import check_shapes
from prunepass.manager import Context

Shape = tuple[int, ...]


class Profile(NamedTuple):
    """Sizes for dynamic axes that nobody gave."""

    image: int
    volume: int
    sequence: int


PROFILES = (Profile(224, 64, 8), Profile(64, 32, 64), Profile(512, 128, 512), Profile(224, 64, 16000))
"""Tried in this order until no operator finds its operand too small."""
LARGEST_BATCH = 8
"""Data with more samples than this is a data set."""

_BATCH = re.compile(r"^(n|b|bs|bsz)$|batch")
_SEQUENCE = re.compile(r"seq|len|tok|time|frame|sample|src|tgt|past|total|ctx|^(l|t|s)$")
_PLANE = re.compile(r"height|width|^[hw]$")
_STATE = re.compile(r"state|hidden|^[hc]\d*$")
"""Inputs that carry the state of a recurrent network: their unnamed axes are batches."""


class Binding(NamedTuple):
    """Hold one choice: the shape of each input, and the size of each dynamic axis by its name or as `input[axis]`."""

    shapes: dict[str, Shape]
    sizes: dict[str, int]


def bindings(graph: Graph, context: Context) -> Iterator[Binding]:
    """Yield the choices to try, the best first; shapes that were asked for are the same in all of them.

    The shapes of given data count too. Many samples are a data set rather than a batch: one of them is tried first.

    Raises
        ModelError: a given shape names no input or contradicts the declared one.
    """
    asked = check_shapes(graph, context.shapes)
    data = {name: array.shape for name, array in (context.data or {}).items() if name not in asked}
    seen: list[Binding] = []
    for profile in PROFILES:
        for single in (True, False) if _is_data_set(graph, data) else (False,):
            choice = _bind(graph, asked, data, profile, single)
            if choice not in seen:
                seen.append(choice)
                yield choice


def _bind(
    graph: Graph, asked: Mapping[str, Shape], data: Mapping[str, Shape], profile: Profile, single: bool
) -> Binding:
    shapes: dict[str, Shape] = {}
    sizes: dict[str, int] = {}
    for info in sorted(graph.inputs, key=lambda info: (info.name not in asked, info.name not in data)):
        dims, name = declared(info), info.name
        if name in asked:
            shapes[name] = asked[name]
        elif name in data:
            shapes[name] = data[name] if dims is None else _of_data(data[name], dims, single)
        elif dims is not None:
            shapes[name] = tuple(_size(d, axis, dims, sizes, profile) for axis, d in enumerate(dims))
        for key, size in zip(dims or (), shapes.get(name, ())):
            if isinstance(key, str):
                sizes.setdefault(key, size)
    return Binding(shapes, sizes)


def declared(info: onnx.ValueInfoProto) -> list[int | str] | None:
    """Return a size or a name per axis; None where the rank is not declared or it is no tensor."""
    if not info.type.tensor_type.HasField("shape"):
        return None
    dims = info.type.tensor_type.shape.dim
    names = [d.dim_param if re.search(r"\w", d.dim_param) else f"{info.name}[{i}]" for i, d in enumerate(dims)]
    return [d.dim_value if d.dim_value > 0 else name for d, name in zip(dims, names)]


def _is_data_set(graph: Graph, data: Mapping[str, Shape]) -> bool:
    """Whether axis 0 of the data counts samples: dynamic, equally long everywhere, and longer than a batch."""
    lengths = {shape[:1] for shape in data.values()}
    if len(lengths) != 1 or min(lengths) <= (LARGEST_BATCH,):
        return False
    leading = [(declared(info) or [0])[0] for info in graph.inputs if info.name in data]
    return all(isinstance(dim, str) and not _SEQUENCE.search(dim.lower()) for dim in leading)


def _of_data(shape: Shape, dims: list[int | str], single: bool) -> Shape:
    """Return the shape of one run on given data; a leading axis more than declared counts samples."""
    one = [d if isinstance(d, int) else size for d, size in zip(dims, shape[len(shape) - len(dims) :])]
    return (1, *one[1:]) if single else tuple(one)


def cut(array: np.ndarray, shape: Shape) -> np.ndarray:
    """Cut given data down to the shape of one run."""
    samples = (0,) * (array.ndim - len(shape))
    return np.asarray(array[samples + tuple(slice(size) for size in shape)])


def _size(dim: int | str, axis: int, dims: list[int | str], sizes: Mapping[str, int], profile: Profile) -> int:
    """Choose the size of one axis from its name, its place and the axes beside it."""
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return sizes[dim]
    parts = [int(p) if p.isdigit() else sizes.get(p) for p in re.split(r"\s*\+\s*", dim)]
    if len(parts) > 1 and None not in parts:
        return sum(part for part in parts if part is not None)
    owner, bracket, _ = dim.lower().rpartition("[")
    name, rank = "" if bracket else dim.lower(), len(dims)
    if _PLANE.search(name):
        return profile.image
    if _BATCH.search(name) or _STATE.search(owner) or (axis == 0 and not _SEQUENCE.search(name)):
        return 1
    if rank not in (4, 5) or _SEQUENCE.search(name):
        return profile.sequence
    channels_last = isinstance(dims[-1], int) and dims[-1] <= 4
    if axis == (rank - 1 if channels_last else 1):
        return 3
    return profile.image if rank == 4 else profile.volume
