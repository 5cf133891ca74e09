"""The model in memory: nodes, constants, graph."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from textmodels import chain, model, weight

from prunepass.errors import ModelError, UnsupportedError
from prunepass.graph import Consts, Graph, Node, op_key, tensor_bytes

BODY = """g (bool c, float[2] x, float[2] s) => (float[2] y) {
    h = Relu(x)
    y = If <then_branch = t () => (float[2] a) { k = Neg(h)  a = Add(k, s) },
            else_branch = e () => (float[2] b) { b = Identity(h) }> (c)
}"""


# Nodes


def test_a_node_is_edited_without_touching_its_source() -> None:
    source = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=2, pads=[1, 1, 1, 1])
    node = Node(source)
    twin = node.copy()
    node.set_attr("group", 4)
    node.del_attr("pads")
    node.inputs[1] = "v"
    node.name = "other"
    assert node.attrs == {"group": 4}
    assert list(node.to_proto().input) == ["x", "v"]
    assert node.to_proto().name == "other"
    assert twin.attrs == {"group": 2, "pads": [1, 1, 1, 1]}
    assert Node(source).to_proto() == source
    assert (node.attr("kernel_shape"), node.attr("kernel_shape", 3)) == (None, 3)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (3, 3),
        (0.5, 0.5),
        ("same", "same"),
        ([1, 2], [1, 2]),
        ([0.5, 2.0], [0.5, 2.0]),
        (["a", "b"], ["a", "b"]),
        (numpy_helper.from_array(np.arange(3)), np.arange(3)),
    ],
)
def test_attributes_are_python_values(value: object, read: object) -> None:
    node = Node.make("Op", ["x"], ["y"], value=value)
    np.testing.assert_array_equal(node.attr("value"), read)
    assert type(node.attr("value")) is type(read)
    assert (node.tensor("value") is not None) == isinstance(read, np.ndarray)


@pytest.mark.parametrize(
    ("op_type", "domain", "key"),
    [("Conv", "", "Conv"), ("Conv", "ai.onnx", "Conv"), ("BiasGelu", "com.microsoft", "com.microsoft::BiasGelu")],
)
def test_operators_are_named_with_their_domain(op_type: str, domain: str, key: str) -> None:
    node = Node(helper.make_node(op_type, [], ["y"], domain=domain))
    assert node.op == op_key(op_type, domain) == key
    assert node.label == f"{key} 'y'"
    assert Node.make(key, [], ["y"]).op == key


def test_captured_values_are_found_and_renamed() -> None:
    graph = Graph(model(BODY))
    branch = graph.nodes[1]
    assert branch.captured == ("h", "s")
    before = branch.copy()
    branch.rename_captured("h", "g")
    assert (branch.captured, before.captured) == (("g", "s"), ("h", "s"))
    assert [node.op_type for body in branch.subgraphs for node in body.node] == ["Neg", "Add", "Identity"]


# Constants

TENSORS = {
    "scalar": np.float32(1.5),
    "empty": np.zeros(0, np.int64),
    "matrix": weight(3, 5),
    "strided": weight(4, 6)[::2, ::3],
    "transposed": weight(4, 6).T,
    "bool": np.array([True, False]),
    "half": weight(3).astype(np.float16),
    "complex": weight(3).astype(np.complex64),
    "bfloat16": weight(3, 3).astype(ml_dtypes.bfloat16),
    "float8": weight(5).astype(ml_dtypes.float8_e4m3fn),
    "int4": np.array([[1, -2, 3]]).astype(ml_dtypes.int4),
    "uint4": np.array([1, 15]).astype(ml_dtypes.uint4),
}


@pytest.mark.parametrize("name", TENSORS)
def test_constants_keep_type_shape_and_size(name: str) -> None:
    array = np.asarray(TENSORS[name])
    stored = numpy_helper.from_array(array, "t")
    encoded, decoded = Consts([stored]), Consts()
    decoded["t"] = array
    for consts in (encoded, decoded):
        assert consts.shape("t") == array.shape
        assert consts.elem_type("t") == stored.data_type
        assert consts.nbytes("t") == len(stored.raw_data) == tensor_bytes(stored.data_type, array.shape)
    assert isinstance(encoded.stored("t"), TensorProto)  # nothing of that decoded it
    assert encoded["t"].dtype == array.dtype
    np.testing.assert_array_equal(encoded["t"], array)
    assert encoded.proto("t") == decoded.proto("t") == stored


def test_typed_storage_is_written_back_as_it_was() -> None:
    stored = helper.make_tensor("t", TensorProto.FLOAT, [2], [1.0, 2.0])
    consts = Consts([stored])
    np.testing.assert_array_equal(consts["t"], [1, 2])
    assert consts.proto("t") == stored
    consts["t"] = np.array([1, 2], np.float32)
    assert consts.proto("t").HasField("raw_data")


def test_a_copy_of_constants_shares_data_but_no_entries() -> None:
    consts = Consts([numpy_helper.from_array(weight(2), "a")])
    twin = consts.copy()
    twin["b"] = weight(3)
    consts.alias("c", "a")
    del consts["a"]
    assert (list(consts), list(twin), len(twin)) == (["c"], ["a", "b"], 2)
    assert consts.proto("c").name == "c"
    np.testing.assert_array_equal(consts["c"], twin["a"])


def test_data_that_cannot_be_decoded_is_a_model_error() -> None:
    broken = numpy_helper.from_array(weight(4), "t")
    broken.raw_data = b"123"
    with pytest.raises(ModelError, match=r"tensor 't': its data cannot be decoded .*; export it again"):
        Consts([broken])["t"]


# Graphs


def test_what_is_not_edited_is_written_back() -> None:
    source = chain()
    source.producer_name, source.doc_string, source.graph.doc_string = "maker", "about", "graph"
    source.model_version, source.domain = 3, "org.example"
    source.metadata_props.add(key="k", value="v")
    source.graph.metadata_props.add(key="a", value="b")
    source.opset_import.add(domain="com.microsoft", version=1)
    assert Graph(source).to_proto() == source
    assert Graph(source).opset_imports == {"": 17, "com.microsoft": 1}


def test_stale_value_info_is_dropped() -> None:
    source = chain()
    source.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [9, 9]))
    assert not Graph(source).to_proto().graph.value_info


def test_uses_and_producers() -> None:
    graph = Graph(model(BODY))
    uses = {name: [(node.op, at) for node, at in found] for name, found in graph.uses().items()}
    assert uses == {"x": [("Relu", 0)], "c": [("If", 0)], "h": [("If", -1)], "s": [("If", -1)]}
    assert {name: node.op for name, node in graph.producers().items()} == {"h": "Relu", "y": "If"}


def test_fresh_names_avoid_all_others() -> None:
    graph = Graph(model(BODY, w=weight(2)))
    hints = ["x", "h", "w", "k", "a", "new", "new"]  # input, value, constant, inside a body twice, free, taken now
    assert [graph.fresh_name(h) for h in hints] == ["x__1", "h__1", "w__1", "k__1", "a__1", "new", "new__1"]


def test_a_copy_is_independent() -> None:
    graph = Graph(chain())
    twin = graph.copy()
    twin.nodes[0].inputs[1] = "v"
    twin.nodes.pop()
    twin.consts["v"] = weight(2)
    assert graph.to_proto() == Graph(chain()).to_proto()
    assert twin.consts["w"] is graph.consts["w"] or np.array_equal(twin.consts["w"], graph.consts["w"])


def test_initializers_that_are_inputs_too_stay_so() -> None:
    source = chain()
    source.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 32]))
    graph = Graph(source)
    assert graph.input_names == ("x",)
    graph.consts["w"] = weight(64, 16)
    written = graph.to_proto().graph
    assert [i.name for i in written.input] == ["x", "w"]
    assert [d.dim_value for d in written.input[1].type.tensor_type.shape.dim] == [64, 16]
    del graph.consts["w"]
    assert [i.name for i in graph.to_proto().graph.input] == ["x"]


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_initializers_become_dense(linear: bool) -> None:
    source = chain()
    dense = np.zeros((64, 32), np.float32)
    dense[3, 4], dense[60, 31] = 2, 5
    at = np.argwhere(dense)
    indices = np.ravel_multi_index(tuple(at.T), dense.shape) if linear else at
    values = numpy_helper.from_array(dense[dense != 0], "w")
    del source.graph.initializer[0]
    source.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(indices), list(dense.shape))
    )
    np.testing.assert_array_equal(Graph(source).consts["w"], dense)


def test_a_skeleton_has_no_weights_and_is_valid() -> None:
    skeleton = Graph(chain()).skeleton()
    onnx.checker.check_model(skeleton)
    assert [i.name for i in skeleton.graph.input] == ["x", "w", "b"]
    assert not skeleton.graph.initializer


def test_a_rewrite_can_ask_for_an_opset() -> None:
    graph = Graph(chain())
    graph.require_opset(17)
    with pytest.raises(UnsupportedError, match="uses opset 17, this needs 18"):
        graph.require_opset(18)
