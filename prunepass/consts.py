"""Hold constant tensors by name, decoded when they are first read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, MutableMapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from prunepass.errors import ModelError

_ELEMENT_BITS = {
    onnx.TensorProto.DataType.Value(name): bits
    for bits, names in {
        2: "UINT2 INT2",
        4: "UINT4 INT4 FLOAT4E2M1",
        6: "FLOAT6E2M3 FLOAT6E3M2",
        16: "FLOAT16 BFLOAT16 INT16 UINT16",
        32: "FLOAT INT32 UINT32",
        64: "DOUBLE INT64 UINT64 COMPLEX64",
        128: "COMPLEX128",
    }.items()
    for name in names.split()
    if name in onnx.TensorProto.DataType.keys()  # noqa: SIM118  (not a dict)
}

FLOAT_TYPES = frozenset(v for k, v in onnx.TensorProto.DataType.items() if k.startswith(("FLOAT", "BFLOAT", "DOUBLE")))
"""Element types of real numbers."""
QUANTISED_TYPES = frozenset(
    v for k, v in onnx.TensorProto.DataType.items() if k.removeprefix("U") in ("INT2", "INT4", "INT8", "INT16")
)
"""Element types of integers that stand for real numbers, where a tensor has rank 2 or more."""


def element_bits(elem_type: int) -> int:
    """Bits that an element takes in a file; 8 for strings."""
    return _ELEMENT_BITS.get(elem_type, 8)


def tensor_bytes(elem_type: int, shape: Iterable[int]) -> int:
    """Bytes that a tensor takes in a file; for strings their number."""
    return -(-math.prod(shape) * element_bits(elem_type) // 8)


class Consts(MutableMapping[str, np.ndarray]):
    """Map names to constant tensors, decoded when first read; the arrays are never changed in place.

    An entry is a TensorProto until it is read. A decoded tensor that was stored as raw bytes replaces its
    proto (writing it gives the same bytes); any other storage keeps the proto beside the array.
    """

    def __init__(self, tensors: Iterable[onnx.TensorProto] = ()) -> None:
        self._protos: dict[str, onnx.TensorProto] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._order: dict[str, None] = {}
        for tensor in tensors:
            self.put(tensor.name, tensor)

    def put(self, name: str, tensor: onnx.TensorProto) -> None:
        """Store an undecoded tensor under `name`."""
        self._arrays.pop(name, None)
        self._protos[name] = tensor
        self._order[name] = None

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays.get(name)
        if array is None:
            proto = self._protos[name]
            try:
                array = numpy_helper.to_array(proto)
            except (ValueError, TypeError, KeyError) as error:
                raise ModelError(f"tensor {name!r}: its data cannot be decoded ({error}); export it again") from error
            self._arrays[name] = array
            if proto.HasField("raw_data") and not proto.doc_string:
                del self._protos[name]
        return array

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        self._protos.pop(name, None)
        self._arrays[name] = value
        self._order[name] = None

    def __delitem__(self, name: str) -> None:
        del self._order[name]
        self._protos.pop(name, None)
        self._arrays.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, name: object) -> bool:
        return name in self._order

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without decoding it."""
        array = self._arrays.get(name)
        return tuple(self._protos[name].dims) if array is None else array.shape

    def elem_type(self, name: str) -> int:
        """Element type of a tensor as onnx.TensorProto numbers it, without decoding it."""
        array = self._arrays.get(name)
        if array is None:
            return self._protos[name].data_type
        return int(helper.np_dtype_to_tensor_dtype(array.dtype))

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in a file, without decoding it."""
        return tensor_bytes(self.elem_type(name), self.shape(name))

    def alias(self, name: str, source: str) -> None:
        """Give the tensor `source` a second, independent name; the data is shared until one is replaced."""
        self._order[name] = None
        if source in self._arrays:
            self._arrays[name] = self._arrays[source]
        else:
            self[source]  # decode once for both
            self._arrays[name] = self._arrays[source]

    def stored(self, name: str) -> np.ndarray | onnx.TensorProto:
        """Return a tensor as it is held: encoded until it is read, or the array."""
        proto = self._protos.get(name)
        return self._arrays[name] if proto is None else proto

    def proto(self, name: str) -> onnx.TensorProto:
        """Encode one tensor under its name."""
        proto = self._protos.get(name)
        if proto is None:
            return numpy_helper.from_array(self._arrays[name], name)
        if proto.name != name:
            renamed = onnx.TensorProto()
            renamed.CopyFrom(proto)
            renamed.name = name
            return renamed
        return proto

    def copy(self) -> Consts:
        """Copy the mapping; the data is shared."""
        twin = Consts()
        twin._protos, twin._arrays, twin._order = dict(self._protos), dict(self._arrays), dict(self._order)
        return twin


def densify(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """Return a sparse tensor as an array."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
