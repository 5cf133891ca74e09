"""Loading and saving: any source, external data, nothing half-written, nothing copied."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs  # noqa: TID251
import pytest
from conftest import DIGITS, GRAPHS, load_graph
from onnx import numpy_helper
from textmodels import chain, model, weight

from prunepass import files, interop, runtime, wire
from prunepass.errors import ModelError, PruneError
from prunepass.files import load, save, sha256_of, size_bytes

X = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)


def outputs(source: Any) -> list[np.ndarray]:
    """Run a chain model."""
    return list(runtime.session(source).run({"x": X}).values())


def listing(folder: Path) -> list[str]:
    """Return the names of all files, hidden ones too."""
    return sorted(p.name for p in folder.iterdir())


def save_external(source: onnx.ModelProto, path: Path, location: str, threshold: int = 0) -> None:
    """Write a model with all its weights, also those in attributes and bodies, in another file."""
    twin = onnx.ModelProto()
    twin.CopyFrom(source)
    onnx.save(
        twin,
        path,
        save_as_external_data=True,
        location=location,
        size_threshold=threshold,
        convert_attribute=True,
    )


# Sources


@pytest.mark.parametrize("name", GRAPHS)
def test_exporter_files_come_back_as_they_are(name: str) -> None:
    source = load_graph(name)
    graph = load(source.SerializeToString())
    written = b"".join(wire.encode(graph))
    assert written == graph.to_proto().SerializeToString()
    assert size_bytes(graph) == len(written)
    assert b"".join(wire.encode(load(written))) == written
    back = onnx.load_model_from_string(written)
    for field in ("ir_version", "producer_name", "metadata_props", "doc_string", "domain", "opset_import"):
        assert getattr(back, field) == getattr(source, field), field
    assert list(back.graph.input) == list(source.graph.input)
    assert list(back.graph.output) == list(source.graph.output)


def test_every_kind_of_source_gives_the_same_graph(tmp_path: Path) -> None:
    source = chain()
    path = tmp_path / "m.onnx"
    onnx.save(source, path)
    graph = load(path)
    sources = [str(path), path.read_bytes(), source, graph, gs.import_onnx(source)]
    want = outputs(source)
    for other in map(load, sources):
        assert [n.op for n in other.nodes] == ["MatMul", "Relu", "Add"]
        np.testing.assert_array_equal(outputs(other), want)
    assert load(graph) is graph


def test_loading_does_not_change_the_source() -> None:
    source = load_graph("torchvision_mobilenet_v2__ts17-fn")
    before = source.SerializeToString()
    load(source).nodes[0].set_attr("group", 2)
    assert source.SerializeToString() == before


def test_local_functions_are_inlined() -> None:
    source = load_graph("torchvision_mobilenet_v2__ts17-fn")
    graph = load(source.SerializeToString())
    assert source.functions
    assert not graph.to_proto().functions
    assert {n.op for n in graph.nodes} >= {"Conv", "Clip", "Gemm"}
    feeds = runtime.random_inputs(graph, {})
    want = runtime.session(source.SerializeToString()).run(feeds)
    for name, value in runtime.session(graph).run(feeds).items():
        np.testing.assert_allclose(value, want[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [7, 13, onnx.defs.onnx_opset_version()])
def test_every_opset_is_loaded(opset: int) -> None:
    ir = 3 if opset == 7 else onnx.IR_VERSION
    source = model("g (float[2, 64] x) => (float[2, 64] y) { y = Relu(x) }", opset, ir)
    graph = load(source)
    assert graph.opset == opset
    assert graph.to_proto() == source
    np.testing.assert_array_equal(outputs(graph)[0], np.maximum(X, 0))


def test_nodes_are_sorted_only_where_they_must_be() -> None:
    source = chain()
    nodes = list(source.graph.node)
    del source.graph.node[:]
    source.graph.node.extend([nodes[2], nodes[0], nodes[1]])
    assert [n.op for n in load(source).nodes] == ["MatMul", "Relu", "Add"]
    body = "g (float[n, 64] x) => (float[n, 64] y, float[n, 64] z) { z = Neg(x)  h = Relu(x)  y = Abs(h) }"
    assert [n.op for n in load(model(body)).nodes] == ["Neg", "Relu", "Abs"]


def test_a_value_that_only_a_body_reads_is_computed_first() -> None:
    source = model("""g (bool c, float[2] x) => (float[2] y) {
        y = If <then_branch = t () => (float[2] a) { a = Neg(h) },
                else_branch = e () => (float[2] b) { b = Abs(h) }> (c)
        h = Relu(x)
    }""")
    assert [n.op for n in load(source).nodes] == ["Relu", "If"]


def test_nodes_of_one_name_are_told_apart() -> None:
    source = chain()
    for node in source.graph.node:
        node.name = "n"
    graph = load(source)
    assert [n.name for n in graph.nodes] == ["n", "n__1", "n__2"]
    outputs(graph)  # onnxruntime refuses the source


def test_weights_are_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    body = "g (float[1, 2048] x) => (float[1, 2048] y) { y = MatMul(x, w) }"
    onnx.save(model(body, w=weight(2048, 2048)), path)  # 16 MiB
    tracemalloc.start()
    graph = load(path)
    save(graph, tmp_path / "out.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20
    assert not graph.consts["w"].flags.writeable
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


# External data

CONSTANT = """g (bool c, float[n, 64] x) => (float[n, 32] y) {
    w = Constant <value = float[1] {0}> ()
    h = MatMul(x, w)
    y = If <then_branch = t () => (float[n, 32] a) { a = Add(h, v) },
            else_branch = e () => (float[n, 32] b) { b = Abs(h) }> (c)
}"""


def constant_model() -> onnx.ModelProto:
    """Return a model with a weight in a Constant node and one in a body."""
    source = model(CONSTANT)
    source.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(weight(64, 32)))
    source.graph.node[2].attribute[0].g.initializer.append(numpy_helper.from_array(weight(32), "v"))
    return source


def test_external_data_is_mapped_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    save_external(chain(), tmp_path / "sub" / "m.onnx", "data/w.bin")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in (tmp_path / "sub" / "m.onnx", Path("../sub/m.onnx")):
        graph = load(path)
        assert graph.external
        assert [f.name for f in graph.files] == ["m.onnx", "w.bin"]
        assert not graph.consts["w"].flags.owndata
        np.testing.assert_array_equal(graph.consts["w"], weight(64, 32))
        np.testing.assert_array_equal(outputs(graph), outputs(chain()))


def test_external_data_in_constants_and_bodies(tmp_path: Path) -> None:
    save_external(constant_model(), tmp_path / "m.onnx", "w.bin")
    graph = load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(graph.nodes[0].attr("value"), weight(64, 32))
    feeds = {"c": np.array(True), "x": X}
    want = runtime.session(constant_model()).run(feeds)["y"]
    np.testing.assert_array_equal(runtime.session(graph).run(feeds)["y"], want)


def test_a_linked_model_finds_its_data_beside_the_target(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_external(chain(), tmp_path / "blobs" / "m.onnx", "w.bin")
    (tmp_path / "snapshot" / "m.onnx").symlink_to("../blobs/m.onnx")
    (tmp_path / "snapshot" / "w.bin").symlink_to("../blobs/w.bin")
    np.testing.assert_array_equal(load(tmp_path / "snapshot" / "m.onnx").consts["w"], weight(64, 32))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.float8_e5m2, np.bool_, np.complex64])
def test_every_type_goes_through_external_data(dtype: Any, tmp_path: Path) -> None:
    array = (weight(40, 60) * 3).astype(dtype)
    source = model("g (float[1] x) => (float[1] y) { y = Identity(x) }", 21, 10, w=array)
    save_external(source, tmp_path / "m.onnx", "w.bin")
    graph = load(tmp_path / "m.onnx")
    assert (graph.consts.shape("w"), graph.consts.nbytes("w")) == (
        array.shape,
        len(source.graph.initializer[0].raw_data),
    )
    save(graph, tmp_path / "out.onnx")
    assert listing(tmp_path) == ["m.onnx", "out.onnx", "out.onnx.data", "w.bin"]
    for name in ("m.onnx", "out.onnx"):
        again = load(tmp_path / name).consts["w"]
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0].raw_data == source.graph.initializer[0].raw_data


def test_external_data_is_written_aligned_and_small_tensors_inside(tmp_path: Path) -> None:
    source = model("g (float[1] x) => (float[1] y) { y = Identity(x) }", w=weight(33, 33), v=weight(300), s=weight(4))
    save_external(source, tmp_path / "m.onnx", "w.bin")
    graph = load(tmp_path / "m.onnx")
    save(graph, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    places = [{e.key: e.value for e in t.external_data} for t in written.graph.initializer]
    assert [p.get("location") for p in places] == ["out.onnx.data", "out.onnx.data", None]
    assert [int(p["offset"]) % wire.ALIGNMENT for p in places[:2]] == [0, 0]
    on_disk = sum((tmp_path / n).stat().st_size for n in ("out.onnx", "out.onnx.data"))
    assert abs(size_bytes(graph) - on_disk) <= 8 * 3


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a protobuf ends at 4 kB."""
    monkeypatch.setattr(files, "EMBEDDED_LIMIT", 4096)


@pytest.mark.usefixtures("small_limit")
def test_large_models_are_written_with_external_data(tmp_path: Path) -> None:
    save(load(chain()), tmp_path / "out.onnx")
    assert listing(tmp_path) == ["out.onnx", "out.onnx.data"]
    np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), outputs(load(tmp_path / "out.onnx")))


@pytest.mark.usefixtures("small_limit")
def test_large_attributes_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="attributes and bodies are over 2 GB; make them initializers"):
        save(load(constant_model()), tmp_path / "out.onnx")
    assert listing(tmp_path) == []


# Writing


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        save(load(DIGITS), tmp_path / name)
    first, second = ((tmp_path / n).read_bytes() for n in ("a.onnx", "b.onnx"))
    assert first == second
    assert sha256_of(tmp_path / "a.onnx") == sha256_of(load(DIGITS)) == sha256_of(load(first).to_proto())


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    save(load(chain()), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "m.onnx").symlink_to("real/m.onnx")
    save(load(chain()), tmp_path / "m.onnx")
    assert listing(tmp_path / "real") == ["m.onnx"]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Give a model with external data."""
    save_external(chain(), tmp_path / "m.onnx", "m.onnx.data")
    (tmp_path / "hard.onnx").hardlink_to(tmp_path / "m.onnx")
    (tmp_path / "soft.onnx").symlink_to("m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("output", ["m.onnx", "../{}/m.onnx", "hard.onnx", "soft.onnx", "m.onnx.data"])
def test_the_input_is_not_overwritten(output: str, pair: Path) -> None:
    before = {p.name: p.read_bytes() for p in pair.parent.iterdir()}
    with pytest.raises(PruneError, match="the model was read from it; choose another output or use --force"):
        save(load(pair), pair.parent / output.format(pair.parent.name))
    assert {p.name: p.read_bytes() for p in pair.parent.iterdir()} == before


def test_the_data_of_the_input_is_not_overwritten(tmp_path: Path) -> None:
    save_external(chain(), tmp_path / "m.onnx", "other.onnx.data")
    with pytest.raises(PruneError, match=r"other\.onnx\.data: the model was read from it"):
        save(load(tmp_path / "m.onnx"), tmp_path / "other.onnx")
    assert listing(tmp_path) == ["m.onnx", "other.onnx.data"]


def test_the_input_is_overwritten_by_force(pair: Path) -> None:
    graph = load(pair)
    want = outputs(graph)
    graph.consts["w"] = graph.consts["w"] * 2
    save(graph, pair, force=True)
    np.testing.assert_array_equal(load(pair).consts["w"], weight(64, 32) * 2)
    assert not np.array_equal(outputs(pair), want)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("external", [False, True])
def test_a_failure_while_writing_leaves_the_old_files(
    error: BaseException, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load(chain())
    graph.external = external
    save(graph, tmp_path / "m.onnx")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    graph.consts["w"] = graph.consts["w"] * 2

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    expected = PruneError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="No space left on device; choose" if expected is PruneError else None):
        save(graph, tmp_path / "m.onnx")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupt_between_two_files_leaves_a_pair_that_fits(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load(chain())
    graph.external = True
    save(graph, tmp_path / "m.onnx")
    graph.consts["w"] = weight(64, 32)[::-1]
    del graph.consts["b"], graph.nodes[2]
    graph.nodes[1].outputs[:] = ["y"]
    replace, calls = Path.replace, []

    def interrupted(source: Path, target: Path) -> Path:
        assert not (tmp_path / "m.onnx").exists()  # the old model never stands beside the new data
        calls.append(target)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(graph, tmp_path / "m.onnx")
    assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]
    np.testing.assert_array_equal(outputs(tmp_path / "m.onnx"), outputs(graph))


@pytest.mark.parametrize("external", [False, True])
def test_an_interrupt_at_the_very_end_leaves_the_new_files(
    external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = load(chain())
    graph.external = external
    opened = os.open

    def interrupted(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if Path(path) == tmp_path:  # the folder is flushed last
            raise KeyboardInterrupt
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(graph, tmp_path / "m.onnx")
    assert listing(tmp_path) == ["m.onnx", "m.onnx.data"][: 1 + external]
    np.testing.assert_array_equal(outputs(tmp_path / "m.onnx"), outputs(graph))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere/m.onnx", "there is no folder .*nowhere; make it first"),
        ("folder", "it is not a regular file; choose another output"),
        ("m.onnx/x.onnx", "there is no folder .*m.onnx; make it first"),
        ("n" * 300, "File name too long; choose another output"),
    ],
)
def test_places_that_cannot_be_written(place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(PruneError, match=f"^cannot write .*: {message}$"):
        save(load(chain()), tmp_path / place)
    assert listing(tmp_path) == ["folder", "m.onnx"]
    assert listing(tmp_path / "folder") == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that refuses everybody")
def test_a_folder_that_refuses_everybody() -> None:
    with pytest.raises(PruneError, match=r"^cannot write /proc/m\.onnx: .*; choose another output$"):
        save(load(chain()), "/proc/m.onnx")


# Graphsurgeon


def test_graphsurgeon_there_and_back() -> None:
    imported = interop.to_graphsurgeon(load(chain()))
    imported.outputs[0].name = "renamed"
    graph = load(imported)
    assert (graph.input_names, graph.output_names, len(graph.nodes)) == (("x",), ("renamed",), 3)
    np.testing.assert_array_equal(outputs(graph), outputs(chain()))


def test_graphsurgeon_errors_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    imported = gs.import_onnx(chain())
    imported.outputs[0].dtype = None
    with pytest.raises(
        ModelError, match=r"the graphsurgeon graph cannot be exported: .*; look at its inputs"
    ) as caught:
        load(imported)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
