"""Every row of the value table computes what onnxruntime computes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from prunepass.graph import Node
from prunepass.rules.values import SHAPE_VALUES, VALUES, element_type, evaluate


class Case(NamedTuple):
    op: str
    operands: tuple[np.ndarray | None, ...]
    attrs: dict[str, Any]
    opset: int = 17
    outputs: int = 1
    reference: bool = False  # onnxruntime has no kernel for it


rng = np.random.default_rng(0)
F = rng.standard_normal((2, 3, 4)).astype(np.float32)
G = rng.standard_normal((3, 1)).astype(np.float32)
P = np.abs(F) + np.float32(0.5)
D = F.astype(np.float64)
I = rng.integers(-9, 10, (2, 3, 4))  # noqa: E741
J = np.array([[3], [-2], [5]])
I32 = I.astype(np.int32)
B = I > 0
C = np.array([[True], [False], [True]])
NAN = np.array([1.0, np.nan, -np.inf], np.float32)
EMPTY = np.zeros((2, 0, 3), np.float32)
TIES = np.array([[3, 1, 3, 2], [2, 2, 1, 5]], np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def int0(value: int) -> np.ndarray:
    return np.array(value, np.int64)


def float0(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def case(
    op: str, *operands: np.ndarray | None, opset: int = 17, outputs: int = 1, reference: bool = False, **attrs: Any
) -> Case:
    return Case(op, operands, attrs, opset, outputs, reference)


def families() -> list[Case]:
    cases = [case(op, x) for op in ("Abs", "Neg", "Sign") for x in (F, I, I32, D)]
    cases += [
        case(op, F)
        for op in ("Exp", "Sin", "Cos", "Tan", "Floor", "Ceil", "Tanh", "Sigmoid", "Erf", "Relu", "Reciprocal")
    ]
    cases += [case(op, P) for op in ("Sqrt", "Log")]
    cases += [case(op, D) for op in ("Exp", "Sigmoid", "Relu", "Sqrt", "Log", "Floor")]
    cases += [case(op, np.array(2.5, np.float32)) for op in ("Neg", "Sqrt", "Ceil", "Reciprocal", "Erf")]
    cases += [case(op, F.astype(np.float16), reference=True) for op in ("Sigmoid", "Erf")]
    cases += [case(op, F, G) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean")]
    cases += [case(op, I, J) for op in ("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max")]
    cases += [case(op, I32, np.array(3, np.int32)) for op in ("Add", "Sub", "Mul", "Div", "Mod")]
    cases += [case(op, F, G, F) for op in ("Min", "Max", "Sum", "Mean")]
    cases += [case(op, F) for op in ("Min", "Max", "Sum", "Mean")]
    cases += [
        case(op, *xs)
        for op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
        for xs in ((I, J), (F, G), (I, int0(3)))
    ]
    cases += [case(op, B, C) for op in ("And", "Or", "Xor", "Equal")]
    for op in (
        "ReduceSum",
        "ReduceProd",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
    ):
        last = 13 if op == "ReduceSum" else 18
        cases += [
            case(op, F, opset=11),
            case(op, F, opset=11, axes=[0, -1], keepdims=0),
            case(op, F, opset=11, axes=[1]),
        ]
        cases += [
            case(op, F, ints(1, -1), opset=last),
            case(op, F, ints(), opset=last),
            case(op, F, opset=last, keepdims=0),
        ]
        cases += [case(op, I32, ints(2), opset=last, keepdims=0)]
    cases += [
        case("ReduceSum", F, ints(), noop_with_empty_axes=1),
        case("ReduceSum", I, ints(0)),
        case("ReduceProd", I, axes=[0]),
    ]
    cases += [
        case("ReduceMean", I32, axes=[2]),
        case("ReduceMax", I, axes=[0]),
    ]
    cases += [case(op, x, ints(1), opset=20) for op in ("ReduceMax", "ReduceMin") for x in (F, B)]
    cases += [
        case(op, x, ints(1), opset=20, reference=True)
        for op in ("ReduceMax", "ReduceMin")
        for x in (EMPTY, EMPTY.astype(np.int32))
    ]
    cases += [case("ReduceSum", EMPTY, ints(1)), case("ReduceProd", EMPTY, axes=[1])]
    for op in ("ArgMax", "ArgMin"):
        cases += [
            case(op, TIES),
            case(op, F, axis=-1, keepdims=0),
            case(op, TIES, axis=1, select_last_index=1),
            case(op, I32, axis=1),
        ]
    return cases


ARITHMETIC = [
    case("Round", np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.3], np.float32)),
    case("Div", ints(7, -7, 7, -7, 0, -8), ints(2, 2, -2, -2, 5, 3)),
    case("Div", np.array([7, 9], np.uint8), np.array([2, 10], np.uint8)),
    case("Mod", ints(7, -7, 7, -7), ints(3, 3, -3, -3), fmod=1),
    case("Mod", F, G, fmod=1),
    case("Pow", F, np.array(2, np.int64)),
    case("Pow", P, G),
    case("Pow", I, ints(2)),
    case("Pow", I32, np.array(2.0, np.float32)),
    case("Pow", ints(2, 4, 9), np.array(0.5, np.float32)),
    case("Pow", ints(1, 2, -2), ints(-1, -1, -1)),
    case("Pow", F, np.array(3.0, np.float64)),
    case("Clip", F, opset=6, min=-0.5, max=0.5),
    case("Clip", F, opset=7, max=0.25),
    case("Clip", F, float0(-0.5), float0(0.5)),
    case("Clip", F, None, float0(0.5)),
    case("Clip", I, int0(-2), None),
    case("Clip", I, int0(5), int0(2)),
    case("Clip", F),
    case("Min", I, J, int0(2)),
    case("IsNaN", NAN),
    case("Not", B),
    case("Where", C, F, G),
    case("Where", B, I, int0(0)),
    case("BitShift", np.array([1, 2, 200], np.uint8), np.array([1, 3, 1], np.uint8), direction="LEFT"),
    case("BitShift", np.array([1, 2, 200], np.uint32), np.array([1, 3, 1], np.uint32), direction="RIGHT"),
    case("BitwiseAnd", I32, np.array(6, np.int32), opset=18),
    case("BitwiseOr", I32, np.array(6, np.int32), opset=18),
    case("BitwiseXor", I32, np.array(6, np.int32), opset=18),
    case("BitwiseNot", I32, opset=18),
    case("MatMul", F, F.transpose(0, 2, 1).copy()),
    case("MatMul", F[0, 0], F[0].T.copy()),
    case("MatMul", F[0, 0], F[0, 1]),
    case("MatMul", I32, np.ones((4, 2), np.int32)),
    case("Gemm", F[0], F[1].T.copy()),
    case("Gemm", F[0], F[1], G.T.copy(), alpha=0.5, beta=2.0, transB=1),
    case("Gemm", F[0], F[1], F[0, 0], alpha=0.5, transA=1),
    case("Einsum", F, F[0], equation="abc, dc -> abd"),
    case("Einsum", F[0, 0], F[1, 1], equation="i,j->ij"),
    case("CumSum", F, int0(1)),
    case("CumSum", I, int0(-1), exclusive=1),
    case("CumSum", I32, ints(0), reverse=1, exclusive=1),
    case("TopK", F, opset=9, outputs=2, k=2),
    case("TopK", TIES, ints(3), outputs=2, axis=1),
    case("TopK", TIES, ints(3), outputs=2, axis=1, largest=0),
    case("TopK", I, ints(1), outputs=2, axis=0),
    case("Dropout", F, opset=7, ratio=0.3),
    case("Dropout", F, float0(0.3), np.array(False), outputs=2),
]

CONSTANTS = [
    case("Constant", value=numpy_helper.from_array(I)),
    case("Constant", value=numpy_helper.from_array(np.array(3.5))),
    case("Constant", value_int=4),
    case("Constant", value_ints=[4, 5]),
    case("Constant", value_float=0.1),
    case("Constant", value_floats=[0.1, 2.0]),
    case("Constant", value_string="a", reference=True),
    case("Constant", value_strings=["a", "bc"], reference=True),
    case("ConstantOfShape", ints(2, 3)),
    case("ConstantOfShape", ints(2, 0), value=numpy_helper.from_array(ints(7))),
    case("ConstantOfShape", ints(), value=numpy_helper.from_array(np.array([True]))),
    case("EyeLike", F[0]),
    case("EyeLike", I32[0], k=-1, dtype=TensorProto.DOUBLE),
    case("Range", int0(2), int0(11), int0(3)),
    case("Range", int0(5), int0(-5), int0(-2)),
    case("Range", int0(5), int0(2), int0(1)),
    case("Range", *(np.array(v, np.float32) for v in (0.1, 1.0, 0.3))),
    case("Range", *(np.array(v, np.int32) for v in (0, 4, 1))),
    case("OneHot", ints(0, 2, -1, 9), int0(3), np.array([0, 1], np.float32)),
    case("OneHot", np.array([[1, 0]]), ints(3), np.array([-1, 5]), axis=0),
    case("OneHot", np.array([[1, 0]]), ints(3), np.array([-1, 5]), axis=1),
    case("NonZero", B),
    case("NonZero", I[0]),
    case("NonZero", np.array(3.0, np.float32)),
    case("Trilu", F),
    case("Trilu", F, int0(1), upper=0),
    case("Trilu", I, int0(-2)),
    case("Trilu", B, int0(1), reference=True),
    case("Identity", F),
    case("Cast", F, to=TensorProto.INT64),
    case("Cast", F * 3, to=TensorProto.INT32),
    case("Cast", F, to=TensorProto.BOOL),
    case("Cast", B, to=TensorProto.FLOAT),
    case("Cast", I, to=TensorProto.FLOAT16),
    case("Cast", I, to=TensorProto.DOUBLE),
    case("Cast", F, to=TensorProto.BFLOAT16, reference=True),
    case("Cast", F * 1000, to=TensorProto.FLOAT8E4M3FN, opset=19, reference=True),
    case("Cast", I, to=TensorProto.INT8),
    case("CastLike", I, F),
    case("CastLike", F, B),
]

INDEXING = [
    case("Gather", F, ints(2, 0, -1), axis=1),
    case("Gather", ints(4, 5, 6), int0(-1)),
    case("Gather", I, np.array([[0], [1]]), axis=-1),
    case("Gather", I, np.array([], np.int64), axis=1),
    case("GatherElements", F, np.array([[[0, -1], [1, 0]]]), axis=2),
    case("GatherElements", I[0], np.array([[2, 0, 1, -1]]), axis=0),
    case("GatherND", F, np.array([[0, 1], [1, -1]])),
    case("GatherND", F, np.array([[[0, 1, 2]], [[1, 2, 3]]])),
    case("GatherND", F, np.array([[1], [0]]), batch_dims=1),
    case("GatherND", F, np.array([[[1, 0], [2, 1]], [[0, 3], [0, 0]]]), batch_dims=1),
    case("GatherND", F, rng.integers(0, 4, (2, 3, 2, 1)), batch_dims=2),
    case("Scatter", F[0], np.array([[1, 0, 2, 0]]), np.ones((1, 4), np.float32), opset=10, axis=0),
    case("ScatterElements", F[0], np.array([[1, -1], [0, 2]]), np.ones((2, 2), np.float32), axis=1),
    case(
        "ScatterElements",
        F[0],
        np.array([[1, 1], [0, 2]]),
        np.full((2, 2), 2, np.float32),
        axis=1,
        opset=16,
        reduction="add",
    ),
    case(
        "ScatterElements", F[0], np.array([[1, 1], [0, 2]]), np.full((2, 2), 2, np.float32), opset=18, reduction="max"
    ),
    case("ScatterND", F, np.array([[0, 1], [1, -1]]), np.ones((2, 4), np.float32)),
    case("ScatterND", I, np.array([[1]]), np.ones((1, 3, 4), np.int64)),
    case("ScatterND", I, np.array([[0, 1, 2], [0, 1, 2]]), ints(5, 6), opset=16, reduction="add"),
    case("ScatterND", I, np.array([[0, 1, 2], [0, 1, 2]]), ints(5, 6), opset=16, reduction="mul"),
    case("Slice", F, opset=9, starts=[0, 1], ends=[1, 9999], axes=[0, -1]),
    case("Slice", F, opset=7, starts=[1, -2], ends=[2, -1]),
    case("Slice", F, ints(1), ints(2**63 - 1), ints(2)),
    case("Slice", F, ints(-1, 0), ints(-(2**63), 2), ints(1, 0), ints(-1, 1)),
    case("Slice", F, ints(-99), ints(-(2**63)), ints(2), ints(-1)),
    case("Slice", F, ints(9), ints(0), ints(2), ints(-2)),
    case("Slice", F, ints(0, 1), ints(2, 3)),
    case("Slice", I, np.array([3], np.int32), np.array([1], np.int32), np.array([-1], np.int32)),
    case("Slice", F, ints(0), ints(4), ints(2), ints(3)),
]

LAYOUT = [
    case("Concat", F, F, axis=1),
    case("Concat", ints(1), ints(2, 3), ints(), axis=-1),
    case("Split", F, opset=11, outputs=3, axis=1),
    case("Split", F, opset=11, outputs=2, axis=-1, split=[1, 3]),
    case("Split", F, ints(3, 1), outputs=2, axis=2),
    case("Split", F, outputs=2, axis=2),
    case("Split", F, outputs=2, opset=18, axis=1, num_outputs=2),
    case("Reshape", F, ints(0, -1)),
    case("Reshape", F, ints(4, 0, 2)),
    case("Reshape", F, ints(-1)),
    case("Reshape", EMPTY, ints(0, 5), allowzero=1),
    case("Reshape", EMPTY, ints(3, 0, 2)),
    case("Reshape", int0(4), ints(1, 1)),
    case("Reshape", ints(4), ints()),
    case("Flatten", F),
    case("Flatten", F, axis=0),
    case("Flatten", F, axis=3),
    case("Flatten", F, axis=-1),
    case("Flatten", EMPTY),
    case("Squeeze", F[:1], opset=11),
    case("Squeeze", F[:1, :, :1], opset=11, axes=[-1]),
    case("Squeeze", F[:1, :, :1], ints(0, 2)),
    case("Squeeze", ints(4)),
    case("Unsqueeze", F, opset=11, axes=[0, -1]),
    case("Unsqueeze", F, ints(1, 3)),
    case("Unsqueeze", int0(3), ints(0)),
    case("Transpose", F),
    case("Transpose", I, perm=[1, 0, 2]),
    case("Expand", G, ints(2, 1, 4)),
    case("Expand", F, ints(1)),
    case("Expand", int0(3), ints(2, 2)),
    case("Tile", F, ints(2, 1, 3)),
    case("Tile", I[0], ints(1, 0)),
    case("Pad", F, opset=7, pads=[0, 1, 0, 2, 0, 1], value=1.5),
    case("Pad", F, ints(0, 0, 1, 1, 0, 2)),
    case("Pad", F, ints(0, 0, -1, 1, 0, 2), float0(9)),
    case("Pad", I, ints(1, 2), int0(4), ints(-2), opset=18),
    case("Pad", F, ints(0, 1, 2, 0, 1, 1), mode="reflect"),
    case("Pad", F, ints(0, 1, 2, 0, 1, 1), mode="edge"),
    case("Pad", F, ints(0, 1, 2, 0, 1, 1), opset=19, mode="wrap"),
]

NORMS = [
    case("BatchNormalization", F, *(P[0, :, i] for i in range(4)), epsilon=0.1),
    case("BatchNormalization", F, *(P[0, :, i] for i in range(4)), outputs=3, training_mode=1),
    case("LayerNormalization", F, P[0, 0], F[0, 1]),
    case("LayerNormalization", F, P[0], axis=1, epsilon=0.1),
    *(case(op, F, opset=opset, axis=axis) for op in ("Softmax", "LogSoftmax") for opset, axis in ((11, 2), (17, -1))),
]
CASES = [*families(), *ARITHMETIC, *CONSTANTS, *INDEXING, *LAYOUT, *NORMS]


def expected(case: Case, node: onnx.NodeProto) -> list[np.ndarray]:
    """Run a one-node model in onnxruntime, or in the onnx reference where the case says so."""
    feeds = {name: x for name, x in zip(node.input, case.operands, strict=True) if x is not None}
    inputs = [helper.make_tensor_value_info(name, element_type(x), x.shape) for name, x in feeds.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "g", inputs, outputs)
    imports = [helper.make_opsetid("", case.opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    if case.reference:
        return list(ReferenceEvaluator(model).run(None, feeds))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return list(
        onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)
    )


def title(case: Case) -> str:
    operands = ("none" if x is None else f"{x.dtype}{list(x.shape)}" for x in case.operands)
    return "-".join((case.op, str(case.opset), *operands))


@pytest.mark.parametrize("case", CASES, ids=title)
def test_row_equals_the_runtime(case: Case) -> None:
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(case.operands)]
    node = helper.make_node(case.op, names, [f"y{i}" for i in range(case.outputs)], **case.attrs)
    found = evaluate(Node(node), case.operands)
    assert found is not None
    wanted = expected(case, node)
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert isinstance(got, np.ndarray)
        assert got.shape == want.shape
        if got.dtype == object or want.dtype.kind in "OU":
            assert got.tolist() == want.tolist()
            continue
        assert got.dtype == want.dtype
        if got.dtype.kind in "fV":
            np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("indices", [ints(1, 5), np.array([[0, 1], [1, 2]])])
def test_sparse_constant_becomes_dense(indices: np.ndarray) -> None:
    values = numpy_helper.from_array(ints(7, 8), "v")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "i"), [2, 3])
    found = evaluate(Node(helper.make_node("Constant", [], ["y"], sparse_value=sparse)), [])
    assert found is not None
    np.testing.assert_array_equal(found[0], np.array([[0, 7, 0], [0, 0, 8]]))


def test_every_row_has_a_case() -> None:
    assert set(VALUES) == {case.op for case in CASES}


def test_every_row_names_an_operator() -> None:
    for op in (*VALUES, *SHAPE_VALUES):
        assert onnx.defs.has(op), op


SHAPES = [
    ("Shape", {}, (2, 3, 4), ints(2, 3, 4)),
    ("Shape", {"start": 1}, (2, 3, 4), ints(3, 4)),
    ("Shape", {"start": -2, "end": -1}, (2, 3, 4), ints(3)),
    ("Shape", {"start": -9, "end": 9}, (2, 3, 4), ints(2, 3, 4)),
    ("Shape", {"start": 2, "end": 1}, (2, 3, 4), ints()),
    ("Shape", {}, (), ints()),
    ("Size", {}, (2, 3, 4), int0(24)),
    ("Size", {}, (), int0(1)),
    ("Size", {}, (2, 0), int0(0)),
]


@pytest.mark.parametrize(("op", "attrs", "shape", "want"), SHAPES)
def test_shape_row_equals_the_runtime(op: str, attrs: dict[str, int], shape: tuple[int, ...], want: np.ndarray) -> None:
    node = helper.make_node(op, ["x0"], ["y0"], **attrs)
    (got,) = SHAPE_VALUES[op](Node(node), shape)
    (run,) = expected(Case(op, (np.zeros(shape, np.float32),), attrs), node)
    assert got.dtype == run.dtype
    np.testing.assert_array_equal(got, run)
    np.testing.assert_array_equal(got, want)


REFUSED = [
    case("Div", ints(1), ints(0)),
    case("Gather", ints(1), ints(4)),
    case("Reshape", F, ints(5, 5)),
    case("Dropout", F, float0(0.5), np.array(True)),
    case("Cast", F, to=TensorProto.STRING),
    case("Conv", F, F),
]


@pytest.mark.parametrize("case", REFUSED, ids=title)
def test_invalid_operands_have_no_value(case: Case) -> None:
    names = [f"x{i}" for i in range(len(case.operands))]
    assert evaluate(Node(helper.make_node(case.op, names, ["y"], **case.attrs)), case.operands) is None
