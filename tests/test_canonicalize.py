"""Canonicalize by rule: exact where it fires, silent where it must be. Golden files show what the result looks like."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textmodels import model, weight

from fixtures import load_graph
from fixtures.tiny import TINY
from prunepass import load
from prunepass.manager import Context, Facts, Pipeline
from prunepass.shuffle import shuffle
from prunepass.verify import certify


def canonical(source: onnx.ModelProto, **context) -> Facts:
    """Run the pass, and check that the result computes the same."""
    facts = Pipeline.parse("canonicalize").run(load(source), Context(**context))
    assert certify(facts.source, facts.cuts, facts.graph, facts.context).status == "passed"
    return facts


def ops(facts: Facts) -> list[str]:
    return [node.op for node in facts.graph.nodes]


@pytest.mark.parametrize("name", TINY)
def test_the_canonical_graph_computes_the_same(name: str) -> None:
    small = {"image": (1, 3, 16, 16)} if name in ("conv_chain", "pixel_shuffle") else {}
    facts = canonical(TINY[name]()[0], shapes=small)
    assert not {"Constant", "Identity"} & set(ops(facts))


# Channel shuffles


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
    """Draw a shape, a shape with more axes and the same size, and a permutation of those."""
    middle = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=6)))
    cuts = sorted(draw(st.sets(st.integers(1, len(middle) - 1), max_size=len(middle) - 2)))
    ends = [0, *cuts, len(middle)]
    before = tuple(math.prod(middle[a:b]) for a, b in itertools.pairwise(ends))
    if draw(st.booleans()):  # most permutations are none; prefer those that stay within one axis
        a, b = draw(st.sampled_from(list(itertools.pairwise(ends))))
        return before, middle, [*range(a), *draw(st.permutations(range(a, b))), *range(b, len(middle))]
    return before, middle, draw(st.permutations(range(len(middle))))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(reshapes())
def test_a_shuffle_is_what_reshape_and_transpose_do(case: tuple[tuple[int, ...], tuple[int, ...], list[int]]) -> None:
    before, middle, perm = case
    found = shuffle(before, middle, perm)
    x = np.arange(math.prod(before))
    turned = x.reshape(middle).transpose(perm)
    if found is None:
        extra = len(middle) - len(before)
        within = [
            a for a in range(len(before))
            if extra and [*perm[:a], *perm[a + extra + 1 :]] == [*range(a), *range(a + extra + 1, len(middle))]
            and (*middle[:a], math.prod(middle[a : a + extra + 1]), *middle[a + extra + 1 :]) == before
        ]  # fmt: skip
        assert not within
        return
    axis, order = found
    assert sorted(order) == list(range(before[axis]))
    np.testing.assert_array_equal(x.reshape(before).take(order, axis), turned.reshape(before))


def chain(shape: str, split: list[int], perm: list[int], merge: list[int], rest: str = "") -> onnx.ModelProto:
    """Return x -> Relu -> Reshape -> Transpose -> Reshape -> y."""
    turn = f"Transpose <perm = {perm}>" if perm else "Transpose"
    body = f"r = Relu(x)  a = Reshape(r, split)  b = {turn} (a)  y = Reshape(b, merge)  {rest}"
    more = ", float z" if rest else ""
    return model(
        f"g (float[{shape}] x) => (float[{shape}] y{more}) {{ {body} }}", split=np.array(split), merge=np.array(merge)
    )


FIRES = [
    ("two groups", "2, 6, 3, 1", [2, 2, 3, 3, 1], [0, 2, 1, 3, 4], [2, 6, 3, 1]),
    ("copied and inferred sizes", "2, 6, 3, 1", [0, 3, -1, 3, 1], [0, 2, 1, 3, 4], [0, -1, 3, 1]),
    ("the last axis", "2, 3, 8", [2, 3, 4, 2], [0, 1, 3, 2], [2, 3, 8]),
    ("the first axis", "8, 3", [4, 2, 3], [1, 0, 2], [8, 3]),
    ("three parts", "2, 12", [2, 2, 3, 2], [0, 3, 1, 2], [2, 12]),
    ("three parts, two of them move", "2, 12", [2, 2, 3, 2], [0, 2, 1, 3], [2, 12]),
    ("a dynamic batch", "n, 6, 3, 1", [0, 2, 3, 3, 1], [0, 2, 1, 3, 4], [0, 6, 3, 1]),
    ("a dynamic batch, inferred", "n, 6, 3, 1", [-1, 2, 3, 3, 1], [0, 2, 1, 3, 4], [-1, 6, 3, 1]),
    ("the default permutation", "6", [2, 3], [], [6]),
]
SILENT = [
    ("two axes change places", "2, 3, 4", [2, 3, 2, 2], [1, 0, 3, 2], [2, 3, 4]),
    ("a part leaves its axis", "2, 4, 4", [2, 2, 2, 4], [1, 0, 2, 3], [2, 4, 4]),
    ("windows", "1, 4, 4, 2", [1, 2, 2, 2, 2, 2], [0, 1, 3, 2, 4, 5], [1, 4, 4, 2]),
    ("another rank", "2, 6", [2, 2, 3], [0, 2, 1], [2, 6, 1]),
    ("parts of two axes", "4, 6", [2, 2, 3, 2], [0, 2, 1, 3], [4, 6]),
    ("the split takes from a neighbour", "4, 6", [2, 4, 3], [0, 2, 1], [4, 6]),
    ("only for this batch", "n, 8", [1, 2, 4], [0, 2, 1], [1, 8]),
    ("only for this length", "n, 4, length", [0, 2, 2, 8], [0, 2, 1, 3], [0, 4, 8]),
    ("the length is taken from the channels", "n, 4, length", [0, 2, -1, 8], [0, 2, 1, 3], [0, 4, -1]),
]


@pytest.mark.parametrize("case", FIRES, ids=[case[0] for case in FIRES])
def test_a_shuffle_becomes_a_gather(case: tuple[str, str, list[int], list[int], list[int]]) -> None:
    assert ops(canonical(chain(*case[1:]))) == ["Relu", "Gather"]


@pytest.mark.parametrize("case", SILENT, ids=[case[0] for case in SILENT])
def test_what_is_no_shuffle_stays(case: tuple[str, str, list[int], list[int], list[int]]) -> None:
    name, shape, split, perm, merge = case
    source = chain(shape, split, perm, merge)
    if len(merge) != len(shape.split(",")):
        del source.graph.output[0].type.tensor_type.shape.dim[:]
        source.graph.output[0].type.tensor_type.ClearField("shape")
    facts = Pipeline.parse("canonicalize").run(load(source))
    assert ops(facts) == ["Relu", "Reshape", "Transpose", "Reshape"], name


@pytest.mark.parametrize("value", ["a", "b"])
@pytest.mark.parametrize(
    "reader",
    ["z = ReduceSum <keepdims = 0> ({})", "s = Shape({})  f = Cast <to = 1> (s)  z = ReduceSum <keepdims = 0> (f)"],
)
def test_somebody_else_reads_the_middle(value: str, reader: str) -> None:
    source = chain("2, 6", [2, 2, 3], [0, 2, 1], [2, 6], reader.format(value))
    assert ops(Pipeline.parse("canonicalize").run(load(source))).count("Transpose") == (0 if "Shape" in reader else 1)


def test_a_branch_reads_the_middle() -> None:
    body = """r = Relu(x)  a = Reshape(r, split)  b = Transpose <perm = [0, 2, 1]> (a)  y = Reshape(b, merge)
        z = If (on) <then_branch = t () => (float[] u) { u = ReduceSum <keepdims = 0> (b) },
                     else_branch = e () => (float[] v) { v = ReduceMax <keepdims = 0> (x) }>"""
    graph = f"g (float[2, 6] x, bool on) => (float[2, 6] y, float z) {{ {body} }}"
    facts = canonical(model(graph, split=np.array([2, 2, 3]), merge=np.array([2, 6])))
    assert "Transpose" in ops(facts)


@pytest.mark.parametrize(
    ("name", "shuffles"),
    [("onnx_light_light_shufflenet__orig", 16), ("torchvision_shufflenet_v2_x0_5__dy19-dynb-hw", 16)],
)
def test_exporters_shuffles_are_found(name: str, shuffles: int) -> None:
    facts = canonical(load_graph(name))
    assert "Transpose" not in ops(facts)
    assert ops(facts).count("Gather") >= shuffles


def test_after_a_shuffle_any_channel_can_go() -> None:
    facts = canonical(TINY["channel_shuffle"]()[0])
    before = Facts(load(TINY["channel_shuffle"]()[0]))
    assert facts.get("coupling").n_units > before.get("coupling").n_units


# Sizes that the input shapes fix

SIZES = """s = Shape(x)  n = Gather(s, zero)  c = Gather(s, one)
    half = Div(c, two)  t = Concat <axis = 0> (n, two, half)  m = MatMul(x, w)  q = Reshape(m, t)"""
KNOWN = {"w": weight(6, 6), "zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}


RANGE = """first = Constant <value_int: int = 0> ()  end = Constant <value_int: int = 500> ()
    step = Constant <value_int: int = 1> ()  r = Range(first, end, step)  z = Add(r, half)"""
SUM = "f = ReduceSum <keepdims = 0> (x)  i = Cast <to = 7> (f)  k = Add(i, half)"


@pytest.mark.parametrize(
    ("shape", "outputs", "rest", "left"),
    [
        ("4, 6", "float[4, 2, 3] q", "", "MatMul Reshape"),
        ("n, 6", "float[n, 2, 3] q", "", "Shape Gather Gather Div Concat MatMul Reshape"),
        ("4, 6", "float[4, 2, 3] q, int64[3] t", "", "Concat MatMul Reshape"),
        ("4, 6", "float[4, 2, 3] p", "k = Cast <to = 1> (half)  p = Mul(q, k)", "MatMul Reshape Mul"),
        ("4, 6", "float[4, 2, 3] q, int64[1] k", SUM, "MatMul Reshape ReduceSum Cast Add"),
        ("4, 6", "float[4, 2, 3] q, int64[2, k] z", "r = Relu(x)  z = NonZero(r)", "MatMul Reshape Relu NonZero"),
        ("4, 6", "float[4, 2, 3] q, int64[2] z", "i = NonZero(x)  z = Shape(i)", "MatMul Reshape NonZero Shape"),
        ("4, 6", "float[4, 2, 3] q, int64[l] z", RANGE, "MatMul Reshape Add"),
    ],
    ids=["fixed", "dynamic", "an output", "a float", "a sum", "positions", "observed", "long"],
)
def test_sizes_become_constants_where_no_input_is_dynamic(shape: str, outputs: str, rest: str, left: str) -> None:
    facts = canonical(model(f"g (float[{shape}] x) => ({outputs}) {{ {SIZES} {rest} }}", **KNOWN))
    assert sorted(ops(facts)) == sorted(left.split())


def test_what_a_caller_may_feed_is_not_known() -> None:
    source = model("g (float[4, 6] x) => (float[4, 2, 3] q) { " + SIZES + " }", **KNOWN)
    value = onnx.helper.make_tensor_value_info("two", onnx.TensorProto.INT64, [1])
    source.graph.input.append(value)
    facts = canonical(source)
    assert sorted(ops(facts)) == ["Concat", "Div", "MatMul", "Reshape"]
    assert facts.graph.overridable == {"two"}


# The rest


def test_rules_that_feed_one_another_are_applied_until_nothing_changes() -> None:
    """A Constant behind an Identity is transposed, and what comes out is shared by two layers."""
    body = """c = Constant <value = float[2, 2] {1, 2, 3, 4}> ()  i = Identity(c)  t = Transpose <perm = [1, 0]> (i)
        h = MatMul(x, t)  b = Constant <value = float[1, 2] {1, 2}> ()  f = Flatten(b)  s = Squeeze(f, zero)
        k = Add(h, s)  m = MatMul(k, t)  y = Add(m, s)"""
    facts = canonical(model(f"g (float[n, 2] x) => (float[n, 2] y) {{ {body} }}", zero=np.array([0])))
    assert ops(facts) == ["MatMul", "Add", "MatMul", "Add"]
    assert sorted(facts.graph.consts) == ["s", "s__1", "t"]


def test_a_broken_constant_node_is_left_alone() -> None:
    """What cannot be evaluated is not folded; onnxruntime will say what is wrong with it."""
    source = model(
        "g (float[n, 2] x) => (float[n, 2] y) { b = Reshape(k, s)  y = Add(x, b) }", k=weight(2), s=np.array([3])
    )
    facts = Pipeline.parse("canonicalize").run(load(source))
    assert ops(facts) == ["Reshape", "Add"]


def test_dropout_that_is_switched_on_stays() -> None:
    source = model(
        "g (float[n, 2] x) => (float[n, 2] y) { a = Dropout(x, r)  b = Dropout <seed = 1> (a, r, on)  y = Neg(b) }",
        r=np.float32(0.5),
        on=np.array(True),
    )
    facts = Pipeline.parse("canonicalize").run(load(source))
    assert ops(facts) == ["Dropout", "Neg"]
    assert len(facts.graph.nodes[0].inputs) == 3
