"""The fixtures are what they say: they load, run, depend on their inputs, and are the same every time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from fixtures import DIGITS, DIGITS_DATA, GRAPHS, HERE, INDEX, VIT, Entry, filler, load_graph, make_digits, make_vit
from fixtures.tiny import TINY, Case, Net

FAMILIES = {"cnn", "transformer", "recurrent", "detection", "other"}
WEIGHTS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8}
ROOT = HERE.parent
UNKNOWN_TO_THE_CHECKER = {"post_hf_llama__ort_ext"}


def run(model: bytes, *feeds: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed) for feed in feeds]


def floats(outputs: list[np.ndarray]) -> list[np.ndarray]:
    return [y.astype(np.float64) for y in outputs if y.dtype.kind == "f"]


def change(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Return the largest difference, relative to the largest value, over all outputs of one shape."""
    pairs = [(x, y) for x, y in zip(floats(first), floats(second), strict=True) if x.shape == y.shape]
    return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in pairs)


def parameters(model: onnx.ModelProto) -> int:
    """Count the numbers in floating-point and 8-bit tensors, scalars aside."""
    tensors = [tensor for part in (model.graph, *model.functions) for tensor in filler.tensors(part)]
    return sum(math.prod(t.dims) for t in tensors if t.dims and t.data_type in WEIGHTS)


@pytest.mark.parametrize("entry", INDEX, ids=GRAPHS)
def test_graph(entry: Entry) -> None:
    model = load_graph(entry.name)
    data = model.SerializeToString()
    assert data == load_graph(entry.name, seed=0).SerializeToString()
    assert data != load_graph(entry.name, seed=1).SerializeToString()
    if entry.name in UNKNOWN_TO_THE_CHECKER:
        with pytest.raises(onnx.checker.ValidationError):
            onnx.checker.check_model(model)
    else:
        onnx.checker.check_model(model)
    one, other = filler.inputs(model, 0), filler.inputs(model, 1)
    first, second, again = run(data, one, other, one)
    assert all(np.isfinite(y).all() for y in floats(first))
    assert change(first, second) > 0.01
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))


def test_index_describes_the_files() -> None:
    files = {path.name for path in (HERE / "zoo").glob("*.onnx.gz")}
    assert files == {entry.file for entry in INDEX}
    assert len(files) == len(INDEX) >= 60
    assert {entry.family for entry in INDEX} == FAMILIES
    assert {entry.opset for entry in INDEX} == set(range(7, 24))
    assert sum(entry.path.stat().st_size for entry in INDEX) < 3_000_000
    for entry in INDEX:
        model = load_graph(entry.name)
        (opset,) = (i.version for i in model.opset_import if i.domain in ("", "ai.onnx"))
        assert (entry.opset, entry.nodes) == (opset, len(model.graph.node)), entry.file
        assert entry.params == parameters(model), entry.file
        assert entry.why


@pytest.mark.parametrize("path", [DIGITS, VIT], ids=["digits", "vit"])
def test_digits_reach_the_recorded_accuracy(path: Path, digits: dict[str, np.ndarray]) -> None:
    record = json.loads(path.with_suffix(".json").read_text())
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == record["sha256"]
    ((logits,),) = run(data, {"image": digits["image"]})
    correct = int((logits.argmax(1) == digits["labels"]).sum())
    assert correct == record["correct"]
    assert correct / len(digits["labels"]) == pytest.approx(record["accuracy"], abs=1e-6)
    assert record["accuracy"] >= 0.985


@pytest.mark.parametrize(("path", "script"), [(DIGITS, make_digits), (VIT, make_vit)], ids=["digits", "vit"])
def test_digits_model_is_the_one_of_the_script(path: Path, script: ModuleType) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert list(model.graph.node) == script.network().nodes
    image, logits = model.graph.input[0], model.graph.output[0]
    assert [image.name, logits.name] == ["image", "logits"]
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in (image, logits)] == ["batch", "batch"]
    assert path.stat().st_size <= 300_000


def test_digits_data(digits: dict[str, np.ndarray]) -> None:
    shapes = {name: array.shape for name, array in digits.items()}
    assert shapes == {
        "image": (599, 1, 8, 8),
        "labels": (599,),
        "calibration": (256, 1, 8, 8),
        "calibration_labels": (256,),
    }
    assert digits["image"].dtype == digits["calibration"].dtype == np.float32
    held_out = {image.tobytes() for image in digits["image"]}
    assert not held_out & {image.tobytes() for image in digits["calibration"]}
    assert DIGITS_DATA.stat().st_size <= 150_000


@pytest.mark.parametrize("build", TINY.values(), ids=TINY)
def test_tiny(build: Callable[[], Case]) -> None:
    """Each pattern passes the full checker, runs on any batch, and treats the samples of a batch alike."""
    model, feeds = build()
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    assert data == build()[0].SerializeToString()
    doubled = {name: np.concatenate([value, value]) for name, value in feeds.items()}
    turned = {name: np.flip(value, -1).copy() for name, value in feeds.items()}
    (one,), (two,), (other,) = run(data, feeds, doubled, turned)
    np.testing.assert_allclose(two, np.concatenate([one, one]), rtol=1e-5, atol=1e-6)
    assert change([one], [other]) > 0.01


def erf(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.vectorize(math.erf)(x))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("layer_norm", lambda x, g, b: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True)) * g + b),
        ("rms_norm", lambda x, g, b: x / np.sqrt((x**2).mean(-1, keepdims=True)) * g),
        ("gelu", lambda x, g, b: x * (1 + erf(x / math.sqrt(2))) / 2),
        ("silu", lambda x, g, b: x / (1 + np.exp(-x))),
    ],
)
def test_decompositions_compute_what_they_are_called(block: str, expected: Callable[..., np.ndarray]) -> None:
    net = Net(block)
    x = net.input("x", ["batch", 8], (4, 8))
    size = (8,) if block.endswith("norm") else ()
    net.output(getattr(net, block)(x, *size), "y", ["batch", 8])
    model, feeds = net.finish()
    ((y,),) = run(model.SerializeToString(), feeds)
    value = feeds["x"].astype(np.float64)
    gamma, beta = (net.consts.get(name, np.zeros(8)) for name in ("gamma1", "beta1"))
    np.testing.assert_allclose(y, expected(value, gamma, beta), rtol=1e-4, atol=1e-5)


def marker(
    name: str, dims: list[int], kind: str, mean: float, scale: float, elem: int = TensorProto.FLOAT
) -> TensorProto:
    tensor = TensorProto(name=name, data_type=elem, dims=dims, data_location=TensorProto.EXTERNAL)
    values = {"location": "random", "seed": "7", "kind": kind, "mean": mean, "scale": scale}
    for key, value in values.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def filled(*tensors: TensorProto, seed: int = 0) -> list[np.ndarray]:
    model = helper.make_model(helper.make_graph([], "g", [], [], list(tensors)))
    return [onnx.numpy_helper.to_array(t) for t in filler.fill(model, seed).graph.initializer]


@pytest.mark.parametrize(
    ("kind", "dims", "mean", "scale", "expected", "low", "high"),
    [
        ("normal", [200, 100], 0.0, 1.0, (0.0, 1.0), -9, 9),
        ("normal", [200, 100, 1, 1], 0.0, 1e-4, (0.0, 0.05), -1, 1),  # a faint matrix is raised
        ("normal", [20000], 0.0, 1e-4, (0.0, 1e-4), -1e-3, 1e-3),  # a faint vector is not
        ("normal", [200, 100], 3.0, 0.5, (3.0, 0.5), 0, 9),
        ("positive", [20000], 2.0, 0.5, (2.0, 0.5), 1, 3),
        ("positive", [20000], 2.0, 9.0, (2.0, 1.0), 0.2, 3.8),
        ("negative", [20000], -2.0, 0.5, (-2.0, 0.5), -3, -1),
        ("nonneg", [20000], 3.0, 4.0, (4.33, 2.5), 0, 9),
        ("const", [20000], 1.0, 0.0, (1.0, 0.15), 0.7, 1.3),
        ("const", [20000], 1e-6, 0.0, (0.2, 0.03), 0.1, 0.3),
        ("const", [20000], 0.0, 0.0, (0.0, 0.05), -1, 1),
        ("const", [200, 100], 0.0, 0.0, (0.0, 0.084), -1, 1),
    ],
)
def test_filler_moments(
    kind: str, dims: list[int], mean: float, scale: float, expected: tuple[float, float], low: float, high: float
) -> None:
    (values,) = filled(marker("w", dims, kind, mean, scale))
    assert values.dtype == np.float32
    assert values.shape == tuple(dims)
    assert values.min() >= low
    assert values.max() <= high
    assert values.mean() == pytest.approx(expected[0], abs=0.03 * expected[1] + 1e-6)
    assert values.std() == pytest.approx(expected[1], rel=0.05)


@pytest.mark.parametrize(
    ("elem", "dtype"),
    [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64), (TensorProto.INT8, np.int8)],
)
def test_filler_element_types(elem: int, dtype: type) -> None:
    kind = "int" if dtype is np.int8 else "normal"
    (values,) = filled(marker("w", [64, 64], kind, 0.0, 60.0, elem))
    assert values.dtype == dtype
    assert 50 < values.astype(np.float64).std() < 70


def test_filler_draws_each_tensor_from_its_own_stream() -> None:
    first, second = marker("a", [9, 9], "normal", 0, 1), marker("b", [9, 9], "normal", 0, 1)
    second.external_data[1].value = "8"
    both = filled(first, second)
    assert not np.array_equal(both[0], both[1])
    np.testing.assert_array_equal(filled(second)[0], both[1])
    assert not np.array_equal(filled(second, seed=1)[0], both[1])


def test_documents_are_up_to_date() -> None:
    page = (ROOT / "docs" / "fixtures.md").read_text()
    rows = [f"| `{name}` | {build.__doc__} |" for name, build in TINY.items()]
    assert [line for line in page.splitlines() if line.startswith("| `") and line.split("`")[1] in TINY] == rows
    readme = (HERE / "README.md").read_text()
    assert f"| {len(INDEX)} graphs" in readme
    assert f"| {len(TINY)} hand-built graphs" in readme
