"""Peak RAM against a simulation that knows nothing of the cost model, and the rules of reuse one by one."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx
import pytest
from conftest import DIGITS
from onnx import TensorProto, helper, numpy_helper

from fixtures import load_graph
from fixtures.tiny import TINY
from prunepass import load
from prunepass.cost import CostModel, cost_of
from prunepass.graph import Graph, Node
from prunepass.manager import Facts, Pipeline
from prunepass.rules.memory import READS, REUSE

GRAPHS = [
    "digits",
    *TINY,
    "pytorchcv_resnet20_cifar10__ts11",
    "hf_gpt2__dy19-dynb-seq",
    "hf_t5__ts17",
    "timm_test_efficientnet__ts13-dynb",
    "torchvision_squeezenet1_0__ts20",
    "torchvision_shufflenet_v2_x0_5__dy19-dynb-hw",
    "custom_bigru_seqfirst__ts17-dynb-seq",
    "post_custom_mnist_cnn__qop",
]
VIEWS = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"}
IN_PLACE = set(
    "Abs Add And BatchNormalization Cast Clip Cos Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Log Max Min Mul "
    "Neg Not Or Pow PRelu Reciprocal Relu Round Sigmoid Sin Softplus Sqrt Sub Sum Tanh Where".split()
)


@functools.cache
def canonical(name: str) -> Facts:
    graph = load(DIGITS) if name == "digits" else load(TINY[name]()[0] if name in TINY else load_graph(name))
    return Pipeline.parse("canonicalize").run(graph)


class Interpreter:
    """Run the nodes with a table of buffers and counts of reads that are still to come; no bodies."""

    def __init__(self, graph: Graph, size: dict[str, int]) -> None:
        self.size, self.graph = size, graph
        self.reads = dict.fromkeys(size, 0)
        for node in graph.nodes:
            for name in set(node.inputs) & size.keys():
                self.reads[name] += 1
        for name in set(graph.output_names) & size.keys():
            self.reads[name] += 1  # the caller
        self.buffer_of: dict[str, int] = {}
        self.left: dict[int, int] = {}
        self.room: dict[int, int] = {}

    def allocate(self, name: str) -> None:
        number = len(self.left)
        self.buffer_of[name], self.left[number], self.room[number] = number, self.reads[name], self.size[name]

    def share(self, name: str, number: int) -> None:
        self.buffer_of[name] = number
        self.left[number] += self.reads[name]

    def free(self) -> None:
        for number in [n for n in self.room if not self.left[n]]:
            del self.room[number]

    def overwritten(self, node: Node, operands: list[str]) -> int | None:
        """Return the buffer that the result takes the place of."""
        if node.op not in IN_PLACE:
            return None
        for name in operands:
            number = self.buffer_of[name]
            last = self.left[number] == sum(self.buffer_of[other] == number for other in operands)
            if number >= self.given and last and self.size[name] == self.size[node.outputs[0]]:
                return number
        return None

    def run(self, node: Node) -> int:
        operands = [name for name in dict.fromkeys(node.inputs) if name in self.size]
        for name in (name for name in node.outputs if name in self.size):
            target = None
            if name == node.outputs[0]:
                viewed = node.op in VIEWS and node.inputs[0] in self.size
                target = self.buffer_of[node.inputs[0]] if viewed else self.overwritten(node, operands)
            if target is None:
                self.allocate(name)
            else:
                self.share(name, target)
        alive = sum(self.room.values())
        for name in operands:
            self.left[self.buffer_of[name]] -= 1
        self.free()
        return alive

    def peak(self) -> int:
        for name in self.graph.input_names:
            if name in self.size:
                self.allocate(name)
        self.given = len(self.left)
        start = sum(self.room.values())
        self.free()
        return max([start, *(self.run(node) for node in self.graph.nodes)])


def simulated_peak(graph: Graph, size: dict[str, int]) -> int:
    """Return the largest sum of buffers at any moment."""
    return Interpreter(graph, size).peak()


def sizes_of(facts: Facts, int8: bool = False) -> dict[str, int]:
    """Return the bytes of all values that are not known beforehand: those that depend on an input."""
    shapes, graph = facts.get("shapes"), facts.graph
    varying = set(graph.input_names)
    for node in graph.nodes:
        if varying & {*node.inputs}:
            varying.update(node.outputs)
    floats = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
    found = {}
    for name in (*graph.input_names, *(n for node in graph.nodes for n in node.outputs if n)):
        if name in varying and name in shapes.shape and name not in shapes.value:
            kind = shapes.elem_type.get(name, TensorProto.FLOAT)
            width = 1 if int8 and kind in floats else helper.tensor_dtype_to_np_dtype(kind).itemsize
            found[name] = width * math.prod(shapes.shape[name])
    return found


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.8])
def test_the_peak_is_that_of_a_simulation(name: str, ratio: float) -> None:
    whole = canonical(name)
    facts = Facts(whole.graph.copy(), whole.context)
    Pipeline.parse(f"select{{ratio={ratio} align=1}}").run_on(facts)
    assert facts.plan is not None and facts.plan.removed is not None
    model: CostModel = facts.get("cost")
    predicted, predicted_int8 = model.predict(facts.plan.removed), model.live(facts.plan.removed, int8=True).max()
    Pipeline.parse("slice-channels").run_on(facts)
    assert not facts.graph.bodies
    assert predicted.ram == simulated_peak(facts.graph, sizes_of(facts))
    assert predicted_int8 == simulated_peak(facts.graph, sizes_of(facts, int8=True))
    assert predicted.ram == cost_of(facts.graph, facts.get("shapes")).total.ram
    assert facts.graph.nodes and predicted.ram > 0


def chain(*nodes: tuple[str, list[str], str], **shapes: list[int]) -> CostModel:
    """Return the cost model of a few nodes from x (2, 8) to y."""
    made = [helper.make_node(op, ins, [out]) for op, ins, out in nodes]
    consts = [
        numpy_helper.from_array(np.ones((8, 8), np.float32), "w"),
        numpy_helper.from_array(np.array([16]), "flat"),
        numpy_helper.from_array(np.ones((1, 8), np.float32), "b"),
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 8]) for n in ("x", "y")]
    graph = Graph(helper.make_model(helper.make_graph(made, "g", info[:1], info[1:], consts)))
    known = {name: (2, 8) for node in made for name in node.output} | {"x": (2, 8)}
    return CostModel(graph, {**known, **{name: tuple(shape) for name, shape in shapes.items()}}, {})


ONE = 2 * 8 * 4
ROWS = [
    ("input and output", [("MatMul", ["x", "w"], "y")], 2),
    ("an input is not overwritten", [("Relu", ["x"], "y")], 2),
    ("a computed value is", [("MatMul", ["x", "w"], "a"), ("Relu", ["a"], "y")], 2),
    ("not while it is read later", [("MatMul", ["x", "w"], "a"), ("Relu", ["a"], "b1"), ("Add", ["a", "b1"], "y")], 2),
    ("the second operand may be", [("MatMul", ["x", "w"], "a"), ("Add", ["x", "a"], "y")], 2),
    ("a constant is not counted", [("MatMul", ["x", "w"], "a"), ("Add", ["b", "a"], "y")], 2),
    ("nor overwritten", [("Add", ["x", "b"], "y")], 2),
    (
        "nor what is computed from one",
        [("Transpose", ["w"], "t"), ("Relu", ["t"], "a"), ("MatMul", ["x", "a"], "y")],
        2,
    ),
    ("three at once", [("MatMul", ["x", "w"], "a"), ("MatMul", ["x", "w"], "c"), ("Concat", ["a", "c"], "y")], 3),
    ("an output stays", [("MatMul", ["x", "w"], "y"), ("MatMul", ["y", "w"], "a"), ("MatMul", ["a", "w"], "c")], 3),
    ("a view is free", [("MatMul", ["x", "w"], "a"), ("Identity", ["a"], "c"), ("MatMul", ["c", "w"], "y")], 2),
    (
        "a view keeps what it views",
        [("MatMul", ["x", "w"], "a"), ("Identity", ["a"], "c"), ("MatMul", ["x", "w"], "d"), ("Sum", ["c", "d"], "y")],
        3,
    ),
    (
        "what is viewed is not overwritten",
        [("MatMul", ["x", "w"], "a"), ("Identity", ["a"], "c"), ("Relu", ["a"], "d"), ("MatMul", ["c", "d"], "y")],
        3,
    ),
    ("a view of an input is not overwritten", [("Identity", ["x"], "a"), ("Relu", ["a"], "y")], 2),
]


@pytest.mark.parametrize(("nodes", "buffers"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_rules_of_reuse(nodes: list[tuple[str, list[str], str]], buffers: int) -> None:
    model = chain(*nodes)
    assert model.total.ram == buffers * ONE
    assert model.live(int8=True).max() == buffers * ONE // 4


def test_another_size_is_not_overwritten() -> None:
    model = chain(("MatMul", ["x", "w"], "a"), ("Add", ["a", "b"], "y"), a=[1, 8])
    assert model.total.ram == max(ONE + ONE // 2, ONE // 2 + ONE)


def test_traffic_by_hand() -> None:
    model = chain(("MatMul", ["x", "w"], "a"), ("Identity", ["a"], "c"), ("Relu", ["c"], "d"), ("Add", ["d", "x"], "y"))
    assert model.total.traffic == (ONE + 8 * 8 * 4 + ONE) + 0 + 2 * ONE + 3 * ONE


def test_what_is_computed_from_constants_is_read_like_one() -> None:
    model = chain(("Transpose", ["w"], "t"), ("MatMul", ["x", "t"], "y"), t=[8, 8])
    assert model.total.traffic == ONE + 8 * 8 * 4 + ONE
    drawn = chain(("RandomNormalLike", ["w"], "t"), ("MatMul", ["x", "t"], "y"), t=[8, 8])
    assert drawn.total.ram == ONE + 8 * 8 * 4 + ONE


def test_what_is_computed_from_constants_is_free_at_any_size() -> None:
    """What `shapes` knows the contents of is small; a weight that shrinks must not become free on the way."""
    facts = canonical("timm_test_vit__ts18-bn-dynb")
    graph = facts.graph.copy()
    weights = (n.inputs[1] for n in graph.nodes if n.op == "MatMul" and n.inputs[1] in graph.consts)
    weight = max(weights, key=lambda name: graph.consts[name].size)
    node = next(n for n in graph.nodes if n.inputs[1:] == [weight])
    graph.consts["stored_turned"] = np.ascontiguousarray(graph.consts[weight].T)
    at = graph.nodes.index(node)
    turned = Node(helper.make_node("Transpose", ["stored_turned"], ["turned"], perm=[1, 0]))
    node.inputs[1] = "turned"
    graph.nodes.insert(at, turned)
    other = Facts(graph, facts.context)
    assert "turned" not in other.get("shapes").value
    assert other.get("cost").total.ram == facts.get("cost").total.ram


def test_what_a_loop_reads_lives_until_it_ends() -> None:
    """Between the turns of a loop everything that the next one reads is still there."""
    body = onnx.parser.parse_graph(
        "turn (int64 i, bool more, float[4] s) => (bool more_out, float[4] s_out)"
        " { more_out = Identity(more) t = Exp(s) u = Mul(t, big) v = Abs(u) s_out = Slice(v, zero, four) }"
    )
    loop = helper.make_node("Loop", ["n", "", "start"], ["y"], body=body)
    nodes = [helper.make_node("Exp", ["x"], ["big"]), helper.make_node("Slice", ["x", "zero", "four"], ["start"]), loop]
    info = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [4]),
    ]
    consts = [numpy_helper.from_array(np.array([v]), n) for v, n in ((0, "zero"), (4, "four"))]
    consts.append(numpy_helper.from_array(np.array(3), "n"))
    graph = Graph(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], consts)))
    facts = Pipeline.parse("canonicalize").run(graph)
    model: CostModel = facts.get("cost")
    assert facts.graph.bodies
    live = dict(zip([node.op for node in model.nodes], model.live()[1:].tolist()))
    assert live["Abs"] >= 16 + 16 + 16  # start and big for the next turn, and what is computed in place
    assert live["Loop"] >= 16 + 16 + 16


def test_dead_and_unknown_values() -> None:
    model = chain(("MatMul", ["x", "w"], "a"), ("MatMul", ["x", "w"], "y"))
    assert model.total.ram == 2 * ONE, "what nobody reads is there while it is computed"
    graph = Graph(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Abs(x) }'
        )
    )
    assert CostModel(graph, {}, {}).total.ram == 0


def test_every_row_names_an_operator_that_exists() -> None:
    known = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    for op in (*REUSE, *READS):
        domain, _, name = op.rpartition("::")
        assert domain == "com.microsoft" or (domain, name) in known, op
