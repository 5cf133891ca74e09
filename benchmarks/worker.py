"""What one worker of a coverage run does: fill a graph, prune it, and check the result without trusting prunepass."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import check
import counting
from pool import Say
from zoo import filler


@dataclass(frozen=True)
class Job:
    """What one worker is told: the graph and the options of `prunepass.prune`."""

    zoo: Path
    file: str
    options: dict[str, Any]


def prune_one(job: Job, say: Say) -> dict[str, Any]:
    """Prune one graph in this process and return the columns that it fills."""
    say("load")
    weightless = filler(job.zoo)
    model = weightless.load(str(job.zoo / job.file))
    feeds = weightless.make_inputs(model)
    before = counting.count(model)
    row: dict[str, Any] = {"params_before": before.params, "body_before": before.body, "nodes_before": before.nodes}
    say("prune")
    pruned, columns = _timed_prune(model, feeds, job.options)
    row |= columns
    if pruned is None:
        return row
    after = counting.count(pruned)
    row |= {"params_after": after.params, "body_after": after.body, "nodes_after": after.nodes}
    if counting.count(model) != before:
        return row | {"status": "mismatch", "reason": "the model that was given to prune() was changed"}
    if after.empty > before.empty:
        return row | {"status": "invalid", "reason": "a tensor has an axis of length 0"}
    say("check")
    status, reason = _independent_check(model, pruned, feeds, say)
    if status == "valid-only" and not reason:
        certified = row["certificate"] == "passed"
        status, reason = ("certified", "") if certified else (status, f"the certificate says '{row['certificate']}'")
    return row | {"status": status, "reason": reason}


def _timed_prune(model: Any, feeds: dict[str, Any], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Call prunepass; return the pruned model (None when there is none) and the columns that say how it went."""
    import prunepass
    from prunepass import errors

    pruned, status, reason, trace, reported = None, "", "", "", {}
    shapes = {name: tuple(int(d) for d in array.shape) for name, array in feeds.items()}
    start = time.process_time()
    try:
        result = prunepass.prune(model, shapes=shapes, data=feeds, **{"recover": False, **options})
        pruned, reported = result.model, _reported(result.report)
    except errors.VerifyError as error:
        status, reason = "mismatch", _one_line(error)
    except errors.InternalError as error:
        status, reason, trace = "traceback", _where(error.__cause__ or error), traceback.format_exc()
    except errors.PruneError as error:
        status, reason = "refused", _one_line(error)
    except MemoryError as error:
        status, reason = "memory", _where(error)
    except Exception as error:  # noqa: BLE001 - counting what escapes is the point
        status, reason, trace = "traceback", _where(error), traceback.format_exc()
    seconds = round(time.process_time() - start, 4)
    return pruned, {"status": status, "reason": reason, "seconds": seconds, "trace": trace} | reported


def _one_line(error: BaseException) -> str:
    note = "(several lines) " if len(str(error).splitlines()) > 1 else ""
    return f"{note}{type(error).__name__}: {' '.join(str(error).split())}"


def _where(error: BaseException) -> str:
    """Return an error with the innermost frame that is not inside an installed library."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and "/lib/python" not in f.filename] or frames
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name})" if own else ""
    return _one_line(error)[:400] + place


def _reported(report: Any) -> dict[str, Any]:
    """Read the columns that only the tool can fill from its own report."""
    certificate = report["certificate"] or {}
    macs = [report[when].get("macs") for when in ("before", "after")]
    return {
        "certificate": str(certificate.get("status", "")),
        "max_rel": certificate.get("max_rel"),
        "macs_before": macs[0],
        "macs_after": macs[1],
    }


def _independent_check(model: Any, pruned: Any, feeds: dict[str, Any], say: Say) -> tuple[str, str]:
    """Return `valid-only`, `invalid` or `mismatch`, and why, without trusting the tool's own checks.

    A pruned model that does not run because the original does not either counts as `valid-only`.
    """
    reason, outputs = check.invalid(pruned, feeds)
    say("dense")
    if reason:
        dense_reason, _ = check.invalid(model, feeds)
        return ("valid-only", f"the original has it too: {reason}") if dense_reason else ("invalid", reason)
    if changed := check.interface_changed(model, pruned):
        return "mismatch", changed
    try:
        dense = check.outputs(model.SerializeToString(), feeds, optimise=False)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own, one per status code
        return "valid-only", f"the original does not run: {check.first_line(error)}"
    wrong = check.mismatch(model, dense, outputs)
    return ("mismatch", wrong) if wrong else ("valid-only", "")
