"""One text file, one case: passes, a model, `# output`, the model afterwards; equal as text and as numbers.

`UPDATE_GOLDEN=1 pytest tests/test_golden.py` writes what comes out now; read the difference before you keep it. A line
`# remove: tensor[axis] index ...` says what a plan removes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunepass import load
from prunepass.feeds import random_inputs
from prunepass.graph import Graph
from prunepass.labels import on_axis
from prunepass.manager import Context, Facts, Pipeline
from prunepass.plan import Plan
from prunepass.runtime import session
from prunepass.verify import certify

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))
MARK = "# output\n"


def parse(text: str) -> onnx.ModelProto:
    """Read a model; lines that start with # are comments."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    model: onnx.ModelProto = onnx.parser.parse_model("\n".join(lines))
    onnx.checker.check_model(model, full_check=True)
    return model


def remarks(text: str, word: str) -> list[str]:
    return re.findall(rf"^# {word}: (.+)$", text, re.MULTILINE)


def plan_of(facts: Facts, lines: list[str]) -> Plan:
    """Make the plan that removes what the lines say, with everything that goes together with it."""
    coupling = facts.get("coupling")
    removed = np.zeros(coupling.n_units, bool)
    for line in lines:
        tensor, axis, *indices = re.findall(r"[\w.]+", line)
        rank = len(facts.graph.consts.shape(tensor))
        (units,) = [
            f.reshape(-1) for f in coupling.factors[tensor] if on_axis(f.reshape(-1), int(axis), rank).shape == f.shape
        ]
        removed[units[[int(i) for i in indices]]] = True
    assert not removed[0], "a pinned index is to be removed"
    return Plan.of(facts.graph, coupling, removed)


def run_passes(graph: Graph, text: str) -> Facts:
    """Run the passes of a case; the plan is made just before slice-channels."""
    facts = Facts(graph, Context())
    for name in remarks(text, "passes")[0].split(","):
        if name == "slice-channels":
            facts.plan = plan_of(facts, remarks(text, "remove"))
        Pipeline.parse(name).run_on(facts)
    return facts


def printed(graph: Graph) -> str:
    return onnx.printer.to_text(graph.to_proto()) + "\n"


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(session(model, optimise="off").run(feeds).values())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    source, _, expected = path.read_text().partition(MARK)
    facts = run_passes(load(parse(source)), source)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(source.rstrip("\n") + f"\n{MARK}{printed(facts.graph)}")
        return
    assert printed(facts.graph) == expected
    assert certify(facts.source, facts.cuts, facts.graph, facts.context).status == "passed"


@pytest.mark.parametrize("path", [p for p in GOLDEN if not p.stem.startswith("slice")], ids=lambda path: path.stem)
def test_golden_models_compute_the_same(path: Path) -> None:
    before, after = (parse(part) for part in path.read_text().split(MARK))
    dims = [dim for info in before.graph.input for dim in info.type.tensor_type.shape.dim]
    for dim in dims:
        dim.dim_value = dim.dim_value or 2
    for seed in range(2):
        feeds = random_inputs(load(before), seed=seed)
        for a, b in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
            np.testing.assert_array_equal(a, b)


def test_golden_files_are_complete() -> None:
    stems = [path.stem for path in GOLDEN]
    assert {stem.partition("-")[0] for stem in stems} == {"canonicalize", "clean", "slice"}
    assert sum(stem.startswith(("canonicalize", "clean")) for stem in stems) >= 12


def test_what_the_cases_cannot_say() -> None:
    """Tensors beyond 16 kB: moved when that is free, never made larger, never untied."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Transpose", ["large"], ["moved"], perm=[1, 0]),
        helper.make_node("Transpose", ["tied"], ["turned"], perm=[1, 0]),
        helper.make_node("Mul", ["other", "two"], ["scaled"]),
        helper.make_node("MatMul", ["x", "moved"], ["a"]),
        helper.make_node("MatMul", ["a", "tied"], ["b"]),
        helper.make_node("MatMul", ["b", "turned"], ["c"]),
        helper.make_node("MatMul", ["c", "scaled"], ["y"]),
    ]
    weights = {name: rng.standard_normal((80, 80)).astype(np.float32) for name in ("large", "tied", "other")}
    weights["two"] = np.float32(2)
    infos = [helper.make_tensor_value_info(name, 1, ["n", 80]) for name in "xy"]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = load(
        helper.make_model(
            helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors),
            ir_version=8,
            opset_imports=[helper.make_opsetid("", 17)],
        )
    )
    facts = Pipeline.parse("canonicalize").run(graph)
    assert [node.outputs[0] for node in facts.graph.nodes] == ["turned", "scaled", "a", "b", "c", "y"]
    assert set(facts.graph.consts) == {"moved", "tied", "other", "two"}
    np.testing.assert_array_equal(facts.graph.consts["moved"], weights["large"].T)
