"""Criteria from calibration data against numbers worked out by hand, and from end to end."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import DIGITS
from onnx import TensorProto, helper, numpy_helper

from fixtures import load_graph
from fixtures.tiny import TINY
from prunepass import load, prune
from prunepass.criteria import Weights, criterion, rate
from prunepass.criteria.hrank import matrix_ranks
from prunepass.criteria.thinet import greedy_errors
from prunepass.errors import ModelError, PipelineError
from prunepass.graph import Graph
from prunepass.manager import Context, Facts, Pipeline
from prunepass.recovery import batches as batches_module
from prunepass.recovery.batches import Batches, from_arrays
from prunepass.recovery.statistics import Statistics

NAMES = ("wanda", "flap", "apoz", "hrank", "thinet")


def line(start, size, axis, rank):
    """Make a factor of consecutive units on one axis."""
    return np.arange(start, start + size).reshape([size if i == axis else 1 for i in range(rank)])


def view(nodes, consts, factors, producing, groups, x):
    """Show a graph to a criterion as if a coupling had been found, with the statistics of one batch."""
    protos = [helper.make_node(op, ins, [out], **attrs) for op, ins, out, attrs in nodes]
    arrays = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in consts.items()]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", protos[-1].output[0])]
    made = helper.make_graph(protos, "g", info[:1], info[1:], arrays)
    graph = Graph(helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    found = tuple(SimpleNamespace(name=f"group{i}", units=np.atleast_2d(u)) for i, u in enumerate(groups))
    n_units = 1 + max(int(f.max()) for own in factors.values() for f in own)
    coupling = SimpleNamespace(factors=factors, producing=producing, groups=found, n_units=n_units, elem_types={})
    x = np.asarray(x, np.float32)
    statistics = Statistics(graph, Batches(({"x": x[:1]}, {"x": x[1:]}), len(x)))
    return Weights(graph, coupling, 0, {"statistics": statistics})


def raw(text, weights, reduce="mean"):
    """Rate without normalising."""
    return rate(weights, criterion(text), reduce, "none").raw[1:].tolist()


# ---- by hand ---------------------------------------------------------------------------------------------------------
ROWS = [[1, -2, 0], [3, 2, -4]]  # what the first layer puts out, as its weight is the identity
NEXT = [[1, 2, 0], [0, -2, 1]]  # outputs x units
NORMS = [5**0.5, 2, 8**0.5]
VARIANCES = [1, 4, 4]


def two_layers(act="Identity", last=NEXT, second=None):
    """Gemm that makes units 1, 2, 3, an activation, and one or two layers that read them."""
    nodes = [
        ("Gemm", ["x", "w"], "h", {}),
        (act, ["h"], "a", {}),
        ("Gemm", ["a", "v"], "y", {"transB": 1, "alpha": 0.5}),
    ]
    consts = {"w": np.eye(3), "v": 2 * np.array(last)}  # alpha takes the 2 back
    factors = {"w": (line(1, 3, 1, 2),), "v": (line(1, 3, 1, 2),)}
    factors |= dict.fromkeys(("h", "a"), (line(1, 3, 1, 2),))
    if second is not None:
        nodes += [("MatMul", ["h", "u"], "z", {}), ("Add", ["y", "z"], "s", {})]
        consts["u"], factors["u"] = second, (line(1, 3, 0, 2),)
    return view(nodes, consts, factors, {"w": (1,)}, [[1, 2, 3]], ROWS)


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("wanda", {}, [1 * NORMS[0], 4 * NORMS[1], 1 * NORMS[2]]),
        ("flap", {}, [1 * 1, 8 * 4, 1 * 4]),
        # h is read by a second layer: its share adds up, whatever the reduction
        ("wanda", {"second": [[3, 0], [0, 0], [1, 1]]}, [(1 + 3) * NORMS[0], 4 * NORMS[1], (1 + 2) * NORMS[2]]),
        ("flap", {"second": [[3, 0], [0, 0], [1, 1]]}, [(1 + 9) * 1, 8 * 4, (1 + 2) * 4]),
        # behind Relu only 1, 3 and 0, 2 and 0, 0 are left
        ("wanda", {"act": "Relu"}, [NORMS[0], 4 * 2**0.5, 0]),
        ("flap", {"act": "Relu"}, [1, 8 * 1, 0]),
        ("apoz", {"act": "Relu"}, [1, 0.5, 0]),
    ],
)
def test_by_hand(text, options, reduce, expected):
    assert raw(text, two_layers(**options), reduce) == pytest.approx(expected, rel=1e-6)


def test_apoz_without_an_activation_that_makes_zeros():
    found = rate(two_layers("Tanh"), criterion("apoz"), normalise="none")
    assert found.raw[1:].tolist() == [1, 0.5, 0]
    assert found.notes == ("group0: no activations that make zeros, scored by what layers read of it",)
    assert found.sites == ((("a", (1,)), ("h", (1,))),) or found.sites == ((("a", (1,)),),)


def test_flap_is_standardised_within_a_group():
    scores = rate(two_layers(), criterion("flap")).scores[1:]
    plain = np.array([1, 32, 4])
    assert scores == pytest.approx((plain - plain.mean()) / plain.std())


def test_thinet_by_hand():
    """One output: units add 1 2 0 and 3 -2 4 to it; without the second, errors are the squares of sums."""
    weights = two_layers(last=[[1, -1, -1]])
    added = np.array([[1, 2, 0], [3, -2, 4]])
    mean = {s: np.square(added[:, list(s)].sum(axis=1)).mean() for s in [(1,), (0, 1), (0, 1, 2), (0,), (2,), (1, 2)]}
    assert mean[1,] == 4 < mean[0,] < mean[2,]  # unit 2 goes first
    assert mean[1, 2] == 4 < mean[0, 1] == 5  # then unit 3, which takes its place: no error more
    assert raw("thinet", weights) == pytest.approx([mean[0, 1, 2], 4, 4], rel=1e-6)
    scores = rate(weights, criterion("thinet"), normalise="none").raw[1:]
    assert scores[1] < scores[2] < scores[0]


def test_greedy_errors_are_those_of_the_sets():
    added = np.random.default_rng(0).standard_normal((50, 7)) + 0.5
    scores = greedy_errors(added.T @ added)
    order = np.argsort(scores)
    errors = [np.square(added[:, order[: i + 1]].sum(axis=1)).sum() for i in range(7)]
    assert (np.diff(scores[order]) > 0).all()
    np.testing.assert_allclose(scores[order], np.maximum.accumulate(errors), rtol=1e-9)
    for i in range(7):  # each step is the best one
        rest = [np.square(added[:, [*order[:i], j]].sum(axis=1)).sum() for j in order[i:]]
        assert errors[i] == pytest.approx(min(rest))


MAPS = np.zeros((3, 2, 4, 5), np.float32)
MAPS[:, 0] = np.eye(4, 5)
MAPS[:, 1, 0] = [[1, 2, 3, 4, 5], [-1, -1, -1, -1, -1], [1, 0, 0, 0, 1]]
MAPS[2, 1, 1] = [7, 1, 0, 0, 0]


def convolution(group=1, kernel=1, second=None, act="Relu"):
    """Conv of the identity that makes units 1 and 2, an activation, and a Conv that reads them."""
    nodes = [
        ("Conv", ["x", "w"], "h", {}),
        (act, ["h"], "a", {}),
        ("Conv", ["a", "v"], "y", {"group": group, "pads": [kernel // 2] * 4}),
    ]
    weight = np.array([[1, -2], [3, 0]]) if second is None else second
    shape = (2, 2 // group, kernel, kernel)
    consts = {"w": np.eye(2)[:, :, None, None], "v": np.broadcast_to(weight[:, : 2 // group, None, None], shape)}
    factors = dict.fromkeys(("h", "a"), (line(1, 2, 1, 4),)) | {"w": (line(1, 2, 0, 4),), "v": (line(1, 2, 1, 4),)}
    if group == 2:  # each output goes with its input
        factors |= {"v": (line(1, 2, 0, 4),), "y": (line(1, 2, 1, 4),)}
    return view(nodes, consts, factors, {"w": (0,)}, [[1, 2]], MAPS)


def test_hrank_by_hand():
    # behind Relu the second unit has rank 1, 0 and 2
    assert raw("hrank", convolution()) == [4, 1]
    assert raw("hrank{images=1}", convolution()) == [4, 1]  # the first batch holds one image
    assert raw("hrank", convolution(act="Identity")) == pytest.approx([4, (1 + 1 + 2) / 3])


def test_ranks_are_those_of_numpy():
    rng = np.random.default_rng(0)
    for shape in ((6, 9), (9, 6), (7, 7), (1, 5)):
        for rank in range(min(shape) + 1):
            maps = (rng.standard_normal((3, shape[0], rank)) @ rng.standard_normal((3, rank, shape[1]))).astype("f")
            assert matrix_ranks(maps).tolist() == np.linalg.matrix_rank(maps).tolist() == [rank] * 3


@pytest.mark.parametrize("kernel", [1, 3])
def test_every_tap_of_a_kernel_counts(kernel):
    positive = np.maximum(MAPS, 0)
    norms, variances = np.sqrt(np.square(positive).mean(axis=(0, 2, 3))), positive.var(axis=(0, 2, 3))
    weights = convolution(kernel=kernel)
    assert raw("wanda", weights) == pytest.approx([4 * kernel**2 * norms[0], 2 * kernel**2 * norms[1]], rel=1e-6)
    assert raw("flap", weights) == pytest.approx(
        [10 * kernel**2 * variances[0], 4 * kernel**2 * variances[1]], rel=1e-6
    )


def test_a_depthwise_layer_reads_nothing_that_stays():
    found = rate(convolution(group=2), criterion("wanda"), normalise="none")
    norms = np.sqrt(np.square(MAPS).mean(axis=(0, 2, 3))), np.sqrt(np.square(np.maximum(MAPS, 0)).mean(axis=(0, 2, 3)))
    assert found.notes == ("group0: no layers that read it, scored by what its layers put out",)
    assert found.raw[1:] == pytest.approx((norms[0] + norms[1] * [1, 3]) / 2, rel=1e-6)


def test_grouped_convolution_reads_by_group():
    """Four units in two groups: the first two are read by outputs 0 and 1, the others by 2 and 3."""
    nodes = [("Conv", ["x", "w"], "h", {}), ("Conv", ["h", "v"], "y", {"group": 2})]
    kernel = np.array([[1, 2], [3, 4], [5, 6], [7, 9]], float)
    joint = np.array([[1, 2], [1, 2], [3, 4], [3, 4]]).reshape(4, 2, 1, 1)
    consts = {"w": np.eye(4)[:, :, None, None], "v": kernel[:, :, None, None]}
    factors = {"w": (line(1, 4, 0, 4),), "h": (line(1, 4, 1, 4),), "v": (joint,)}
    x = np.random.default_rng(0).standard_normal((6, 4, 2, 2))
    weights = view(nodes, consts, factors, {"w": (0,)}, [[[1, 2], [3, 4]]], x)
    norms = np.sqrt(np.square(x).mean(axis=(0, 2, 3)))
    assert raw("wanda", weights) == pytest.approx(np.array([4, 6, 12, 15]) * norms, rel=1e-5)
    squares = np.array([1 + 9, 4 + 16, 25 + 49, 36 + 81])
    assert raw("flap", weights) == pytest.approx(squares * x.var(axis=(0, 2, 3)), rel=1e-5)
    assert len(set(raw("thinet", weights))) == 4


def test_an_output_that_goes_with_the_unit_does_not_count():
    """A layer from a stream to itself: the diagonal of its weight goes anyway."""
    nodes = [("Gemm", ["x", "w"], "h", {}), ("Gemm", ["h", "v"], "y", {}), ("Add", ["h", "y"], "s", {})]
    consts = {"w": np.eye(3), "v": [[100, 1, 2], [3, 100, 4], [5, 6, 100]]}
    factors = {"w": (line(1, 3, 1, 2),), "v": (line(1, 3, 1, 2), line(1, 3, 0, 2))}
    factors |= dict.fromkeys("hys", (line(1, 3, 1, 2),))
    weights = view(nodes, consts, factors, {"w": (1,), "v": (1,)}, [[1, 2, 3]], ROWS)
    assert raw("wanda", weights) == pytest.approx([3 * NORMS[0], 7 * NORMS[1], 11 * NORMS[2]], rel=1e-6)


def test_columns_of_a_flattened_image_add_up():
    nodes = [("Conv", ["x", "w"], "h", {}), ("Flatten", ["h"], "f", {}), ("Gemm", ["f", "v"], "y", {})]
    factors = {"w": (line(1, 2, 0, 4),), "h": (line(1, 2, 1, 4),)}
    factors |= {"f": (np.repeat([1, 2], 20)[None],), "v": (np.repeat([1, 2], 20)[:, None],)}
    consts = {"w": np.eye(2)[:, :, None, None], "v": np.arange(40)[:, None]}
    weights = view(nodes, consts, factors, {"w": (0,)}, [[1, 2]], MAPS)
    norms = np.sqrt(np.square(MAPS).mean(axis=0)).reshape(40)
    assert raw("wanda", weights) == pytest.approx((norms * np.arange(40)).reshape(2, 20).sum(axis=1).tolist(), rel=1e-6)


@pytest.mark.parametrize("text", NAMES)
def test_units_that_nothing_can_be_seen_of_are_scored_by_their_weights(text):
    nodes = [("Add", ["x", "b"], "h", {}), ("Relu", ["h"], "y", {})]
    weights = view(nodes, {"b": [3, -4, 0.5]}, {"b": (line(1, 3, 0, 1),)}, {}, [[1, 2, 3]], ROWS)
    found = rate(weights, criterion(text), normalise="none")
    assert found.raw[1:].tolist() == [9, 16, 0.25]
    assert found.notes[0].endswith("scored by the L2 norm of biases and gains")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wanda", "tensor 'v' holds NaN or infinity"),
        ("flap", "tensor 'v' holds NaN or infinity"),
        ("thinet", "value 'y' has NaN or infinity on batch 0 .*repair the model"),
    ],
)
def test_weights_that_are_not_finite_are_refused(text, message):
    with pytest.raises(ModelError, match=message):
        raw(text, two_layers(last=[[1, math.inf, 1], [1, 1, 1]]))


@pytest.mark.parametrize("text", NAMES)
def test_without_statistics_a_criterion_says_what_it_needs(text):
    whole = two_layers()
    with pytest.raises(PipelineError, match="the criterion needs 'statistics'"):
        rate(Weights(whole.graph, whole.coupling), criterion(text))


# ---- end to end ------------------------------------------------------------------------------------------------------
def scored(text, data, name=None):
    graph = load(DIGITS if name is None else load_graph(name))
    facts = Facts(graph, Context(calibration=None if data is None else from_arrays(data, graph)))
    Pipeline.parse("canonicalize").run_on(facts)
    return facts, facts.get("importance", criterion=text)


@pytest.mark.parametrize("text", NAMES)
def test_digits_with_data(text, digits):
    data = {"image": digits["calibration"][:40]}
    facts, found = scored(text, data)
    units = np.concatenate([group.units.reshape(-1) for group in facts.get("coupling").groups])
    assert np.isfinite(found.raw[units]).all()
    assert (found.raw[units] >= 0).all()
    assert len(np.unique(found.raw[units])) > units.size / 4
    assert np.array_equal(scored(text, data)[1].scores, found.scores)
    one_by_one = Batches(tuple({"image": data["image"][i : i + 1]} for i in range(40)), 40)
    facts.context.calibration = one_by_one
    facts.invalidate()
    alone = facts.get("importance", criterion=text)
    limit = 0.5 if text == "thinet" else 1e-4  # it samples other outputs
    np.testing.assert_allclose(alone.raw[units], found.raw[units], rtol=limit, atol=1e-6)


@pytest.mark.parametrize("text", NAMES)
def test_prune_with_data_and_without(text, digits):
    data = {"image": digits["calibration"][:20]}
    with_data = prune(DIGITS, criterion=text, ratio=0.4, align=1, scope="local", data=data)
    again = prune(DIGITS, criterion=text, ratio=0.4, align=1, scope="local", data=data)
    assert with_data.model.SerializeToString() == again.model.SerializeToString()
    without = prune(DIGITS, criterion=text, ratio=0.4, align=1, scope="local")
    for result in (with_data, without):
        assert result.report["certificate"]["status"] == "passed"
        assert result.report["after"]["params"] < 0.8 * result.report["before"]["params"]


@pytest.mark.parametrize("text", NAMES)
def test_whole_heads(text):
    model, feeds = TINY["attention"]()
    found = prune(
        model,
        data=feeds,
        pipeline=f"canonicalize,select{{ratio=0.5 scope=heads criterion={text}}},slice-channels,clean",
    )
    assert found.report["certificate"]["status"] == "passed"
    assert [(group["removed"], group["units"]) for group in found.report["groups"] if group["removed"]] == [(2, 4)]


def test_random_inputs_are_mentioned(digits, caplog):
    assert "wanda: scored on random inputs; calibration data give better scores" in scored("wanda", None)[1].notes
    assert any("results are better with data" in record.getMessage() for record in caplog.records)
    assert scored("wanda", {"image": digits["calibration"][:8]})[1].notes == ()


def test_steps_score_what_is_left(digits):
    facts, _ = scored("wanda", {"image": digits["calibration"][:20]})
    for steps in (1, 3):
        Pipeline.parse(f"select{{ratio=0.5 align=1 criterion=wanda steps={steps}}}").run_on(facts)
        assert facts.plan is not None
        share = sum(g.removed for g in facts.plan.groups) / sum(g.units for g in facts.plan.groups)
        assert share == pytest.approx(0.5, abs=0.02)


def test_data_that_are_not_finite(digits):
    images = digits["calibration"][:6].copy()
    images[3, 0, 0] = np.inf
    with pytest.raises(ModelError, match="NaN or infinity on batch 3"):
        scored("flap", {"image": images})


@pytest.mark.parametrize("name", [*TINY, "post_timm_efficientnet_lite0__qdq", "custom_bigru_seqfirst__ts17-dynb-seq"])
def test_every_unit_of_every_network_gets_a_score(name, monkeypatch):
    monkeypatch.setattr(batches_module, "DRAWN", 4)
    model = TINY[name]()[0] if name in TINY else load_graph(name)
    sizes = {"image": (1, 3, 16, 16)} if name in ("conv_chain", "pixel_shuffle") else {}
    facts = Pipeline.parse("canonicalize").run(load(model), Context(shapes=sizes))
    units = np.concatenate([group.units.reshape(-1) for group in facts.get("coupling").groups])
    for text in NAMES:
        found = facts.get("importance", criterion=text)
        assert np.isfinite(found.raw[units]).all(), text
        assert np.isfinite(found.scores[units]).all(), text
