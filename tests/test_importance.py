"""Criteria, reductions and normalisers against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import get_args, get_type_hints

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunepass.criteria import NORMALISERS, REDUCTIONS, Criterion, Weights, criteria, criterion, rate
from prunepass.criteria.base import CRITERIA
from prunepass.criteria.geometric import distance_sums
from prunepass.criteria.weights import marginal
from prunepass.errors import ModelError, PipelineError
from prunepass.graph import Graph, Node
from prunepass.manager import build

W1 = [[3, 4], [1, 0], [0, -2]]  # units 1, 2, 3 are rows
W2 = [[1, 2, 0], [0, -2, 1]]  # and columns here; the rows are pinned
ROW_SQUARES = np.array([25, 1, 4])
APART = math.hypot(2, 4), math.hypot(3, 6), math.hypot(1, 2)  # rows 1 and 2, 1 and 3, 2 and 3


def line(start, size, axis, rank):
    """Make a factor of consecutive units on one axis."""
    return np.arange(start, start + size).reshape([size if i == axis else 1 for i in range(rank)])


def weights(nodes, consts, factors, producing, groups, seed=0):
    """Show constants to a criterion as if a coupling had been found. Groups are lists of unit ids."""
    arrays = {n: np.asarray(a, np.float32) if isinstance(a, list) else a for n, a in consts.items()}
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    protos = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = Graph(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], protos)))
    found = tuple(SimpleNamespace(name=f"group{i}", units=np.atleast_2d(u)) for i, u in enumerate(groups))
    n_units = 1 + max(int(f.max()) for fs in factors.values() for f in fs)
    coupling = SimpleNamespace(factors=factors, producing=producing, groups=found, n_units=n_units)
    return Weights(graph, coupling, seed)


def two_layers(w1=W1, w2=W2, bias=None, **options):
    """Gemm (units 1..3 are the rows of w1), then MatMul by w2 transposed: the columns of w2 read them."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b"], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "w2"], ["y"], transB=1),
    ]
    consts = {"w2": w2, "b": [7, 7, 7] if bias is None else bias, "w1": w1}
    factors = {"w1": (line(1, 3, 0, 2),), "b": (line(1, 3, 0, 1),), "w2": (line(1, 3, 1, 2),)}
    return weights(nodes, consts, factors, {"w1": (0,)}, [[1, 2, 3]], **options)


def raw(text, view, reduce="mean"):
    """Rate without normalising."""
    return rate(view, criterion(text), reduce, "none").raw[1:].tolist()


@pytest.mark.parametrize(
    ("text", "reduce", "expected"),
    [
        ("l1", "mean", [(7 + 1) / 2, (1 + 4) / 2, (2 + 1) / 2]),
        ("l1", "sum", [8, 5, 3]),
        ("l2", "mean", [(25 + 1) / 2, (1 + 8) / 2, (4 + 1) / 2]),
        ("l2", "sum", [26, 9, 5]),
        ("l2", "max", [25, 8, 4]),
        ("l2", "first", [25, 1, 4]),
        ("linf", "mean", [(4 + 1) / 2, (1 + 2) / 2, (2 + 1) / 2]),
        ("linf", "first", [4, 1, 2]),
        ("fpgm", "mean", [APART[0] + APART[1], APART[0] + APART[2], APART[1] + APART[2]]),
        ("bn-scale", "mean", [5, 1, 2]),
        ("lookahead", "mean", [25 * 1, 1 * 8, 4 * 1]),
        ("lamp", "mean", [1, 4.5 / 17.5, 2.5 / 20]),
    ],
)
def test_criterion_by_hand(text, reduce, expected):
    assert raw(text, two_layers(), reduce) == pytest.approx(expected, rel=1e-6)


def test_lamp_by_hand():
    # means 13, 4.5, 2.5: the smallest is divided by the sum of all, the largest by itself
    expected = [1, 4.5 / (4.5 + 13), 2.5 / (2.5 + 4.5 + 13)]
    assert raw("lamp", two_layers()) == pytest.approx(expected)
    assert rate(two_layers(), criterion("l2"), normalise="lamp").scores[1:] == pytest.approx(expected)
    assert rate(two_layers(), criterion("lamp")).scores[1:] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [0.4, 1.2, 2.4, 0]),
        ("max", [1 / 6, 0.5, 1, 0]),
        ("sum", [0.1, 0.3, 0.6, 0]),
        ("none", [1, 3, 6, 0]),
        ("lamp", [1 / 10, 3 / 9, 6 / 6, 0]),
        ("standardise", [-1.5 / 21**0.5 * 2, 0.5 / 21**0.5 * 2, 3.5 / 21**0.5 * 2, -2.5 / 21**0.5 * 2]),
    ],
)
def test_normaliser_by_hand(name, expected):
    assert NORMALISERS[name](np.array([1.0, 3.0, 6.0, 0.0])) == pytest.approx(expected)
    assert NORMALISERS[name](np.zeros(3)).tolist() == [0, 0, 0]


def test_the_pass_offers_what_there_is():
    hints = get_type_hints(type(build("importance")))
    assert set(get_args(hints["reduce"])) == set(REDUCTIONS)
    assert set(get_args(hints["normalise"])) == {"auto", *NORMALISERS}


def test_each_group_is_normalised_by_itself():
    nodes = [helper.make_node("Gemm", ["x", "w1"], ["h"], transB=1), helper.make_node("Gemm", ["h", "w2"], ["y"])]
    factors = {"w1": (line(1, 3, 0, 2),), "w2": (line(4, 2, 1, 2),)}
    view = weights(nodes, {"w1": W1, "w2": [[10, 0], [0, 20]]}, factors, {"w1": (0,), "w2": (1,)}, [[1, 2, 3], [4, 5]])
    scores = rate(view, criterion("l2")).scores
    assert scores[0] == np.inf
    assert scores[1:] == pytest.approx([2.5, 0.1, 0.4, 0.4, 1.6])
    assert rate(view, criterion("l2"), normalise="none").scores[4:] == pytest.approx([100, 400])


def test_random_is_uniform_seeded_and_the_same_at_every_site():
    first = raw("random{seed=3}", two_layers())
    assert first == raw("random{seed=3}", two_layers(), "max") == raw("random", two_layers(seed=3))
    assert first != raw("random{seed=4}", two_layers())
    assert all(0 <= x < 1 for x in first)
    assert first == np.random.default_rng(3).random(4)[1:].tolist()


def test_a_unit_with_several_entries_in_a_site_gets_their_sum():
    node = [helper.make_node("Gemm", ["x", "w"], ["y"])]
    view = weights(node, {"w": [[1, 2], [3, 4], [5, 6]]}, {"w": (np.array([[2], [1], [2]]),)}, {"w": (0,)}, [[1, 2]])
    assert raw("l1", view) == [7, 3 + 11]
    assert raw("linf", view) == [4, 6]
    assert raw("l2", view) == [25, 5 + 61]
    falling = weights(node, {"w": [[5, 6], [3, 4], [1, 2]]}, {"w": view.coupling.factors["w"]}, {}, [[1, 2]])
    assert raw("linf", falling) == [4, 6]
    blocks = {"w": (np.array([[1, 2], [2, 1], [0, 2]]),)}
    view = weights(node, {"w": [[1, 2], [3, 4], [5, 6]]}, blocks, {"w": (1,)}, [[1, 2]])
    assert raw("l1", view) == [1 + 4, 2 + 3 + 6]


def test_grouped_conv_inputs_count_every_filter_that_reads_them():
    kernel = np.arange(1, 17, dtype=np.float32).reshape(4, 2, 1, 2)
    node = [helper.make_node("Conv", ["x", "w"], ["y"], group=2)]
    joint = np.array([[1, 2], [1, 2], [3, 4], [3, 4]]).reshape(4, 2, 1, 1)
    view = weights(node, {"w": kernel}, {"w": (line(5, 4, 0, 4), joint)}, {"w": (0,)}, [[[1, 2], [3, 4]], [5, 6, 7, 8]])
    by_input = kernel.reshape(2, 2, 2, 2).sum(axis=(1, 3)).ravel()
    assert raw("l1", view) == [*by_input.tolist(), *kernel.sum(axis=(1, 2, 3)).tolist()]
    assert [site.produces for site in view.sites] == [True, False]


def test_biases_count_only_where_there_is_no_weight():
    assert raw("l1", two_layers(bias=[100, 200, 300])) == raw("l1", two_layers())
    nodes = [helper.make_node("Add", ["x", "b"], ["h"]), helper.make_node("Mul", ["h", "s"], ["y"])]
    consts = {"b": [[3], [-4]], "s": [[1], [2]]}
    factors = {"b": (line(1, 2, 0, 2),), "s": (line(1, 2, 0, 2),)}
    found = rate(weights(nodes, consts, factors, {}, [[1, 2]]), criterion("l1"), normalise="none")
    assert found.raw[1:].tolist() == [2, 3]
    assert found.notes == ("group0: no weights, scored by biases and gains",)
    assert found.sites == ((("b", (0,)), ("s", (0,))),)


def test_groups_without_float_constants_are_kept_and_named():
    integers = np.ones((2, 3), np.int64)
    node = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    found = rate(weights(node, {"w": integers}, {"w": (line(1, 2, 0, 2),)}, {"w": (0,)}, [[1, 2]]), criterion("l2"))
    assert found.scores.tolist() == [np.inf] * 3
    assert np.isnan(found.raw).all()
    assert found.notes == ("group0: no float constants, not scored and so kept",)


def test_quantised_weights_are_scored_as_the_numbers_they_stand_for():
    node = [helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["y"], axis=0)]
    consts = {
        "w": np.array([[3, 5], [11, 9]], np.int8),
        "scale": np.array([0.5, 2], np.float32),
        "zero": np.array([1, 10], np.int8),
    }
    view = weights(node, consts, {"w": (line(1, 2, 0, 2),)}, {"w": (0,)}, [[1, 2]])
    assert raw("l1", view) == [0.5 * (2 + 4), 2 * (1 + 1)]


def test_units_without_a_group_are_never_chosen():
    view = two_layers()
    view.coupling.groups = view.coupling.groups[:0]
    assert rate(view, criterion("l2")).scores.tolist() == [np.inf] * 4


def batch_normed(gain_on=True):
    """Conv with rows 1 and 2, BatchNormalization, Conv that reads them."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["b"], epsilon=1.0),
        helper.make_node("Conv", ["b" if gain_on else "a", "v"], ["y"]),
    ][:: 1 if gain_on else 2]
    one = np.ones((1, 1), np.float32)
    consts = {
        "w": np.array([[3, 4], [1, 0]], np.float32)[:, :, None, None] * one,
        "v": np.array([[1, 2]], np.float32)[:, :, None, None] * one,
        "gamma": [-5, 2],
        "beta": [9, 9],
        "mean": [8, 8],
        "var": [3, 0],
    }
    vectors = {n: (line(1, 2, 0, 1),) for n in ("gamma", "beta", "mean", "var")}
    factors = {"w": (line(1, 2, 0, 4),), "v": (line(1, 2, 1, 4),), **vectors}
    return weights(nodes, consts, factors, {"w": (0,)}, [[1, 2]])


def test_bn_scale():
    assert raw("bn-scale", batch_normed()) == [5, 2]
    found = rate(batch_normed(gain_on=False), criterion("bn-scale"), normalise="none")
    assert found.raw[1:].tolist() == [5, 1]
    assert found.notes == ("group0: no BatchNormalization, scored by the L2 norm of the producing weights",)


def test_lookahead_multiplies_by_the_batch_normalization():
    assert raw("lookahead", batch_normed(gain_on=False)) == [25 * 1, 1 * 4]
    assert raw("lookahead", batch_normed()) == pytest.approx([25 * 1 * 25 / (3 + 1), 1 * 4 * 4 / (0 + 1)])


def test_lookahead_over_three_layers():
    nodes = [
        helper.make_node("Gemm", [a, w], [b], transB=1)
        for a, w, b in (("x", "w1", "h"), ("h", "w2", "k"), ("k", "w3", "y"))
    ]
    consts = {"w1": W1, "w2": [[1, 2, 3], [4, 5, 6]], "w3": [[2, 3]]}
    factors = {
        "w1": (line(1, 3, 0, 2),),
        "w2": (line(4, 2, 0, 2), line(1, 3, 1, 2)),
        "w3": (line(4, 2, 1, 2),),
    }
    view = weights(nodes, consts, factors, {"w1": (0,), "w2": (0,)}, [[1, 2, 3], [4, 5]])
    columns = np.array([1 + 16, 4 + 25, 9 + 36])
    first = ROW_SQUARES * columns
    second = [4 * (1 * 25 + 4 * 1 + 9 * 4), 9 * (16 * 25 + 25 * 1 + 36 * 4)]
    assert raw("lookahead", view) == [*first, *second]


def test_lookahead_gain_of_the_layer_before_and_pinned_inputs():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["b"], epsilon=1.0),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    consts = {
        "w": np.array([[3, 4], [9, 9], [1, 0]], np.float32).reshape(3, 2, 1, 1),
        "v": np.array([[1, 2, 3], [4, 5, 6]], np.float32).reshape(2, 3, 1, 1),
        "gamma": [5, 9, 2],
        "beta": [9, 9, 9],
        "mean": [8, 8, 8],
        "var": [3, 9, 0],
    }
    ids = np.array([1, 0, 2])  # the second channel stays
    factors = dict.fromkeys(("gamma", "beta", "mean", "var"), (ids,))
    factors |= {"w": (ids.reshape(3, 1, 1, 1),), "v": (line(3, 2, 0, 4), ids.reshape(1, 3, 1, 1))}
    view = weights(nodes, consts, factors, {"w": (0,), "v": (0,)}, [[1, 2], [3, 4]])
    first, last = 25 * 25 / 4, 1 * 4 / 1
    assert raw("lookahead", view)[2:] == pytest.approx([first + 4 + 9 * last, 16 * first + 25 + 36 * last])


def test_lookahead_takes_no_gain_from_a_side_branch():
    view = batch_normed()
    side = Graph(view.graph.to_proto())
    side.nodes.append(Node.make("Relu", ["a"], ["r"]))
    assert raw("lookahead", Weights(side, view.coupling)) == [25 * 1, 1 * 4]


def test_a_group_with_few_gains_is_scored_alike_throughout():
    view = batch_normed()
    view.coupling.factors["gamma"] = (np.array([1, 0]),)
    assert raw("bn-scale", Weights(view.graph, view.coupling)) == [5, 1]


def test_the_mean_is_over_the_sites_of_each_unit():
    nodes = [helper.make_node("Gemm", ["x", "w1"], ["h"]), helper.make_node("Gemm", ["h", "w2"], ["y"])]
    consts = {"w1": [[1, 2], [3, 4]], "w2": [[5, 6], [7, 8]]}
    view = weights(nodes, consts, {"w1": (line(1, 2, 1, 2),), "w2": (np.array([[1], [0]]),)}, {"w1": (1,)}, [[1, 2]])
    assert raw("l1", view) == [(4 + 11) / 2, 6]


def test_fpgm_ranks_the_replaceable_filter_last():
    filters = np.array([[0, 0], [1, 0], [0.1, 0], [-1, 0]], np.float32)
    node = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    view = weights(node, {"w": filters}, {"w": (line(1, 4, 0, 2),)}, {"w": (0,)}, [[1, 2, 3, 4]])
    assert raw("fpgm", view) == pytest.approx([2.1, 3.9, 2.1, 4.1], rel=1e-6)


def test_fpgm_compares_what_a_unit_has_in_all():
    node = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    consts = {"w": [[3, 0], [1, 1], [0, 4], [2, 2]]}
    view = weights(node, consts, {"w": (np.array([1, 2, 1, 2])[:, None],)}, {"w": (0,)}, [[1, 2]])
    assert raw("fpgm", view) == pytest.approx([13**0.5] * 2)  # (3, 0, 0, 4) and (1, 1, 2, 2)
    consts = {"w": [[3, 0], [0, 0], [0, 4], [0, 0]]}
    view = weights(node, consts, {"w": (np.array([1, 2, 1, 1])[:, None],)}, {"w": (0,)}, [[1, 2]])
    single = [3 + 5 + 3, 3 + 4 + 0, 5 + 4 + 4, 3 + 0 + 4]
    assert raw("fpgm", view) == pytest.approx([single[0] + single[2] + single[3], single[1]])


def test_distance_sums_in_blocks_and_far_from_zero():
    rows = np.random.default_rng(0).standard_normal((1500, 6)).astype(np.float32) + 100
    some = [0, 1, 255, 256, 700, 1498, 1499]
    exact = [np.sqrt(((rows.astype(float) - rows[i]) ** 2).sum(axis=1)).sum() for i in some]
    assert distance_sums(rows)[some] == pytest.approx(exact, rel=1e-5)
    twice = np.full((300, 4), 1e4, np.float32) + np.arange(300)[:, None] % 2
    assert distance_sums(twice) == pytest.approx(np.full(300, 150 * 2), rel=1e-5)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_all_float_types_are_read(kind):
    assert raw("l2", two_layers(np.array(W1).astype(kind), np.array(W2).astype(kind))) == [13, 4.5, 2.5]
    assert raw("fpgm", two_layers(np.array(W1).astype(kind)))[0] == pytest.approx(APART[0] + APART[1])


def test_squares_beyond_float16_and_float32_do_not_overflow():
    big = np.array(W1, np.float16) * np.float16(1000)
    assert raw("l2", two_layers(big), "first") == [25e6, 1e6, 4e6]
    assert raw("l2", two_layers(np.array(W1, np.float32) * np.float32(1e25)), "first") == pytest.approx(
        [25e50, 1e50, 4e50], rel=1e-5
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", sorted(n for n, c in CRITERIA.items() if n != "random" and not c.needs))
def test_weights_that_are_not_finite_are_refused(text, bad):
    broken = np.array(W1, np.float32)
    broken[1, 1] = bad
    with pytest.raises(ModelError, match="'w1' holds NaN or infinity"):
        rate(two_layers(broken), criterion(text))


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2), (300, 400, 3), (1, 6, 2), (2, 3, 4, 5), (70000, 2), (3,)])
@pytest.mark.parametrize("fold", [np.add, np.maximum])
def test_marginal_equals_the_plain_formula(shape, fold):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    exact = np.abs(array.astype(np.float64))
    for axes in [(0,), (1,), (0, 1), (2,), (0, 2), (1, 2), (3,), (1, 3)]:
        if axes[-1] < len(shape):
            others = tuple(i for i in range(len(shape)) if i not in axes)
            expected = fold.reduce(exact, axis=others) if others else exact
            found = marginal(array, axes, np.abs, fold)
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scores_do_not_change_the_weights():
    view = two_layers()
    before = {name: array.copy() for name, array in view.graph.consts.items()}
    for name, cls in CRITERIA.items():
        if not cls.needs:  # those from data: tests/test_data_criteria.py
            rate(view, criterion(name))
    assert all((view.graph.consts[name] == array).all() for name, array in before.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lampe", "unknown criterion 'lampe'; did you mean 'lamp'"),
        ("", "unknown criterion ''"),
        ("random{seed=x}", "'x'"),
        ("random{sed=3}", "no option 'sed'; did you mean 'seed'"),
        ("random{seed=3", "never closed"),
        ("l2{p=3}", "no option 'p'"),
    ],
)
def test_criterion_text_errors(text, message):
    with pytest.raises(PipelineError, match=message):
        criterion(text)
    with pytest.raises(PipelineError, match=message):
        build("importance", criterion=text)


@pytest.mark.parametrize("text", ["l1", "random", "random{seed=3}", "bn-scale"])
def test_criterion_text_round_trip(text):
    assert str(criterion(text)) == text
    assert criterion(str(criterion(text))) == criterion(text)


def test_every_criterion_says_what_it_is_and_where_it_is_from():
    assert set(criteria()) >= {"l1", "l2", "linf", "random", "bn-scale", "fpgm", "lamp", "lookahead"}
    for cls in criteria().values():
        assert "Source" in (cls.__doc__ or ""), cls
        assert (cls.__doc__ or "").splitlines()[0].endswith((".", "of the run.")), cls


def test_a_new_criterion_is_one_small_class():
    try:

        @dataclass(frozen=True)
        class Spread(Criterion):
            """Difference between the largest and the mean |w|."""

            name = "spread"
            scale: float = 1.0

            def score(self, weights, site):
                return self.scale * weights.largest(site)

        assert raw("spread{scale=2}", two_layers(), "first") == [8, 2, 4]
        with pytest.raises(PipelineError, match="two criteria are called 'spread'"):
            type("Other", (Criterion,), {"name": "spread"})
    finally:
        CRITERIA.pop("spread", None)


def test_the_analysis_asks_for_the_coupling_of_its_policy():
    view = two_layers()
    asked = []
    facts = SimpleNamespace(
        get=lambda name, **options: (asked.append((name, options)), view.coupling)[1],
        context=SimpleNamespace(seed=5),
    )
    found = build("importance", criterion="random", policy="whole").run(view.graph, facts)
    assert asked == [("coupling", {"policy": "whole"})]
    assert found.scores.tolist() == [np.inf, *np.random.default_rng(5).random(4)[1:]]
    assert np.asarray(found).tolist() == found.scores.tolist()
