"""Labels flow through the bodies of If, Loop and Scan: what they read from outside, what they hold, what they carry."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from control_cases import CASES, IF, LOOP, NESTED
from onnx import TensorProto, numpy_helper
from textmodels import model, weight

from prunepass import inspect
from prunepass.cost import CostModel
from prunepass.graph import Graph
from prunepass.manager import Context, Facts, Pipeline
from prunepass.runtime import session
from prunepass.verify import certify

MAIN = "canonicalize,select{ratio=0.5 align=1 scope=local},slice-channels,clean"


GROWING = """m (float[1,8] x) => (float[1,5] y) {
    turns = Constant<value_int = 3>()
    h = MatMul(x, w0)
    z = Loop(turns, , h) <body = b (int64 i, bool go, float[n,16] s) => (bool on, float[k,16] t)
    { on = Identity(go) t = Concat<axis = 0>(s, h) }>
    q = ReduceSum<keepdims = 1>(z, axes)
    y = MatMul(q, w1)
}"""
TWO_SHAPES = """m (float[1,8] x, bool c) => (float[2,6] y) {
    h = MatMul(x, w0)
    z = If(c) <then_branch = t () => (float[1,16] a) { a = Tanh(h) },
               else_branch = e () => (float[2,8] b) { b = Reshape(h, shape) }>
    q = Reshape(z, shape)
    y = MatMul(q, w1)
}"""


def data(made: onnx.ModelProto, condition: bool) -> dict[str, np.ndarray]:
    """Return one sample; every condition is the same."""
    rng, found = np.random.default_rng(0), {}
    for info in made.graph.input:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        flag = info.type.tensor_type.elem_type == TensorProto.BOOL
        found[info.name] = np.array(condition) if flag else rng.standard_normal(shape).astype(np.float32)
    return found


def pruned(made: onnx.ModelProto, text: str = MAIN, **context) -> Facts:
    """Run a pipeline, and check the certificate."""
    facts = Pipeline.parse(text).run(Graph(made), Context(**context))
    certify(facts.source, facts.cuts, facts.graph, facts.context).raise_if_failed()
    return facts


def canonical(made: onnx.ModelProto) -> Graph:
    return Pipeline.parse("canonicalize").run(Graph(made), Context()).graph


# ---- what goes, and what it computes -----------------------------------------------------------------------------
@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_half_of_everything_goes(name: str, condition: bool):
    case = CASES[name]
    made = case.model()
    result = pruned(made, data=data(made, condition)).graph
    assert {n: result.consts.shape(n) for n in result.consts if n in case.weights} == case.after
    proto = result.to_proto()
    assert [(o.name, o.type) for o in proto.graph.output] == [(o.name, o.type) for o in made.graph.output]
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_canonical_form_computes_the_same_and_stays(name: str, condition: bool):
    made = CASES[name].model()
    graph, fed = canonical(made), data(made, condition)
    expected, found = session(Graph(made)).run(fed), session(graph).run(fed)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)
    again = graph.to_proto()
    assert canonical(again).to_proto() == again


def test_removed_units_have_no_effect_on_a_zeroed_model():
    """Prune units that are zero in every weight: the pruned RNN computes what the whole one does."""
    made = LOOP.model()
    gone = np.arange(0, 16, 2)
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        for axis, size in enumerate(array.shape):
            if size == 16 and (tensor.name, axis) != ("w", 0):
                np.moveaxis(array, axis, 0)[gone] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    fed = data(made, True)
    expected, found = session(Graph(made)).run(fed), session(pruned(made).graph).run(fed)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)


def test_a_wrong_cut_in_a_branch_is_found_when_it_runs():
    made = IF.model()
    for condition, error in ((True, "wa"), (False, "wb")):
        for broken in ("wa", "wb"):
            facts = Pipeline.parse(MAIN).run(Graph(made), Context(data=data(made, condition)))
            facts.graph.consts[broken] = np.ascontiguousarray(facts.graph.consts[broken][::-1])
            status = certify(facts.source, facts.cuts, facts.graph, facts.context).status
            assert status == ("failed" if broken == error else "passed")


# ---- barriers ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "consts", "reason"),
    [
        (GROWING, {"w0": (8, 16), "w1": (16, 5), "axes": [0]}, "changes from turn to turn"),
        (TWO_SHAPES, {"w0": (8, 16), "w1": (8, 6), "shape": [2, 8]}, "branches return different shapes"),
    ],
)
def test_what_has_no_one_shape_is_a_barrier(text: str, consts: dict, reason: str):
    weights = {n: weight(*v) if isinstance(v, tuple) else np.array(v, np.int64) for n, v in consts.items()}
    facts = pruned(model(text, **weights))
    assert facts.graph.consts.shape("w0") == (8, 16)
    assert any(reason in barrier.reason for barrier in facts.first["coupling"][1].barriers)


def test_closed_bodies_are_barriers():
    facts = pruned(IF.model(), MAIN.replace("canonicalize,", ""))
    assert facts.graph.consts.shape("w0") == (8, 24)
    assert "was not opened" in facts.first["coupling"][1].barriers[0].reason


# ---- what the other parts see --------------------------------------------------------------------------------------
def test_macs_count_the_costlier_branch_and_every_turn():
    facts = Facts(canonical(IF.model()), Context())
    assert facts.get("cost").total.macs == 8 * 24 + max(24 * 16, 24 * 12 + 12 * 16) + 16 * 5
    facts = Facts(canonical(LOOP.model()), Context())
    model_ = CostModel(facts.graph, facts.get("shapes").shape, {})
    assert model_.total.macs == 7 * (8 * 16 + 16 * 16) + 16 * 5 + 7 * 16 * 6
    assert dict(zip((n.outputs[0] for n in facts.graph.walk()), model_.node_macs))["p"] == 7 * 16 * 16


def test_a_known_condition_puts_its_branch_in_the_place_of_the_if():
    made = IF.model()
    for flag, weights in ((True, {"wa"}), (False, {"wb", "wc"})):
        twin = onnx.ModelProto()
        twin.CopyFrom(made)
        twin.graph.input.pop()
        twin.graph.initializer.append(numpy_helper.from_array(np.array(flag), "c"))
        graph = canonical(twin)
        assert "If" not in {node.op for node in graph.nodes}
        assert {"w0", "w1", *weights} == set(graph.consts)
        fed = {"x": data(made, flag)["x"]}
        np.testing.assert_allclose(session(graph).run(fed)["y"], session(Graph(twin)).run(fed)["y"], rtol=1e-5)


def test_a_rank_that_the_file_fixes_decides_a_condition():
    text = """m (float[n,8] x) => (float[n,5] y) {
        h = MatMul(x, w0)
        s = Shape(h)
        rank = Size(s)
        two = Constant<value_int = 2>()
        c = Equal(rank, two)
        z = If(c) <then_branch = t () => (float[n,16] a) { a = Tanh(h) },
                   else_branch = e () => (float[k] b) { b = Squeeze(h) }>
        y = MatMul(z, w1)
    }"""
    facts = pruned(model(text, w0=weight(8, 16), w1=weight(16, 5)))
    assert [node.op for node in facts.graph.nodes] == ["MatMul", "Tanh", "MatMul"]
    assert facts.graph.consts.shape("w1") == (8, 5)


def test_bodies_lose_what_nobody_reads():
    text = IF.text.replace("a = Tanh(a1)", "unread = MatMul(r, wc2) a = Tanh(a1)")
    made = model(text, wc2=weight(24, 3), **{n: weight(*s) for n, s in IF.weights.items()})
    graph = canonical(made)
    assert "wc2" not in graph.consts
    assert "unread" not in graph.producers()


def test_inspect_sees_the_nodes_in_bodies():
    found = inspect(LOOP.model())
    assert [group.axes[0][0] for group in found.coupling.groups] == ["w"]
    assert "n" in found.coupling.factors
    assert found.coupling.tied == ()


def test_copies_do_not_share_bodies():
    graph = canonical(IF.model())
    before = graph.to_proto()
    twin = graph.copy()
    for node in twin.walk():
        node.name = f"{node.name}_changed"
        node.inputs = [f"{name}_changed" for name in node.inputs]
    assert graph.to_proto() == before


def test_uses_name_the_reading_node():
    graph = canonical(NESTED.model())
    assert [(node.op, node.outputs[0], at) for node, at in graph.uses()["r"]] == [("MatMul", "p1", 1)]
    assert [node.outputs[0] for node in graph.walk()][-3:] == ["d", "z", "y"]
