"""The drawing: which nodes share a box, what the boxes say, and that the text is well-formed DOT."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise

import networkx as nx
import numpy as np
import onnx
import pytest
from conftest import DIGITS, GRAPHS, load_graph
from textmodels import model, weight

import prunepass
from fixtures.tiny import TINY
from prunepass.boxes import COLUMN, boxes, columns
from prunepass.dot import GREY, RED, to_dot
from prunepass.rules import DIMS

LINE = re.compile(
    r"digraph model \{|\}|  subgraph cluster_\d+ \{ peripheries=0; label=\"\";|  (graph|node|edge) \[.*\];"
    r"|  \{ rank=same; .* \[style=invis\]; \}"
    r"|    (?P<node>\"(?:[^\"\\]|\\.)*\") \[(?P<style>.*)\];"
    r"|  (?P<source>\"(?:[^\"\\]|\\.)*\") -> (?P<target>\"(?:[^\"\\]|\\.)*\") \[(?P<arrow>.*)\];|  \}"
)


def drawn(
    found: prunepass.Inspection, removed: np.ndarray | None = None
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the boxes with their style, and the arrows, of a drawing in which every line is of a known form."""
    nodes, arrows = {}, []
    for line in to_dot(found, removed).splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        if match["node"]:
            nodes[match["node"]] = match["style"]
        if match["source"]:
            arrows.append((match["source"], match["target"]))
    assert {end for arrow in arrows for end in arrow} <= set(nodes)
    return nodes, arrows


def titles(nodes: dict[str, str]) -> dict[str, str]:
    """Return the style of each box by its title."""
    return {title[1]: style for style in nodes.values() if (title := re.search("<b>(.*?)</b>", style))}


def chain(layers: int) -> onnx.ModelProto:
    """Return a chain of layers of 8 channels."""
    names = ["x", *(f"r{i}" for i in range(layers))]
    nodes = [f"c{i} = Conv({a}, w{i}) {b} = Relu(c{i})" for i, (a, b) in enumerate(pairwise(names))]
    body = f"g (float[1,8,4,4] x) => (float[1,8,4,4] {names[-1]}) {{ {' '.join(nodes)} }}"
    return model(body, **{f"w{i}": weight(8, 8, 1, 1) for i in range(layers)})


# ---- boxes -----------------------------------------------------------------------------------------------------------
def grouped(found: onnx.ModelProto) -> list[list[str]]:
    """Return the operators of each box."""
    seen = prunepass.inspect(found)
    network = boxes(seen.graph, seen.coupling)
    return [[node.op for node in box.nodes] for _, box in network.nodes(data="box") if box is not None]


CBR = ["Conv", "BatchNormalization", "Relu"]
BOXES = {
    "conv_chain": [CBR, CBR, [*CBR, "GlobalAveragePool", "Flatten"], ["Gemm"]],
    "residual": [
        CBR,
        CBR,
        ["Conv", "BatchNormalization", "Add", "Relu"],
        CBR,
        ["Conv", "BatchNormalization", "Add", "Relu", "GlobalAveragePool", "Flatten"],
        ["Conv", "BatchNormalization"],
        ["Gemm"],
    ],
    "mlp": [
        ["Gemm", "Relu"],
        ["Gemm", "BatchNormalization", "LeakyRelu"],
        ["MatMul", "Add", "Tanh"],
        ["MatMul", "Add"],
    ],
    "squeeze_excite": [
        [*CBR, "ReduceMean"],
        ["Conv", "Relu"],
        ["Conv", "HardSigmoid"],
        ["Mul"],
        [*CBR, "GlobalAveragePool", "Flatten"],
        ["Gemm"],
    ],
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes(name: str) -> None:
    assert grouped(TINY[name]()[0]) == BOXES[name]


def test_sizes_are_left_out() -> None:
    found = grouped(TINY["attention"]()[0])
    assert {"Shape", "Concat"}.isdisjoint(op for ops in found for op in ops)
    assert [ops[0] for ops in found] == ["MatMul"] * 6


def test_a_sum_of_values_that_others_read_has_its_own_box() -> None:
    body = """g (float[1,8,4,4] x) => (float[1,8,4,4] y) {
        a = Conv(x, u) b = Conv(x, v) s = Add(a, b) r = Relu(s)
        c = Conv(a, w) d = Mul(r, c) e = Mul(d, b) y = Conv(e, z) }"""
    found = grouped(model(body, **{name: weight(8, 8, 1, 1) for name in "uvwz"}))
    assert found == [["Conv"], ["Conv"], ["Add", "Relu", "Mul", "Mul"], ["Conv"], ["Conv"]]


def test_where_a_shortcut_joins() -> None:
    seen = prunepass.inspect(TINY["residual"]()[0])
    network = boxes(seen.graph, seen.coupling)
    assert [data["joins"] for _, _, data in network.edges(data=True) if data["joins"]] == ["Add", "Add"]
    assert nx.is_directed_acyclic_graph(network)


# ---- columns ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("layers", "count"), [(10, 1), (21, 1), (60, 3)])
def test_columns(layers: int, count: int) -> None:
    seen = prunepass.inspect(chain(layers))
    network = boxes(seen.graph, seen.coupling)
    column = columns(network, {})
    assert sorted(set(column.values())) == list(range(count))
    assert all(list(column.values()).count(number) <= COLUMN[1] for number in range(count))
    assert all(column[a] <= column[b] for a, b in network.edges())


def test_signs_stand_where_a_column_ends() -> None:
    nodes, arrows = drawn(prunepass.inspect(chain(60)))
    signs = [name for name, style in nodes.items() if "plaintext" in style]
    assert len(signs) == 4  # two cuts, two ends each
    assert all(any(sign in arrow for arrow in arrows) for sign in signs)


def ladder(length: int) -> nx.MultiDiGraph:
    """Return a network of boxes in a row."""
    network = nx.MultiDiGraph()
    for a, b in pairwise(f"b{i}" for i in range(length)):
        network.add_edge(a, b, value=a, joins="")
    return network


def test_columns_end_where_a_shared_group_ends() -> None:
    column = columns(ladder(30), {f"b{i}": {1} if i < 17 else {2} for i in range(30)})
    assert [name for name in column if column[name] == 0] == [f"b{i}" for i in range(17)]


def test_what_is_read_late_stands_late() -> None:
    network = ladder(40)
    network.add_edge("side", "b35", value="side", joins="")
    assert columns(network, {})["side"] == columns(network, {})["b35"] == 1


def test_a_drawing_that_falls_apart_stays_in_one_column() -> None:
    network = ladder(60)
    for i in range(40):
        network.add_edge(f"b{i}", f"b{i + 20}", value=f"b{i}", joins="")
    assert set(columns(network, {}).values()) == {0}


# ---- text ------------------------------------------------------------------------------------------------------------
def test_digits() -> None:
    found = prunepass.inspect(str(DIGITS))
    styles = titles(drawn(found)[0])
    assert list(styles)[:3] == ["input.scaled", "stem.conv", "block1.conv1"]
    colour = {title: re.search('fillcolor="(.*?)"', style)[1] for title, style in styles.items()}  # type: ignore[index]
    assert colour["stem.conv"] == colour["block1.conv2"] == colour["down.conv1"]
    assert colour["head.fc"] == colour["input.scaled"] == GREY
    assert len({colour[t] for t in ("stem.conv", "block1.conv1", "down.conv2", "branch.conv1", "head.conv")}) == 5
    assert "Conv 32x32x3x3 + BatchNormalization + Add + Relu" in styles["block1.conv2"]
    assert "32 free, with stem.conv<" in styles["block1.conv2"]
    assert "fixed" in styles["head.fc"]
    assert to_dot(found) == to_dot(prunepass.inspect(str(DIGITS)))


def test_kept_channels_of_a_plan() -> None:
    found = prunepass.inspect(str(DIGITS))
    removed = np.zeros(found.coupling.n_units, bool)
    (stem,) = (g for g in found.coupling.groups if g.name == "stem.conv.weight")
    removed[stem.units[0, :20]] = True
    styles = titles(drawn(found, removed)[0])
    assert "12 of 32 kept" in styles["stem.conv"]
    assert "64 of 64 kept" in styles["head.conv"]


def test_a_concat_has_the_colours_of_its_parts() -> None:
    body = """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
        a = Conv(x, u) b = Conv(x, v) c = Concat <axis=1> (a, b) y = Conv(c, w) }"""
    sizes = {"u": weight(8, 3, 1, 1), "v": weight(12, 3, 1, 1), "w": weight(2, 20, 1, 1)}
    styles = titles(drawn(prunepass.inspect(model(body, **sizes)))[0])
    assert "style=striped" in styles["c"]
    assert "20 free" in styles["c"]


def test_a_barrier_has_a_red_border(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DIMS, "Relu")
    styles = titles(drawn(prunepass.inspect(TINY["conv_chain"]()[0]))[0])
    marked = [style for style in styles.values() if RED in style]
    assert len(marked) == 3
    assert all("no rule" in style for style in marked)


def test_names_that_dot_would_misread() -> None:
    graph = model("g (float[1,3,4,4] x) => (float[1,2,4,4] y) { c = Conv(x, w) y = Relu(c) }", w=weight(2, 3, 1, 1))
    graph.graph.initializer[0].name = graph.graph.node[0].input[1] = "<a> & b.w"
    graph.graph.output[0].name = graph.graph.node[1].output[0] = 'y"\\'
    nodes, _ = drawn(prunepass.inspect(graph))
    assert '"y\\"\\\\"' in nodes
    assert list(titles(nodes)) == ["&lt;a&gt; &amp; b.w"]


@pytest.mark.parametrize("name", TINY)
def test_tiny_graphs(name: str) -> None:
    nodes, arrows = drawn(prunepass.inspect(TINY[name]()[0]))
    assert len(nodes) >= 3
    assert arrows


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize("name", GRAPHS[::12])
def test_graphviz_reads_it(name: str) -> None:
    text = to_dot(prunepass.inspect(load_graph(name)))
    subprocess.run(["dot", "-Tcanon"], input=text.encode(), check=True, capture_output=True)
