"""Make inputs to run a model on: random ones that make sense for it, or given ones, checked."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

from prunepass.domains import Domain, Domains
from prunepass.errors import ModelError, UnsupportedError
from prunepass.graph import Graph

Feeds: TypeAlias = "dict[str, np.ndarray]"
KINDS = {"normal": 1.0, "large": 5.0, "small": 0.1}  # standard deviation of the float inputs
_MASK = re.compile(r"mask|valid(?!ation)", re.IGNORECASE)
_POSITION = re.compile(r"position|pos_?ids?", re.IGNORECASE)
_LENGTH = re.compile(r"len(gth)?s?$|_len|length", re.IGNORECASE)
_SCALE = re.compile(r"scale_?factor", re.IGNORECASE)
_MOST_ELEMENTS = 1 << 30  # of one input
_MASKED = 0.2  # share of a mask that is off


def random_inputs(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None, seed: int = 0, kind: str = "normal"
) -> Feeds:
    """Draw one value for each graph input, the same for the same arguments.

    Floats are N(0, s) with s by `kind` (see KINDS). Integers stay within the table that they index, which is found by
    following their readers; masks are mostly on, lengths and positions in range, sizes 1.

    Shapes
        shapes: by input name; a dynamic axis that is not given gets 1.

    Raises
        UnsupportedError: an input is no tensor, or too large to be made.
    """
    sizes = {info.name: _shape(info, shapes or {}) for info in graph.inputs}
    domains = Domains(graph, sizes)
    feeds = {}
    for info in graph.inputs:
        rng = np.random.default_rng([seed, zlib.crc32(info.name.encode())])
        dtype = _dtype(info)
        value = _draw(info.name, dtype, sizes, domains.of(info.name), rng, KINDS[kind])
        feeds[info.name] = np.asarray(value).astype(dtype)
    return feeds


def _shape(info: onnx.ValueInfoProto, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if info.type.WhichOneof("value") not in ("tensor_type", None):
        kind = info.type.WhichOneof("value")
        raise UnsupportedError(f"graph input {info.name!r} is no tensor but a {kind}; export with plain tensors")
    declared = tuple(max(1, d.dim_value) for d in info.type.tensor_type.shape.dim)
    shape = tuple(shapes.get(info.name, declared))
    if math.prod(shape) > _MOST_ELEMENTS:
        raise UnsupportedError(
            f"graph input {info.name!r} of {list(shape)} has {math.prod(shape):,} elements, too many to be run; "
            "export with smaller sizes, or give them with --shape"
        )
    return shape


def _dtype(info: onnx.ValueInfoProto) -> np.dtype:
    return np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type or TensorProto.FLOAT))


def _draw(
    name: str,
    dtype: np.dtype,
    sizes: Mapping[str, tuple[int, ...]],
    domain: Domain,
    rng: np.random.Generator,
    scale: float,
) -> np.ndarray:
    """Draw the value of one input; the first line that fits decides."""
    shape = sizes[name]
    below = domain.below
    if dtype.kind in "OUST":
        return rng.choice(np.array(["a", "b", "cat"], object), shape)
    if dtype.kind == "b" or (_MASK.search(name) and (below is None or below > 1)):
        return _mask(shape, rng)
    if domain.choices and np.prod(shape) == 1:
        return np.full(shape, domain.choices[0])
    if domain.size or _SCALE.search(name):
        return np.ones(shape)
    if below is not None and _POSITION.search(name) and shape:
        return np.broadcast_to(np.arange(shape[-1]) % max(1, below), shape)
    if below is not None:
        return rng.integers(0, max(1, below), shape)
    if dtype.kind in "iu":
        return _integers(name, dtype, sizes, rng)
    value = rng.standard_normal(shape) * scale
    if dtype.kind == "c":
        value = value + 1j * rng.standard_normal(shape) * scale
    return np.abs(value) + 1e-3 if domain.positive else value


def _mask(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw a mask; the first place of each row stays on, since a row that is all off has no softmax."""
    mask = np.atleast_1d(rng.random(shape) >= _MASKED)
    mask[..., 0] = True
    return mask.reshape(shape)


def _integers(name: str, dtype: np.dtype, sizes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> np.ndarray:
    """Draw integers that index nothing: lengths, positions, bytes, else zeros and ones."""
    shape = sizes[name]
    if _LENGTH.search(name):
        others = [n for other, s in sizes.items() if other != name for n in s[1:] if n > 1]
        longest = min(others, default=2)
        value = np.atleast_1d(rng.integers((longest + 1) // 2, longest + 1, shape))
        value.flat[0] = longest
        return value.reshape(shape)
    if _POSITION.search(name) and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape)
    if dtype.itemsize == 1:
        limits = np.iinfo(dtype) if dtype.names is None and dtype in (np.int8, np.uint8) else None
        return rng.integers(limits.min, limits.max + 1, shape) if limits else rng.integers(0, 2, shape)
    return rng.integers(0, 2, shape)


def load_data(path: str | Path, graph: Graph) -> Feeds:
    """Read an npz file whose arrays are named after the graph inputs; see `check_data`."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ModelError(f"{path}: one plain array; save it with numpy.savez(file, input_name=array)")
        with archive:
            data = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not an npz file of plain arrays ({error}); write it with numpy.savez") from error
    return check_data(data, graph, str(path))


def check_data(data: Mapping[str, np.ndarray], graph: Graph, where: str = "the data") -> Feeds:
    """Return one array for each graph input in its element type; refuse what does not fit.

    An array may have one axis more than the input, or a first axis that is a multiple of the declared one: samples.

    Raises
        ModelError: an array is missing, has no input, or does not fit.
    """
    for name in data:
        if name not in graph.input_names:
            raise ModelError(f"{where}: the model has no input {name!r}; its inputs are {', '.join(graph.input_names)}")
    for name in graph.input_names:
        if name not in data:
            raise ModelError(f"{where}: there is no array for the input {name!r}; add one")
    checked = {info.name: _fit(info, np.asarray(data[info.name]), where) for info in graph.inputs}
    counts = {name: len(list(_samples(info, checked[name]))) for name, info in zip(graph.input_names, graph.inputs)}
    if len(set(counts.values()) - {1}) > 1:
        raise ModelError(f"{where}: the arrays hold different numbers of samples: {counts}; make them equal")
    return checked


def _fit(info: onnx.ValueInfoProto, array: np.ndarray, where: str) -> np.ndarray:
    where, want = f"{where}: the array {info.name!r}", _dtype(info)
    if array.dtype != want and not (array.dtype.kind == want.kind and np.can_cast(array.dtype, want, "same_kind")):
        raise ModelError(f"{where} has type {array.dtype}, the model needs {want}; convert it")
    dims = info.type.tensor_type.shape.dim
    declared = [d.dim_value or d.dim_param or "?" for d in dims]
    if info.type.tensor_type.HasField("shape"):
        extra = array.ndim - len(dims)
        fits = extra in (0, 1) and all(
            d.dim_value <= 0 or d.dim_value == size or (axis == 0 and extra == 0 and size and size % d.dim_value == 0)
            for axis, (d, size) in enumerate(zip(dims, array.shape[max(0, extra) :]))
        )
        if not fits or 0 in array.shape:
            raise ModelError(f"{where} has shape {list(array.shape)}, the model needs {declared}; reshape it")
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise ModelError(f"{where} has values that are not finite; take them out")
    return array.astype(want, copy=False)


def _samples(info: onnx.ValueInfoProto, array: np.ndarray) -> Iterator[np.ndarray]:
    """Cut an array into what one run takes."""
    dims = info.type.tensor_type.shape.dim
    if array.ndim == len(dims) + 1 and info.type.tensor_type.HasField("shape"):
        yield from array
    elif dims and dims[0].dim_value > 0:
        yield from np.split(array, max(1, len(array) // dims[0].dim_value))
    else:
        yield array


def split_data(data: Mapping[str, np.ndarray], graph: Graph) -> list[Feeds]:
    """Cut checked data into the feeds of single runs; an array that holds one sample goes into each."""
    parts = {info.name: list(_samples(info, data[info.name])) for info in graph.inputs}
    count = max((len(p) for p in parts.values()), default=0)
    return [{name: part[at if len(part) > 1 else 0] for name, part in parts.items()} for at in range(count)]
