"""The shapes analysis agrees with what a run shows, binds dynamic axes sensibly, and never guesses."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from prunepass.binding import PROFILES
from prunepass.errors import ModelError
from prunepass.graph import Graph
from prunepass.inference import FOLLOWS, STAND_INS
from prunepass.manager import Context, Facts

IMAGE, SEQUENCE = PROFILES[0].image, PROFILES[0].sequence


def graph_of(text: str, opset: int = 17, **constants: np.ndarray) -> Graph:
    """Build a graph from the body `(inputs) => (outputs) { nodes }` of ONNX text; constants become initializers."""
    imports = f'"" : {opset}, "com.microsoft" : 1'
    model = parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> g {text}")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return Graph(model)


def shapes_of(graph: Graph, **context: Any) -> Any:
    return Facts(graph, Context(**context)).get("shapes")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


# Inference against runs: (body, opset, constants, values that only a run can tell)
AGREE: list[tuple[str, int, dict[str, np.ndarray], set[str]]] = [
    (
        "(float[N,3,16,16] x) => (y) { c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w) y = Relu(c) }",
        17,
        {"w": f32(4, 3, 3, 3)},
        set(),
    ),
    (  # the flatten that exporters compute at run time
        """(float[N,4,2,2] x) => (y) {
            s = Shape(x) i = Gather(s, zero) u = Unsqueeze(i, axis) t = Concat<axis=0>(u, rest) y = Reshape(x, t) }""",
        17,
        {"zero": np.array(0), "axis": ints(0), "rest": ints(-1)},
        set(),
    ),
    (  # a causal mask
        """(int64[N,S] ids) => (y) {
            s = Shape<start=1>(ids) z = Squeeze(s) r = Range(zero, z, one) c = Unsqueeze(r, axis)
            m = Less(c, r) f = Cast<to=1>(m) y = Expand(f, shape) }""",
        17,
        {"zero": np.array(0), "one": np.array(1), "axis": ints(1), "shape": ints(2, 1, 1)},
        set(),
    ),
    (  # Resize by computed sizes
        """(float[1,2,8,8] x, float[1,2,5,7] like) => (y) {
            s = Shape(like) y = Resize<mode="nearest">(x, none, none2, s) }""".replace("none, none2", '"", ""'),
        17,
        {},
        set(),
    ),
    (
        "(float[2,6] x) => (a, b) { a, b = Split(x, sizes) }".replace("Split(", "Split<axis=1>("),
        17,
        {"sizes": ints(1, 5)},
        set(),
    ),
    ("(float[2,6] x) => (v, i) { v, i = TopK(x, k) }", 17, {"k": ints(4)}, set()),
    ("(float[2,6] x) => (y) { p = Constant<value = int64[4] {0, 1, 0, 2}>() y = Pad(x, p) }", 17, {}, set()),
    ("(float[2,6] x) => (y) { s = Constant<value_ints = [3, 4]>() y = Tile(x, s) }", 17, {}, set()),
    (  # training BatchNormalization of old opsets
        "(float[2,3,4,4] x) => (y) { y, m, v = BatchNormalization<training_mode=1>(x, a, a, a, a) }",
        17,
        {"a": f32(3)},
        set(),
    ),
    (  # a branch whose condition is known
        """(float[1,3] x) => (y) {
            s = Shape(x) n = Gather(s, zero) c = Equal(n, one)
            y = If(c) <then_branch = t () => (float[3] p) { p = Squeeze(x, axis) },
                       else_branch = e () => (float[1,3] q) { q = Identity(x) }> }""",
        17,
        {"zero": np.array(0), "one": np.array(1), "axis": ints(0)},
        set(),
    ),
    (  # a branch that depends on data
        """(float[1,3] x, bool c) => (y) {
            y = If(c) <then_branch = t () => (float[3] p) { p = Squeeze(x, axis) },
                       else_branch = e () => (float[1,3] q) { q = Identity(x) }>
            z = Neg(y) }""",
        17,
        {"axis": ints(0)},
        {"y"},
    ),
    (  # data-dependent, and inference goes on behind it
        "(float[4,5] x) => (y) { n = NonZero(x) t = Transpose(n) g = GatherND(x, t) y = Unsqueeze(g, axis) }",
        17,
        {"axis": ints(0)},
        {"n"},
    ),
    (  # no schema, but known
        """(float[2,5,4] x) => (y) {
            a = com.microsoft.BiasGelu(x, b)
            y, m, v, s = com.microsoft.SkipLayerNormalization(a, x, b, b) z = Neg(s) }""",
        17,
        {"b": f32(4)},
        {"m", "v"},
    ),
    (
        """(float[1,2,6,6] x) => (y) { y = com.microsoft.FusedConv<activation="Relu", strides=[2,2]>(x, w) }""",
        17,
        {"w": f32(3, 2, 3, 3)},
        set(),
    ),
    (  # no schema and not known: the run also tells the element type
        "(float[2,4,4] x) => (y) { m = com.microsoft.Inverse(x) y = Softmax(m) }",
        17,
        {},
        {"m"},
    ),
    (
        "(float[2,6] x) => (y) { q = SplitToSequence<axis=1>(x, two) y = SequenceAt(q, zero) }",
        17,
        {"two": np.array(2), "zero": np.array(0)},
        set(),
    ),
]


def observed_run(graph: Graph) -> dict[str, np.ndarray]:
    """Run with 1 for every dynamic batch, 8 for other dynamic axes, every value an output."""
    facts = shapes_of(graph)
    names = [name for node in graph.nodes for name in node.outputs if name]
    model = graph.to_proto()
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    feeds = {}
    for info in graph.inputs:
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        feeds[info.name] = np.ones(facts.shape[info.name], dtype)
    return dict(zip(names, session.run(names, feeds)))


@pytest.mark.parametrize(("body", "opset", "constants", "observed"), AGREE)
def test_inference_agrees_with_a_run(
    body: str, opset: int, constants: dict[str, np.ndarray], observed: set[str]
) -> None:
    graph = graph_of(body, opset, **constants)
    facts = shapes_of(graph)
    assert facts.observed == observed
    for name, array in observed_run(graph).items():
        if isinstance(array, list):
            assert name not in facts.shape
            continue
        if not observed & {"n"}:  # its length depends on the numbers fed
            assert facts.shape[name] == array.shape, name
        assert facts.elem_type[name] == helper.np_dtype_to_tensor_dtype(array.dtype), name
        if name in facts.value:
            np.testing.assert_array_equal(facts.value[name], array)


def test_contents_that_depend_on_data_are_not_known() -> None:
    graph = graph_of("(float[4,5] x) => (y) { n = NonZero(x) s = Shape(n) t = Add(s, s) y = ConstantOfShape(t) }")
    facts = shapes_of(graph)
    assert facts.observed == {"n", "y"}
    assert set(facts.value) == set()
    assert facts.shape["s"] == (2,)


def test_constants_are_known_only_while_small() -> None:
    graph = graph_of("(float[1] x) => (y) { y = Add(x, b) z = Add(x, a) }", a=f32(4097), b=f32(4096))
    facts = shapes_of(graph)
    assert set(facts.value) == {"b"}
    assert facts.shape["a"] == (4097,)
    assert facts.elem_type["a"] == TensorProto.FLOAT


UNKNOWN_UNTIL_RUN = [
    "(float[2,4,4] x) => (y) { m = com.microsoft.Inverse(x) s = Shape(m) y = Neg(s) }",
    "(float[2,4,4] x) => (y) { m = com.microsoft.Inverse(x) r = Relu(m) s = Shape(r) y = Neg(s) }",
    """(float[1,3] x, bool c) => (y) {
        m = If(c) <then_branch = t () => (p) { p = Squeeze(x) }, else_branch = e () => (q) { q = Neg(x) }>
        s = Shape(m) y = Neg(s) }""",
]


@pytest.mark.parametrize("body", UNKNOWN_UNTIL_RUN)
def test_sizes_that_only_a_run_told_are_not_contents(body: str) -> None:
    facts = shapes_of(graph_of(body))
    assert "m" in facts.observed
    assert facts.shape["s"] == facts.shape["y"] == (len(facts.shape["m"]),)
    assert not {"s", "y"} & set(facts.value)


def test_a_large_result_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunepass.inference.evaluate", lambda node, operands: pytest.fail(f"computes {node}"))
    graph = graph_of("(float[1] x) => (y) { b = ConstantOfShape(s) y = Add(x, b) }", s=ints(65, 64))
    facts = shapes_of(graph)
    assert facts.shape["b"] == (65, 64)
    assert "b" not in facts.value


def test_a_result_that_turns_out_large_is_not_kept() -> None:
    facts = shapes_of(graph_of("(float[1] x) => (y) { n = NonZero(a) y = Neg(x) }", a=f32(64, 64)))
    assert facts.shape["n"] == (2, 4096)
    assert "n" not in facts.value
    assert facts.observed == frozenset()


def test_the_run_sees_the_given_data() -> None:
    graph = graph_of("(float[4,4] x) => (y) { n = NonZero(x) y = Neg(n) }")
    assert shapes_of(graph, data={"x": np.eye(4, dtype=np.float32)}).shape["n"] == (2, 4)


# Binding: (inputs, the shapes chosen)
BINDINGS = [
    ("float[N,3,H,W] x", {"x": (1, 3, IMAGE, IMAGE)}),
    ("float[batch,3,height,width] x", {"x": (1, 3, IMAGE, IMAGE)}),
    ("float[3,height,width] x", {"x": (3, IMAGE, IMAGE)}),
    ("float[s77,3,s53,s0] x", {"x": (1, 3, IMAGE, IMAGE)}),
    ("float[unk__1,unk__2,unk__3,3] x", {"x": (1, IMAGE, IMAGE, 3)}),
    ("float[?,?,?,?] x", {"x": (1, 3, IMAGE, IMAGE)}),
    ("float[n,1,d,h,w] x", {"x": (1, 1, PROFILES[0].volume, IMAGE, IMAGE)}),
    ("int64[batch,seq] x, int64[batch,seq] m", {"x": (1, SEQUENCE), "m": (1, SEQUENCE)}),
    ("float[seq,batch,40] x, float[2,batch,8] h", {"x": (SEQUENCE, 1, 40), "h": (2, 1, 8)}),
    ("int64[batch,past_sequence_length] a, int64[batch,q] b", {"a": (1, SEQUENCE), "b": (1, SEQUENCE)}),
    ("float[?,?] x, float[2,?,16] state", {"x": (1, SEQUENCE), "state": (2, 1, 16)}),
    ("int64[?,?] tokens", {"tokens": (1, SEQUENCE)}),
    ("float[b,16] x", {"x": (1, 16)}),
    ("float[2,16] x", {"x": (2, 16)}),
    ("float x", {"x": ()}),
]


@pytest.mark.parametrize(("inputs", "expected"), BINDINGS)
def test_dynamic_axes_get_sizes(inputs: str, expected: dict[str, tuple[int, ...]]) -> None:
    facts = shapes_of(graph_of(f"({inputs}) => (y) {{ y = Identity({inputs.split()[1].strip(',')}) }}"))
    assert {name: facts.shape[name] for name in expected} == expected


def test_binding_names_every_choice() -> None:
    graph = graph_of("(float[batch,3,?,32] x) => (y) { y = Relu(x) }")
    assert shapes_of(graph).binding == {"batch": 1, "x[2]": IMAGE}


def test_sums_of_axes_follow_their_parts() -> None:
    graph = graph_of("(float[n,past] a, float[n,q] b, float[n,c] m) => (y) { y = Relu(a) }")
    graph.inputs[2].type.tensor_type.shape.dim[1].dim_param = "past + q"
    assert shapes_of(graph).shape["m"] == (1, 2 * SEQUENCE)


def test_a_size_that_is_too_small_is_raised() -> None:
    graph = graph_of("(float[batch,1,samples] x) => (y) { y = Conv(x, w) }", w=f32(2, 1, 100))
    facts = shapes_of(graph)
    assert facts.binding["samples"] >= 100
    assert facts.shape["y"] == (1, 2, facts.binding["samples"] - 99)


def test_a_size_that_only_a_run_finds_too_small_is_raised() -> None:
    body = """(float[batch,1,samples] x, bool c) => (y) {
        y = If(c) <then_branch = t () => (p) { p = Conv(x, w) }, else_branch = e () => (q) { q = Neg(x) }> }"""
    facts = shapes_of(graph_of(body, w=f32(2, 1, 100)))
    assert facts.binding["samples"] >= 100
    assert facts.observed == {"y"}


def test_given_shapes_come_first() -> None:
    graph = graph_of("(float[batch,3,h,w] x, float[batch,h] z) => (y) { y = Relu(x) }")
    facts = shapes_of(graph, shapes={"x": (4, 3, 10, 12)}, data={"x": f32(2, 3, 7, 7)})
    assert facts.shape["x"] == (4, 3, 10, 12)
    assert facts.shape["z"] == (4, 10)
    assert facts.binding == {"batch": 4, "h": 10, "w": 12}


DATA = [
    ("float[batch,3,h,w] x", (2, 3, 7, 9), (2, 3, 7, 9)),
    ("float[batch,3,h,w] x", (100, 3, 7, 9), (1, 3, 7, 9)),  # a data set
    ("float[1,3,8,8] x", (100, 3, 8, 8), (1, 3, 8, 8)),
    ("float[1,3,8,8] x", (100, 1, 3, 8, 8), (1, 3, 8, 8)),
    ("float[seq,8] x", (100, 8), (100, 8)),
]


@pytest.mark.parametrize(("inputs", "data", "expected"), DATA)
def test_data_gives_shapes(inputs: str, data: tuple[int, ...], expected: tuple[int, ...]) -> None:
    graph = graph_of(f"({inputs}) => (y) {{ n = NonZero(x) y = Neg(n) }}")
    facts = shapes_of(graph, data={"x": f32(*data)})
    assert facts.shape["x"] == expected
    assert facts.shape["n"] == (len(expected), int(np.prod(expected)))


def test_a_data_set_whose_samples_do_not_fit_alone_is_taken_whole() -> None:
    graph = graph_of("(float[batch,4] x) => (y) { y = Add(x, b) z = MatMul(b, x) }", b=f32(100, 100))
    assert shapes_of(graph, data={"x": f32(100, 4)}).shape["x"] == (100, 4)


@pytest.mark.parametrize("shapes", [{"q": (1, 3)}, {"x": (1, 3, 3)}, {"x": (1, 4)}])
def test_a_given_shape_that_contradicts_the_model_is_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    graph = graph_of("(float[N,3] x) => (y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="shape"):
        shapes_of(graph, shapes=shapes)


def test_what_cannot_run_stays_unknown() -> None:
    graph = graph_of("(float[2,3] x) => (y) { a = Relu(x) b = my.domain.Op(a) y = Relu(b) }")
    facts = shapes_of(graph)
    assert facts.shape == {"x": (2, 3), "a": (2, 3)}
    assert facts.observed == frozenset()


def test_the_graph_is_left_alone() -> None:
    graph = graph_of("(float[2,3] x) => (y) { n = NonZero(x) y = Neg(n) }", unused=f32(3))
    before = graph.to_proto().SerializeToString(deterministic=True)
    shapes_of(graph)
    assert graph.to_proto().SerializeToString(deterministic=True) == before


def test_tables_name_operators_that_exist() -> None:
    contrib = {op for op in (*FOLLOWS, *STAND_INS) if op.startswith("com.microsoft::")}
    own = {"BatchNormalization", "SimplifiedLayerNormalization", "GroupNormalization", "MeanVarianceNormalization"}
    assert {op for op in FOLLOWS if op not in contrib} == own
    assert all(onnx.defs.has(op) for op in STAND_INS.values())
    assert importlib.import_module("prunepass.passes.analysis.shapes").Shapes.name == "shapes"
