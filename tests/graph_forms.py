"""Other forms of a finished random graph: weights, names, types and structure as other exporters write them."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

Form = Callable[[random.Random, ModelProto], object]
FORMS: list[Form] = []
LOCAL = "local"


def form(rewrite: Form) -> Form:
    """Register a rewriting in place."""
    FORMS.append(rewrite)
    return rewrite


def other_form(rng: random.Random, model: ModelProto) -> str:
    """Rewrite a model in place at random; return how."""
    rewrite = FORMS[rng.randrange(len(FORMS))]
    rewrite(rng, model)
    return rewrite.__name__


# ---- weights and names -----------------------------------------------------------------------------------------------
@form
def as_nodes(rng: random.Random, model: ModelProto) -> None:
    """Weights in Constant nodes."""
    kept = []
    for tensor in model.graph.initializer:
        if rng.randrange(2):
            kept.append(tensor)
        else:
            model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


@form
def as_inputs(rng: random.Random, model: ModelProto) -> None:
    """Weights that a caller may replace; before IR version 4 they are constants all the same."""
    old = rng.randrange(2) and model.opset_import[0].version < 13 and len(model.opset_import) == 1
    model.ir_version = 3 if old else model.ir_version
    for tensor in model.graph.initializer:
        if old or (rng.randrange(8) == 0 and tensor.data_type == TensorProto.FLOAT and 0 not in tensor.dims):
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


@form
def renamed(rng: random.Random, model: ModelProto) -> None:
    """Names that look like paths, and nodes without any."""
    fixed = {"", *(v.name for v in (*model.graph.input, *model.graph.output))}
    for node in model.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [n if n in fixed else f"/model.0/{n}:0 \u00e9" for n in names]
    for tensor in model.graph.initializer:
        tensor.name = f"/model.0/{tensor.name}:0 \u00e9"


@form
def annotated(rng: random.Random, model: ModelProto) -> None:
    """The shapes of all values written down, as most exporters do."""
    model.CopyFrom(shape_inference.infer_shapes(model))


@form
def half(rng: random.Random, model: ModelProto) -> None:
    """Everything in float16."""
    unfit = (
        "QuantizeLinear",
        "DequantizeLinear",
        "Resize",
        "LSTM",
        "GRU",
        "RNN",
    )  # crash onnxruntime, or take float32 only
    if any(n.domain or n.op_type.endswith(unfit) for n in model.graph.node):
        return
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16))))


# ---- structure -------------------------------------------------------------------------------------------------------
def segment(rng: random.Random, model: ModelProto) -> tuple[int, int, list[str], list[str]]:
    """Choose a run of nodes; return where, what it reads, and what is read of it."""
    nodes = model.graph.node
    start = rng.randrange(len(nodes))
    stop = min(len(nodes), start + 1 + rng.randrange(12))
    inside = list(nodes)[start:stop]
    made = {name for node in inside for name in node.output}
    reads = dict.fromkeys(n for node in inside for n in node.input if n and n not in made)
    later = {n for node in list(nodes)[stop:] for n in node.input} | {v.name for v in model.graph.output}
    return start, stop, list(reads), [n for node in inside for n in node.output if n in later]


def replace(model: ModelProto, start: int, stop: int, nodes: list[NodeProto]) -> None:
    """Put other nodes in the place of a run."""
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*rest[:start], *nodes, *rest[stop:]])


@form
def as_function(rng: random.Random, model: ModelProto) -> None:
    """A run of nodes as a local function."""
    start, stop, reads, shown = segment(rng, model)
    if not shown:
        return
    body = list(model.graph.node)[start:stop]
    imports = list(model.opset_import)
    model.functions.append(helper.make_function(LOCAL, "Run", reads, shown, body, imports))
    model.opset_import.append(helper.make_opsetid(LOCAL, 1))
    replace(model, start, stop, [helper.make_node("Run", reads, shown, name="run", domain=LOCAL)])


def types_of(model: ModelProto) -> dict[str, int]:
    """Element types of all values that shape inference finds."""
    infos = shape_inference.infer_shapes(model).graph
    values = (*infos.value_info, *infos.output, *infos.input)
    return {v.name: v.type.tensor_type.elem_type for v in values if v.type.tensor_type.elem_type}


def closed(model: ModelProto, shown: list[str], types: dict[str, int]) -> bool:
    """Whether a run of nodes can be a body; onnxruntime aborts on some bodies that read what was dequantised."""
    quantised = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    return bool(shown) and types.keys() >= set(shown) and not quantised


def body_of(name: str, nodes: list[NodeProto], shown: list[str], types: dict[str, int], suffix: str) -> GraphProto:
    """A subgraph of copies of nodes, whose values get a suffix."""
    made = {n for node in nodes for n in node.output if n}
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}{suffix}"
        for names in (copy.input, copy.output):
            names[:] = [f"{n}{suffix}" if n in made else n for n in names]
        copies.append(copy)
    outputs = [helper.make_tensor_value_info(f"{n}{suffix}", types[n], None) for n in shown]
    return helper.make_graph(copies, name, [], outputs)


@form
def as_branches(rng: random.Random, model: ModelProto) -> None:
    """A run of nodes as both branches of an If, which what an input says decides."""
    start, stop, _, shown = segment(rng, model)
    types = types_of(model)
    if not closed(model, shown, types):
        return
    nodes = list(model.graph.node)[start:stop]
    given = model.graph.input[0]
    axes = list(range(len(given.type.tensor_type.shape.dim)))
    as_axes = model.opset_import[0].version < 18
    reals = helper.make_node("Cast", [given.name], ["if_real"], to=TensorProto.FLOAT)
    mean = helper.make_node("ReduceMean", ["if_real"], ["if_mean"], keepdims=0, **({"axes": axes} if as_axes else {}))
    zero = numpy_helper.from_array(np.float32(0.01), "if_zero")
    model.graph.initializer.append(zero)
    condition = helper.make_node("Greater", ["if_mean", "if_zero"], ["if_condition"])
    bodies = {f"{which}_branch": body_of(which, nodes, shown, types, f"_{which}") for which in ("then", "else")}
    chosen = helper.make_node("If", ["if_condition"], shown, name="if", **bodies)
    replace(model, start, stop, [reals, mean, condition, chosen])


@form
def as_loop(rng: random.Random, model: ModelProto) -> None:
    """A run of nodes as the body of a Loop of one or two turns, of which the first counts."""
    start, stop, _, shown = segment(rng, model)
    types = types_of(model)
    if not closed(model, shown, types) or model.opset_import[0].version < 13:
        return
    body = body_of("body", list(model.graph.node)[start:stop], shown, types, "_turn")
    body.input.extend(
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ]
    )
    body.node.append(helper.make_node("Identity", ["go"], ["go_on"]))
    body.output.insert(0, helper.make_tensor_value_info("go_on", TensorProto.BOOL, []))
    model.graph.initializer.append(numpy_helper.from_array(np.int64(1 + rng.randrange(2)), "loop_turns"))
    model.graph.initializer.append(numpy_helper.from_array(np.int64(0), "loop_first"))
    stacked = [f"{name}_turns" for name in shown]
    loop = helper.make_node("Loop", ["loop_turns", ""], stacked, name="loop", body=body)
    first = [helper.make_node("Gather", [s, "loop_first"], [n], axis=0) for s, n in zip(stacked, shown)]
    replace(model, start, stop, [loop, *first])


def feeds_for(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs in the types of a rewritten model."""
    kinds = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in model.graph.input}
    return {name: value.astype(kinds[name]) for name, value in feeds.items()}
