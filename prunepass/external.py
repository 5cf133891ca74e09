"""Bring in the tensors that a model keeps in files of their own, without copying the large ones."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import onnx
from onnx import TensorProto

from prunepass.checks import check_type
from prunepass.errors import ModelError
from prunepass.graph import tensor_bytes, walk_nodes


class DataFiles:
    """Map the data files of one model, each once and read only; none may lie outside the model's folder."""

    def __init__(self, model: Path | None) -> None:
        self.maps: dict[Path, memoryview] = {}
        # a model that is itself a link (a download cache) may have its data beside the link's target
        self._folders = {model.parent.resolve(), model.resolve().parent} if model else set()
        self._given = model.parent if model else Path()

    def view(self, tensor: TensorProto) -> memoryview:
        """Return the bytes of a tensor as its file holds them."""
        where = f"tensor {tensor.name!r}"
        check_type(tensor, where)
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        if not self._folders:
            raise ModelError(f"{where} lies in a separate file ({location!r}); load the model by its path")
        data = self._map(location, where)
        want = tensor_bytes(tensor.data_type, tensor.dims)
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", want))
        except ValueError:
            raise ModelError(f"{where}: its place in {location!r} is not a number; export the model again") from None
        if tensor.data_type == TensorProto.STRING or length != want:
            raise ModelError(
                f"{where}: its dims need {want} bytes, {length} are in {location!r}; export the model again"
            )
        if offset < 0 or offset + length > len(data):
            raise ModelError(
                f"{where} ends at byte {offset + length} of {location!r}, of {len(data)}; fetch the data file again"
            )
        return data[offset : offset + length]

    def _map(self, location: str, where: str) -> memoryview:
        try:
            path = (self._given / location).resolve()
        except (OSError, ValueError, TypeError, RuntimeError):  # a null character, bytes, a loop of links
            raise ModelError(f"{where}: {location!r} is not a file name; export the model again") from None
        absolute = Path(location).is_absolute() or PureWindowsPath(location).drive
        if absolute or not any(path.is_relative_to(folder) for folder in self._folders):
            raise ModelError(
                f"{where}: its data file {location!r} is outside the model's folder; put it beside the model"
            )
        if path not in self.maps:
            if not path.is_file():
                raise ModelError(f"{where}: there is no data file {location!r} beside the model; put it there")
            try:
                with path.open("rb") as file:
                    size = path.stat().st_size
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            except OSError as error:
                raise ModelError(f"{where}: {location!r} cannot be read: {error.strerror}") from error
            self.maps[path] = memoryview(data)
        return self.maps[path]


def bring_in(model: onnx.ModelProto, files: DataFiles) -> dict[str, memoryview]:
    """Return the bytes of the external initializers by name; those in attributes and bodies are put in place."""
    found = {t.name: files.view(t) for t in model.graph.initializer if is_external(t)}
    for tensor in _inner_tensors(model.graph):
        if is_external(tensor):
            set_raw(tensor, files.view(tensor))
    return found


def is_external(tensor: TensorProto) -> bool:
    """Tell whether the data of a tensor lies in a file of its own."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def set_raw(tensor: TensorProto, data: memoryview) -> None:
    """Put the data into the tensor."""
    tensor.raw_data = data.tobytes()
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _inner_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield the tensors in attributes, and the initializers of bodies."""
    for node in walk_nodes(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for body in (attribute.g, *attribute.graphs):
                yield from body.initializer
