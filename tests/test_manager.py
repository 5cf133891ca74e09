"""The pass manager with tiny passes of its own: text, registration, facts, timing, checks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunepass import manager, options, registry
from prunepass.errors import InternalError, PipelineError, PruneError, VerifyError
from prunepass.graph import Graph
from prunepass.manager import Analysis, Context, Facts, Pipeline, Rewrite

MODEL = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }'


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Register small passes for one test, and none of the real ones."""
    monkeypatch.setattr(registry, "discover", lambda: None)
    saved = dict(registry.REGISTRY)
    registry.REGISTRY.clear()
    yield make_passes()
    registry.REGISTRY.clear()
    registry.REGISTRY.update(saved)


def make_passes() -> SimpleNamespace:
    """Define the passes; their runs are counted in `calls`."""
    calls: list[str] = []

    @dataclass(frozen=True)
    class Size(Analysis):
        """Count the nodes."""

        name = "size"
        unit: int = 1

        def run(self, graph: Graph, facts: Facts) -> int:
            calls.append(f"size{self.unit}")
            return len(graph.nodes) * self.unit

    @dataclass(frozen=True)
    class Twice(Analysis):
        """Double what size says, slowly."""

        name = "twice"

        def run(self, graph: Graph, facts: Facts) -> int:
            calls.append("twice")
            time.sleep(0.02)
            return 2 * int(facts.get("size"))

    @dataclass(frozen=True)
    class Circle(Analysis):
        """Ask for itself."""

        name = "circle"

        def run(self, graph: Graph, facts: Facts) -> Any:
            return facts.get("circle")

    @dataclass(frozen=True)
    class Grow(Rewrite):
        """Add an Identity node per step."""

        name = "grow"
        keeps = ("twice",)
        steps: int = 1
        share: float | None = None
        keep: tuple[str, ...] = ()
        scope: Literal["global", "local"] = "global"
        text: str = "l2"
        maybe: str | None = None
        fast: bool = False

        def __post_init__(self) -> None:
            if self.steps < 0:
                raise ValueError(f"steps is {self.steps}, it must be 0 or more")

        def run(self, graph: Graph, facts: Facts) -> int:
            before = facts.get("twice")
            for _ in range(self.steps):
                node = graph.nodes[-1].copy()
                node.inputs, node.outputs = ["x"], [graph.fresh_name("more")]
                graph.nodes.append(node)
            calls.append(f"grow from {before}")
            return self.steps

    @dataclass(frozen=True)
    class Verify(Analysis):
        """Accept fewer than five nodes."""

        name = "verify"

        def run(self, graph: Graph, facts: Facts) -> None:
            calls.append(f"verify {len(graph.nodes)}")
            if len(graph.nodes) > 4:
                raise VerifyError(f"{len(graph.nodes)} nodes")

    @dataclass(frozen=True)
    class Broken(Rewrite):
        """Fail with an error of Python."""

        name = "broken"

        def run(self, graph: Graph, facts: Facts) -> int:
            return {}["missing"]

    @dataclass(frozen=True)
    class Spoil(Rewrite):
        """Leave a model that no checker accepts."""

        name = "spoil"

        def run(self, graph: Graph, facts: Facts) -> int:
            graph.nodes[0].inputs = ["nowhere"]
            return 1

    return SimpleNamespace(calls=calls, Size=Size, Grow=Grow)


def graph() -> Graph:
    """Return a graph of one node."""
    return Graph(onnx.parser.parse_model(MODEL))


ROUND_TRIP = [
    "grow",
    "grow,size",
    "grow{steps=2}",
    "grow{steps=1 text=l2 fast=false}",
    "grow{share=.5}",
    "grow{share=none maybe=none}",
    "grow{keep=a,b{2},conv[0-9]{2}\\.w}",
    'grow{keep="a b","c,d",x text="with \\" quote"}',
    "grow{text=random{seed=3 kind=normal}}",
    'grow{maybe="none"}',
    "grow{scope=local},size{unit=3},grow",
]


@pytest.mark.parametrize("text", ROUND_TRIP)
def test_text_round_trip(text: str) -> None:
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == text
    again = Pipeline.of(*(step.run for step in pipeline.steps))
    assert Pipeline.parse(str(again)).steps == again.steps
    assert [s.run for s in again.steps] == [s.run for s in pipeline.steps]


def test_values_have_their_declared_types() -> None:
    [step] = Pipeline.parse('grow{ steps=3 share=0.25 keep="a b",c scope=local text="" maybe=none fast=true }').steps
    assert vars(step.run) == {
        "steps": 3,
        "share": 0.25,
        "keep": ("a b", "c"),
        "scope": "local",
        "text": "",
        "maybe": None,
        "fast": True,
    }


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    steps=st.integers(0, 10**20),
    share=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    keep=st.lists(words, max_size=3).map(tuple),
    text=words,
    maybe=st.none() | words | st.just("none"),
    fast=st.booleans(),
)
def test_any_option_values_survive_as_text(fakes: SimpleNamespace, **values: Any) -> None:
    chosen = fakes.Grow(**values)
    [step] = Pipeline.parse(str(Pipeline.of(chosen))).steps
    assert step.run == chosen


BAD_TEXT = [
    ("", "a pass name is expected (column 1"),
    ("grow,", "a pass name is expected (column 6"),
    ("grow,,size", "a pass name is expected (column 6"),
    ("grw", "unknown pass 'grw'; did you mean 'grow'? (column 1"),
    ("size,qqqq", "unknown pass 'qqqq'; known: broken, circle, grow, size, spoil, twice, verify (column 6"),
    ("grow{step=1}", "pass 'grow' has no option 'step'; did you mean 'steps'? (column 6"),
    ("twice{x=1}", "pass 'twice' has no option 'x'; it takes none"),
    ("grow{steps=1.5}", "option 'steps' of 'grow': '1.5' is not an integer (column 6"),
    ("grow{share=abc}", "'abc' is not a number"),
    ("grow{share=nan}", "'nan' is not a finite number"),
    ("grow{scope=globl}", "'globl' is not one of global, local"),
    ("grow{fast=yes}", "'yes' is neither true nor false"),
    ("grow{steps=-1}", "pass 'grow': steps is -1, it must be 0 or more (column 1"),
    ("grow{steps=1", "this brace is never closed (column 5"),
    ("grow{steps}", "option 'steps' needs a value: steps=... (column 6"),
    ("grow{steps=1 steps=2}", "option 'steps' is given twice (column 14"),
    ("grow{=1}", "an option name is expected instead of '='"),
    ('grow{text="a}', "the quote at column 11 is never closed"),
    ('grow{text="a"b}', "is not a well-formed quoted string"),
    ("grow size", "a comma is expected before 's' (column 6"),
    ("grow}", "a comma is expected before '}' (column 5"),
    ("grow{name=x}", "pass 'grow' has no option 'name'"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TEXT)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        Pipeline.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_passes_cannot_share_a_name() -> None:
    with pytest.raises(PipelineError, match="two passes are called 'size'"):

        @dataclass(frozen=True)
        class Size(Analysis):
            name = "size"


def test_facts_are_computed_once_per_options(fakes: SimpleNamespace) -> None:
    facts = Facts(graph())
    assert [facts.get("size"), facts.get("size"), facts.get("size", unit=1), facts.get("size", unit=5)] == [1, 1, 1, 5]
    assert fakes.calls == ["size1", "size5"]


def test_a_rewrite_keeps_only_what_it_claims(fakes: SimpleNamespace) -> None:
    facts = Pipeline.parse("size,grow{steps=2},size,grow{steps=0},size").run(graph())
    assert fakes.calls == [
        "size1",
        "twice",
        "grow from 2",
        "size1",
        "grow from 2",
    ]  # the stale 2 is what `keeps` claims
    assert [a.name for a in facts.known()] == ["twice", "size"]
    assert facts.get("size") == 3


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sizes", {}, "unknown pass 'sizes'; did you mean 'size'?"),
        ("size", {"units": 1}, "pass 'size' has no option 'units'; did you mean 'unit'?"),
        ("grow", {}, "'grow' changes the graph"),
        ("circle", {}, "in a circle: circle -> circle"),
    ],
)
def test_bad_requests_for_facts(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        Facts(graph()).get(name, **given)
    assert message in str(caught.value)


def test_the_source_is_kept_and_the_graph_is_changed_in_place() -> None:
    changed = graph()
    facts = Pipeline.parse("grow").run(changed)
    assert facts.graph is changed
    assert (len(facts.source.nodes), len(changed.nodes)) == (1, 2)


def test_time_is_counted_once() -> None:
    start = time.perf_counter()
    facts = Pipeline.parse("grow{steps=3}").run(graph())
    elapsed = time.perf_counter() - start
    own = {t.name: t for t in facts.timing}
    assert list(own) == ["size", "twice", "grow"]
    assert own["grow"].changes == 3
    assert own["twice"].changes is None
    assert own["twice"].seconds >= 0.02 > own["grow"].seconds
    assert sum(t.seconds for t in facts.timing) <= elapsed


def test_progress_is_reported() -> None:
    heard: list[tuple[str, int, int]] = []
    Pipeline.parse("size,grow").run(graph(), Context(progress=lambda *a: heard.append(a)))
    assert heard == [("size", 0, 2), ("grow", 1, 2), ("done", 2, 2)]


def test_a_broken_pass_gives_one_line_and_a_reproducer() -> None:
    with pytest.raises(InternalError) as caught:
        Pipeline.parse("grow{steps=0},broken,size").run(graph())
    assert "pass 'broken' broke (KeyError: 'missing')" in str(caught.value)
    assert "-p 'grow{steps=0},broken'" in caught.value.reproducer
    assert "not yet done: 'broken,size'" in caught.value.reproducer
    assert isinstance(caught.value.__cause__, KeyError)


def test_verify_each_checks_every_rewrite(fakes: SimpleNamespace) -> None:
    Pipeline.parse("size,grow,grow{steps=2},grow{steps=0}").run(graph(), verify_each=True)
    assert [call for call in fakes.calls if "verify" in call] == ["verify 2", "verify 4"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("grow{steps=5},size{unit=5}", VerifyError, "6 nodes"),
        ("spoil,size{unit=5}", PruneError, "pass 'spoil' left an invalid model"),
    ],
)
def test_verify_each_stops_at_the_bad_pass(
    text: str, error: type[PruneError], message: str, fakes: SimpleNamespace
) -> None:
    with pytest.raises(error, match=message):
        Pipeline.parse(text).run(graph(), verify_each=True)
    assert "size5" not in fakes.calls


def test_plug_ins_are_loaded_and_a_broken_one_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Entry:
        value = "somewhere:thing"

        def __init__(self, name: str, error: Exception | None) -> None:
            self.name, self.error = name, error

        def load(self) -> None:
            if self.error:
                raise self.error
            loaded.append(self.name)

    loaded: list[str] = []
    entries = [Entry("good", None), Entry("bad", ImportError("no such module")), Entry("also", None)]
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: entries)
    with caplog.at_level(logging.WARNING):
        registry.load_plugins("prunepass.passes")
    assert loaded == ["also", "good"]
    assert "plug-in bad (somewhere:thing) left out: ImportError: no such module" in caplog.text


def test_options_are_described_for_the_list(fakes: SimpleNamespace) -> None:
    described = {o.name: (o.type, o.default) for o in registry.options(fakes.Grow)}
    assert described["steps"] == ("an integer", "1")
    assert described["share"] == ("a number or none", "none")
    assert described["scope"] == ("global|local", "global")
    assert described["keep"] == ("list of a text", "")


def test_names_are_reexported() -> None:
    assert manager.Pass is registry.Pass
    assert options.suggest("selct", ["select"]) == "; did you mean 'select'?"
