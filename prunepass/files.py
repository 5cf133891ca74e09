"""Load a model from a file or from memory, and save it: checked, without copies, never half-written."""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]
from onnx import TensorProto, helper

from prunepass import checks, wire
from prunepass.errors import ModelError, PruneError, UnsupportedError
from prunepass.external import DataFiles, bring_in, set_raw
from prunepass.graph import Graph

if TYPE_CHECKING:
    from prunepass.interop import SurgeonGraph

    Source: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto | Graph | SurgeonGraph

EMBEDDED_LIMIT = 2**31 - 2**20  # bytes; protobuf and onnxruntime end at 2 GiB
_LOOKS = (  # offset, first bytes, what the file is
    (0, b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint; export the network to ONNX first"),
    (0, b"\x89HDF", "an HDF5 file, perhaps from Keras; convert it to ONNX first"),
    (4, b"TFL3", "a TensorFlow Lite file; convert it to ONNX first"),
    (4, b"ORTM", "an onnxruntime .ort file; use the .onnx file that it was made from"),
)


def load(source: Source) -> Graph:
    """Load a model from a path, bytes, an onnx.ModelProto or a graphsurgeon graph, and check it.

    Large weights stay where they are: `graph.consts` views the memory-mapped file (read only) or the given bytes, so
    nothing may change the file in place while the graph is in use; replacing it, as `save` does, is fine.
    Local functions are inlined; nodes are put in topological order.

    Raises
        ModelError: it is no model, or not a valid one. UnsupportedError: it has operators that nobody knows.
    """
    if isinstance(source, Graph):
        return source
    if type(source).__module__.partition(".")[0] == "onnx_graphsurgeon":
        from prunepass import interop

        source = interop.from_graphsurgeon(source)
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    try:
        return _load(source, path)
    except (ModelError, UnsupportedError) as error:
        raise type(error)(f"{path.name}: {error}" if path else str(error)) from error.__cause__
    except UnicodeDecodeError as error:
        raise ModelError(f"{path or 'the model'}: a name is not valid UTF-8; the file is damaged") from error


def _load(source: Any, path: Path | None) -> Graph:
    if isinstance(source, onnx.ModelProto):
        model, raw = source, dict[str, memoryview]()
    else:
        model, raw = _parse(source if path is None else _read(path))
    checks.check_header(model)
    model = _inline_functions(model)
    data = DataFiles(path)
    raw.update(bring_in(model, data))
    try:
        graph = Graph(model)
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise ModelError(f"a sparse initializer cannot be decoded ({error}); export the model again") from error
    for tensor in model.graph.initializer:
        if tensor.name in raw:
            _attach(graph, tensor, raw[tensor.name])
        else:
            checks.check_size(tensor, f"tensor {tensor.name!r}")
    graph.external = bool(data.maps)
    graph.files = (*([path.resolve()] if path else ()), *data.maps)
    checks.check_graph(graph)
    _separate_names(graph)
    return graph


def _read(path: Path) -> Any:
    """Map a file into memory, or read what cannot be mapped."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size:
                try:
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except (OSError, ValueError):  # a pipe
                    pass
            return file.read()
    except IsADirectoryError:
        raise ModelError("this is a folder, not an ONNX file") from None
    except FileNotFoundError:
        raise ModelError(f"there is no such file in {path.parent}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _parse(data: Any) -> tuple[onnx.ModelProto, dict[str, memoryview]]:
    """Parse bytes; return the model without its large weights, and these by name."""
    if not len(data):
        raise ModelError("the file is empty; export the model again")
    try:
        model, raw = wire.parse(data)
    except (ValueError, DecodeError) as error:
        raise ModelError(_what_it_is(data) or f"not an ONNX model, or cut off ({error}); export it again") from error
    if not model.HasField("graph"):
        raise ModelError(_what_it_is(data) or "there is no graph in it: not an ONNX model, or cut off; export it again")
    tensors = model.graph.initializer
    names = {at: tensors[at].name for at in raw}
    checks.refuse_doubles("initializer", [t.name for t in tensors])
    return model, {names[at]: view for at, view in raw.items()}


def _what_it_is(data: Any) -> str:
    """Say what a file is that is no ONNX model, or nothing."""
    for offset, magic, what in _LOOKS:
        if data[offset : offset + len(magic)] == magic:
            return f"this is {what}"
    try:
        start = bytes(data[:512]).decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return "this is a text file, not an ONNX model" if all(c.isprintable() or c.isspace() for c in start) else ""


def _inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace calls of local functions by their nodes."""
    if not model.functions:
        return model
    from onnx import inliner

    for convert in (False, True):
        try:
            model = inliner.inline_local_functions(model, convert_version=convert)
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            raise ModelError(f"its local functions cannot be inlined ({first}); export it without functions") from error
        if not model.functions:
            return model
    left = model.functions[0]
    raise UnsupportedError(f"the local function {left.domain}::{left.name} cannot be inlined; export without functions")


def _attach(graph: Graph, tensor: TensorProto, data: memoryview) -> None:
    """Make the bytes of an initializer its array."""
    checks.check_size(tensor, f"tensor {tensor.name!r}", len(data))
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if len(data) == math.prod(tensor.dims) * dtype.itemsize:
        graph.consts[tensor.name] = np.frombuffer(data, dtype).reshape(tuple(tensor.dims))
    else:  # packed below one byte an element
        packed = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        set_raw(packed, data)
        graph.consts.put(tensor.name, packed)


def _separate_names(graph: Graph) -> None:
    """Rename nodes that share a name, which onnxruntime refuses."""
    seen = {""}
    for node in graph.nodes:
        name, count = node.name, 0
        while node.name and node.name in seen:
            count += 1
            node.name = f"{name}__{count}"
        seen.add(node.name)


def sha256_of(source: str | os.PathLike[str] | onnx.ModelProto | Graph) -> str:
    """Hash the bytes of a model file (not of its external data), or of what `save` would write."""
    if isinstance(source, Graph):
        pieces = wire.encode(source)
    elif isinstance(source, onnx.ModelProto):
        pieces = [source.SerializeToString(deterministic=True)]
    else:
        path = Path(source)
        try:
            pieces = [_read(path)]
        except ModelError as error:
            raise ModelError(f"{path.name}: {error}") from error
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def size_bytes(graph: Graph) -> int:
    """Return the bytes that `save` would write, without encoding the weights.

    Exact; with external data but for the length of the file name, which each tensor in the data file repeats.
    """
    return sum(len(piece) for _, pieces in _lay_out(graph, Path("model.onnx")) for piece in pieces)


def save(graph: Graph | onnx.ModelProto, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a model, all of it or nothing; the same model gives the same bytes.

    The weights go to `<name>.data` beside it where the model would pass 2 GB, or where they came from such a file.

    Raises
        PruneError: the file cannot be written, or is one that the model was read from (unless `force`).
    """
    graph = Graph(graph) if isinstance(graph, onnx.ModelProto) else graph
    try:
        files = _lay_out(graph, _resolved(Path(path)))
        for file, _ in files:
            _check_target(file, graph, force)
        _write(files)
    except OSError as error:
        raise PruneError(f"cannot write {path}: {error.strerror or error}; choose another output") from error


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise OSError(f"a loop of links: {error}") from error


def _lay_out(graph: Graph, path: Path) -> list[tuple[Path, list[Any]]]:
    """Return the files to write, in the order of writing, with their contents."""
    if not graph.external:
        pieces = wire.encode(graph)
        if sum(map(len, pieces)) <= EMBEDDED_LIMIT:
            return [(path, pieces)]
    data = wire.External(path.name + ".data")
    pieces = wire.encode(graph, data)
    if sum(map(len, pieces)) > EMBEDDED_LIMIT:
        raise UnsupportedError("the weights in attributes and bodies are over 2 GB; make them initializers")
    return [*([(path.with_name(data.location), data.pieces)] if data.pieces else []), (path, pieces)]


def _check_target(path: Path, graph: Graph, force: bool) -> None:
    if not path.parent.is_dir():
        raise PruneError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.is_symlink():  # it was resolved
        raise PruneError(f"cannot write {path}: it is a loop of links; choose another output")
    if not path.exists():
        return
    if not path.is_file():
        raise PruneError(f"cannot write {path}: it is not a regular file; choose another output")
    if not force and any(source.exists() and source.samefile(path) for source in graph.files):
        raise PruneError(f"cannot write {path}: the model was read from it; choose another output or use --force")


def _write(files: Sequence[tuple[Path, list[Any]]]) -> None:
    """Write every file under a temporary name, then put all of them in place."""
    moves: list[tuple[Path, Path]] = []
    try:
        for path, pieces in files:
            temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
            moves.append((temporary, path))
            with temporary.open("xb", buffering=2**20) as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        try:
            _put_in_place(moves)
        except BaseException:  # an interrupt; half of a pair must not stay
            left = [(old, new) for old, new in moves if old.exists()]
            if len(moves) > 1 and left:
                _put_in_place(left)
            raise
    finally:
        for temporary, _ in moves:
            temporary.unlink(missing_ok=True)


def _put_in_place(moves: list[tuple[Path, Path]]) -> None:
    if len(moves) > 1:  # an older model must not be left beside newer data
        moves[-1][1].unlink(missing_ok=True)
    for temporary, path in moves:
        temporary.replace(path)
    with contextlib.suppress(OSError):  # not every system can flush a folder; the files themselves are safe
        folder = os.open(moves[-1][1].parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
