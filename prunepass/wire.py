"""Read and write ONNX protobufs without copying the weights.

A parser copies every weight once and a serialiser three times. Here the raw data of large initializers is cut out of
the bytes before they are parsed, and put back between the serialised pieces when they are written. The result is
byte for byte what protobuf itself writes for the same model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from prunepass.graph import Consts, Graph

LARGE = 1024  # bytes; smaller tensors are left to protobuf
ALIGNMENT = 64  # bytes, of every tensor in an external data file
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _TENSOR_RAW = 7, 1, 5, 9  # field numbers
_PLAIN_TENSOR_FIELDS = {1, 2, 8, _TENSOR_RAW, 14}  # dims, data_type, name, raw_data, data_location


@dataclass(frozen=True)
class _Field:
    number: int
    start: int  # of the tag
    value: int  # of the value
    stop: int


def parse(data: Any) -> tuple[onnx.ModelProto, dict[int, memoryview]]:
    """Parse a model; return it without the raw data of its large initializers, and that data by their position.

    Raises
        ValueError, google.protobuf.message.DecodeError: the data is no ModelProto.
    """
    view = memoryview(data)
    model = onnx.ModelProto()
    graphs = [f for f in _fields(view, 0, len(view)) if f.number == _MODEL_GRAPH]
    if len(graphs) != 1:  # none, or several that protobuf merges
        model.ParseFromString(view.tobytes())
        return model, {}
    graph = graphs[0]
    pieces, raw = _without_raw(view, graph)
    opening = _prefix(_MODEL_GRAPH, sum(map(len, pieces)))
    model.ParseFromString(b"".join((view[: graph.start], opening, *pieces, view[graph.stop :])))
    return model, raw


def _without_raw(view: memoryview, graph: _Field) -> tuple[list[Any], dict[int, memoryview]]:
    """Cut the raw data of large plain initializers out of a GraphProto."""
    pieces: list[Any] = []
    raw: dict[int, memoryview] = {}
    position, done = -1, graph.value
    for field in _fields(view, graph.value, graph.stop):
        if field.number != _GRAPH_INITIALIZER:
            continue
        position += 1
        if field.stop - field.value < LARGE:
            continue
        parts = list(_fields(view, field.value, field.stop))
        data = [p for p in parts if p.number == _TENSOR_RAW]
        outside = any(p.number == 14 and view[p.value] != onnx.TensorProto.DEFAULT for p in parts)
        if len(data) != 1 or outside or any(p.number not in _PLAIN_TENSOR_FIELDS for p in parts):
            continue
        before, after = view[field.value : data[0].start], view[data[0].stop : field.stop]
        pieces += [view[done : field.start], _prefix(_GRAPH_INITIALIZER, len(before) + len(after)), before, after]
        raw[position] = view[data[0].value : data[0].stop]
        done = field.stop
    pieces.append(view[done : graph.stop])
    return pieces, raw


def _fields(view: memoryview, pos: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a message that lies in view[pos:end]."""
    while pos < end:
        start = pos
        tag, pos = _varint(view, pos, end)
        kind = tag & 7
        value = pos
        if kind == 2:
            length, value = _varint(view, pos, end)
            pos = value + length
        elif kind == 0:
            _, pos = _varint(view, pos, end)
        elif kind in (1, 5):
            pos += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {start}")
        if pos > end:
            raise ValueError(f"the field at byte {start} is cut off")
        yield _Field(tag >> 3, start, value, pos)


def _varint(view: memoryview, pos: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while pos < end and shift < 64:
        byte = view[pos]
        pos += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, pos
        shift += 7
    raise ValueError(f"the number before byte {pos} is cut off")


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _prefix(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _encode_varint(number << 3 | 2) + _encode_varint(length)


class External:
    """Collect the tensors that go to a data file beside the model: where each lies, and its bytes."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.pieces: list[Any] = []
        self.size = 0

    def add(self, data: memoryview) -> int:
        """Append data and return its offset."""
        gap = -self.size % ALIGNMENT
        self.pieces += [bytes(gap), data]
        offset = self.size + gap
        self.size = offset + len(data)
        return offset


def encode(graph: Graph, external: External | None = None) -> list[Any]:
    """Return the bytes of the model in pieces, to be written one after the other; decoded tensors are not copied."""
    structure = graph.structure()
    before, after = _split(structure.graph, _GRAPH_INITIALIZER)
    body: list[Any] = []
    for node in graph.nodes:
        body += _message(_GRAPH_NODE, node.to_proto())
    body.append(before)
    for name in graph.consts:
        body += _tensor(graph.consts, name, external)
    body.append(after)
    structure.ClearField("graph")
    before, after = _split(structure, _MODEL_GRAPH)
    return [before, _prefix(_MODEL_GRAPH, sum(map(len, body))), *body, after]


def _split(message: Any, number: int) -> tuple[bytes, bytes]:
    """Serialise a message in two parts: the fields numbered below `number`, and the rest."""
    data = message.SerializeToString()
    cut = next((f.start for f in _fields(memoryview(data), 0, len(data)) if f.number >= number), len(data))
    return data[:cut], data[cut:]


def _message(number: int, message: Any) -> tuple[bytes, bytes]:
    data = message.SerializeToString()
    return _prefix(number, len(data)), data


def _tensor(consts: Consts, name: str, external: External | None) -> tuple[Any, ...]:
    """Encode one initializer, with its bytes in `external` where that is given and the tensor large enough."""
    kind = consts.elem_type(name)
    outside = external if consts.nbytes(name) >= LARGE and kind != onnx.TensorProto.STRING else None
    raw = _raw_data(consts, name, decode=outside is not None)
    if raw is None:
        return _message(_GRAPH_INITIALIZER, consts.proto(name))
    header = onnx.TensorProto(dims=consts.shape(name), data_type=kind, name=name)
    if outside is not None:
        place = {"location": outside.location, "offset": outside.add(raw), "length": len(raw)}
        for key, value in place.items():
            header.external_data.add(key=key, value=str(value))
        header.data_location = onnx.TensorProto.EXTERNAL
        return _message(_GRAPH_INITIALIZER, header)
    start, opening = header.SerializeToString(), _prefix(_TENSOR_RAW, len(raw))
    return _prefix(_GRAPH_INITIALIZER, len(start) + len(opening) + len(raw)), start, opening, raw


def _raw_data(consts: Consts, name: str, decode: bool) -> memoryview | None:
    """View a tensor as the bytes that a file holds; None where it is better left to protobuf."""
    array = consts[name] if decode else consts.stored(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind in "OUST":
        return None
    if math.prod(array.shape) * array.itemsize != consts.nbytes(name):  # packed below one byte an element
        return memoryview(numpy_helper.from_array(array).raw_data)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
