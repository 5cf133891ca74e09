"""Running models: sessions, taps, inputs that make sense, given inputs, seeded random operators."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import GRAPHS, load_graph
from onnx import numpy_helper
from textmodels import chain, model, weight

from prunepass import files, runtime
from prunepass.errors import ModelError, PipelineError, UnsupportedError
from prunepass.files import load
from prunepass.runtime import check_data, load_data, random_inputs, seed_random_nodes, session, split_data

X = weight(3, 64)


def reference() -> dict[str, np.ndarray]:
    """Compute every value of the chain model."""
    h = X @ weight(64, 32)
    return {"h": h, "r": np.maximum(h, 0), "y": np.maximum(h, 0) + weight(32)}


# Sessions


@pytest.mark.parametrize("optimise", ["all", "basic", "off"])
@pytest.mark.parametrize("form", [load, onnx.ModelProto.SerializeToString, lambda m: m])
def test_a_session_runs_any_form_of_a_model(form: Callable[[onnx.ModelProto], Any], optimise: Any) -> None:
    made = session(form(chain()), optimise=optimise, threads=1)
    assert (made.input_names, made.output_names) == (("x",), ("y",))
    found = runtime.run(made, {"x": X})
    np.testing.assert_allclose(found["y"], reference()["y"], rtol=1e-5, atol=1e-5)


def test_a_session_runs_a_file_with_external_data(tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), load(tmp_path / "m.onnx")):
        np.testing.assert_allclose(session(source).run({"x": X})["y"], reference()["y"], rtol=1e-5, atol=1e-5)


def test_large_models_go_through_a_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "EMBEDDED_LIMIT", 4096)
    found = session(load(chain()), taps=["h"]).run({"x": X})
    np.testing.assert_allclose(found["h"], reference()["h"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variable", "given", "expected"),
    [("3", None, 3), ("3", 2, 2), ("", None, min(4, os.cpu_count() or 1)), ("999", 1, 1)],
)
def test_the_environment_sets_the_threads_of_a_session(
    monkeypatch: pytest.MonkeyPatch, variable: str, given: int | None, expected: int
) -> None:
    monkeypatch.setenv("PRUNEPASS_THREADS", variable)
    made = session(chain(), threads=given)
    assert made._inner.get_session_options().intra_op_num_threads == expected


@pytest.mark.parametrize("variable", ["0", "-1", "two", "1.5", " 1", "1000"])
def test_a_bad_number_of_threads_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("PRUNEPASS_THREADS", variable)
    with pytest.raises(PipelineError, match="from 1 to 999"):
        session(chain())


@pytest.mark.parametrize("opset", [7, 17, onnx.defs.onnx_opset_version()])
@pytest.mark.parametrize("ir", [3, 8, onnx.IR_VERSION])
def test_versions_that_onnxruntime_does_not_have_yet(opset: int, ir: int) -> None:
    source = model("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset, ir)
    for form in (source, source.SerializeToString()):
        np.testing.assert_array_equal(session(form).run({"x": np.array([-1, 1], np.float32)})["y"], [0, 1])


@pytest.mark.parametrize("optimise", ["all", "basic", "off"])
@pytest.mark.parametrize("taps", [("h",), ("h", "r"), ("x", "w", "y", "r"), ()])
def test_taps_return_any_value_and_change_nothing(taps: tuple[str, ...], optimise: Any) -> None:
    want = {**reference(), "x": X, "w": weight(64, 32)}
    source = chain()
    before = source.SerializeToString()
    found = session(source, optimise=optimise, taps=taps).run({"x": X})
    assert set(found) == {"y", *taps}
    for name, value in found.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-5, atol=1e-5)
    assert source.SerializeToString() == before


PAD = """g (float[1, 2, 6, 6] x) => (float[1, 2, 6, 6] y) {
    a = Conv <kernel_shape = [1, 1]> (x, k)
    p = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()
    b = Pad(a, p)
    c = Conv <kernel_shape = [3, 3]> (b, w)
    s = Sigmoid(c)
    y = Mul(c, s)
}"""


def test_taps_that_optimisations_stumble_over() -> None:
    source = model(PAD, k=weight(2, 2, 1, 1), w=weight(2, 2, 3, 3))
    taps = [name for node in source.graph.node for name in node.output]
    feeds = random_inputs(load(source))
    found, want = (session(source, optimise=level, taps=taps).run(feeds) for level in ("all", "off"))
    for name in taps:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-5, atol=1e-5)


BFLOAT = "g (bfloat16[2] x) => (bfloat16[2] y) { y = Relu(x) }"
RELU = "g (float[2] x) => (float[2] y) { y = Relu(x) }"


@pytest.mark.parametrize(
    ("body", "domains", "kind", "message"),
    [
        (RELU.replace("Relu", "Strange"), "", UnsupportedError, "No Op registered for Strange .* custom operators"),
        (RELU.replace("Relu", "a.b.F"), ', "a.b" : 1', UnsupportedError, "a.b.*; export without custom operators"),
        (
            RELU.replace("Relu", "And").replace("(x)", "(x, x)"),
            "",
            ModelError,
            r"Type Error: .*\(And\).*; the model is",
        ),
        (RELU.replace("Relu", "MatMul").replace("(x)", "(x, w)"), "", ModelError, "Incompatible dim.*; the model is"),
        (BFLOAT, "", UnsupportedError, r"implementation for Relu\(14\).*; there is no CPU kernel for these types"),
    ],
)
def test_refusals_are_one_line(body: str, domains: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^onnxruntime refuses the model: .*{message}") as caught:
        session(model(body, 17, 8, domains, w=weight(3, 3)))
    assert "\n" not in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": weight(3, 65)}, r"Got invalid dimensions for input.*; give other sizes with --shape"),
        ({"x": X.astype(np.float64)}, "Unexpected input data type"),
        ({"z": X}, r"Required inputs \(\['x'\]\) are missing"),
    ],
)
def test_failed_runs_are_one_line(feeds: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ModelError, match=r"^onnxruntime fails to run the model on . \[3, ..\]: " + message) as caught:
        session(chain()).run(feeds)
    assert "\n" not in str(caught.value)


def test_a_tap_must_exist() -> None:
    with pytest.raises(ModelError, match="there is no value 'q' to tap; give the name of an activation or a constant"):
        session(chain(), taps=["q"])


def test_has_operator() -> None:
    assert runtime.has_operator("Conv", "", 7)
    assert runtime.has_operator("BiasGelu", "com.microsoft", 1)
    assert runtime.has_operator("SimplifiedLayerNormalization", "", 11)
    assert not runtime.has_operator("BiasGelu", "", 17)
    assert [runtime.has_operator("Gelu", "", version) for version in (19, 20)] == [False, True]


# Random inputs

E64 = weight(7, 4)
TOKENS = "g (int64[1, n] {name}) => (float y) {{ {body} }}"


def draw(body: str, name: str, shape: tuple[int, ...] = (1, 50), kind: str = "int64", **weights: np.ndarray) -> Any:
    """Draw the one input of a model."""
    axes = ", ".join(f"d{i}" for i in range(len(shape)))
    source = model(f"g ({kind}[{axes}] {name}) => (float y) {{ {body} }}", 17, 8, **weights)
    return random_inputs(load(source), {name: shape})[name]


TABLES = [  # body, what reads the tokens, how many of them there are
    ("y = Gather(t, ids)", 7),
    ("i = Cast <to = 6> (ids) y = Gather(t, i)", 7),
    ("k = Constant <value_ints = [0]> () i = Unsqueeze(ids, k) j = Identity(i) y = Gather(t, j)", 7),
    ("y = Gather <axis = 1> (t, ids)", 4),
    ("y = Gather <axis = -1> (t, ids)", 4),
    ("a = Gather(t, ids) b = Gather(small, ids) y = Add(a, b)", 3),
    ("two = Constant <value = int64 {2}> () i = Add(ids, two) y = Gather(t, i)", 5),
    ("two = Constant <value = int64 {2}> () i = Mul(ids, two) y = Gather(t, i)", 4),
    ("c = Constant <value = float[5, 1] {1, 2, 3, 4, 5}> () y = Gather(c, ids)", 5),
    ("v = Transpose <perm = [1, 0]> (t) y = Gather(v, ids)", 4),
    ("h = Constant <value = float {0.5}> () v = Mul(t, h) y = Gather(v, ids)", 7),
    ("d = Constant <value = int64 {6}> () v = Constant <value_floats = [0.0, 1.0]> () y = OneHot(ids, d, v)", 6),
    ("y = Cast <to = 1> (ids)", 2),
]


@pytest.mark.parametrize(("body", "count"), TABLES)
def test_tokens_stay_in_their_table_and_use_all_of_it(body: str, count: int) -> None:
    ids = draw(body, "ids", t=E64, small=weight(3, 4))
    assert ids.dtype == np.int64
    assert sorted(set(ids.ravel().tolist())) == list(range(count))


def test_tokens_that_a_body_reads() -> None:
    source = model(
        """g (bool c, int64[50] ids) => (float[n, 4] y) {
            y = If <then_branch = a () => (float[n, 4] p) { p = Gather(t, ids) },
                    else_branch = b () => (float[n, 4] q) { q = Gather(t, ids) }> (c)
        }""",
        t=E64,
    )
    assert random_inputs(load(source))["ids"].max() == 6


@pytest.mark.parametrize("kind", ["int64", "float", "bool"])
def test_masks_are_mostly_on(kind: str) -> None:
    mask = draw("y = Cast <to = 1> (attention_mask)", "attention_mask", (20, 50), kind)
    assert set(np.unique(mask)) == {0, 1}
    assert 0.7 < mask.mean() < 0.9
    assert mask[:, 0].all()


OTHERS: list[tuple[str, str, str, tuple[int, ...], Callable[[np.ndarray], Any]]] = [
    ("y = Gather(t, position_ids)", "int64", "position_ids", (2, 9), lambda v: (v == np.arange(9) % 7).all()),
    ("y = Cast <to = 1> (position_ids)", "int64", "position_ids", (2, 9), lambda v: (v == np.arange(9)).all()),
    ("y = Cast <to = 1> (image)", "uint8", "image", (9, 9), lambda v: v.max() > 200 and v.min() < 50),
    ("y = Cast <to = 1> (q)", "int8", "q", (9, 9), lambda v: v.max() > 90 and v.min() < -90),
    ("y = Expand(t, sizes)", "int64", "sizes", (2,), lambda v: (v == 1).all()),
    ("y = Sqrt(x)", "float", "x", (9, 9), lambda v: (v > 0).all()),
    ("a = Abs(x) y = Sqrt(a)", "float", "x", (9, 9), lambda v: (v < 0).any()),
    ("i = Cast <to = 7> (x) y = Gather(t, i)", "float", "x", (50,), lambda v: sorted(set(v)) == list(range(7))),
    ("y = Identity(scale_factor)", "float", "scale_factor", (1, 2), lambda v: (v == 1).all()),
    (
        "k = Constant <value = int64 {16000}> () e = Equal(sr, k) y = Cast <to = 1> (e)",
        "int64",
        "sr",
        (),
        lambda v: v == 16000,
    ),
    ("y = Relu(x)", "float", "x", (50, 50), lambda v: abs(v.mean()) < 0.1 and abs(v.std() - 1) < 0.1),
    ("y = Cast <to = 1> (x)", "double", "x", (50, 50), lambda v: v.dtype == np.float64),
    ("y = Relu(x)", "float16", "x", (5, 5), lambda v: v.dtype == np.float16),
]


@pytest.mark.parametrize(("body", "kind", "name", "shape", "holds"), OTHERS)
def test_other_inputs(
    body: str, kind: str, name: str, shape: tuple[int, ...], holds: Callable[[np.ndarray], Any]
) -> None:
    value = draw(body, name, shape, kind, t=E64)
    assert value.shape == shape
    assert holds(value)


def test_lengths_are_in_range() -> None:
    body = "g (float[b, 12, 30] x, int64[b] x_lens) => (float y) { a = Relu(x) y = Cast <to = 1> (x_lens) }"
    lengths = random_inputs(load(model(body)), {"x": (9, 12, 30), "x_lens": (9,)})["x_lens"]
    assert lengths.max() == 12
    assert lengths.min() >= 6


def test_trials_differ_and_repeat() -> None:
    graph = load(chain())
    drawn = {
        (seed, kind): random_inputs(graph, {"x": (40, 64)}, seed, kind)["x"]
        for seed in (0, 1)
        for kind in ("normal", "large")
    }
    np.testing.assert_array_equal(drawn[0, "normal"], random_inputs(graph, {"x": (40, 64)})["x"])
    assert not np.array_equal(drawn[0, "normal"], drawn[1, "normal"])
    assert 4.5 < drawn[0, "large"].std() < 5.5
    assert random_inputs(graph)["x"].shape == (1, 64)  # a dynamic axis is 1


def test_an_input_that_is_no_tensor() -> None:
    body = "g (seq(float[2]) s) => (float[2] y) { i = Constant <value = int64 {0}> () y = SequenceAt(s, i) }"
    with pytest.raises(UnsupportedError, match="graph input 's' is no tensor but a sequence_type; export with plain"):
        random_inputs(load(model(body)))


RUNS = [
    name
    for name in GRAPHS
    if name.startswith(("custom_", "hf_t5", "hf_qwen3_kv", "post_custom", "keras_gru", "sklearn"))
]


@pytest.mark.parametrize("name", RUNS)
def test_random_inputs_run_on_exporter_graphs(name: str) -> None:
    source = load_graph(name)
    shapes = {s["name"]: tuple(s["run"]) for s in hints(source)}
    found = session(source, threads=1).run(random_inputs(load(source), shapes))
    assert all(np.isfinite(v).all() for v in found.values() if v.dtype.kind == "f")


def hints(source: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the shapes that an exporter graph was run with."""
    import json

    found: list[dict[str, Any]] = json.loads(next(p.value for p in source.metadata_props if p.key == "zoo.inputs"))
    return found


# Given inputs


def test_data_is_read_checked_and_split(tmp_path: Path) -> None:
    graph = load(model("g (float[2, 3] x, int64[n] k) => (float[2, 3] y) { y = Relu(x) }"))
    x = np.arange(24.0).reshape(8, 3)
    np.savez(tmp_path / "d.npz", x=x, k=np.arange(5, dtype=np.int32))
    data = load_data(tmp_path / "d.npz", graph)
    assert (data["x"].dtype, data["k"].dtype) == (np.float32, np.int64)
    feeds = split_data(data, graph)
    assert [f["x"].tolist() for f in feeds] == [x[i : i + 2].tolist() for i in (0, 2, 4, 6)]
    assert all(f["k"].tolist() == [0, 1, 2, 3, 4] for f in feeds)
    more = check_data({"x": x.reshape(4, 2, 3), "k": np.arange(20).reshape(4, 5)}, graph)
    assert [f["k"].tolist() for f in split_data(more, graph)] == np.arange(20).reshape(4, 5).tolist()
    assert len(split_data(check_data({"x": X}, load(chain())), load(chain()))) == 1


BAD_DATA: list[tuple[dict[str, Any], str]] = [
    ({}, "there is no array for the input 'x'; add one"),
    ({"x": X, "z": X}, "the model has no input 'z'; its inputs are x"),
    ({"x": X.astype(np.int64)}, "the array 'x' has type int64, the model needs float32; convert it"),
    ({"x": X[0]}, r"the array 'x' has shape \[64\], the model needs \['n', 64\]; reshape it"),
    ({"x": X[:, 1:]}, r"the array 'x' has shape \[3, 63\], the model needs \['n', 64\]; reshape it"),
    ({"x": X[:0]}, r"the array 'x' has shape \[0, 64\]"),
    ({"x": X[None, None]}, r"the array 'x' has shape \[1, 1, 3, 64\]"),
    ({"x": X * np.nan}, "the array 'x' has values that are not finite; take them out"),
]


@pytest.mark.parametrize(("data", "message"), BAD_DATA)
def test_data_that_does_not_fit(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"^the data: {message}"):
        check_data(data, load(chain()))


def test_samples_must_be_as_many_for_every_input() -> None:
    graph = load(model("g (float[1, 3] x, float[1, 3] z) => (float[1, 3] y) { y = Add(x, z) }"))
    with pytest.raises(ModelError, match=r"different numbers of samples: {'x': 4, 'z': 3}; make them equal"):
        check_data({"x": weight(4, 3), "z": weight(3, 3)}, graph)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "not an npz file of plain arrays"),
        (b"text", "not an npz file of plain arrays"),
        ("array", r"one plain array; save it with numpy\.savez"),
        ("object", "not an npz file of plain arrays .*; write it with numpy.savez"),
    ],
)
def test_files_that_hold_no_data(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "array":
        with path.open("wb") as file:
            np.save(file, X)
    elif content == "object":
        np.savez(path, x=np.array([{}], object))
    with pytest.raises(ModelError, match=message):
        load_data(path, load(chain()))


# Random operators

NOISE = """g (bool c, float[4] x) => (float[4] y, float[4] z, float[4] u) {
    y = RandomNormalLike(x)
    z = RandomNormalLike(x)
    u = If <then_branch = a () => (float[4] p) { p = RandomUniformLike(x) },
            else_branch = b () => (float[4] q) { q = Identity(x) }> (c)
}"""


def test_random_operators_draw_the_same_in_every_session() -> None:
    graph = load(model(NOISE))
    feeds = {"c": np.array(True), "x": np.zeros(4, np.float32)}
    first, second = (session(seed_random_nodes(graph)).run(feeds) for _ in range(2))
    for name in ("y", "z", "u"):
        np.testing.assert_array_equal(first[name], second[name])
    assert not np.array_equal(first["y"], first["z"])
    other = session(seed_random_nodes(graph, seed=1)).run(feeds)
    assert not np.array_equal(first["y"], other["y"])
    assert graph.to_proto() == model(NOISE)  # the graph itself is as it was
    assert numpy_helper.from_array(first["u"]) != numpy_helper.from_array(other["u"])
