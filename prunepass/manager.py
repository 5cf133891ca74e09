"""The pass manager: lazy cached facts, pipelines, timing, checks after each pass."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunepass.errors import InternalError, PipelineError, PruneError
from prunepass.registry import Analysis, Pass, Rewrite, build, find, passes
from prunepass.syntax import Step, parse_steps

if TYPE_CHECKING:
    import numpy as np

    from prunepass.graph import Graph
    from prunepass.plan import Plan
    from prunepass.recovery.batches import Batches

__all__ = [
    "Analysis",
    "Context",
    "Cut",
    "Facts",
    "Pass",
    "Pipeline",
    "Progress",
    "Rewrite",
    "Step",
    "Timing",
    "build",
    "find",
    "passes",
]

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called as (what, done, total) while work goes on."""


@dataclass
class Context:
    """Hold what the user asked for beside the pipeline.

    Units
        shapes: the size of each axis, by input name. keep: regular expressions for names that stay whole.
        source_bytes: of the files that the source was read from, 0 where there are none. cache: folder for measured
        times, empty for that of the user.
    """

    seed: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    data: dict[str, np.ndarray] | None = None
    calibration: Batches | None = None
    source_sha256: str = ""
    source_bytes: int = 0
    cache: str = ""
    progress: Progress | None = None

    def tell(self, what: str, done: int, total: int) -> None:
        """Report progress to whoever listens."""
        if self.progress is not None:
            self.progress(what, done, total)


@dataclass
class Cut:
    """Record what a slicing pass did, for the certificate: the graph before, the plan, the graph after.

    refitted: the graph before with the weights that a later pass fitted to what is left; the removed ones as they were.
    `lossless`: the graph after computes what the graph before computes, with nothing masked.
    """

    before: Graph
    plan: Plan
    after: Graph
    refitted: Graph | None = None
    lossless: bool = False


@dataclass(frozen=True)
class Timing:
    """Record how long one pass took by itself, without the analyses that it asked for.

    Units
        seconds: wall-clock time. changes: None for an analysis.
    """

    name: str
    seconds: float
    changes: int | None = None


class Facts:
    """Answer what the analyses know about one graph: computed on demand, kept until a rewrite invalidates it.

    source: the graph as it was at the start. plan: what select decided, for the pass that carries it out, which then
    clears it; last_plan stays. cuts: what was carried out. pruned: the graph before its weights were refitted. first:
    the first fact that each analysis gave, and the graph it is true of. timing: one entry per run of a pass or fact.
    """

    def __init__(self, graph: Graph, context: Context | None = None) -> None:
        self.graph = graph
        self.context = context if context is not None else Context()
        self.source = graph.copy()
        self.last_plan: Plan | None = None
        self._plan: Plan | None = None
        self.cuts: list[Cut] = []
        self.timing: list[Timing] = []
        self.recovery: list[dict[str, Any]] = []
        self.pruned: Graph | None = None
        self.first: dict[str, tuple[Graph, Any]] = {}
        self._cache: dict[Analysis, Any] = {}
        self._running: list[Analysis] = []
        self._nested: list[float] = []

    def fork(self) -> Facts:
        """Return facts of a copy of the graph, to go on in several ways; what is known and the timing are shared."""
        twin = copy.copy(self)
        twin.graph = self.graph.copy()
        twin.cuts, twin.recovery = list(self.cuts), list(self.recovery)
        twin.first, twin._cache = dict(self.first), dict(self._cache)
        return twin

    @property
    def plan(self) -> Plan | None:
        """The plan that waits to be carried out."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._plan = plan
        self.last_plan = plan or self.last_plan

    def get(self, name: str, **given: Any) -> Any:
        """Return the fact of the analysis `name` with these options, from the cache when it is still valid.

        Raises
            PipelineError: no such analysis or option, or analyses that ask for one another in a circle.
        """
        analysis = build(name, **given)
        if not isinstance(analysis, Analysis):
            raise PipelineError(f"'{name}' changes the graph; only an analysis can be asked for facts")
        if analysis not in self._cache:
            self._cache[analysis] = self._compute(analysis)
        return self._cache[analysis]

    def _compute(self, analysis: Analysis) -> Any:
        if analysis in self._running:
            circle = " -> ".join(a.name for a in [*self._running, analysis])
            raise PipelineError(f"analyses ask for one another in a circle: {circle}")
        self._running.append(analysis)
        try:
            with self.timed(analysis.name):
                graph = self.graph.copy()  # what a fact works out later must not see a changed graph
                fact = analysis.run(graph, self)
            self.first.setdefault(analysis.name, (graph, fact))
            return fact
        finally:
            self._running.pop()

    def known(self) -> tuple[Analysis, ...]:
        """Return the analyses whose facts are in the cache."""
        return tuple(self._cache)

    def invalidate(self, keeps: tuple[str, ...] = ()) -> None:
        """Forget every fact except those of the named analyses."""
        self._cache = {a: fact for a, fact in self._cache.items() if a.name in keeps}

    @contextmanager
    def timed(self, name: str) -> Iterator[list[int]]:
        """Measure a block of work; whoever puts a number of changes into the yielded list has it recorded.

        Raises
            ModelError, UnsupportedError: the work broke, and onnxruntime cannot run the source.
        """
        changes: list[int] = []
        self._nested.append(0.0)
        start = time.perf_counter()
        try:
            yield changes
        except PruneError:
            raise
        except Exception:
            self._refuse_invalid()
            raise
        finally:
            elapsed = time.perf_counter() - start
            self.timing.append(Timing(name, elapsed - self._nested.pop(), changes[0] if changes else None))
            if self._nested:
                self._nested[-1] += elapsed

    def _refuse_invalid(self) -> None:
        """Raise what onnxruntime says against the source: that a pass broke on what nobody can run is no bug."""
        from prunepass.runtime import refuse_invalid

        _, shapes = self.first.get("shapes", (None, None))
        refuse_invalid(self.source, {} if shapes is None else shapes.shape, self.context.data, self.context.seed)


@dataclass(frozen=True)
class Pipeline:
    """Run passes one after the other; written as `canonicalize,select{ratio=0.5 criterion=l2},slice-channels,clean`."""

    steps: tuple[Step, ...]

    @classmethod
    def of(cls, *chosen: Pass) -> Pipeline:
        """Make a pipeline of pass objects."""
        return cls(tuple(Step(p, str(p)) for p in chosen))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a pipeline from its text; `str(Pipeline.parse(text)) == text`.

        Raises
            PipelineError: with the column, and the nearest name where a name is unknown.
        """
        return cls(tuple(parse_steps(text)))

    def __str__(self) -> str:
        return ",".join(step.text for step in self.steps)

    def run(self, graph: Graph, context: Context | None = None, verify_each: bool = False) -> Facts:
        """Run every pass on the graph, in place, and return the facts of the result.

        Raises
            PruneError: what a pass reports. InternalError: a pass broke. VerifyError: a check after a pass failed.
        """
        return self.run_on(Facts(graph, context), verify_each)

    def run_on(self, facts: Facts, verify_each: bool = False) -> Facts:
        """Run every pass on the graph of the facts; for the rest see `run`."""
        for i, step in enumerate(self.steps):
            facts.context.tell(step.run.name, i, len(self.steps))
            try:
                _run_step(step, facts)
                if verify_each and isinstance(step.run, Rewrite):
                    _check(step, facts)
            except PruneError:
                raise
            except Exception as error:
                raise self._crash(i, error) from error
        facts.context.tell("done", len(self.steps), len(self.steps))
        return facts

    def _crash(self, i: int, error: Exception) -> InternalError:
        done, left = Pipeline(self.steps[: i + 1]), Pipeline(self.steps[i:])
        name = self.steps[i].run.name
        where = f"pass {i + 1} of {len(self.steps)} ({name})"
        return InternalError(
            f"pass '{name}' broke ({type(error).__name__}: {error}); this is a bug, please report it with --debug",
            reproducer=f"{where} broke; it fails with -p '{done}'; not yet done: '{left}'",
        )


def _run_step(step: Step, facts: Facts) -> None:
    if isinstance(step.run, Analysis):
        facts.get(step.run.name, **{f.name: getattr(step.run, f.name) for f in dataclasses.fields(step.run)})
        return
    assert isinstance(step.run, Rewrite), step.run
    with facts.timed(step.run.name) as changes:
        changes.append(step.run.run(facts.graph, facts))
    log.info("%s: %d changes, %.3f s", step.text, changes[0], facts.timing[-1].seconds)
    if changes[0]:
        facts.invalidate(step.run.keeps)


def _check(step: Step, facts: Facts) -> None:
    """Check the graph as ONNX and against the masked run of everything that was cut so far."""
    import onnx

    try:
        onnx.checker.check_model(facts.graph.skeleton(), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PruneError(f"pass '{step.run.name}' left an invalid model: {str(error).splitlines()[0]}") from error
    facts.get("verify")
