"""Weights of every element type and in every place where a file can keep them are cut, packed as they were."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from textmodels import model, weight

import prunepass
from prunepass.consts import tensor_bytes
from prunepass.errors import UnsupportedError

# ---- element types ---------------------------------------------------------------------------------------------------
TYPES = """float16 bfloat16 float64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz
int2 uint2 int4 uint4 int8 uint8 int16 uint16""".split()
STORED = [t for t in TYPES if t not in ("float16", "bfloat16", "float64")]
TEXT = "g (float[n, 16] x) => (float[n, 4] y) {{ c = {}  d = {}  h = MatMul(x, c)  r = Relu(h)  y = MatMul(r, d) }}"
SCALES = {"s": np.abs(weight(32)), "t": np.abs(weight(4))}


def stored(kind: str, *shape: int) -> np.ndarray:
    """Return noise in an element type, without negative numbers where it has none."""
    noise = 3 * weight(*shape)
    return (np.abs(noise) if kind.startswith("u") else noise).astype(np.dtype(getattr(ml_dtypes, kind, kind)))


def cut(source: onnx.ModelProto, verify: bool = True) -> dict[str, onnx.TensorProto]:
    """Take half of the units out, and return what is stored then."""
    result = prunepass.prune(source, ratio=0.5, scope="local", align=1, verify=verify)
    assert not verify or result.report["certificate"]["status"] == "passed"
    onnx.checker.check_model(result.model, full_check=True)
    return {t.name: t for t in result.model.graph.initializer}


def check_stored(left: dict[str, onnx.TensorProto], kind: str, **shapes: tuple[int, ...]) -> None:
    """Hold the tensors against the wanted shapes; those of the type under test are packed in that type."""
    assert {name: tuple(left[name].dims) for name in shapes} == shapes
    wanted = helper.np_dtype_to_tensor_dtype(stored(kind, 1).dtype)
    for name in {"w", "v"} & shapes.keys():
        assert left[name].data_type == wanted
        assert len(left[name].raw_data) == tensor_bytes(wanted, shapes[name])


@pytest.mark.parametrize("kind", TYPES)
def test_behind_a_cast(kind: str) -> None:
    text = TEXT.format("Cast<to = 1>(w)", "Cast<to = 1>(v)")
    left = cut(model(text, 25, 13, w=stored(kind, 16, 32), v=stored(kind, 32, 4)))
    if kind != "float64":  # which is folded: float32 takes less
        check_stored(left, kind, w=(16, 16), v=(16, 4))
    assert sum(np.prod(t.dims) for t in left.values()) == 16 * 16 + 16 * 4


@pytest.mark.parametrize("kind", STORED)
def test_behind_dequantize_linear(kind: str) -> None:
    text = TEXT.format("DequantizeLinear<axis = 1>(w, s, z)", "DequantizeLinear<axis = 1>(v, t)")
    zero = np.zeros(32, stored(kind, 1).dtype)
    left = cut(model(text, 25, 13, w=stored(kind, 16, 32), v=stored(kind, 32, 4), z=zero, **SCALES))
    check_stored(left, kind, w=(16, 16), v=(16, 4), s=(16,), z=(16,), t=(4,))


@pytest.mark.parametrize("kind", STORED)
def test_blocks_that_share_a_scale(kind: str) -> None:
    text = TEXT.format(
        "DequantizeLinear<axis = 0, block_size = 8>(w, s)", "DequantizeLinear<axis = 0, block_size = 8>(v, t, z)"
    )
    scales = {"s": np.abs(weight(2, 32)), "t": np.abs(weight(4, 4)), "z": np.zeros((4, 4), stored(kind, 1).dtype)}
    left = cut(model(text, 25, 13, w=stored(kind, 16, 32), v=stored(kind, 32, 4), **scales))
    check_stored(left, kind, w=(16, 16), v=(16, 4), s=(2, 16), t=(2, 4), z=(2, 4))


def test_the_last_block_may_be_short() -> None:
    text = TEXT.format("Identity(w)", "DequantizeLinear<axis = 0, block_size = 12>(v, t)")
    left = cut(model(text, 25, 13, w=weight(16, 32), v=stored("int4", 32, 4), t=np.abs(weight(3, 4))))
    rows = left["v"].dims[0]
    assert 8 <= rows <= 20
    check_stored(left, "int4", v=(rows, 4), t=(-(-rows // 12), 4))


def test_float64_throughout() -> None:
    text = "g (double[n, 16] x) => (double[n, 4] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"
    left = cut(model(text, w=stored("float64", 16, 32), v=stored("float64", 32, 4)))
    check_stored(left, "float64", w=(16, 16), v=(16, 4))


@pytest.mark.parametrize("through", ["Cast<to = 1>(w)", "DequantizeLinear<axis = 1>(w, s)"])
def test_float4_has_no_kernel_but_is_cut(through: str) -> None:
    text = TEXT.format(through, through.replace("w, s", "v, t").replace("(w)", "(v)"))
    source = model(text, 23, 11, w=stored("float4_e2m1fn", 16, 32), v=stored("float4_e2m1fn", 32, 4), **SCALES)
    with pytest.raises(UnsupportedError, match="no CPU kernel for these types"):
        cut(source)
    check_stored(cut(source, verify=False), "float4_e2m1fn", w=(16, 16), v=(16, 4))


# ---- places ----------------------------------------------------------------------------------------------------------
PLAIN = "g (float[n, 16] x) => (float[n, 4] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"
BRANCHES = """g (float[n, 16] x, bool b) => (float[n, 4] y) {
    y = If(b) <then_branch = one () => (float[n, 4] o) { h = MatMul(x, w)  r = Relu(h)  o = MatMul(r, v) },
               else_branch = two () => (float[n, 4] p) { h = MatMul(x, w)  r = Tanh(h)  p = MatMul(r, v) }>
}"""


def as_initializers() -> onnx.ModelProto:
    return model(PLAIN, w=weight(16, 32), v=weight(32, 4))


def as_inputs_with_defaults() -> onnx.ModelProto:
    made = as_initializers()
    for tensor in made.graph.initializer:
        made.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return made


def as_constants() -> onnx.ModelProto:
    made = as_initializers()
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in made.graph.initializer]
    del made.graph.initializer[:]
    nodes += list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto:
    """Keep the larger entries of a tensor."""
    dense = numpy_helper.to_array(tensor)
    at = np.flatnonzero(np.abs(dense) > 0.5)
    values = numpy_helper.from_array(dense.reshape(-1)[at], tensor.name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(at.astype(np.int64)), list(dense.shape))


def as_sparse_initializers() -> onnx.ModelProto:
    made = as_initializers()
    made.graph.sparse_initializer.extend(sparse(tensor) for tensor in made.graph.initializer)
    del made.graph.initializer[:]
    return made


def as_sparse_constants() -> onnx.ModelProto:
    made = as_sparse_initializers()
    nodes = [helper.make_node("Constant", [], [s.values.name], sparse_value=s) for s in made.graph.sparse_initializer]
    del made.graph.sparse_initializer[:]
    nodes += list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def in_subgraphs() -> onnx.ModelProto:
    made = model(BRANCHES)
    for number, attribute in enumerate(made.graph.node[0].attribute):
        for name, shape in (("w", (16, 32 - 8 * number)), ("v", (32 - 8 * number, 4))):
            attribute.g.initializer.append(numpy_helper.from_array(weight(*shape), name))
    return made


def as_constants_in_subgraphs() -> onnx.ModelProto:
    made = in_subgraphs()
    for attribute in made.graph.node[0].attribute:
        body = attribute.g
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in body.initializer]
        nodes += list(body.node)
        del body.initializer[:], body.node[:]
        body.node.extend(nodes)
    return made


def sparse_in_subgraphs() -> onnx.ModelProto:
    made = in_subgraphs()
    for attribute in made.graph.node[0].attribute:
        for tensor in attribute.g.initializer:
            attribute.g.sparse_initializer.append(sparse(tensor))
        del attribute.g.initializer[:]
    return made


PLACES: dict[Callable[[], onnx.ModelProto], int] = {
    as_initializers: 16 * 16 + 16 * 4,
    as_inputs_with_defaults: 16 * 16 + 16 * 4,
    as_constants: 16 * 16 + 16 * 4,
    as_sparse_initializers: 16 * 16 + 16 * 4,
    as_sparse_constants: 16 * 16 + 16 * 4,
    in_subgraphs: 20 * (16 + 12),
    as_constants_in_subgraphs: 20 * (16 + 12),
    sparse_in_subgraphs: 20 * (16 + 12),
}
"""Where weights are, and how many numbers are left of them."""


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_every_place(place: Callable[[], onnx.ModelProto]) -> None:
    source = place()
    onnx.checker.check_model(source)
    result = prunepass.prune(source, ratio=0.5, scope="local", align=1)
    assert result.report["certificate"]["status"] == "passed"
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report["before"]["params"] == 20 * (32 if len(source.graph.input) != 2 else 56)
    assert result.report["after"]["params"] == PLACES[place]
    assert [i.name for i in result.model.graph.input] == [i.name for i in source.graph.input]
