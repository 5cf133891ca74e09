"""Check a pruned model without asking prunepass: ONNX checker, onnxruntime, outputs like the original's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import counting
import numpy as np
import onnx

# The shape of what these return depends on the numbers, so it may differ from the original's.
DATA_DEPENDENT = {"NonZero", "NonMaxSuppression", "Unique", "Compress", "If", "Loop", "TopK", "RoiAlign", "Multinomial"}


# Operands that say how large a result is.
SIZES = {"Range": (0, 1, 2), "ConstantOfShape": (0,), "Expand": (1,), "Reshape": (1,), "Tile": (1,), "Slice": (1, 2)}
SIZES |= {"Pad": (1,), "OneHot": (1,), "Resize": (2, 3), "Upsample": (1,), "Split": (1,)}


@dataclass(frozen=True)
class Output:
    """What one graph output looked like in a run."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    finite: bool


def session(data: bytes, optimise: bool = True) -> Any:
    """Open an onnxruntime session with one thread, quiet, with all optimisations on or all off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def outputs(data: bytes, feeds: dict[str, np.ndarray], optimise: bool = True) -> tuple[Output, ...]:
    """Run a serialised model once and describe its outputs."""
    opened = session(data, optimise)
    given = {i.name for i in opened.get_inputs()}
    values = opened.run(None, {k: v for k, v in feeds.items() if k in given})
    return tuple(_describe(o.name, value) for o, value in zip(opened.get_outputs(), values, strict=True))


def _describe(name: str, value: Any) -> Output:
    if not isinstance(value, np.ndarray):
        return Output(name, type(value).__name__, (), True)
    finite = bool(np.isfinite(value).all()) if value.dtype.kind == "f" else True
    return Output(name, str(value.dtype), value.shape, finite)


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}"


def invalid(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> tuple[str, tuple[Output, ...]]:
    """Say why a model is no valid ONNX or does not run with all optimisations on ("" when it does), and its outputs."""
    data = model.SerializeToString()
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        return f"checker: {first_line(error)}", ()
    try:
        return "", outputs(data, feeds)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own, one per status code
        return f"onnxruntime: {first_line(error)}", ()


def mismatch(model: onnx.ModelProto, dense: tuple[Output, ...], pruned: tuple[Output, ...]) -> str:
    """Say in what the outputs of the pruned model differ from the original's ("" when they look alike)."""
    if [o.name for o in dense] != [o.name for o in pruned]:
        return f"outputs are {[o.name for o in pruned]}, were {[o.name for o in dense]}"
    free_shape = bool(DATA_DEPENDENT & {node.op_type for node in nodes(model)}) or predicts_sizes(model.graph)
    for before, after in zip(dense, pruned, strict=True):
        if before.dtype != after.dtype:
            return f"output '{before.name}' is {after.dtype}, was {before.dtype}"
        same = len(before.shape) == len(after.shape) if free_shape else before.shape == after.shape
        if not same:
            return f"output '{before.name}' has shape {list(after.shape)}, had {list(before.shape)}"
        if before.finite and not after.finite:
            return f"output '{before.name}' is not finite, was finite"
    return ""


def predicts_sizes(graph: onnx.GraphProto) -> bool:
    """Say whether a size in a graph is computed with weights, such as the length of what a network is about to say."""
    weights = {t.name for t in graph.initializer if len(t.dims) > 1 and t.data_type in counting.FLOATS}
    constants = [n for n in graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"]
    tensors = {n.output[0]: n.attribute[0].t for n in constants}
    weights |= {name for name, t in tensors.items() if len(t.dims) > 1 and t.data_type in counting.FLOATS}
    makers = {name: node for node in graph.node for name in node.output if node.op_type not in ("Shape", "Size")}
    stack = [n.input[i] for n in graph.node for i in SIZES.get(n.op_type, ()) if i < len(n.input)]
    seen: set[str] = set()
    while stack:
        name = stack.pop()
        if name in weights:
            return True
        if name in makers and name not in seen:
            seen.add(name)
            stack.extend(makers[name].input)
    return False


def interface_changed(
    model: onnx.ModelProto, pruned: onnx.ModelProto, kinds: Sequence[str] = ("input", "output")
) -> str:
    """Say in what the declared inputs and outputs differ ("" when they are equal, dynamic axes included)."""
    for kind in kinds:
        before, after = _declared(model, kind), _declared(pruned, kind)
        if list(before) != list(after):
            return f"{kind}s are {list(after)}, were {list(before)}"
        for name, spec in before.items():
            if spec[1] and spec != after[name]:
                return f"{kind} '{name}' is declared as {after[name]}, was {spec}"
    return ""


def _declared(model: onnx.ModelProto, kind: str) -> dict[str, tuple[int, tuple[int | str, ...]]]:
    weights = {t.name for t in model.graph.initializer}
    values = model.graph.input if kind == "input" else model.graph.output
    return {v.name: _spec(v) for v in values if v.name not in weights}


def _spec(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return tensor.elem_type, dims


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of subgraphs and local functions too."""
    stack: list[Any] = [model.graph, *model.functions]
    while stack:
        for node in stack.pop().node:
            yield node
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)
