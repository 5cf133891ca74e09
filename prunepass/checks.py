"""Say in one line what is wrong with a model, before a pass stumbles over it."""

from __future__ import annotations

import math
from itertools import chain

import onnx
from onnx import TensorProto, helper

from prunepass import runtime
from prunepass.errors import ModelError, UnsupportedError
from prunepass.graph import Graph, domain_name, op_key, subgraphs_of, tensor_bytes, walk_nodes

OLDEST_OPSET = 7
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_PACKED_FIELDS = {  # elements in one entry of int32_data
    TensorProto.DataType.Value(name): count
    for name, count in {"UINT4": 2, "INT4": 2, "FLOAT4E2M1": 2, "UINT2": 4, "INT2": 4}.items()
    if name in TensorProto.DataType.keys()  # noqa: SIM118  (not a dict)
}
_TYPES = frozenset(helper.get_all_tensor_dtypes()) - {TensorProto.UNDEFINED}
_ALLOWED = (  # refused by onnx.checker, but onnxruntime runs it
    "No Op registered for",  # one of its own operators in the default domain
    "Field 'shape' of 'type' is required but missing",  # an input of any rank
)
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)


def check_header(model: onnx.ModelProto) -> None:
    """Refuse a model that is not complete, too old or too new, or that names a tensor or an input twice."""
    graph = model.graph
    if not graph.output:
        raise ModelError("the graph has no outputs; export the model again")
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(f"IR version {model.ir_version} is newer than onnx {onnx.__version__} knows; upgrade onnx")
    if not model.opset_import:
        raise ModelError(
            "the model imports no operator set: the file is cut off, or was never complete; export it again"
        )
    imports = {domain_name(o.domain): o.version for o in model.opset_import}
    version, newest = imports.get("", OLDEST_OPSET), onnx.defs.onnx_opset_version()
    if version < OLDEST_OPSET:
        raise ModelError(f"opset {version} is older than {OLDEST_OPSET}; convert it with onnx.version_converter")
    if version > newest:
        raise ModelError(f"opset {version} is newer than onnx {onnx.__version__} knows ({newest}); upgrade onnx")
    tensors = [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]
    refuse_doubles("initializer", tensors)
    refuse_doubles("graph input", [i.name for i in graph.input])


def refuse_doubles(what: str, names: list[str]) -> None:
    """Refuse names that are empty or not unique."""
    if "" in names:
        raise ModelError(f"{what} number {names.index('')} has no name; export the model again")
    if len(set(names)) < len(names):
        double = next(name for at, name in enumerate(names) if name in names[:at])
        raise ModelError(f"{what} {double!r} is defined twice; export the model again")


def check_type(tensor: TensorProto, where: str) -> None:
    """Refuse an element type or dims that make no sense."""
    if tensor.data_type not in _TYPES:
        raise ModelError(f"{where}: element type {tensor.data_type} is unknown; upgrade onnx or export the model again")
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{where}: the dims {list(tensor.dims)} are negative; export the model again")


def check_size(tensor: TensorProto, where: str, raw_bytes: int | None = None) -> None:
    """Refuse a tensor whose data is not as long as its type and dims say; `raw_bytes` stands for its raw data."""
    check_type(tensor, where)
    kind, dims = tensor.data_type, list(tensor.dims)
    if raw_bytes is None and tensor.HasField("raw_data"):
        raw_bytes = len(tensor.raw_data)
    if raw_bytes is not None and kind != TensorProto.STRING:
        have, want, unit = raw_bytes, tensor_bytes(kind, dims), "bytes"
    else:
        have, unit = len(getattr(tensor, helper.tensor_dtype_to_field(kind))), "values"
        want = -(-math.prod(dims) // _PACKED_FIELDS.get(kind, 1)) * (2 if kind in _COMPLEX else 1)
    if have != want:
        name = helper.tensor_dtype_to_string(kind).rpartition(".")[2].lower()
        raise ModelError(f"{where}: {name} {dims} needs {want} {unit}, the file has {have}; export the model again")


def check_graph(graph: Graph) -> None:
    """Refuse sizes of zero, unknown operators, and values that are not defined exactly once before they are read."""
    _check_text(graph)
    _check_zero_sizes(graph)
    _check_operators(graph)
    known = _check_definitions(graph)
    for name in graph.output_names:
        if name not in known:
            raise ModelError(f"graph output {name!r} is never computed; export the model again")
    _sort(graph)
    for node in graph.nodes:
        for body in node.subgraphs:
            _check_body(body, node.label)
    try:
        onnx.checker.check_model(graph.skeleton())
    except (onnx.checker.ValidationError, ValueError) as error:
        line = " ".join(str(error).split("==>")[0].split())
        if not line.startswith(_ALLOWED):
            raise ModelError(f"the model is not valid: {line[:300].rstrip('.')}; export it again") from error


def _check_text(graph: Graph) -> None:
    """Refuse names that protobuf could not decode; it gives them as bytes."""
    inner = [n for node in graph.nodes for body in node.subgraphs for n in walk_nodes(body)]
    names = chain(
        (*graph.input_names, *graph.output_names, *graph.consts),
        (d.dim_param for i in graph.inputs for d in i.type.tensor_type.shape.dim),
        *((node.op, node.name, *node.inputs, *node.outputs) for node in graph.nodes),
        *((node.op_type, node.domain, node.name, *node.input, *node.output) for node in inner),
    )
    if bytes in set(map(type, names)):
        raise ModelError("a name is not valid UTF-8: the file is damaged; export the model again")


def _check_zero_sizes(graph: Graph) -> None:
    for info in graph.inputs:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value == 0:
                raise ModelError(f"graph input {info.name!r} has size 0 on axis {axis}; give it a size or a name")
    for name in graph.consts:
        shape = graph.consts.shape(name)
        if len(shape) > 1 and 0 in shape and graph.consts.elem_type(name) in _FLOATS:
            raise ModelError(f"weight {name!r} has shape {list(shape)}, a size of 0; export the model again")


def _check_operators(graph: Graph) -> None:
    """Refuse what no operator set of the model defines, bodies included."""
    first: dict[str, str] = {}
    for node in graph.nodes:
        first.setdefault(node.op, node.label)
        for inner in chain.from_iterable(map(walk_nodes, node.subgraphs)):
            first.setdefault(op_key(inner.op_type, inner.domain), f"{inner.op_type} {inner.name!r} in {node.label}")
    for op, label in first.items():
        domain, _, name = op.rpartition("::")
        if not name:
            raise ModelError(f"node {label} has no operator; export the model again")
        version = graph.opset_imports.get(domain)
        if version is None:
            raise ModelError(f"{label}: the model imports no operator set for domain {domain!r}; export it again")
        if not onnx.defs.has(name, version, domain) and not runtime.has_operator(name, domain, version):
            place = f"domain {domain!r} of onnx or onnxruntime" if domain else f"opset {version}"
            raise UnsupportedError(f"{label}: there is no operator {name} in {place}; export without custom operators")


def _check_definitions(graph: Graph) -> set[str]:
    """Return the names that the graph defines, each of which it may define only once."""
    known = {*graph.input_names, *graph.consts}
    for node in graph.nodes:
        for name in filter(None, node.outputs):
            if name in known:
                raise ModelError(f"value {name!r} is defined twice, the second time by {node.label}; export it again")
            known.add(name)
    for node in graph.nodes:
        for name in chain(node.inputs, node.captured):
            if name and name not in known:
                raise ModelError(f"{node.label} reads {name!r}, which nothing defines; export the model again")
    return known


def _check_body(body: onnx.GraphProto, where: str) -> None:
    """Refuse a body that defines a value twice; what it reads was checked with its node."""
    made: set[str] = set()
    for node in body.node:
        for name in filter(None, node.output):
            if name in made:
                raise ModelError(f"{where}: its body defines {name!r} twice; export the model again")
            made.add(name)
        for attribute in node.attribute:
            for inner in subgraphs_of(attribute):
                _check_body(inner, where)


def _sort(graph: Graph) -> None:
    """Put the nodes in an order in which every value is computed before it is read."""
    done = {*graph.input_names, *graph.consts, ""}
    for node in graph.nodes:
        if not done.issuperset(node.inputs) or not done.issuperset(node.captured):
            break
        done.update(node.outputs)
    else:
        return
    import networkx as nx

    order = nx.DiGraph()
    order.add_nodes_from(range(len(graph.nodes)))
    maker = {name: at for at, node in enumerate(graph.nodes) for name in node.outputs if name}
    for at, node in enumerate(graph.nodes):
        order.add_edges_from((maker[name], at) for name in chain(node.inputs, node.captured) if name in maker)
    try:
        graph.nodes = [graph.nodes[at] for at in nx.lexicographical_topological_sort(order)]
    except nx.NetworkXUnfeasible:
        loop = [graph.nodes[at].label for at, _ in nx.find_cycle(order)]
        shown = " -> ".join([*loop[:6], *(["..."] if len(loop) > 6 else []), loop[0]])
        raise ModelError(f"the graph has a cycle: {shown}; export the model again") from None
