"""What a user hands in, checked before any work starts: model, data, input shapes, names to keep, output paths."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from prunepass import feeds, users, wire
from prunepass.errors import ModelError, PipelineError
from prunepass.files import load
from prunepass.graph import Graph
from prunepass.options import suggest

if TYPE_CHECKING:
    from prunepass.files import Source
    from prunepass.recovery.batches import Batches

Arrays: TypeAlias = "Mapping[str, np.ndarray]"
Data: TypeAlias = "Arrays | Iterable[Arrays] | Callable[[], Arrays | Iterable[Arrays]]"
"""Arrays by input name; or what yields such batches, or a function that returns either."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Remember what a graph was read from; size_bytes counts the file with its external data."""

    path: Path | None
    sha256: str
    size_bytes: int


def open_model(model: Source) -> tuple[Graph, Origin]:
    """Read a model and fingerprint its source; a Graph that is given is copied, never changed.

    Raises
        ModelError, UnsupportedError: it is no model that can be used.
    """
    graph = load(model)
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        return graph, Origin(path, sha256_of_file(path), sum(file.stat().st_size for file in graph.files))
    return graph.copy(), Origin(None, *fingerprint(graph))


def fingerprint(graph: Graph) -> tuple[str, int]:
    """Return the hexadecimal SHA-256 and the size in bytes of the file that would be written, weights included."""
    digest, size = hashlib.sha256(), 0
    for piece in wire.encode(graph):
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_data(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file.

    Raises
        ModelError: the file cannot be read, is no npz file, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ModelError(f"'{path}' is no .npz file; save it with numpy.savez(file, input_name=array)")
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"'{path}' is no .npz file of plain arrays: {error}") from error


def check_data(graph: Graph, data: Mapping[str, np.ndarray], where: str = "the data") -> dict[str, np.ndarray]:
    """Return one array per model input, in its element type; other arrays, such as labels, are left out.

    Raises
        ModelError: an input has no array, or its type or shape does not fit.
    """
    unused = [name for name in data if name not in graph.input_names]
    if unused:
        log.info("data: no input is called %s; not used", ", ".join(unused))
    return feeds.check_data({name: data[name] for name in data if name not in unused}, graph, where)


def take_data(graph: Graph, data: Data) -> tuple[dict[str, np.ndarray], Batches]:
    """Return checked arrays to verify with, and all data as batches.

    Raises
        ModelError: the data do not fit, or what yields them fails.
    """
    from prunepass.recovery.batches import first_runs, from_arrays, from_dicts

    found: Any = data
    if callable(found) and not isinstance(found, Mapping):
        found = users.call(found, "data")
    if isinstance(found, Mapping):
        checked = check_data(graph, found)
        return checked, from_arrays(checked, graph)
    batches = from_dicts(users.items(found, "data"), graph)
    return first_runs(batches, graph, 1)[0], batches


def check_shapes(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return the requested input shapes as tuples.

    Raises
        ModelError: no input has that name, or the shape contradicts what the model says of it.
    """
    known = {info.name: info for info in graph.inputs}
    for name, shape in shapes.items():
        if name not in known:
            raise ModelError(f"a shape is given for '{name}', but the model has no such input{suggest(name, known)}")
        tensor = known[name].type.tensor_type
        axes = tensor.shape.dim
        if tensor.HasField("shape") and len(axes) != len(shape):
            raise ModelError(f"the shape given for input '{name}' has {len(shape)} axes, the model says {len(axes)}")
        for i, (axis, size) in enumerate(zip(axes, shape)):
            if axis.HasField("dim_value") and axis.dim_value > 0 and axis.dim_value != size:
                raise ModelError(
                    f"the shape given for input '{name}' has {size} on axis {i}, the model {axis.dim_value}"
                )
    return {name: tuple(int(size) for size in shape) for name, shape in shapes.items()}


def check_keep(keep: str | Iterable[str]) -> tuple[str, ...]:
    """Return the regular expressions for names that must stay whole.

    Raises
        PipelineError: one of them is no regular expression.
    """
    patterns = (keep,) if isinstance(keep, str) else tuple(keep)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise PipelineError(f"keep: '{pattern}' is no regular expression: {error}") from None
    return patterns


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path], force: bool = False) -> None:
    """Refuse output paths that cannot be written, that are one file, or that would overwrite an input.

    Raises
        ModelError: with the path and what to do.
    """
    sources = [path.resolve() for path in inputs]
    seen: set[Path] = set()
    for path in outputs:
        if path is None:
            continue
        folder, target = path.parent, path.resolve()
        if target in seen:
            raise ModelError(f"two outputs would go to '{path}'")
        seen.add(target)
        if path.is_dir():
            raise ModelError(f"the output '{path}' is a folder; give a file name")
        if not folder.is_dir():
            raise ModelError(f"the folder '{folder}' of the output does not exist")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ModelError(f"the folder '{folder}' cannot be written to; choose another output")
        if not force and (target in sources or any(same_file(target, source) for source in sources)):
            raise ModelError(f"the output '{path}' is the input; choose another name, or --force to overwrite it")


def same_file(one: Path, other: Path) -> bool:
    """Tell whether two paths are one file, also through links."""
    return one.exists() and other.exists() and one.samefile(other)
