"""Queries, keys and values refitted to their products, and norms: exact where rank allows, left alone where it must."""

from __future__ import annotations

import numpy as np
import pytest
from recovering import cut, drawn, error, graph_of, run, start, weights

from fixtures import VIT
from prunepass import load
from prunepass.recovery import sequential
from prunepass.recovery.attention import Attention
from prunepass.recovery.heads import Refused
from prunepass.recovery.mixing import best, solved

WIDTH, HEADS, SIZE, TOKENS = 10, 2, 4, 6
INNER = HEADS * SIZE
SPLIT = {"split": np.array([0, 0, HEADS, SIZE]), "join": np.array([0, 0, -1]), "factor": np.float32(0.5)}


def dependent(weight, at=3):
    """Make the channel `at` of every head a combination of two others, along the last axis."""
    heads = weight.copy().reshape(*weight.shape[:-1], -1, SIZE)
    heads[..., at] = heads[..., (at + 1) % SIZE] - 0.5 * heads[..., (at + 2) % SIZE]
    return heads.reshape(weight.shape)


def projected(name, turned=False):
    """Return the nodes that make heads of one kind: (n, heads, tokens, size), keys turned."""
    perm = [0, 2, 3, 1] if turned else [0, 2, 1, 3]
    return [
        ("MatMul", ["x", f"w{name}"], f"{name}m", {}),
        ("Add", [f"{name}m", f"b{name}"], f"{name}b", {}),
        ("Reshape", [f"{name}b", "split"], f"{name}s", {}),
        ("Transpose", [f"{name}s"], name, {"perm": perm}),
    ]


def attended(query="q", key="k"):
    return [
        ("MatMul", [query, key], "qk", {}),
        ("Mul", ["qk", "factor"], "l", {}),
        ("Softmax", ["l"], "p", {"axis": -1}),
        ("MatMul", ["p", "v"], "z", {}),
        ("Transpose", ["z"], "zt", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["zt", "join"], "zj", {}),
        ("MatMul", ["zj", "wo"], "o", {}),
        ("Add", ["o", "bo"], "y", {}),
    ]


def constants(**changed):
    """Draw weights; queries and keys are large enough for scores that differ."""
    found = {f"w{name}": 2 * weights(WIDTH, INNER, seed=at) for at, name in enumerate("qkv")}
    found |= {f"b{name}": drawn(INNER, seed=at) for at, name in enumerate("qkv")}
    return {**found, "wo": weights(INNER, WIDTH), "bo": drawn(WIDTH), **SPLIT, **changed}


def apart():
    return (
        [*projected("q"), *projected("k", turned=True), *projected("v"), *attended()],
        constants(),
        {"wq": 1, "wk": 1},
    )


def fused():
    """One weight for all three, cut up behind a transposition of five axes; the queries are scaled."""
    nodes = [
        ("MatMul", ["x", "w"], "m", {}),
        ("Add", ["m", "b"], "mb", {}),
        ("Reshape", ["mb", "five"], "s", {}),
        ("Transpose", ["s"], "t", {"perm": [2, 0, 3, 1, 4]}),
        ("Split", ["t", "thirds"], [f"{name}w" for name in "qkv"], {"axis": 0}),
        *(("Squeeze", [f"{name}w", "first"], f"{name}g", {}) for name in "qkv"),
        ("Mul", ["qg", "factor"], "q", {}),
        ("Transpose", ["kg"], "k", {"perm": [0, 1, 3, 2]}),
        ("Identity", ["vg"], "v", {}),
        *attended(),
    ]
    known = constants(five=np.array([0, 0, 3, HEADS, SIZE]), thirds=np.array([1, 1, 1]), first=np.array([0]))
    known["w"] = np.concatenate([known.pop(f"w{name}") for name in "qkv"], axis=1)
    known["b"] = np.concatenate([known.pop(f"b{name}") for name in "qkv"])
    return nodes, known, {"w": 1}


def grouped():
    """One key head and one value head for both query heads."""
    nodes = [*projected("q"), *projected("k", turned=True), *projected("v"), *attended()]
    nodes = [
        (op, [{"split": "one"}.get(i, i) for i in ins] if out in ("ks", "vs") else ins, out, at)
        for op, ins, out, at in nodes
    ]
    small = {f"w{name}": 2 * weights(WIDTH, SIZE, seed=at) for at, name in enumerate("qkv") if name != "q"}
    small |= {f"b{name}": drawn(SIZE, seed=at) for at, name in enumerate("qkv") if name != "q"}
    return nodes, constants(one=np.array([0, 0, 1, SIZE]), **small), {"wq": 1, "wk": 1}


def operator():
    """The operator of opset 23."""
    nodes = [n for name in "qkv" for n in projected(name)[:2]]
    nodes += [
        ("Attention", ["qb", "kb", "vb"], "zj", {"q_num_heads": HEADS, "kv_num_heads": HEADS}),
        *attended()[-2:],
    ]
    return nodes, constants(), {"wq": 1, "wk": 1}


FORMS = {"apart": apart, "fused": fused, "grouped": grouped, "operator": operator}
DATA, FRESH = {"x": drawn(60, TOKENS, WIDTH)}, {"x": drawn(16, TOKENS, WIDTH, seed=1)}


def built(form, kinds):
    """Return a graph in which channels 3 of the heads of some kinds follow from others."""
    nodes, consts, _ = FORMS[form]()
    for kind in kinds:
        at = "qkv".index(kind)
        for name in ("w", "b"):
            if f"{name}{kind}" in consts:
                consts[f"{name}{kind}"] = dependent(consts[f"{name}{kind}"])
            else:
                part = slice(at * INNER, (at + 1) * INNER)
                consts[name][..., part] = dependent(consts[name][..., part])
    return graph_of(nodes, consts, {"x": ["n", TOKENS, WIDTH]}, opset=23 if form == "operator" else 17)


def removed(form, channels):
    """Return the channels to cut: of every head of queries (and their keys) and of values."""
    if form == "fused":
        starts = [start for start in range(0, 3 * INNER, SIZE) if start // INNER != 1]
        return {("w", 1): [start + c for start in starts for c in channels]}
    heads = {"wq": HEADS, "wv": 1 if form == "grouped" else HEADS}
    return {(name, 1): [SIZE * head + c for head in range(count) for c in channels] for name, count in heads.items()}


def rows(facts, method):
    return [layer for layer in facts.recovery[0]["layers"] if layer["method"] == method]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["q", "k"])
@pytest.mark.parametrize("channel", [3, 0])
def test_scores_are_restored_where_their_rank_allows(form, kind, channel):
    """Queries (or keys) of a head span three dimensions; which of its four channels goes makes no difference."""
    graph = built(form, [kind, "v"])
    facts = cut(start(graph, DATA), removed(form, [channel]))
    assert error(graph, facts.graph, FRESH) > 1e-3
    run(facts, "compensate")
    (layer,) = rows(facts, "logits")
    assert layer["after"] < 1e-8 < 1e-3 < layer["before"]
    assert error(graph, facts.graph, FRESH) < 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_values_are_restored_where_the_rank_of_their_product_allows(form):
    """The layer behind reads three mixtures of the four values of every head, each of them with all four."""
    graph = built(form, "q")
    mixed = np.eye(SIZE) - np.full((SIZE, SIZE), 1 / SIZE)
    wide = np.einsum("ij,hjo->hio", mixed, graph.consts["wo"].reshape(HEADS, SIZE, WIDTH))
    graph.consts["wo"] = wide.reshape(INNER, WIDTH).astype(np.float32)
    facts = cut(start(graph, DATA), removed(form, [1]))
    run(facts, "compensate")
    (layer,) = rows(facts, "values")
    assert layer["after"] < 1e-8 < 1e-3 < layer["before"]
    assert error(graph, facts.graph, FRESH) < 1e-8


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_exact_gets_nearer(form):
    graph = built(form, "")
    facts = cut(start(graph, DATA), removed(form, [0, 1]))
    run(facts, "compensate,clean")
    found = [*rows(facts, "logits"), *rows(facts, "values")]
    assert len(found) == 1 if form == "grouped" else 2  # two heads read each value there: no mixture suits both
    assert all(layer["after"] < 0.9 * layer["before"] for layer in found)


def test_heads_that_keep_their_size_keep_their_products():
    facts = start(built("apart", ""), DATA)
    run(facts, "select{ratio=0.5 align=1 scope=heads},slice-channels")
    assert facts.graph.consts.shape("wq") == (WIDTH, SIZE)
    run(facts, "compensate")
    assert facts.recovery[0]["layers"] and not rows(facts, "logits") and not rows(facts, "values")


def test_two_cuts_one_after_the_other():
    """The second one finds mixtures, and aims at the dense heads all the same."""
    graph = built("apart", "")
    facts = cut(start(graph, DATA), removed("apart", [1]))
    run(facts, "compensate")
    once = error(graph, facts.graph, FRESH)
    left = [2 + (SIZE - 1) * head for head in range(HEADS)]
    cut(facts, {("wq", 1): left, ("wv", 1): left})
    before = error(graph, facts.graph, FRESH)
    run(facts, "compensate")
    assert once < error(graph, facts.graph, FRESH) < before
    direct = cut(start(graph, DATA), removed("apart", [1, 2]))
    run(direct, "compensate")
    assert error(graph, facts.graph, FRESH) < 1.01 * error(graph, direct.graph, FRESH)


# ---- data that are few or useless ------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", [DATA["x"][:1], DATA["x"][:3], DATA["x"][:8], 0 * DATA["x"]], ids=["1", "3", "8", "0"])
def test_few_or_useless_data_do_no_harm(data):
    graph = built("apart", "")
    facts = cut(start(graph, {"x": data}), removed("apart", [0, 1]))
    before = error(graph, facts.graph, FRESH)
    run(facts, "compensate")
    assert error(graph, facts.graph, FRESH) <= before
    products = [layer for layer in facts.recovery[0]["layers"] if layer["name"] in ("node12", "node15")]
    assert all(layer["method"] != "kept" or layer["note"] for layer in products)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_that_are_not_finite_are_refused(value):
    broken = np.array([[1.0, 0.0], [0.0, value]])
    with pytest.raises(Refused, match="not finite"):
        solved(broken, np.eye(2))
    with pytest.raises(Refused, match="not finite"):
        best(broken, np.eye(2), 1)


# ---- a trained transformer -------------------------------------------------------------------------------------------
def test_a_trained_transformer_comes_nearer_than_without_products(digits, monkeypatch):
    """Half of every head goes: queries and keys, and values."""
    found = []
    for name in ("Attention", "Nothing"):
        if name == "Nothing":
            monkeypatch.setattr(sequential, "Attention", lambda work, layers: Attention(work, []))
        facts = start(load(VIT), {"image": digits["calibration"][:128]})
        run(facts, "canonicalize,select{ratio=0 align=1 scope=local ratios=query:0.5,value:0.5},slice-channels")
        assert facts.graph.consts.shape("block0.attention.query.weight") == (40, 20)
        run(facts, "compensate,clean")
        fresh = {"image": digits["image"][:200]}
        found.append(error(facts.source, facts.graph, fresh))
        assert len(rows(facts, "logits")) == len(rows(facts, "values")) == (3 if name == "Attention" else 0)
    assert found[0] < 0.4 * found[1]


# ---- what no weight can take in --------------------------------------------------------------------------------------
def rotated():
    """Queries and keys are turned by tables, as rotary embeddings do."""
    nodes = [
        (op, ins, f"{out}r" if out in "qk" else out, at) for op, ins, out, at in (*projected("q"), *projected("k"))
    ]
    for n in "qk":
        nodes += [
            ("Split", [f"{n}r", "halves"], [f"{n}1", f"{n}2"], {"axis": 3}),
            ("Neg", [f"{n}2"], f"{n}3", {}),
            ("Concat", [f"{n}3", f"{n}1"], f"{n}4", {"axis": 3}),
            ("Mul", [f"{n}r", "cos"], f"{n}5", {}),
            ("Mul", [f"{n}4", "sin"], f"{n}6", {}),
            ("Add", [f"{n}5", f"{n}6"], f"{n}7", {}),
        ]
    nodes += [("Transpose", ["k7"], "k", {"perm": [0, 1, 3, 2]}), *projected("v"), *attended("q7")]
    return nodes, {"halves": np.array([2, 2]), "cos": drawn(TOKENS, SIZE), "sin": drawn(TOKENS, SIZE, seed=1)}


def between(*nodes):
    """Put nodes between the heads of the queries and the product."""
    return [*projected("q"), *nodes, *projected("k", turned=True), *projected("v"), *attended("f")]


def twice():
    """The keys are values, too."""
    nodes = [*projected("q"), *projected("k", turned=True), ("Transpose", ["ks"], "v", {"perm": [0, 2, 1, 3]})]
    return [*nodes, *attended()]


LEFT_ALONE = {
    "rotary embedding": (rotated(), {("wq", 1): [0, 2, 4, 6]}),
    "norm of queries": (
        (between(("LayerNormalization", ["q", "gain"], "f", {})), {"gain": drawn(SIZE)}),
        {("wq", 1): [0, 4]},
    ),
    "activation": ((between(("Relu", ["q"], "f", {})), {}), {("wq", 1): [0, 4]}),
    "gain per channel": ((between(("Mul", ["q", "gain"], "f", {})), {"gain": drawn(SIZE)}), {("wq", 1): [0, 4]}),
    "keys are values": ((twice(), {}), {("wq", 1): [0, 4]}),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_scores_are_left_alone_where_weights_cannot_take_in_a_matrix(name):
    (nodes, more), chosen = LEFT_ALONE[name]
    used = {i for _, ins, _, _ in nodes for i in ins}
    graph = graph_of(nodes, {n: c for n, c in constants(**more).items() if n in used}, {"x": ["n", TOKENS, WIDTH]})
    facts = cut(start(graph, DATA), chosen)
    before = error(graph, facts.graph, FRESH)
    run(facts, "compensate")
    assert not rows(facts, "logits")
    assert error(graph, facts.graph, FRESH) <= before


def test_values_that_a_graph_output_shows_stay_what_they_are():
    nodes, consts, _ = apart()
    graph = graph_of(nodes, consts, {"x": ["n", TOKENS, WIDTH]}, ["y", "v"])
    facts = start(graph, DATA)
    cut(facts, {("wq", 1): [0, 4]})
    run(facts, "compensate")
    assert rows(facts, "logits") and not rows(facts, "values")


# ---- norms -----------------------------------------------------------------------------------------------------------
NORMS = {
    "operator": ([("LayerNormalization", ["h", "g", "c"], "n", {})], 0.8),
    "without shift": ([("RMSNormalization", ["h", "g"], "n", {})], 1e-8),
    "written out": (
        [
            ("Mul", ["h", "h"], "s", {}),
            ("ReduceMean", ["s", "last"], "mean", {}),
            ("Sqrt", ["mean"], "root", {}),
            ("Div", ["h", "root"], "d", {}),
            ("Mul", ["g", "d"], "e", {}),
            ("Add", ["e", "c"], "n", {}),
        ],
        1e-8,
    ),
}
SHARED = [("MatMul", ["a", "v"], "y", {}), ("Tanh", ["a"], "t", {}), ("MatMul", ["t", "v"], "z", {})]


def normed(name):
    """Norm eight channels of which the last four are twice the first; two layers with one weight read them."""
    half = weights(6, 4)
    consts = {"w": np.concatenate([half, 2 * half], 1), "g": 1 + drawn(8) / 4, "c": drawn(8), "v": weights(8, 5)}
    consts["v"][4:] = 0
    nodes = [("MatMul", ["x", "w"], "h", {}), *NORMS[name][0], ("Relu", ["n"], "a", {}), *SHARED]
    used = {i for _, ins, _, _ in nodes for i in ins}
    known = {n: c for n, c in {**consts, "last": np.array([-1])}.items() if n in used}
    return graph_of(nodes, known, {"x": ["n", 6]}, ["y", "z"], opset=23)


@pytest.mark.parametrize("name", NORMS)
def test_norms_over_fewer_channels_get_their_scale_back(name):
    graph = normed(name)
    facts = cut(start(graph, {"x": drawn(200, 6)}), {("w", 1): [4, 5, 6, 7]})
    fresh = {"x": drawn(64, 6, seed=1)}
    before = error(graph, facts.graph, fresh)
    run(facts, "compensate")
    (layer,) = rows(facts, "gains")
    share = NORMS[name][1]
    assert layer["after"] < share * layer["before"]
    assert error(graph, facts.graph, fresh) < share * before


def test_norms_that_only_refitted_layers_read_stay():
    """These layers take any scale and shift in."""
    nodes = [("MatMul", ["x", "w"], "h", {}), *NORMS["operator"][0], ("MatMul", ["n", "v"], "y", {})]
    consts = {"w": weights(6, 8), "g": 1 + drawn(8) / 4, "c": drawn(8), "v": weights(8, 5)}
    graph = graph_of(nodes, consts, {"x": ["n", 6]})
    facts = cut(start(graph, {"x": drawn(200, 6)}), {("w", 1): [6, 7]})
    run(facts, "compensate")
    assert [layer["op"] for layer in facts.recovery[0]["layers"]] == ["MatMul", "MatMul"]
    np.testing.assert_array_equal(facts.graph.consts["g"], consts["g"][:6])
