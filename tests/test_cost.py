"""MACs of operators and known networks; the cost model against a recount after a real cut."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunepass.cost import CostModel
from prunepass.graph import Graph, Node
from prunepass.kept import cut, kept_masks, new_shape
from prunepass.rules.cost import MACS, embedded_params

MS = "com.microsoft::"
ROWS = [
    # op, attributes, input shapes, output shapes, MACs by hand
    ("Conv", {}, [(1, 3, 5, 5), (8, 3, 3, 3), (8,)], [(1, 8, 3, 3)], 8 * 9 * 27),
    ("Conv", {"group": 2}, [(2, 4, 7), (6, 2, 3)], [(2, 6, 5)], 2 * 6 * 5 * 2 * 3),
    ("Conv", {"group": 8}, [(1, 8, 4, 4), (8, 1, 3, 3)], [(1, 8, 4, 4)], 8 * 16 * 9),
    ("ConvInteger", {}, [(1, 3, 5, 5), (8, 3, 3, 3), (), ()], [(1, 8, 3, 3)], 8 * 9 * 27),
    ("QLinearConv", {}, [(1, 3, 5, 5), (), (), (8, 3, 3, 3), (), (), (), ()], [(1, 8, 3, 3)], 8 * 9 * 27),
    ("DeformConv", {}, [(1, 3, 5, 5), (8, 3, 3, 3), (1, 18, 3, 3)], [(1, 8, 3, 3)], 8 * 9 * 27),
    ("CausalConvWithState", {}, [(1, 4, 9), (4, 1, 3)], [(1, 4, 9), (1, 4, 2)], 4 * 9 * 3),
    (MS + "FusedConv", {}, [(1, 3, 5, 5), (8, 3, 3, 3)], [(1, 8, 3, 3)], 8 * 9 * 27),
    (MS + "NhwcConv", {}, [(1, 5, 5, 3), (8, 3, 3, 3)], [(1, 3, 3, 8)], 8 * 9 * 27),
    ("ConvTranspose", {}, [(1, 4, 3, 3), (4, 6, 2, 2)], [(1, 6, 6, 6)], 4 * 9 * 6 * 4),
    ("ConvTranspose", {"group": 2}, [(1, 4, 3), (4, 3, 2)], [(1, 6, 4)], 4 * 3 * 3 * 2),
    ("Gemm", {}, [(2, 3), (3, 5), (5,)], [(2, 5)], 30),
    ("Gemm", {"transA": 1, "transB": 1}, [(3, 2), (5, 3)], [(2, 5)], 30),
    (MS + "QGemm", {}, [(2, 3), (), (), (3, 5), (), ()], [(2, 5)], 30),
    ("MatMul", {}, [(2, 3), (3, 5)], [(2, 5)], 30),
    ("MatMul", {}, [(4, 1, 2, 3), (6, 3, 5)], [(4, 6, 2, 5)], 4 * 6 * 30),
    ("MatMul", {}, [(3,), (3,)], [()], 3),
    ("MatMul", {}, [(3,), (7, 3, 5)], [(7, 5)], 7 * 15),
    ("MatMul", {}, [(7, 2, 3), (3,)], [(7, 2)], 7 * 6),
    ("MatMulInteger", {}, [(2, 3), (3, 5), (), None], [(2, 5)], 30),
    ("QLinearMatMul", {}, [(2, 3), (), (), (3, 5), (), (), (), ()], [(2, 5)], 30),
    (MS + "MatMulNBits", {"K": 64, "N": 5}, [(2, 64), (5, 2, 16), (10,)], [(2, 5)], 640),
    (MS + "FusedMatMul", {}, [(4, 2, 3), (4, 3, 5)], [(4, 2, 5)], 120),
    (MS + "FusedMatMul", {"transA": 1}, [(4, 3, 2), (4, 3, 5)], [(4, 2, 5)], 120),
    (MS + "FusedMatMul", {"transA": 1, "transBatchA": 1}, [(3, 4, 2), (4, 3, 5)], [(4, 2, 5)], 120),
    ("Einsum", {"equation": "bij,bjk->bik"}, [(4, 2, 3), (4, 3, 5)], [(4, 2, 5)], 120),
    ("Einsum", {"equation": "...ij, jk -> ...ik"}, [(4, 2, 3), (3, 5)], [(4, 2, 5)], 120),
    ("Einsum", {"equation": "i...,...->i..."}, [(2, 1, 5), (4, 5)], [(2, 4, 5)], 40),
    ("Einsum", {"equation": "...ij,...jk->...ik"}, [(4, 2, 3), (1, 3, 5)], [(4, 2, 5)], 120),
    ("Einsum", {"equation": "i...,...->i..."}, [(2, 3, 5), (5,)], [(2, 3, 5)], 30),
    ("Einsum", {"equation": "ii,ij,jk"}, [(2, 2), (2, 3), (3, 5)], [(5,)], 30),
    ("Einsum", {"equation": "ij->ji"}, [(2, 3)], [(3, 2)], 0),
    ("LSTM", {}, [(7, 2, 5), (1, 12, 5), (1, 12, 3)], [(7, 1, 2, 3)], 7 * 2 * 12 * 8),
    ("GRU", {"direction": "bidirectional"}, [(7, 2, 5), (2, 9, 5), (2, 9, 3)], [(7, 2, 2, 3)], 7 * 2 * 2 * 9 * 8),
    ("RNN", {"layout": 1}, [(2, 7, 5), (1, 3, 5), (1, 3, 3)], [()], 7 * 2 * 3 * 8),
    ("Attention", {}, [(2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 3)], [(2, 4, 5, 3)], 2 * 4 * 5 * 6 * 11),
    ("Attention", {"q_num_heads": 4}, [(2, 5, 32), (2, 6, 16), (2, 6, 6)], [(2, 5, 12)], 2 * 4 * 5 * 6 * 11),
    (
        "Attention",
        {},
        [(1, 1, 1, 8), (1, 1, 1, 8), (1, 1, 1, 8), None, (1, 1, 9, 8), (1, 1, 9, 8)],
        [(1, 1, 1, 8), (1, 1, 10, 8), (1, 1, 10, 8)],
        2 * 8 * 10,
    ),
    (MS + "MultiHeadAttention", {}, [(2, 5, 32), (2, 6, 32), (2, 6, 12)], [(2, 5, 12)], 2 * 5 * 6 * 44),
    (MS + "MultiHeadAttention", {}, [(2, 5, 32), (2, 4, 6, 8), (2, 4, 6, 3)], [(2, 5, 12)], 2 * 5 * 6 * 44),
    (
        MS + "MultiHeadAttention",
        {},
        [(2, 5, 32), (2, 6, 32), (2, 6, 12), None, None, None, (2, 4, 9, 8)],
        [(2, 5, 12)],
        2 * 5 * 15 * 44,
    ),
    (MS + "MultiHeadAttention", {}, [(2, 5, 4, 3, 8)], [(2, 5, 32)], 2 * 5 * 5 * 64),
    (MS + "GroupQueryAttention", {}, [(2, 5, 32), (2, 5, 8), (2, 5, 8)], [(2, 5, 32)], 2 * 5 * 5 * 64),
    (MS + "GroupQueryAttention", {}, [(2, 1, 48), None, None, (2, 1, 9, 8)], [(2, 1, 32)], 2 * 10 * 64),
    (MS + "Attention", {}, [(2, 5, 16), (16, 24), (24,)], [(2, 5, 8)], 2 * 5 * 16 * 24 + 2 * 5 * 5 * 16),
    ("ai.onnx.ml::LinearClassifier", {}, [(2, 4)], [(2,), (2, 3)], 24),
]


@pytest.mark.parametrize(("op", "attrs", "ins", "outs", "macs"), ROWS, ids=[f"{r[0]}{i}" for i, r in enumerate(ROWS)])
def test_macs(op, attrs, ins, outs, macs):
    assert MACS[op](Node.make(op, ["x"], ["y"], **attrs), ins, outs) == macs


def test_element_wise_norms_and_pools_have_no_row():
    assert not MACS.keys() & {"Relu", "Add", "Softmax", "LayerNormalization", "BatchNormalization", "MaxPool", "Resize"}


def test_every_row_names_an_operator_that_exists():
    known = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    for op in MACS:
        domain, _, name = op.rpartition("::")
        assert domain == "com.microsoft" or (domain, name) in known, op


def conv_macs(out, weight):
    """Count one Conv by its output shape and weight shape."""
    return MACS["Conv"](Node.make("Conv", ["x", "w"], ["y"]), [None, weight], [out])


def dense_macs(rows, inputs, outputs):
    """Count one fully connected layer."""
    return MACS["MatMul"](
        Node.make("MatMul", ["x", "w"], ["y"]), [(rows, inputs), (inputs, outputs)], [(rows, outputs)]
    )


def resnet50():
    """Count torchvision's ResNet-50 at 224 x 224 (stride in the 3x3)."""
    total, size, width = conv_macs((1, 64, 112, 112), (64, 3, 7, 7)), 56, 64
    for number, (blocks, inner) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            after = size // 2 if number and block == 0 else size
            total += conv_macs((1, inner, size, size), (inner, width, 1, 1))
            total += conv_macs((1, inner, after, after), (inner, inner, 3, 3))
            total += conv_macs((1, 4 * inner, after, after), (4 * inner, inner, 1, 1))
            total += conv_macs((1, 4 * inner, after, after), (4 * inner, width, 1, 1)) if block == 0 else 0
            size, width = after, 4 * inner
    return total + dense_macs(1, 2048, 1000)


def vgg16():
    """Count torchvision's VGG-16 at 224 x 224."""
    total, size, width = 0, 224, 3
    for repeats, channels in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]:
        for _ in range(repeats):
            total += conv_macs((1, channels, size, size), (channels, width, 3, 3))
            width = channels
        size //= 2
    return total + dense_macs(1, 512 * 49, 4096) + dense_macs(1, 4096, 4096) + dense_macs(1, 4096, 1000)


def mobilenet_v2():
    """Count torchvision's MobileNetV2 at 224 x 224."""
    total, size, width = conv_macs((1, 32, 112, 112), (32, 3, 3, 3)), 112, 32
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for factor, channels, repeats, stride in plan:
        for block in range(repeats):
            inner, after = width * factor, size // (stride if block == 0 else 1)
            total += conv_macs((1, inner, size, size), (inner, width, 1, 1)) if factor > 1 else 0
            total += conv_macs((1, inner, after, after), (inner, 1, 3, 3))
            total += conv_macs((1, channels, after, after), (channels, inner, 1, 1))
            size, width = after, channels
    return total + conv_macs((1, 1280, 7, 7), (1280, 320, 1, 1)) + dense_macs(1, 1280, 1000)


def vit_b16():
    """Count ViT-B/16 at 224 x 224 with its attention products."""
    tokens, width = 197, 768
    node = Node.make("Attention", ["q", "k", "v"], ["y"])
    attend = MACS["Attention"](node, [(12, tokens, 64)] * 3, [(12, tokens, 64)])
    block = dense_macs(tokens, width, 3 * width) + attend + dense_macs(tokens, width, width)
    block += 2 * dense_macs(tokens, width, 4 * width)
    return conv_macs((1, 768, 14, 14), (768, 3, 16, 16)) + 12 * block + dense_macs(1, width, 1000)


@pytest.mark.parametrize(
    ("network", "giga"), [(resnet50, 4.089), (vgg16, 15.470), (mobilenet_v2, 0.3008), (vit_b16, 17.56)]
)
def test_known_networks(network, giga):
    assert network() / 1e9 == pytest.approx(giga, rel=1e-3)


def model(nodes, consts, inputs, outputs):
    """Build a graph from nodes, constant arrays and the shapes of inputs and outputs."""
    info = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in d.items()] for d in (inputs, outputs)]
    tensors = [numpy_helper.from_array(a, n) for n, a in consts.items()]
    return Graph(helper.make_model(helper.make_graph(nodes, "g", *info, tensors)))


def shapes_of(graph):
    """Infer all shapes with onnx."""
    inferred = onnx.shape_inference.infer_shapes(graph.to_proto(), strict_mode=True).graph
    infos = [*inferred.input, *inferred.value_info, *inferred.output]
    return {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in infos}


def floats(*shape):
    """Make weights."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def line(start, size, axis, rank):
    """Make a factor of consecutive units on one axis."""
    return np.arange(start, start + size).reshape([size if i == axis else 1 for i in range(rank)])


def small_net():
    """Conv 3 -> 8, grouped Conv 8 -> 12 (2 groups, each block of 4 inputs loses alike), depthwise, flatten, Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["b"], group=2),
        helper.make_node("Conv", ["b", "w3"], ["c"], group=12),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["g"], transB=1),
        helper.make_node("MatMul", ["g", "w5"], ["y"]),
    ]
    consts = {
        "w1": floats(8, 3, 3, 3),
        "b1": floats(8),
        "w2": floats(12, 4, 3, 3),
        "w3": floats(12, 1, 1, 1).astype(np.float32),
        "w4": floats(6, 12 * 4),
        "b4": floats(6),
        "w5": floats(6, 2),
        "spare": np.arange(8),
    }
    first, second, third = partial(line, 1, 8), partial(line, 9, 12), partial(line, 21, 6)
    inputs = np.repeat(np.arange(1, 9).reshape(2, 4), 6, axis=0).reshape(12, 4, 1, 1)
    factors = {
        "w1": (first(0, 4),),
        "b1": (first(0, 1),),
        "a": (first(1, 4),),
        "r": (first(1, 4),),
        "w2": (second(0, 4), inputs),
        "b": (second(1, 4),),
        "w3": (second(0, 4),),
        "c": (second(1, 4),),
        "f": (np.repeat(np.arange(9, 21), 4)[None, :],),
        "w4": (third(0, 2), np.repeat(np.arange(9, 21), 4)[None, :]),
        "b4": (third(0, 1),),
        "g": (third(1, 2),),
        "w5": (third(0, 2),),
        "spare": (first(0, 1),),
    }
    return model(nodes, consts, {"x": [1, 3, 4, 4]}, {"y": [1, 2]}), factors


def recount(graph, shapes, factors, removed):
    """Cut every constant, replace every shape, and count again."""
    smaller = graph.copy()
    for name in list(graph.consts):
        smaller.consts[name] = cut(graph.consts[name], kept_masks(factors.get(name, ()), removed))
    new = {name: new_shape(shape, kept_masks(factors.get(name, ()), removed)) for name, shape in shapes.items()}
    return CostModel(smaller, new, {}).total


@pytest.mark.parametrize("seed", range(12))
def test_prediction_is_the_recount_after_a_cut(seed):
    graph, factors = small_net()
    rng = np.random.default_rng(seed)
    removed = np.zeros(27, bool)
    removed[rng.choice([1, 2, 3, 4], seed % 4, replace=False)] = True
    removed[rng.choice([5, 6, 7, 8], seed % 4, replace=False)] = True
    for start in (9, 15):
        removed[start + rng.choice(6, seed % 6, replace=False)] = True
    removed[21 + rng.choice(6, seed % 5, replace=False)] = True
    costs = CostModel(graph, shapes_of(graph), factors)
    found = costs.predict(removed)
    assert found == recount(graph, shapes_of(graph), factors, removed)
    assert (found == costs.total) is (not removed.any())


def test_whole_conv_groups_leave():
    graph, factors = small_net()
    removed = np.zeros(27, bool)
    removed[[1, 2, 3, 4]] = True
    removed[9:15] = True
    found = CostModel(graph, shapes_of(graph), factors).predict(removed)
    assert found == recount(graph, shapes_of(graph), factors, removed)
    assert found.macs == 4 * 16 * 27 + 6 * 4 * 36 + 6 * 4 + 6 * 24 + 6 * 2


def test_totals_by_hand():
    graph, factors = small_net()
    costs = CostModel(graph, shapes_of(graph), factors)
    assert costs.node_macs == (8 * 16 * 27, 0, 12 * 4 * 36, 12 * 4, 0, 6 * 48, 12)
    assert costs.total.macs == sum(costs.node_macs)
    assert costs.total.params == 216 + 8 + 432 + 12 + 288 + 6 + 12  # `spare` is made of integers
    assert costs.total == CostModel(graph, shapes_of(graph), {}).total
    assert costs.uncounted == ()


def test_bytes_are_those_of_the_file():
    graph, _ = small_net()
    found = CostModel(graph, shapes_of(graph), {}).total.bytes
    written = len(graph.to_proto().SerializeToString())
    assert found == pytest.approx(written, abs=20 * len(graph.consts))


def test_small_elements_take_their_share_of_a_byte():
    int4 = onnx.TensorProto(name="w", dims=[3, 5], data_type=TensorProto.INT4, raw_data=bytes(8))
    graph = model([helper.make_node("Identity", ["w"], ["y"])], {}, {}, {"y": [3, 5]})
    graph.consts.put("w", int4)
    costs = CostModel(graph, {}, {"w": (line(1, 5, 1, 2),)})
    removed = np.zeros(6, bool)
    removed[[1, 2]] = True
    assert costs.total.bytes == CostModel(graph, {}, {}).total.bytes
    assert costs.total.bytes - costs.predict(removed).bytes == 8 - 5
    assert (costs.total.params, costs.predict(removed).params) == (15, 9)


def test_empty_constants_cost_nothing():
    graph = model([helper.make_node("Identity", ["w"], ["y"])], {"w": floats(0, 4)}, {}, {"y": [0, 4]})
    costs = CostModel(graph, {}, {"w": (line(1, 4, 1, 2),)})
    assert costs.predict(np.arange(5) > 2) == costs.total
    assert costs.total.params == 0


def test_unknown_shapes_are_named():
    graph, factors = small_net()
    shapes = shapes_of(graph)
    del shapes["b"]
    costs = CostModel(graph, shapes, factors)
    assert costs.uncounted == (
        "Conv 'b': the shape of 'b' is unknown",
        "Conv 'c': the shape of 'b' is unknown",
    )
    assert costs.node_macs[2] == 0


def test_constants_inside_nodes_are_parameters():
    tensor = numpy_helper.from_array(floats(2, 3), "v")
    counts = numpy_helper.from_array(np.arange(4), "i")
    body = helper.make_graph([helper.make_node("Constant", [], ["k"], value=tensor)], "body", [], [], [tensor, counts])
    assert embedded_params(Node.make("Constant", [], ["y"], value=tensor)) == 6
    assert embedded_params(Node.make("Constant", [], ["y"], value=counts)) == 0
    assert embedded_params(Node.make("Constant", [], ["y"], value_float=1.0)) == 0
    assert embedded_params(Node.make("If", ["c"], ["y"], then_branch=body, else_branch=body)) == 24


def test_prediction_is_quick_for_many_layers():
    """Count operations instead of milliseconds: equal factors are counted once."""
    nodes, consts, factors, shapes = [], {}, {}, {"v0": (1, 64, 8, 8)}
    for i in range(50):
        nodes.append(helper.make_node("Conv", [f"v{i}", f"w{i}"], [f"v{i + 1}"]))
        consts[f"w{i}"] = np.zeros((64, 64, 1, 1), np.float32)
        factors[f"w{i}"] = (line(1, 64, 0, 4), line(1, 64, 1, 4))
        factors[f"v{i + 1}"] = (line(1, 64, 1, 4),)
        shapes[f"v{i + 1}"] = (1, 64, 8, 8)
    costs = CostModel(model(nodes, consts, {"v0": [1, 64, 8, 8]}, {"v50": [1, 64, 8, 8]}), shapes, factors)
    assert len(costs.tensors.lengths._vectors) == 1
    removed = np.zeros(65, bool)
    removed[1:33] = True
    smaller = 64 * 64 - 32 * 32
    found = costs.predict(removed)
    assert (found.macs, found.params) == (50 * 64 * 32 * 32, 50 * 32 * 32)
    assert found.bytes == costs.total.bytes - 50 * 4 * smaller
