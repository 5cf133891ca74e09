"""Damaged models: prunepass refuses them in one line, or its result is certified; never anything else.

Mutants are made and pruned in a process of its own, since onnxruntime may crash on what is not a model. That process
prints a line for each mutant; `python tests/test_fuzz.py FIRST COUNT` does the same by hand. PRUNEPASS_MUTANTS says how
many the slow test takes, in steps of 500 (default 2000).
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import ROOT, load_graph
from onnx import TensorProto, numpy_helper

import prunepass
from fixtures.tiny import TINY
from prunepass.errors import InternalError, PruneError

ZOO = (
    "custom_siamrpn_dwxcorr__dy18 sklearn_mlp_cls_relu__sk17 custom_espcn__dy22-fp16 jax_resblock_dw__jx21-dynb "
    "custom_tied_autoencoder__ts13-nocf keras_gru_cls__tf18-b2 post_custom_lstm_lm__qdyn "
    "custom_viewflat_cnn__ts13-train custom_bigru_seqfirst__ts17-dynb-seq post_hf_bert_seqcls_eager__ort_bert "
    "timm_test_efficientnet__ts13-dynb pyg_pyg_gat__ts17 wheel_silero_silero_vad_16k_op15__orig hf_qwen3__dy23 "
    "monai_densenet121__ts18-dynb-hw"
).split()
SECONDS = 60
MOST_BYTES = 4 << 30
NUMBERS = (0, 1, -1, 2, 3, 5, 7, 64, 1000, -2, 2**31, 2**62, -(2**63))
Mutate = Callable[[random.Random, onnx.ModelProto], Any]
MUTATIONS: list[Mutate] = []


def mutation(mutate: Mutate) -> Mutate:
    """Register a change of a model in place."""
    MUTATIONS.append(mutate)
    return mutate


def base(rng: random.Random) -> onnx.ModelProto:
    """Return a good model."""
    if rng.randrange(3):
        return TINY[rng.choice(sorted(TINY))]()[0]
    return load_graph(rng.choice(ZOO))


# ---- fields of any kind ----------------------------------------------------------------------------------------------
def messages(message: Any) -> Iterator[Any]:
    """Yield a message and all that it holds, without the data of tensors."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                yield from messages(child)


def some(rng: random.Random, model: onnx.ModelProto) -> tuple[Any, Any]:
    """Return a message and one of the fields that are set in it."""
    while True:
        message = rng.choice(list(messages(model)))
        fields = [field for field, _ in message.ListFields()]
        if fields:
            return message, rng.choice(fields)


@mutation
def clear_a_field(rng: random.Random, model: onnx.ModelProto) -> None:
    message, field = some(rng, model)
    message.ClearField(field.name)


@mutation
def change_a_field(rng: random.Random, model: onnx.ModelProto) -> None:
    message, field = some(rng, model)
    value = getattr(message, field.name)
    if field.message_type is not None:
        if field.is_repeated:
            value.append(rng.choice(list(value)))
        return
    kinds = {field.CPPTYPE_STRING: ("", "x", "\u00e9\n", "a" * 300), field.CPPTYPE_FLOAT: (0.0, float("nan"), 1e30)}
    choices: tuple[Any, ...] = kinds.get(field.cpp_type, NUMBERS)
    chosen = rng.choice(choices)
    if field.type == field.TYPE_BYTES:
        chosen = str(chosen).encode()
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM):
        chosen = chosen % 30
    if field.cpp_type in (field.CPPTYPE_UINT64, field.CPPTYPE_UINT32):
        chosen = abs(chosen) % 2**31
    if field.is_repeated:
        value[rng.randrange(len(value))] = chosen
    else:
        setattr(message, field.name, chosen)


# ---- what models are made of -----------------------------------------------------------------------------------------
@mutation
def change_dims_of_a_weight(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = rng.choice(model.graph.initializer)
    if tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)


@mutation
def resize_a_weight(rng: random.Random, model: onnx.ModelProto) -> None:
    """Data and dims agree, but perhaps not with the rest."""
    tensor = rng.choice(model.graph.initializer)
    array = numpy_helper.to_array(tensor)
    way = rng.randrange(5)
    if array.ndim and way < 3:
        axis = rng.randrange(array.ndim)
        size = rng.choice((0, 1, array.shape[axis] // 2, array.shape[axis] - 1, array.shape[axis] + 1))
        array = np.resize(array, (*array.shape[:axis], max(0, size), *array.shape[axis + 1 :]))
    elif way == 3:
        array = array.reshape(array.shape[::-1])
    else:
        array = array.reshape(-1) if array.ndim > 1 else array[None]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


@mutation
def change_numbers_of_a_weight(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = rng.choice(model.graph.initializer)
    array = numpy_helper.to_array(tensor).copy()
    if array.size and array.dtype.kind in "fiu":
        values = NUMBERS if array.dtype.kind in "iu" else (0.0, float("nan"), float("inf"), 1e30, -1e-30)
        places = [rng.randrange(array.size) for _ in range(rng.choice((1, 2, array.size)))]
        with np.errstate(all="ignore"):
            array.reshape(-1)[places] = np.array(rng.choice(values)).astype(array.dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutation
def change_a_size(rng: random.Random, model: onnx.ModelProto) -> None:
    """A small integer constant: a shape, axes, indices."""
    small = [t for t in model.graph.initializer if t.data_type == TensorProto.INT64 and 0 < np.prod(t.dims) < 9]
    if small:
        tensor = rng.choice(small)
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[rng.randrange(array.size)] += rng.choice((-1, 1, 2, -3, 10))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutation
def change_a_type(rng: random.Random, model: onnx.ModelProto) -> None:
    types = (0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 23, 99)
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if rng.randrange(2) and infos:
        rng.choice(infos).type.tensor_type.elem_type = rng.choice(types)
        return
    tensor = rng.choice(model.graph.initializer)
    if rng.randrange(2):
        tensor.data_type = rng.choice(types)
        return
    kind = rng.choice((np.float64, np.float16, np.int64, np.int8, np.bool_, np.float32))
    with np.errstate(all="ignore"):
        array = numpy_helper.to_array(tensor).astype(kind)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutation
def change_a_shape(rng: random.Random, model: onnx.ModelProto) -> None:
    info = rng.choice([*model.graph.input, *model.graph.output, *model.graph.value_info])
    shape = info.type.tensor_type.shape
    way = rng.randrange(4)
    if way == 0:
        info.type.tensor_type.ClearField("shape")
    elif way == 1 and shape.dim:
        del shape.dim[rng.randrange(len(shape.dim))]
    elif way == 2:
        shape.dim.add().dim_value = rng.choice(NUMBERS)
    elif shape.dim:
        dim = rng.choice(shape.dim)
        dim.Clear()
        if rng.randrange(2):
            dim.dim_value = rng.choice(NUMBERS)
        else:
            dim.dim_param = rng.choice(("batch", "n", "", "a b", "height"))


@mutation
def rename_a_value(rng: random.Random, model: onnx.ModelProto) -> None:
    """Give a value the name of another, or a new one."""
    node = rng.choice(model.graph.node)
    names = [n for other in model.graph.node for n in (*other.input, *other.output)]
    side = rng.choice((node.input, node.output))
    if side:
        side[rng.randrange(len(side))] = rng.choice((rng.choice(names), "", "new", node.output[0]))


@mutation
def rename_something(rng: random.Random, model: onnx.ModelProto) -> None:
    lists = (model.graph.initializer, model.graph.input, model.graph.output, model.graph.node)
    named = [*rng.choice(lists)]
    if len(named) > 1:
        rng.choice(named).name = rng.choice(named).name


@mutation
def change_the_nodes(rng: random.Random, model: onnx.ModelProto) -> None:
    """Drop, repeat or swap nodes."""
    nodes = model.graph.node
    at, other = rng.randrange(len(nodes)), rng.randrange(len(nodes))
    way = rng.randrange(4)
    if way == 0:
        del nodes[at]
    elif way == 1:
        nodes.append(nodes[at])
    elif way == 2:
        copy = nodes.add()
        copy.CopyFrom(nodes[at])
        copy.output[:] = [f"{name}_again" for name in copy.output]
    else:
        kept = onnx.NodeProto()
        kept.CopyFrom(nodes[at])
        nodes[at].CopyFrom(nodes[other])
        nodes[other].CopyFrom(kept)


@mutation
def change_an_operator(rng: random.Random, model: onnx.ModelProto) -> None:
    node = rng.choice(model.graph.node)
    if rng.randrange(3):
        node.op_type = rng.choice(model.graph.node).op_type
    else:
        ops = ("Loop", "If", "Einsum", "NonZero", "Reshape", "Gather", "Unknown", "Transpose", "LSTM", "Conv", "TopK")
        node.op_type = rng.choice(ops)


@mutation
def change_the_inputs(rng: random.Random, model: onnx.ModelProto) -> None:
    node = rng.choice(model.graph.node)
    names = list(node.input)
    if not names:
        return
    way = rng.randrange(4)
    if way == 0:
        names.pop(rng.randrange(len(names)))
    elif way == 1:
        names.append(rng.choice(names))
    elif way == 2:
        rng.shuffle(names)
    else:
        names += [""] * 3
    node.input[:] = names


@mutation
def change_an_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return
    node = rng.choice(nodes)
    attribute = rng.choice(node.attribute)
    way = rng.randrange(5)
    if way == 0:
        node.attribute.remove(attribute)
    elif way == 1:
        attribute.name = rng.choice(("axis", "perm", "group", "value", "x"))
    elif way == 2:
        attribute.type = rng.randrange(16)
    elif attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
        if way == 3:
            del attribute.ints[rng.randrange(len(attribute.ints))]
    else:
        attribute.i = rng.choice(NUMBERS)


@mutation
def change_the_versions(rng: random.Random, model: onnx.ModelProto) -> None:
    if rng.randrange(2) and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 9, 12, 13, 17, 18, 21, 23, 24, 99))
    else:
        model.ir_version = rng.choice((0, 1, 3, 4, 8, 10, 11, 99))


@mutation
def change_the_interface(rng: random.Random, model: onnx.ModelProto) -> None:
    """Show, hide or feed other values."""
    graph = model.graph
    names = [n for node in graph.node for n in node.output] + [t.name for t in graph.initializer]
    way = rng.randrange(5)
    if way == 0 and len(graph.input):
        del graph.input[rng.randrange(len(graph.input))]
    elif way == 1 and len(graph.output):
        graph.output[0].name = rng.choice(names)
    elif way == 2:
        graph.output.add().name = rng.choice(names)
    elif way == 3 and len(graph.input):
        graph.output.append(rng.choice(graph.input))
    else:
        graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info(rng.choice(names), 1, [1]))


# ---- bytes -----------------------------------------------------------------------------------------------------------
def damage(rng: random.Random, model: onnx.ModelProto) -> bytes:
    """Change bytes, mostly outside of the weights."""
    data = bytearray(model.SerializeToString())
    start = data.find(model.graph.initializer[0].SerializeToString()) if model.graph.initializer else len(data)
    way = rng.randrange(4)
    for _ in range(rng.choice((1, 2, 5, 20)) if way else 1):
        at = rng.randrange(max(1, start)) if rng.randrange(4) else rng.randrange(len(data))
        if way == 0:
            del data[at:]
        elif way == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            del data[at : at + rng.choice((1, 2, 9))]
        else:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 3))))
        if not data:
            break
    return bytes(data)


def mutant(number: int) -> tuple[bytes, list[str]]:
    """Make a damaged model, the same for the same number, and say how."""
    rng = random.Random(number)
    model = base(rng)
    if rng.randrange(6) == 0:
        return damage(rng, model), ["damage"]
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        mutate = rng.choice(MUTATIONS)
        done.append(mutate.__name__)
        try:
            mutate(rng, model)
        except (IndexError, ValueError, TypeError):  # a mutation before it left nothing to change
            continue
    return model.SerializeToString(), done


# ---- one mutant ------------------------------------------------------------------------------------------------------
def outcome(data: bytes) -> str:
    """Prune a mutant, and say what came of it; "bug" where that is not allowed."""
    try:
        result = prunepass.prune(data, 0.5, align=1)
    except PruneError as error:
        text = str(error)
        if isinstance(error, InternalError) or "\n" in text or not text.strip() or len(text) > 2000:
            return f"bug: {type(error).__name__}: {text}"
        return f"{type(error).__name__}: {text}"
    except Exception as error:  # noqa: BLE001  (that there is none is what is tested)
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
        return f"bug: {type(error).__name__} in {where}: {error}"
    status = result.report["certificate"]["status"]
    return status if status == "passed" else f"bug: {status}"


def work(first: int, count: int) -> None:
    """Print the outcome of some mutants, one JSON line each; the alarm ends what hangs."""
    resource.setrlimit(resource.RLIMIT_AS, (4 * MOST_BYTES, 4 * MOST_BYTES))
    for number in range(first, first + count):
        data, how = mutant(number)
        signal.alarm(SECONDS)
        start = time.perf_counter()
        found = outcome(data)
        signal.alarm(0)
        took = round(time.perf_counter() - start, 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        row = {"number": number, "how": how, "found": found, "seconds": took, "peak": peak}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def rows(first: int, count: int) -> Iterator[dict[str, Any]]:
    """Run mutants in processes of their own; a new one takes over behind a mutant that ends one."""
    at, last = first, first + count
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    while at < last:
        command = [sys.executable, __file__, str(at), str(last - at)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                row = json.loads(line)
                at = row["number"] + 1
                yield row
                if row["peak"] > MOST_BYTES:
                    process.kill()  # the peak never falls again
            code = process.wait()
        if at < last and code != 0 and code != -signal.SIGKILL:
            what = "hang" if code == -signal.SIGALRM else f"crash {code}"
            yield {"number": at, "how": mutant(at)[1], "found": what, "seconds": SECONDS, "peak": 0}
            at += 1


def check(first: int, count: int) -> None:
    """Hold many mutants against what is promised."""
    found = list(rows(first, count))
    assert [row["number"] for row in found] == list(range(first, first + count))
    bad = [r for r in found if r["found"].startswith(("bug", "hang", "crash")) or r["peak"] > MOST_BYTES]
    assert bad == []
    passed = sum(row["found"] == "passed" for row in found)
    assert 0.05 * count < passed < 0.8 * count


def test_fuzz() -> None:
    check(0, 100)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1000 + int(os.environ.get("PRUNEPASS_MUTANTS", "2000")), 500))
def test_fuzz_more(first: int) -> None:
    check(first, 500)


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]))
