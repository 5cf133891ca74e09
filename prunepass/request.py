"""What a user asks of the main job, which passes that means, and the job itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prunepass import report as reports
from prunepass.errors import NotFiniteError, PipelineError
from prunepass.job import Job, Result
from prunepass.manager import Facts, Pipeline
from prunepass.options import format_value
from prunepass.runtime import CPU

if TYPE_CHECKING:
    from prunepass.budgets import Amount
    from prunepass.quality import Metric

log = logging.getLogger(__name__)
DEFAULT_RATIO = 0.3
LOSSLESS = "canonicalize{thorough=true},fold-batchnorm,fold-zero-filters,clean"
"""What `lossless` runs: the result computes what the source computes, on any input."""


def default_pipeline(
    ratio: float | None = None,
    *,
    macs: Amount | None = None,
    params: Amount | None = None,
    bytes: Amount | None = None,
    ram: Amount | None = None,
    latency: Amount | None = None,
    criterion: str | None = None,
    scope: str = "global",
    align: int = 8,
    threads: int = 1,
    batch: int = 1,
    provider: str = CPU,
    recover: bool = False,
) -> str:
    """Return the text of the main job: `canonicalize,select{...},slice-channels,clean`.

    recover: the weights are refitted (`compensate`), and what goes is chosen for that (criterion `obs`) by default.

    Raises
        PipelineError: a ratio and a budget are given.
    """
    amounts = {"ratio": ratio, "macs": macs, "params": params, "bytes": bytes, "ram": ram, "latency": latency}
    given: dict[str, Any] = {name: value for name, value in amounts.items() if value is not None}
    if "ratio" in given and len(given) > 1:
        raise PipelineError(f"{' and '.join(given)} do not go together; give the ratio or budgets")
    given = given or {"ratio": DEFAULT_RATIO}
    chosen = criterion or ("obs" if recover else "l2")
    if chosen == "obs" and scope == "global" and "ratio" not in given:
        given["allocate"] = "error"
    given |= {"criterion": chosen, "scope": scope, "align": align}
    measuring = {"threads": (threads, 1), "batch": (batch, 1), "provider": (provider, CPU)}
    given |= {name: value for name, (value, usual) in measuring.items() if value != usual}
    options = " ".join(f"{name}={format_value(value)}" for name, value in given.items())
    return f"canonicalize,select{{{options}}},slice-channels,{'compensate,' if recover else ''}clean"


@dataclass(frozen=True)
class Request:
    """Hold what decides which passes run; checked before the model is opened.

    Units
        amounts: of `default_pipeline`, None where not given. how: its other options. pipeline: the text that takes its
        place. max_drop: share of the quality that may be lost, None where the amounts decide.
    """

    amounts: Mapping[str, Any]
    how: Mapping[str, Any]
    pipeline: str | None = None
    lossless: bool = False
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.lossless and (self.pipeline is not None or self.max_drop is not None or self._given()):
            raise PipelineError("lossless removes what it can; it goes with no amount and no pipeline")
        self.chosen(False)
        if self.max_drop is not None:
            self._check_search(self.max_drop)

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self.amounts.items() if value is not None}

    def _check_search(self, max_drop: float) -> None:
        if self.pipeline is not None:
            raise PipelineError("max_drop chooses the amount; it does not go with a pipeline")
        if not 0 <= max_drop < 1:
            raise PipelineError(f"max_drop={max_drop} must be at least 0 and below 1, as in 0.01 for 1%")
        shares = [isinstance(value, (int, float)) and value <= 1 for value in self._given().values()]
        if len(shares) > 1 or not all(shares):
            raise PipelineError(
                "max_drop searches by one amount, a share of the source; give one, or none for the MACs"
            )

    @property
    def fixed(self) -> bool:
        """Whether the passes are given, so that data and quality have no say."""
        return self.pipeline is not None or self.lossless

    def chosen(self, recover: bool) -> Pipeline:
        """Return the pipeline that is given, or the default one."""
        text = default_pipeline(**self.amounts, **self.how, recover=recover)
        if self.pipeline is not None and self._given():
            raise PipelineError("a pipeline has its own amounts; give them to its select pass")
        return Pipeline.parse(self.pipeline or (LOSSLESS if self.lossless else text))

    @property
    def goal(self) -> tuple[str, float]:
        """The kind of amount to search by, and the least share to try, 0 for any."""
        name, value = next(iter(self._given().items()), ("macs", 0.0))
        return name, 1 - value if name == "ratio" else value

    def at(self, kept: float, recover: bool) -> Pipeline:
        """Return the default pipeline for a share that may stay."""
        name, _ = self.goal
        amounts: dict[str, Any] = {name: round(1 - kept, 4) if name == "ratio" else kept}
        return Pipeline.parse(default_pipeline(**amounts, **self.how, recover=recover))

    def fitting(self, facts: Facts) -> Request:
        """Return the same with the criterion that needs no data, where they say too little and none is asked for."""
        from prunepass.recovery.batches import HELD_BACK, calibration, varies

        given = calibration(facts)
        few = len(given.feeds) < HELD_BACK
        if self.fixed or not (few or not varies(given, facts.source)):
            return self
        why = f"{given.samples} are few" if few else "they are all the same"
        log.warning("data: %s; give some hundred typical inputs. What goes is chosen without them", why)
        return replace(self, how={**self.how, "criterion": self.how["criterion"] or "l2"})


def _pruned(job: Job, request: Request, recover: bool, each: bool) -> Pipeline:
    """Run the pipeline; where a refit by default comes to nothing, run the one without, and return what was run."""
    chosen, start = request.chosen(recover), job.facts.fork()
    try:
        chosen.run_on(job.facts, verify_each=each)
    except NotFiniteError as error:
        if not recover or request.fixed:
            raise
        entry = {"pass": "compensate", "samples": 0, "kept": False, "note": str(error), "layers": []}
        job.facts.recovery.append(entry)
    if recover and not request.fixed and not all(entry["kept"] for entry in job.facts.recovery):
        start.recovery, job.facts = job.facts.recovery, start  # what was to be refitted may be the wrong choice now
        chosen = request.chosen(False)
        chosen.run_on(job.facts, verify_each=each)
    return chosen


def carry_out(
    job: Job,
    request: Request,
    metric: Metric | None = None,
    recover: bool = True,
    verify: bool = True,
    each: bool = False,
) -> Result:
    """Do the main job on an opened model; `recover`: refit weights where there are data, `each`: verify every pass."""
    from prunepass.quality import Judge
    from prunepass.smallest import Search

    recover = recover and job.context.data is not None
    judge = Judge(job.facts, metric) if metric is not None or job.context.data is not None else None
    request = request.fitting(job.facts) if recover else request
    if request.max_drop is not None and judge is None:
        raise PipelineError("max_drop needs data or a metric to judge by")
    if request.max_drop is None or judge is None:
        chosen = _pruned(job, request, recover, each)
        return job.finish(verify, {"pipeline": str(chosen), "keep": list(job.context.keep)}, judge)
    name, goal = request.goal
    search = Search(job.facts, judge, lambda kept: request.at(kept, recover), goal, request.max_drop, each)
    best = search.run()
    assert best.facts is not None
    job.facts = best.facts
    text = str(request.at(best.kept, recover))
    result = job.finish(verify, {"pipeline": text, "keep": list(job.context.keep)}, judge)
    result.report["search"] = reports.plain({"by": name, **search.to_json()})
    return result
