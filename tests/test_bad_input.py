"""Bad input: one line that says what is wrong, the right exit code, nothing written, never a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import DIGITS, ROOT, load_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from textmodels import chain, model, weight

from prunepass.cli import main
from prunepass.errors import ModelError, PruneError, UnsupportedError
from prunepass.files import load, save

Content = bytes | onnx.ModelProto | None
ONNX_NEWEST = onnx.defs.onnx_opset_version()


def edited(edit: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    """Return the chain model after a change in place."""
    source = chain()
    edit(source)
    return source


def with_tensor(edit: Callable[[TensorProto], object]) -> onnx.ModelProto:
    """Return the chain model after a change of its first weight."""
    return edited(lambda m: edit(m.graph.initializer[0]))


def external(location: str, **entries: object) -> onnx.ModelProto:
    """Return the chain model with its first weight in another file."""

    def move(tensor: TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return with_tensor(move)


def external_constant() -> onnx.ModelProto:
    """Return a model whose Constant lies in a file that is not there."""
    source = model("g (float[2] x) => (float[2] y) { c = Constant <value = float[2] {1, 2}> () y = Add(x, c) }")
    tensor = source.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="missing.bin")
    return source


def zipped() -> bytes:
    """Return a zip archive, as PyTorch writes them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


IF = """g (bool c, float[2] x) => (float[2] y) {{
    y = If <then_branch = t () => (float[2] a) {{ {body} }}, else_branch = e () => (float[2] b) {{ b = Abs(x) }}> (c)
}}"""
WEIGHT_BYTES = 64 * 32 * 4


def inner(body: str) -> onnx.ModelProto:
    """Return a model with a body of an If."""
    return model(IF.format(body=body))


FILES: dict[str, tuple[Content, type[PruneError], str]] = {
    # not a model
    "empty": (b"", ModelError, "the file is empty"),
    "text": (b"this is no model\n" * 9, ModelError, "this is a text file, not an ONNX model"),
    "json": (b'{"model": 1}', ModelError, "this is a text file"),
    "zeros": (bytes(999), ModelError, "not an ONNX model"),
    "noise": (np.random.default_rng(0).bytes(5000), ModelError, "not an ONNX model, or cut off"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), ModelError, "compressed with gzip; unpack it first"),
    "zip": (zipped(), ModelError, "perhaps a PyTorch checkpoint; export the network to ONNX first"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(99), ModelError, "an HDF5 file, perhaps from Keras"),
    "tflite": (struct.pack("<I", 28) + b"TFL3" + bytes(99), ModelError, "a TensorFlow Lite file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", ModelError, "a Git LFS pointer; run `git lfs pull`"),
    "tensor": (weight(3).tobytes(), ModelError, "not an ONNX model"),
    # header
    "no graph": (onnx.ModelProto(ir_version=8), ModelError, "there is no graph in it"),
    "no opset": (edited(lambda m: m.ClearField("opset_import")), ModelError, "the model imports no operator set"),
    "old opset": (model("g (float[2] x) => (float[2] y) { y = Relu(x) }", 6), ModelError, "opset 6 is older than 7"),
    "new opset": (
        edited(lambda m: setattr(m.opset_import[0], "version", ONNX_NEWEST + 1)),
        ModelError,
        f"opset {ONNX_NEWEST + 1} is newer than onnx",
    ),
    "new ir": (edited(lambda m: setattr(m, "ir_version", 99)), ModelError, "IR version 99 is newer than onnx"),
    "no outputs": (edited(lambda m: m.graph.ClearField("output")), ModelError, "the graph has no outputs"),
    # names
    "reads nothing": (chain(**{"Relu(h)": "Relu(q)"}), ModelError, "Relu 'r' reads 'q', which nothing defines"),
    "never computed": (chain(**{"y = Add": "z = Add"}), ModelError, "graph output 'y' is never computed"),
    "defined twice": (chain(**{"r = Relu": "h = Relu", "(r, b)": "(h, b)"}), ModelError, "'h' is defined twice"),
    "shadows input": (chain(**{"r = Relu": "x = Relu"}), ModelError, "value 'x' is defined twice, the second time by"),
    "twice a weight": (
        edited(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        ModelError,
        "initializer 'w' is defined twice",
    ),
    "twice an input": (
        edited(lambda m: m.graph.input.append(m.graph.input[0])),
        ModelError,
        "graph input 'x' is defined twice",
    ),
    "nameless weight": (with_tensor(lambda t: t.ClearField("name")), ModelError, "initializer number 0 has no name"),
    "not utf-8": (
        chain().SerializeToString().replace(b"\x01h", b"\x01\xff"),
        ModelError,
        "a name is not valid UTF-8: the file is damaged",
    ),
    "cycle": (
        chain(**{"MatMul(x, w)": "Add(x, r)", "Relu(h)": "Relu(h)"}),
        ModelError,
        "the graph has a cycle: ",
    ),
    "self cycle": (chain(**{"Relu(h)": "Relu(r)"}), ModelError, "the graph has a cycle: Relu 'r' -> Relu 'r'"),
    "body reads nothing": (inner("a = Neg(q)"), ModelError, "If 'y' reads 'q', which nothing defines"),
    "body too late": (inner("a = Neg(k) k = Abs(x)"), ModelError, "If 'y' reads 'k', which nothing defines"),
    "body twice": (inner("a = Neg(x) a = Abs(x)"), ModelError, "If 'y': its body defines 'a' twice"),
    # operators
    "unknown operator": (
        chain(Relu="Strange"),
        UnsupportedError,
        "Strange 'r': there is no operator Strange in opset 17; export without custom operators",
    ),
    "too new operator": (chain(Relu="Gelu"), UnsupportedError, "there is no operator Gelu in opset 17"),
    "unknown in body": (inner("a = Strange(x)"), UnsupportedError, "in If 'y': there is no operator Strange"),
    "unknown domain": (
        edited(lambda m: (setattr(m.graph.node[1], "domain", "a.b"), m.opset_import.add(domain="a.b", version=1))),
        UnsupportedError,
        "a.b::Relu 'r': there is no operator Relu in domain 'a.b' of onnx or onnxruntime",
    ),
    "domain not imported": (
        edited(lambda m: setattr(m.graph.node[1], "domain", "com.microsoft")),
        ModelError,
        "the model imports no operator set for domain 'com.microsoft'",
    ),
    "no operator": (edited(lambda m: m.graph.node[1].ClearField("op_type")), ModelError, "has no operator"),
    "missing attribute": (
        chain(**{"Relu(h)": "Cast(h)"}),
        ModelError,
        "the model is not valid: Required attribute 'to'",
    ),
    "too many inputs": (chain(**{"Relu(h)": "Relu(h, h)"}), ModelError, "the model is not valid: Node"),
    # tensors
    "short data": (
        with_tensor(lambda t: setattr(t, "raw_data", bytes(4000))),
        ModelError,
        "tensor 'w': float [64, 32] needs 8192 bytes, the file has 4000",
    ),
    "long data": (
        edited(lambda m: setattr(m.graph.initializer[1], "raw_data", bytes(132))),
        ModelError,
        "tensor 'b': float [32] needs 128 bytes, the file has 132",
    ),
    "short values": (
        edited(lambda m: m.graph.initializer.append(TensorProto(name="k", dims=[3], data_type=1, float_data=[1, 2]))),
        ModelError,
        "tensor 'k': float [3] needs 3 values, the file has 2",
    ),
    "no type": (with_tensor(lambda t: setattr(t, "data_type", 0)), ModelError, "tensor 'w': element type 0 is unknown"),
    "new type": (with_tensor(lambda t: setattr(t, "data_type", 99)), ModelError, "element type 99 is unknown"),
    "negative dims": (with_tensor(lambda t: t.dims.__setitem__(0, -64)), ModelError, "the dims [-64, 32] are negative"),
    "zero-size weight": (
        model("g (float[n, 0] x) => (float[n, 32] y) { y = MatMul(x, w) }".replace("n, 0", "n, k"), w=weight(0, 32)),
        ModelError,
        "weight 'w' has shape [0, 32], a size of 0",
    ),
    "zero-size input": (
        model("g (float[1, 0] x) => (float[1, 0] y) { y = Relu(x) }"),
        ModelError,
        "graph input 'x' has size 0 on axis 1",
    ),
    # external data; the model is in sub/, other.bin is beside sub/
    "external missing": (external("missing.bin"), ModelError, "there is no data file 'missing.bin' beside the model"),
    "external constant": (external_constant(), ModelError, "there is no data file 'missing.bin' beside the model"),
    "external above": (
        external("../other.bin"),
        ModelError,
        "its data file '../other.bin' is outside the model's folder",
    ),
    "external detour": (external("deep/../../other.bin"), ModelError, "is outside the model's folder"),
    "external absolute": (external(str(DIGITS)), ModelError, "is outside the model's folder; put it beside the model"),
    "external drive": (external("C:\\other.bin"), ModelError, "is outside the model's folder"),
    "external link": (external("link.bin"), ModelError, "its data file 'link.bin' is outside the model's folder"),
    "external linked folder": (external("up/other.bin"), ModelError, "is outside the model's folder"),
    "external loop of links": (external("loop.bin"), ModelError, "loop.bin"),
    "external folder": (external("deep"), ModelError, "there is no data file 'deep'"),
    "external itself": (external(""), ModelError, "there is no data file ''"),
    "external null": (external("a\0b"), ModelError, "is not a file name"),
    "external short": (
        external("short.bin"),
        ModelError,
        "tensor 'w' ends at byte 8192 of 'short.bin', of 8191; fetch the data file again",
    ),
    "external offset": (external("full.bin", offset=4), ModelError, "ends at byte 8196 of 'full.bin'"),
    "external negative": (external("full.bin", offset=-4), ModelError, "ends at byte 8188 of 'full.bin'"),
    "external length": (external("full.bin", length=8), ModelError, "its dims need 8192 bytes, 8 are in 'full.bin'"),
    "external number": (external("full.bin", offset="abc"), ModelError, "is not a number"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder for the model, with data files in it and outside of it."""
    sub = tmp_path / "sub"
    (sub / "deep").mkdir(parents=True)
    (tmp_path / "other.bin").write_bytes(bytes(WEIGHT_BYTES))
    (sub / "full.bin").write_bytes(bytes(WEIGHT_BYTES))
    (sub / "short.bin").write_bytes(bytes(WEIGHT_BYTES - 1))
    (sub / "link.bin").symlink_to("../other.bin")
    (sub / "up").symlink_to("..")
    (sub / "loop.bin").symlink_to("loop.bin")
    return sub


def everything(folder: Path) -> dict[str, bytes | None]:
    """Return all files below the parent of a folder."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.parent.rglob("*") if p.name != "up"}


def refused(path: Path, code: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Run the command line on a bad model: one line, the exit code, nothing written."""
    before = everything(path.parent)
    assert main([str(path), "-o", str(path.with_name("out.onnx"))]) == code
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("prunepass: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert everything(path.parent) == before


@pytest.mark.parametrize("name", FILES)
def test_bad_files(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, kind, message = FILES[name]
    path = folder / "m.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(PruneError) as caught:
        load(path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("m.onnx: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    refused(path, 1, message, capfd)


def test_the_bare_files_are_good(folder: Path) -> None:
    for source in (
        chain(),
        external("full.bin"),
        external("full.bin", offset=0, length=WEIGHT_BYTES),
        inner("a = Neg(x)"),
    ):
        (folder / "m.onnx").write_bytes(source.SerializeToString())
        load(folder / "m.onnx")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.onnx", "nothing.onnx: there is no such file in "),
        ("deep", "deep: this is a folder, not an ONNX file"),
        ("full.bin/m.onnx", "m.onnx: cannot be read: Not a directory"),
    ],
)
def test_bad_paths(name: str, message: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=f"^{message}"):
        load(folder / name)
    before = everything(folder)
    assert main([str(folder / name), "-o", str(folder / "out.onnx")]) == 1
    assert message in capfd.readouterr().err
    assert everything(folder) == before


def test_a_loop_of_links(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"^loop\.bin: cannot be read: "):
        load(folder / "loop.bin")
    with pytest.raises(PruneError, match=r"^cannot write .*loop\.bin: .*; choose another output$"):
        save(load(chain()), folder / "loop.bin")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(folder: Path) -> None:
    (folder / "full.bin").chmod(0)
    with pytest.raises(ModelError, match=r"^full\.bin: cannot be read: Permission denied"):
        load(folder / "full.bin")


def test_memory_has_no_folder_for_external_data() -> None:
    with pytest.raises(
        ModelError, match=r"^tensor 'w' lies in a separate file \('full.bin'\); load the model by its path"
    ):
        load(external("full.bin"))


# Damage


def complete(part: bytes) -> bool:
    """Tell whether what is left of a model is a complete model."""
    found = onnx.load_model_from_string(part)
    onnx.checker.check_model(found)
    return bool(found.graph.node)


@pytest.mark.parametrize("source", [chain(), inner("a = Neg(x)"), load_graph("custom_bigru_seqfirst__ts17-dynb-seq")])
def test_every_truncation_is_refused_unless_what_is_left_is_complete(source: onnx.ModelProto) -> None:
    whole = source.SerializeToString()
    step = max(1, len(whole) // 4000)
    ends = {*range(0, len(whole), step), *range(max(0, len(whole) - 600), len(whole))}
    good = 0
    for end in sorted(ends):
        try:
            load(whole[:end])
        except ModelError:
            continue
        assert complete(whole[:end])
        good += 1
    assert good <= len(source.metadata_props) + 2


def test_truncation_between_local_functions_is_refused() -> None:
    source = load_graph("torchvision_mobilenet_v2__ts17-fn")
    while len(source.functions) > 1:
        del source.functions[len(source.functions) // 2 :]
        with pytest.raises(UnsupportedError, match="there is no operator"):
            load(source.SerializeToString())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damage_never_gives_anything_but_a_model_error(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(DAMAGED)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        cut = data.draw(st.integers(0, 3))
        whole[at : at + cut] = data.draw(st.binary(max_size=3))
        whole = whole or bytearray(1)
    with contextlib.suppress(ModelError, UnsupportedError):
        load(bytes(whole))


SMALL = "g (float[n, 3] x) => (float[n, 2] y) { h = MatMul(x, w) y = Relu(h) }"
DAMAGED = [
    m.SerializeToString()
    for m in (model(SMALL, w=weight(3, 2)), inner("a = Neg(x)"), external("w.bin"), external_constant())
]


# Types, and Ctrl-C


def test_wrong_types_are_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = chain(**{"float[n, 64] x": "int64[n, 64] x"})
    (folder / "m.onnx").write_bytes(source.SerializeToString())
    refused(folder / "m.onnx", 1, "", capfd)


def command(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "prunepass", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_bad_file_on_the_real_command_line(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(chain().SerializeToString()[:-100])
    process = command("m.onnx", "-o", "out.onnx", folder=folder)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("prunepass: error: m.onnx: not an ONNX model, or cut off")
    assert err.count("\n") == 1
    assert not (folder / "out.onnx").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_in_the_middle_leaves_nothing(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(load_graph("hf_segformer__dy18").SerializeToString())
    before = everything(folder)
    process = command("m.onnx", "-o", "out.onnx", "-v", folder=folder)
    assert process.stderr
    first = process.stderr.readline()  # the first pass is done, the rest is still to come
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "canonicalize" in first
    assert process.returncode == 130
    assert out == ""
    assert "interrupted; nothing was written" in err
    assert "Traceback" not in err
    assert everything(folder) == before
