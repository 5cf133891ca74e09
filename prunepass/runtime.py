"""Run models in onnxruntime: sessions with taps, one-line errors, seeded random operators."""

from __future__ import annotations

import functools
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx

from prunepass import wire
from prunepass.errors import ModelError, PipelineError, PruneError, UnsupportedError
from prunepass.feeds import Feeds, check_data, load_data, random_inputs, split_data
from prunepass.graph import Graph, Node, domain_name, op_key, subgraphs_of, walk_nodes

__all__ = [
    "Feeds",
    "Session",
    "check_data",
    "has_operator",
    "load_data",
    "random_inputs",
    "refuse_invalid",
    "run",
    "seed_random_nodes",
    "session",
    "split_data",
]

Model: TypeAlias = "Graph | onnx.ModelProto | bytes | str | os.PathLike[str]"
Optimise: TypeAlias = Literal["all", "basic", "off"]
CPU = "CPUExecutionProvider"
_LEVELS = {"all": "ORT_ENABLE_ALL", "basic": "ORT_ENABLE_BASIC", "off": "ORT_DISABLE_ALL"}
_TAPPED_LEVELS: dict[Optimise, tuple[Optimise, ...]] = {
    "all": ("basic", "off"),
    "basic": ("basic", "off"),
    "off": ("off",),
}
_TOO_NEW = ("under development", "Unsupported model IR version")
_HINTS = (  # part of onnxruntime's message, what to do, whether the model is valid all the same
    ("No Op registered", "export without custom operators, or upgrade onnxruntime", True),
    ("No opset import for domain", "export without custom operators", True),
    ("is not a registered function/op", "export without custom operators", True),
    ("NOT_IMPLEMENTED", "there is no CPU kernel for these types; export in float32, or upgrade onnxruntime", True),
    *((part, "this onnxruntime is too old for the model; upgrade it", True) for part in _TOO_NEW),
    ("Type Error", "the model is not valid; export it again", False),
    ("ShapeInferenceError", "the model is not valid; export it again", False),
    ("INVALID_GRAPH", "the model is not valid; export it again", False),
)
_RANDOM_OPS = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


class Session:
    """Run one model in onnxruntime; made by `session`."""

    def __init__(self, inner: Any, outputs: Mapping[str, str], folder: Any = None) -> None:
        self._inner = inner
        self._outputs = dict(outputs)  # public name -> name in the session
        self._folder = folder  # of the weights of a large model, kept while the session lives

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names to feed."""
        return tuple(i.name for i in self._inner.get_inputs())

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what a run returns: graph outputs, then taps."""
        return tuple(self._outputs)

    def run(self, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run the model once; names: of what to return, everything by default.

        Raises
            ModelError, UnsupportedError: with the first line of onnxruntime's message.
        """
        try:
            chosen = self._outputs if names is None else {name: self._outputs[name] for name in names}
            values = self._inner.run(list(chosen.values()), dict(feeds))
        except _ort_errors() as error:
            shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in feeds.items())
            hint = "give other sizes with --shape, or data with --data"
            raise _translated(error, f"onnxruntime fails to run the model on {shapes}", hint) from error
        return dict(zip(chosen, values, strict=True))


def session(
    model: Model,
    *,
    optimise: Optimise = "all",
    threads: int | None = None,
    taps: Iterable[str] = (),
    provider: str = CPU,
) -> Session:
    """Start onnxruntime on a model, silent; `taps` are values to return besides the graph outputs.

    Taps stand behind an Identity, and lower the level: optimisations fuse tapped values away, basic ones sometimes.
    What another provider than that of the CPU cannot run, the CPU does.

    Units
        threads: of the session; default: the environment variable PRUNEPASS_THREADS, or else one per core, up to 4.

    Raises
        ModelError, UnsupportedError: with the first line of onnxruntime's message and what to do. PipelineError:
        PRUNEPASS_THREADS is not a number of threads.
    """
    names: dict[str, str] = {}
    source, folder = model, None
    taps = tuple(taps)
    if taps or isinstance(model, (Graph, onnx.ModelProto)):
        model, names = _tapped(_as_graph(model), taps)
        source, folder = _written(model)
    left_out = _left_out(model)
    for level in _TAPPED_LEVELS[optimise] if taps else (optimise,):
        options = _options(level, threads)
        try:
            inner = _start(source, options, provider, left_out)
            break
        except _ort_errors() as error:
            failed = error
    else:
        inner = _start_older(model, options, failed, provider)
    own = {o.name: o.name for o in inner.get_outputs() if o.name not in names.values()}
    return Session(inner, {**own, **names}, folder)


def run(session: Session, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a session once; returns its outputs and taps by name."""
    return session.run(feeds)


def refuse_invalid(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], data: Feeds | None = None, seed: int = 0
) -> None:
    """Run a graph once, on given data or on random inputs of the shapes that are known.

    Raises
        ModelError, UnsupportedError: what onnxruntime says against it.
    """
    running = session(graph, optimise="off")
    known = {name: shapes[name] for name in graph.input_names if name in shapes}
    running.run(split_data(data, graph)[0] if data else random_inputs(graph, known, seed))


def _as_graph(model: Model) -> Graph:
    from prunepass.files import load  # it needs has_operator

    return Graph(model) if isinstance(model, onnx.ModelProto) else load(model)


def _tapped(graph: Graph, taps: tuple[str, ...]) -> tuple[Graph, dict[str, str]]:
    """Add an output behind an Identity for each tap; returns the output of each."""
    if not taps:
        return graph, {}
    graph = graph.copy()
    known = {*graph.input_names, *graph.consts, *(name for node in graph.nodes for name in node.outputs)}
    names = {}
    for tap in taps:
        if tap not in known:
            raise ModelError(f"there is no value {tap!r} to tap; give the name of an activation or a constant")
        if tap not in graph.output_names:
            names[tap] = graph.fresh_name(f"{tap}__tap")
            graph.nodes.append(Node.make("Identity", [tap], [names[tap]], names[tap]))
            graph.outputs.append(onnx.ValueInfoProto(name=names[tap]))
    return graph, names


def _written(graph: Graph) -> tuple[Any, Any]:
    """Return what onnxruntime takes: bytes, or the path of a file in the returned temporary folder."""
    from prunepass.files import EMBEDDED_LIMIT, save

    pieces = wire.encode(graph)
    if sum(map(len, pieces)) <= EMBEDDED_LIMIT:
        return b"".join(pieces), None
    folder = tempfile.TemporaryDirectory(prefix="prunepass-")
    path = Path(folder.name) / "model.onnx"
    save(graph, path)
    return path, folder


def _options(optimise: Optimise, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[optimise])
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn CPU time
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # float32; by default it is int8
    return options


def default_threads() -> int:
    """Return PRUNEPASS_THREADS; where it is not set, one thread per core, up to 4."""
    text = os.environ.get("PRUNEPASS_THREADS") or str(min(4, os.cpu_count() or 1))
    if not re.fullmatch("[1-9][0-9]{0,2}", text):
        raise PipelineError(f"PRUNEPASS_THREADS={text!r} must be a whole number from 1 to 999")
    return int(text)


def _left_out(model: Model) -> list[str]:
    """Name optimisations that end the process: this one does (1.31.1) on Transpose, Cast to double, MatMul."""
    casts = (node.attr("to") for node in model.walk() if node.op == "Cast") if isinstance(model, Graph) else ()
    return ["MatmulTransposeFusion"] if onnx.TensorProto.DOUBLE in casts else []


def _start(source: Any, options: Any, provider: str = CPU, left_out: Sequence[str] = ()) -> Any:
    import onnxruntime

    data = source if isinstance(source, bytes) else os.fspath(source)
    providers = list(dict.fromkeys([provider, CPU]))
    return onnxruntime.InferenceSession(data, options, providers=providers, disabled_optimizers=list(left_out))


def _start_older(model: Model, options: Any, error: Exception, provider: str) -> Any:
    """Try a model that is only too new under the newest opset that onnxruntime has, where that means the same."""
    for _ in range(2):  # the IR version is refused first, then the opset
        older = _for_older_runtime(model, str(error))
        if older is None:
            break
        try:
            return _start(older, options, provider)
        except _ort_errors() as next_error:
            error = next_error
    raise _translated(error, "onnxruntime refuses the model", "check it with onnx.checker") from error


def _for_older_runtime(model: Model, refusal: str) -> bytes | None:
    """Encode a model under the newest opset that a refusal names; None where an operator changed after it."""
    opset, ir = (re.search(pattern, refusal) for pattern in (r"till opset (\d+)", r"max supported IR version: (\d+)"))
    if not (opset or ir):
        return None
    graph = _as_graph(model)
    newest = int(opset[1]) if opset else graph.opset
    while ir and newest > 1 and _oldest_ir(newest) > int(ir[1]):
        newest -= 1
    inner = (n for node in graph.nodes for body in node.subgraphs for n in walk_nodes(body))
    ops = {node.op for node in graph.nodes} | {op_key(n.op_type, n.domain) for n in inner}
    known = [onnx.defs.get_schema(op, graph.opset) for op in ops if onnx.defs.has(op, graph.opset)]
    if any(schema.since_version > newest for schema in known):
        return None
    proto = graph.to_proto()
    for entry in proto.opset_import:
        if domain_name(entry.domain) == "":
            entry.version = min(entry.version, newest)
    proto.ir_version = min(proto.ir_version, _oldest_ir(newest))
    return bytes(proto.SerializeToString())


def _oldest_ir(opset: int) -> int:
    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)], ignore_unknown=True))


@functools.cache
def _runtime_operators() -> dict[tuple[str, str], int]:
    """Map (operator, domain) to the version that onnxruntime has it since; empty where it cannot be asked."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    first: dict[tuple[str, str], int] = {}
    for schema in getattr(state, "get_all_operator_schema", list)():
        key = (schema.name, domain_name(schema.domain))
        first[key] = min(schema.since_version, first.get(key, schema.since_version))
    return first


def has_operator(op_type: str, domain: str, version: int) -> bool:
    """Tell whether onnxruntime knows an operator; true where it cannot be asked, since a session will tell."""
    first = _runtime_operators()
    return not first or first.get((op_type, domain), version + 1) <= version


@functools.cache
def _ort_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its exceptions have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [c for c in vars(state).values() if isinstance(c, type) and issubclass(c, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _translated(error: Exception, what: str, hint: str) -> PruneError:
    """Turn an exception of onnxruntime into one line: what failed, its first line, what to do."""
    text = str(error)
    kind: type[PruneError] = ModelError
    for part, advice, valid in _HINTS:
        if part in text:
            hint, kind = advice, UnsupportedError if valid else ModelError
            break
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text.strip()).partition("\n")[0]
    line = re.sub(r"/\S+\.\w+:\d+ .*?\) (?=[A-Z])", "", line)  # where in its sources
    return kind(f"{what}: {line[:300].strip().rstrip('.')}; {hint}")


def seed_random_nodes(graph: Graph, seed: int = 0) -> Graph:
    """Return a copy in which every operator that draws random numbers draws the same ones in every session.

    The seed depends on the name of the value, so that two versions of a model draw alike. One session goes on drawing
    from run to run; compare runs of the same number.
    """
    twin = graph.copy()
    for at, node in enumerate(twin.nodes):
        if node.op in _RANDOM_OPS or _drops(node.op, node.inputs, graph.opset):
            node.set_attr("seed", _seed(node.op, node.outputs[0], seed))
        elif node.subgraphs:
            proto = onnx.NodeProto()
            proto.CopyFrom(node.to_proto())
            for attribute in proto.attribute:
                for body in subgraphs_of(attribute):
                    _seed_body(body, seed, graph.opset)
            twin.nodes[at] = Node(proto)
    return twin


def _drops(op: str, inputs: Sequence[str], opset: int) -> bool:
    """Say whether a node may be a Dropout that trains: since opset 12 its third input asks for that."""
    return op == "Dropout" and opset >= 12 and len(inputs) > 2


def _seed_body(body: onnx.GraphProto, seed: int, opset: int) -> None:
    for node in walk_nodes(body):
        draws = node.op_type in _RANDOM_OPS or _drops(node.op_type, node.input, opset)
        if draws and domain_name(node.domain) == "":
            kept = [a for a in node.attribute if a.name != "seed"]
            del node.attribute[:]
            node.attribute.extend(
                [*kept, onnx.helper.make_attribute("seed", _seed(node.op_type, node.output[0], seed))]
            )


def _seed(op: str, name: str, seed: int) -> float | int:
    """Return a seed for one value; an integer where the operator wants one."""
    found = zlib.crc32(f"{seed}:{name}".encode()) % 2**20
    return found if op == "Dropout" else float(found)
