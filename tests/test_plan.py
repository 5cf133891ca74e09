"""The plan as a document: schema, round trip, binding, replay, and what is refused."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, load_graph

import prunepass
from fixtures.tiny import TINY
from prunepass import load
from prunepass.errors import ModelError
from prunepass.manager import Facts, Pipeline
from prunepass.plan import Plan
from prunepass.report import to_json
from prunepass.runtime import session

PAGE = (ROOT / "docs" / "plan.md").read_text()
BLOCKS = {name: json.loads(text) for name, text in re.findall(r"<!-- (\w+) -->\n```json\n(.*?)```", PAGE, re.DOTALL)}
SCHEMA, EXAMPLE = BLOCKS["schema"], BLOCKS["example"]
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
POLICIES = ("balanced", "whole", "aligned")


def faults(value: Any, schema: dict[str, Any], where: str = "plan") -> list[str]:
    """Validate a value by the part of JSON Schema that docs/plan.md uses."""
    assert schema.keys() <= {
        "$schema", "title", "type", "required", "properties", "additionalProperties", "items", "minItems", "minimum",
        "const", "enum", "anyOf",
    }  # fmt: skip
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and (isinstance(value, bool) or not isinstance(value, sum((TYPES[k] for k in kinds), ()))):
        return [f"{where} is no {kinds}"]
    found = [f"{where} has no {key}" for key in schema.get("required", ()) if key not in value]
    found += [f"{where} is another one"] * ("const" in schema and value != schema["const"])
    found += [f"{where} is none of {schema.get('enum')}"] * ("enum" in schema and value not in schema["enum"])
    found += [f"{where} is too small"] * ("minimum" in schema and value < schema["minimum"])
    found += [f"{where} is too short"] * ("minItems" in schema and len(value) < schema["minItems"])
    if "anyOf" in schema and all(faults(value, choice, where) for choice in schema["anyOf"]):
        found.append(f"{where} fits no choice")
    for key, item in value.items() if isinstance(value, dict) else ():
        inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties") or {}
        found += faults(item, inner, f"{where}.{key}")
    for i, item in enumerate(value if isinstance(value, list) else ()):
        found += faults(item, schema.get("items", {}), f"{where}[{i}]")
    return found


def make(name: str, select: str = "select{ratio=0.5 align=1}") -> tuple[Facts, Plan]:
    """Plan, and carry it out."""
    facts = Pipeline.parse(f"canonicalize,{select},slice-channels,clean").run(load(TINY[name]()[0]))
    return facts, facts.cuts[0].plan


def document(plan: Plan) -> dict[str, Any]:
    """Return a plan as it is read from its file."""
    found: dict[str, Any] = json.loads(to_json(plan.to_json()))
    return found


def test_the_example_is_a_plan() -> None:
    assert faults(EXAMPLE, SCHEMA) == []
    assert Plan.from_json(EXAMPLE).to_json() == EXAMPLE
    cut = Plan.from_json(EXAMPLE).tensors["grouped.weight"].entry_masks()[0]
    np.testing.assert_array_equal(cut[:, :, 0, 0], [[False, True], [False, True]])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", TINY)
def test_round_trip_and_schema(name: str, policy: str) -> None:
    _, plan = make(name, f"select{{ratio=0.5 align=1 policy={policy}}}")
    written = document(plan)
    assert faults(written, SCHEMA) == []
    assert plan.policy == policy
    assert written["tensors"]
    assert document(Plan.from_json(written)) == written
    for tensor in written["tensors"].values():
        assert len(tensor["shape"]) == len(tensor["new_shape"])
        assert np.prod(tensor["new_shape"]) < np.prod(tensor["shape"])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", TINY)
def test_bind_finds_the_units_again(name: str, policy: str) -> None:
    facts, plan = make(name, f"select{{ratio=0.5 align=1 policy={policy}}}")
    before = facts.cuts[0].before
    bound = Plan.from_json(document(plan)).bind(before, Facts(before).get("coupling", policy=policy))
    np.testing.assert_array_equal(bound.removed, plan.removed)
    assert bound.to_json()["tensors"] == plan.to_json()["tensors"]


def test_one_axis_parts_cut_a_checkpoint() -> None:
    """The recipe of docs/plan.md, on numpy arrays."""
    facts, plan = make("residual")
    for name, tensor in document(plan)["tensors"].items():
        small = facts.cuts[0].before.consts[name]
        for part in tensor["kept"]:
            small = small.take(part["indices"], axis=part["axes"][0])
        np.testing.assert_array_equal(small, facts.graph.consts[name])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "name", ["conv_chain", "grouped_conv", "channel_shuffle", "attention", "grouped_query_attention"]
)
def test_ephemeral_equals_sliced(name: str, policy: str) -> None:
    model, feeds = TINY[name]()
    pipeline = f"canonicalize,select{{ratio=0.6 align=1 policy={policy}}},slice-channels,clean"
    first = prunepass.prune(model, pipeline=pipeline, verify=False)
    assert first.plan is not None
    plan = Plan.from_json(document(first.plan))
    sliced = prunepass.apply(plan, model)
    assert sliced.model.SerializeToString() == first.model.SerializeToString()
    masked = prunepass.apply(plan, model, ephemeral=True)
    assert masked.report["after"]["params"] >= masked.report["before"]["params"]
    for result in (sliced, masked):
        assert result.report["certificate"]["status"] == "passed"
    a, b = (session(result.graph).run(feeds) for result in (sliced, masked))
    for output in a:
        np.testing.assert_allclose(a[output], b[output], rtol=1e-4, atol=1e-5)


def test_a_plan_replays_on_an_exporter_graph(tmp_path: Path) -> None:
    model = load_graph("hf_gpt2__dy19-dynb-seq")
    first = prunepass.prune(model, ratio=0.5, verify=False)
    assert first.plan is not None
    (tmp_path / "plan.json").write_text(to_json(first.plan.to_json()))
    again = prunepass.apply(tmp_path / "plan.json", model, verify=False)
    assert again.model.SerializeToString() == first.model.SerializeToString()


# What is refused


def other_model(plan: dict[str, Any]) -> None:
    plan["source_sha256"] = "0" * 64


def other_weights(plan: dict[str, Any]) -> None:
    plan["tensors"]["not there"] = plan["tensors"].pop(next(iter(plan["tensors"])))


def other_shape(plan: dict[str, Any]) -> None:
    first(plan)["shape"][0] += 1


def pinned_axis(plan: dict[str, Any]) -> None:
    first(plan)["kept"].append({"axes": [2], "indices": [0]})


def half_a_unit(plan: dict[str, Any]) -> None:
    """Keep one more index in one tensor only."""
    part = first(plan)["kept"][0]
    part["indices"] = sorted({*part["indices"], min(set(range(first(plan)["shape"][0])) - set(part["indices"]))})


def wrong_new_shape(plan: dict[str, Any]) -> None:
    first(plan)["new_shape"][0] += 1


def first(plan: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(
        t for t in plan["tensors"].values() if t["kept"][0]["axes"] == [0] and len(t["shape"]) == 4
    )
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_model, "the plan was made for a file with sha256 000000000000..., not "),
        (other_weights, "the plan does not fit: it slices tensor 'not there' of shape"),
        (other_shape, "the plan does not fit: it slices tensor"),
        (pinned_axis, "cannot lose axes (2,) here"),
        (half_a_unit, "it removes indices that go only together with others"),
        (wrong_new_shape, "it removes indices that go only together with others"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: Any, message: str) -> None:
    model = TINY["residual"]()[0]
    result = prunepass.prune(model, ratio=0.5, align=1, verify=False)
    assert result.plan is not None
    plan = document(result.plan)
    prunepass.apply(Plan.from_json(plan), model, verify=False)
    change(plan)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        prunepass.apply(Plan.from_json(plan), model, verify=False)
    assert "\n" not in str(caught.value)


def test_a_plan_for_another_network_is_refused() -> None:
    _, plan = make("residual")
    with pytest.raises(ModelError, match="the plan does not fit"):
        prunepass.apply(plan, TINY["mlp"]()[0])


DAMAGE = [
    ("version", None), ("version", "1"), ("version", 2), ("policy", "any"), ("policy", None), ("policy", []),
    ("source_sha256", 5), ("options", []), ("options", "x"), ("groups", 5), ("groups", [5]), ("groups", [{}]),
    ("groups.0.units", "4"), ("groups.0.units", 1.5), ("groups.0.removed", -1), ("groups.0.removed", 5),
    ("groups.0.sites", "ab"), ("groups.0.scores", 5), ("groups.0.scores", ["x"]), ("groups.0.scores", [[1]]),
    ("tensors", None), ("tensors", []), ("tensors", "abc"), ("tensors.t", None), ("tensors.t", {}), ("tensors.t", [1]),
    ("tensors.t.shape", None), ("tensors.t.shape", []), ("tensors.t.shape", "43"), ("tensors.t.shape", [4, "3"]),
    ("tensors.t.shape", [4.0, 3]), ("tensors.t.shape", [[4], [3]]), ("tensors.t.shape", 4),
    ("tensors.t.shape", [2**70]),
    ("tensors.t.new_shape", None), ("tensors.t.new_shape", [True]), ("tensors.t.kept", None), ("tensors.t.kept", [1]),
    ("tensors.t.kept", {"axes": [0]}), ("tensors.t.kept.0", {}), ("tensors.t.kept.0.axes", []),
    ("tensors.t.kept.0.axes", [-1]), ("tensors.t.kept.0.axes", [9]), ("tensors.t.kept.0.axes", [0, 0]),
    ("tensors.t.kept.0.axes", [1, 0]), ("tensors.t.kept.0.axes", [0, 1]), ("tensors.t.kept.0.axes", "0"),
    ("tensors.t.kept.0.axes", [0.0]), ("tensors.t.kept.0.indices", []), ("tensors.t.kept.0.indices", None),
    ("tensors.t.kept.0.indices", [-1]), ("tensors.t.kept.0.indices", [4]), ("tensors.t.kept.0.indices", [1.5]),
    ("tensors.t.kept.0.indices", ["1"]), ("tensors.t.kept.0.indices", [[0], [1]]),
    ("tensors.t.kept.0.indices", [1, [2]]),
    ("tensors.t.kept.0.indices", [3, 1]), ("tensors.t.kept.0.indices", [1, 1]), ("tensors.t.kept.0.indices", [[[1]]]),
    ("tensors.t.kept.0.indices", {"0": 1}), ("tensors.t.kept.0.indices", 2**80), ("tensors.t.kept.0.indices", True),
]  # fmt: skip


def damaged(path: str, value: Any) -> dict[str, Any]:
    plan = copy.deepcopy(EXAMPLE)
    plan["tensors"]["t"] = plan["tensors"].pop("conv1.weight")
    *parents, last = path.split(".")
    place: Any = plan
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value
    return plan


@pytest.mark.parametrize(("path", "value"), DAMAGE)
def test_a_damaged_document_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ModelError, match=r"^not a plan: |^the plan has version ") as caught:
        Plan.from_json(damaged(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["version", "policy", "tensors", "groups.0.name", "tensors.t.kept.0.axes"])
def test_a_missing_key_is_refused(key: str) -> None:
    plan = damaged(key, None)
    *parents, last = key.split(".")
    place: Any = plan
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    del place[last]
    with pytest.raises(ModelError, match=f"not a plan: KeyError '{last}'; write one with --plan"):
        Plan.from_json(plan)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"version": 1', "\x00\x01"])
def test_a_file_that_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        prunepass.apply(tmp_path / "plan.json", TINY["mlp"]()[0])
    assert "\n" not in str(caught.value)


def test_the_schema_check_sees_faults() -> None:
    wrong = [
        damaged(path, value)
        for path, value in (("version", 2), ("groups.0.units", 0), ("tensors.t.kept.0.indices", ["1"]))
    ]
    assert [len(faults(plan, SCHEMA)) > 0 for plan in [*wrong, {}]] == [True] * 4
