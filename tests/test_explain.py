"""What is said about a coupling: what groups weigh, what is exact, why axes stay, on graphs with one barrier each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import DIGITS, ROOT
from textmodels import model, weight

import prunepass
from fixtures.tiny import TINY
from prunepass.cli import inspection, main
from prunepass.explain import Explanation
from prunepass.pinned import Holder, PinnedAxis
from prunepass.record import MEETS_PINNED
from prunepass.rules import DIMS

OUTPUT = "a graph output"
BLOCKS = "its blocks cannot all lose the same number of indices"
MEETS = "meets an axis that cannot shrink"


@pytest.fixture
def _no_elu() -> Iterator[None]:
    """Let Elu be an operator without a rule."""
    row = dict.pop(DIMS, "Elu")
    yield
    DIMS["Elu"] = row


def explained(found: onnx.ModelProto) -> Explanation:
    """Explain a model."""
    return prunepass.inspect(found).explanation


def axis_of(found: Explanation, tensor: str) -> PinnedAxis:
    """Return the only pinned axis of a tensor."""
    (axis,) = (a for a in found.axes if a.tensor == tensor)
    return axis


def holder_of(found: Explanation, op: str) -> Holder:
    """Return the only reason of an operator."""
    (holder,) = (h for h in found.holders if h.op == op)
    return holder


# ---- why axes stay ---------------------------------------------------------------------------------------------------
CONV = """g (float[1,3,8,8] x) => (float[1,4,8,8] y{more}) {{
    c = Conv <pads=[1,1,1,1]> (x, w1, b1) r = Relu(c) {rest} }}"""
IMAGES = {"w1": weight(16, 3, 3, 3), "b1": weight(16), "w2": weight(4, 16, 1, 1)}
HELD = 16 * 27 + 16  # parameters of w1 and b1
READ = HELD + 4 * 16  # and those of w2, which reads them
MACS = 64 * 16 * 27
MACS_READ = MACS + 64 * 4 * 16


def images(rest: str, more: str = "", **weights: np.ndarray) -> onnx.ModelProto:
    """Return x -> Conv w1 -> Relu -> rest."""
    return model(CONV.format(rest=rest, more=more), **{**IMAGES, **weights})


@pytest.mark.usefixtures("_no_elu")
def test_an_operator_without_a_rule() -> None:
    found = explained(images("e = Elu(r) y = Conv(e, w2)"))
    reason = "no rule for operator Elu"
    chain = ("Conv 'c'", "Relu 'r'", "Elu 'e'")
    assert found.groups == ()
    assert found.axes == (PinnedAxis("w1", 0, 16, 16, "e", "Elu", reason, "", chain, 0, HELD, MACS),)
    assert holder_of(found, "Elu") == Holder("Elu", reason, ("e",), (), True, 1, HELD, MACS, HELD, MACS)
    assert holder_of(found, "") == Holder("", OUTPUT, ("graph",), ("'y'",), False, 1, 64, 4096, 64, 4096)


@pytest.mark.usefixtures("_no_elu")
def test_two_reasons_gain_nothing_alone() -> None:
    found = explained(images("e = Elu(r) y = Conv(e, w2)", more=", float[1,16,8,8] r"))
    axis = axis_of(found, "w1")
    assert (axis.reason, axis.source, axis.chain, axis.others) == (OUTPUT, "'r'", ("Conv 'c'", "Relu 'r'"), 1)
    assert (axis.params, axis.macs) == (HELD, MACS)
    elu, outputs = holder_of(found, "Elu"), holder_of(found, "")
    assert (elu.params, elu.gain_params, elu.gain_macs) == (HELD, 0, 0)
    assert (outputs.axes, outputs.params, outputs.gain_params) == (2, HELD + 64, 64)


@pytest.mark.usefixtures("_no_elu")
def test_nodes_of_one_kind_count_together() -> None:
    found = explained(images("e = Elu(r) f = Elu(r) s = Add(e, f) y = Conv(s, w2)"))
    elu = holder_of(found, "Elu")
    assert (elu.nodes, elu.axes, elu.gain_params) == (("e", "f"), 1, HELD)
    assert axis_of(found, "w1").others == 0


@pytest.mark.usefixtures("_no_elu")
def test_a_weight_that_only_a_barrier_reads() -> None:
    body = "g (float[1,16] x) => (float[1,4] y) { v = Elu(w1) h = MatMul(x, v) r = Relu(h) y = MatMul(r, w2) }"
    found = explained(model(body, w1=weight(16, 12), w2=weight(12, 4)))
    assert [(a.tensor, a.axis, a.chain) for a in found.axes] == [("w1", 0, ("Elu 'v'",)), ("w1", 1, ("Elu 'v'",))]
    assert (holder_of(found, "Elu").gain_params, holder_of(found, "Elu").axes) == (192, 2)


def test_a_graph_output_in_the_middle() -> None:
    found = explained(images("y = Conv(r, w2)", more=", float[1,16,8,8] r"))
    axis = axis_of(found, "w1")
    assert (axis.op, axis.reason, axis.source, axis.chain) == ("", OUTPUT, "'r'", ("Conv 'c'", "Relu 'r'"))
    assert (axis.params, axis.macs) == (READ, MACS_READ)
    assert [h.op for h in found.holders] == [""]


def test_a_chain_through_reshape() -> None:
    rest = "t = Reshape(r, shape) s = CumSum(t, one) u = Reshape(s, back) y = Conv(u, w2)"
    sizes = {"shape": np.array([1, 16, 64]), "one": np.array(1), "back": np.array([1, 16, 8, 8])}
    axis = axis_of(explained(images(rest, **sizes)), "w1")
    assert axis.chain == ("Conv 'c'", "Relu 'r'", "Reshape 't'", "CumSum 's'")
    assert (axis.node, axis.reason) == ("s", "the position along this axis matters")
    assert (axis.params, axis.macs) == (HELD, MACS)


@pytest.mark.parametrize("order", [("p", "q"), ("q", "p")])
def test_the_shortest_chain(order: tuple[str, str]) -> None:
    ways = {"p": "a = Neg(r) b = Abs(a) p = CumSum(b, one) ", "q": "t = Neg(r) q = CumSum(t, one) "}
    rest = ways[order[0]] + ways[order[1]] + "d = Add(p, q) y = Conv(d, w2)"
    axis = axis_of(explained(images(rest, one=np.array(1))), "w1")
    assert axis.chain == ("Conv 'c'", "Relu 'r'", "Neg 't'", "CumSum 'q'")


def test_a_chain_follows_the_labels() -> None:
    rest = """m = ReduceMax <axes=[1]> (r) e = Pad(m, pads)
        a = Neg(r) b = Neg(a) d = Neg(b) s = Add(d, e) y = Conv(s, w2)"""
    axis = axis_of(explained(images(rest, pads=np.array([0, 0, 0, 0, 0, 15, 0, 0]))), "w1")
    assert axis.chain == ("Conv 'c'", "Relu 'r'", "Neg 'a'", "Neg 'b'", "Neg 'd'", "Add 's'")
    assert axis.reason == MEETS


@pytest.mark.parametrize(("operands", "per_index"), [("b, c", 3), ("c, b", 3 + 4)])  # at least what is made
def test_what_meets_the_fixed_part_of_a_concat(operands: str, per_index: int) -> None:
    body = f"""g (float[1,3,8,8] x, float[1,6,8,8] past) => (float[1,4,8,8] y) {{
        a = Conv(x, w1) b = Concat <axis=1> (past, a) c = Conv(x, w2) s = Add({operands}) y = Conv(s, w3) }}"""
    sizes = {"w1": weight(10, 3, 1, 1), "w2": weight(16, 3, 1, 1), "w3": weight(4, 16, 1, 1)}
    found = explained(model(body, **sizes))
    axis = axis_of(found, "w2")
    assert (axis.indices, axis.chain) == (6, ("Conv 'c'", "Add 's'"))
    assert (axis.reason, axis.source) == (MEETS_PINNED, "graph input 'past'")
    assert (axis.params, axis.macs) == (6 * per_index, 64 * 6 * per_index)


def test_what_a_graph_input_meets() -> None:
    body = """g (float[1,8] x, float[1,16] past) => (float[1,4] y) {
        h = MatMul(x, w1) r = Relu(h) n = Neg(past) s = Add(r, n) y = MatMul(s, w2) }"""
    found = explained(model(body, w1=weight(8, 16), w2=weight(16, 4)))
    axis = axis_of(found, "w1")
    assert axis.chain == ("MatMul 'h'", "Relu 'r'", "Add 's'")
    assert (axis.reason, axis.source) == (MEETS, "graph input 'past'")
    assert holder_of(found, "Add").sources == ("graph input 'past'",)
    assert (axis.params, axis.macs) == (128, 128)


def test_what_meets_an_axis_that_is_held_elsewhere() -> None:
    rest = "s = CumSum(r, one) k = Conv <pads=[1,1,1,1]> (x, w3) q = Add(s, k) y = Conv(q, w2)"
    found = explained(images(rest, one=np.array(1), w3=weight(16, 3, 3, 3)))
    axis = axis_of(found, "w3")
    assert (axis.op, axis.reason) == ("Add", MEETS)
    assert axis.source == "CumSum 's': the position along this axis matters"


def test_blocks_that_do_not_fit() -> None:
    body = """g (float[1,3,8,8] x) => (float[1,4,8,8] y, float[1,6,8,8] a) {
        a = Conv(x, w1) b = Conv(x, w2) f = GroupNormalization <num_groups=2> (b, u, v)
        c = Concat <axis=1> (a, f) n = GroupNormalization <num_groups=4> (c, s, t) y = Conv(n, w3) }"""
    sizes = {"w1": weight(6, 3, 1, 1), "w2": weight(10, 3, 1, 1), "w3": weight(4, 16, 1, 1)}
    vectors = {"s": weight(16), "t": weight(16), "u": weight(10), "v": weight(10)}
    found = explained(model(body, opset=21, **vectors, **sizes))
    axis = axis_of(found, "w2")
    first = "GroupNormalization 'f'"
    assert (axis.chain, axis.reason) == (("Conv 'b'", first, "Concat 'c'", "GroupNormalization 'n'"), BLOCKS)
    assert axis.params == 30 + 20 + 20 + 40
    assert holder_of(found, "GroupNormalization").gain_params == axis.params


def test_part_of_an_axis() -> None:
    rest = "p, q = Split <axis=1> (r, sizes) s = CumSum(q, one) d = Concat <axis=1> (p, s) y = Conv(d, w2)"
    found = explained(images(rest, one=np.array(1), sizes=np.array([10, 6])))
    axis = axis_of(found, "w1")
    assert (axis.length, axis.indices, axis.node) == (16, 6, "s")
    assert (axis.params, axis.macs) == (HELD * 6 // 16, MACS * 6 // 16)
    assert [g.params for g in found.groups] == [READ * 10 // 16]


def test_a_weight_that_is_turned_is_named_once() -> None:
    body = """g (float[1,16] x, float[1,16] z) => (float[1,12] y, float[1,12] v) {
        y = MatMul(x, w1) t = Transpose(w1) v = Gemm <transB=1> (z, t) }"""
    found = explained(model(body, w1=weight(16, 12)))
    assert [(a.tensor, a.axis) for a in found.axes] == [("w1", 1)]
    assert holder_of(found, "").params == 192


def test_short_axes_are_counted_but_not_listed() -> None:
    found = explained(images("y = Conv(r, w2)"))
    assert found.axes == ()
    assert holder_of(found, "").axes == 1


def test_pruning_explains_nothing() -> None:
    code = f"import sys, prunepass; prunepass.prune({str(DIGITS)!r}, verify=False); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "prunepass.coupling" in found
    assert "prunepass.record" not in found


# ---- what groups weigh -----------------------------------------------------------------------------------------------
def test_the_groups_of_a_chain() -> None:
    found = prunepass.inspect(images("y = Conv(r, w2)"))
    assert [group.axes for group in found.coupling.groups] == [(("w1", 0),)]
    (facts,) = found.explanation.groups
    assert (facts.params, facts.macs, facts.exact) == (READ, MACS_READ, True)


def test_the_groups_of_digits() -> None:
    found = prunepass.inspect(str(DIGITS))
    weights = {g.name: (f.params, f.macs) for g, f in zip(found.coupling.groups, found.explanation.groups)}
    assert weights == {
        "stem.conv.weight": (20_928, 4_909_056),
        "block1.conv1.weight": (18_560, 4_718_592),
        "down.conv2.weight": (13_248, 835_584),
        "branch.conv1.weight": (18_048, 1_130_496),
        "block2.conv1.weight": (10_880, 688_128),
        "block2.conv2.weight": (10_880, 688_128),
        "head.conv.weight": (3_968, 197_248),
    }
    assert all(f.exact for f in found.explanation.groups)
    axis = axis_of(found.explanation, "head.fc.weight")
    assert (axis.chain, axis.source, axis.params, axis.macs) == (("Gemm 'logits'",), "'logits'", 650, 640)


def mixed(op: str) -> str:
    """Return a model that mixes or normalises the 12 features h of x in one node n."""
    return f"g (float[2,8] x) => (float[2,4] y) {{ h = MatMul(x, w1) {op} y = MatMul(n, w2) }}"


RENORMALISED = {
    "n = LayerNormalization(h, s)": ("LayerNormalization 'n'",),
    "n = Softmax(h)": ("Softmax 'n'",),
    "m = ReduceMean <axes=[1]> (h) n = Sub(h, m)": ("ReduceMean 'm'",),
    "m = ReduceMax <axes=[1]> (h) n = Sub(h, m)": ("ReduceMax 'm'",),
    "m = ReduceProd <axes=[1]> (h) n = Sub(h, m)": ("ReduceProd 'm'",),
    "m = ReduceSumSquare <axes=[1]> (h) n = Sub(h, m)": (),
    "m = ReduceMean <axes=[0]> (h) n = Sub(h, m)": (),
    "n = LpNormalization(h)": (),
    "n = Sigmoid(h)": (),
    "n = Mul(h, s)": (),
    "a = LayerNormalization(h, s) n = Softmax(a)": ("LayerNormalization 'a'", "Softmax 'n'"),
}


@pytest.mark.parametrize("op", RENORMALISED)
def test_exact_or_renormalised(op: str) -> None:
    found = explained(model(mixed(op), w1=weight(8, 12), w2=weight(12, 4), s=weight(12)))
    assert [f.renormalised_by for f in found.groups] == [RENORMALISED[op]]


def test_only_the_groups_that_a_norm_sees_are_renormalised() -> None:
    found = prunepass.inspect(TINY["fused_attention"]()[0])
    changed = {g.name: f.exact for g, f in zip(found.coupling.groups, found.explanation.groups)}
    assert sorted(changed.values()) == [False, *[True] * (len(changed) - 1)]


@pytest.mark.parametrize("name", TINY)
def test_tiny_graphs(name: str) -> None:
    found = prunepass.inspect(TINY[name]()[0])
    total = found.size["params"]
    assert len(found.explanation.groups) == len(found.coupling.groups)
    assert all(0 < f.params <= total and f.macs >= 0 for f in found.explanation.groups)
    for axis in found.explanation.axes:
        assert axis.chain
        assert 0 < axis.params <= total
        assert axis.indices <= axis.length
        assert axis.op == "" or axis.chain[-1].startswith(axis.op)
    for holder in found.explanation.holders:
        assert holder.gain_params <= holder.params <= total
        assert holder.gain_macs <= holder.macs


# ---- the words -------------------------------------------------------------------------------------------------------
def test_numbers_in_short() -> None:
    numbers = [0, 999, 1000, 25_530_472, 999_499, 999_600, 4_089_184_256, 10**13]
    assert [inspection.scaled(n) for n in numbers] == ["0", "999", "1 k", "25.5 M", "999 k", "1000 k", "4.09 G", "10 T"]


def test_long_chains_are_shortened() -> None:
    assert inspection.chain_text(["Conv 'a'", "Relu 'b'", "Add 'c'"]) == "Conv 'a' -> Relu -> Add 'c'"
    nodes = [f"{op} '{op.lower()}'" for op in "A B C D E F G H I J".split()]
    assert inspection.chain_text(nodes) == "A 'a' -> B -> C -> D -> 3 more -> H -> I -> J 'j'"


def test_names_stay_apart() -> None:
    names = ["first.block.conv1.weight", "first.black.conv1.weight", "second.weight"]
    assert inspection.distinct(names, 16) == [*names[:2], "second.weight"]
    assert inspection.distinct(["a" * 9 + "b" * 9], 12) == ["aaa...bbbbbb"]


def test_the_example_in_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
    example = text.partition("$ prunepass inspect fixtures/digits.onnx\n")[2].partition("```")[0]
    assert main(["inspect", str(DIGITS)]) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == example.splitlines()


def test_a_pin_counts_all_that_is_coupled_to_it() -> None:
    text = """g (float[n, 6] x) => (float[n, 3] y) {
        h = MatMul(x, w)  g = MatMul(x, u)  a = Add(h, g)  c = CumSum(a, one)  y = MatMul(c, v)
    }"""
    source = model(text, w=weight(6, 8), u=weight(6, 8), one=np.array(1), v=weight(8, 3))
    blocked = {pin.op: pin.params_blocked for pin in prunepass.inspect(source).coupling.pinned}
    assert blocked == {"CumSum": 2 * 6 * 8, "": 8 * 3}


def test_the_costs_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "costs.json"
    assert main(["inspect", str(DIGITS), "--cost", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "MACs        6,630,016",
        "24,576 in int8",
        "Conv 'block1.conv2.out': stem.conv.out 32,768",
        "nodes: 41",
    ):
        assert part in shown
    cost = json.loads(path.read_text())["cost"]
    total = cost["total"]
    assert sum(row["macs"] for row in cost["nodes"]) == total["macs"]
    assert sum(row["traffic"] for row in cost["nodes"]) == total["traffic"]
    assert max(row["ram"] for row in cost["nodes"]) == cost["peak"]["bytes"] == total["ram"]
    assert sum(row["params"] for row in cost["nodes"]) == total["params"]
    assert total["bytes"] == DIGITS.stat().st_size > sum(row["bytes"] for row in cost["types"])
    assert all(0 < row["macs"] <= total["macs"] for row in cost["groups"])
    assert cost["uncounted"] == []
