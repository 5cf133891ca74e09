"""Compare `prunepass --lossless` with onnxsim on the zoo: equal outputs, nodes and parameters that are left.

python benchmarks/simplify.py ../shared/zoo --sample 150 --peer PYTHON --csv simplify.csv

PYTHON is an interpreter that has onnxsim; each graph is simplified in a process of its own. Sizes that the inputs leave
open stay open in both. Nodes are those of the main graph without Constant nodes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PRUNEPASS_THREADS"):
    os.environ.setdefault(_variable, "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

import counting  # noqa: E402
import onnx  # noqa: E402
from contenders import import_prunepass  # noqa: E402
from coverage import select  # noqa: E402
from families import family  # noqa: E402
from pool import Limits, Say, run_forked  # noqa: E402
from worker import Job, prune_one  # noqa: E402
from zoo import filler, read_index  # noqa: E402

PEER = """
import json, sys, onnx, onnxsim
model, ok = onnxsim.simplify(onnx.load(sys.argv[1]))
onnx.save(model, sys.argv[2])
print(json.dumps({"ok": bool(ok)}))
"""
PEER_SECONDS = 100
NODES, PARAMS = 1.1, 1.0
"""At most so many times what onnxsim leaves."""


@dataclass
class Row:
    """One graph.

    Units
        nodes_, params_: before, after `--lossless`, after onnxsim (None where it fails). extra: operators of which more
        are left than onnxsim leaves.
    """

    file: str
    family: str
    status: str = ""
    reason: str = ""
    peer: str = ""
    nodes_before: int = 0
    nodes: int | None = None
    nodes_peer: int | None = None
    params_before: int = 0
    params: int | None = None
    params_peer: int | None = None
    seconds: float | None = None
    extra: str = ""


@dataclass(frozen=True)
class Task:
    """What one worker is told."""

    job: Job
    peer: str


def operators(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators of the main graph; constants are none."""
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")


def compare_one(task: Task, say: Say) -> dict[str, Any]:
    """Simplify one graph both ways."""
    import prunepass

    model = filler(task.job.zoo).load(str(task.job.zoo / task.job.file))
    kept: list[onnx.ModelProto] = []
    prune = prunepass.prune

    def noted(*given: Any, **options: Any) -> Any:
        result = prune(*given, **options)
        kept.append(result.model)
        return result

    prunepass.prune = noted  # so that the model which the worker checks can be counted here
    row = prune_one(task.job, say)
    own = kept[0] if kept else None
    say("peer")
    peer, note = simplified(model, task.peer)
    before = operators(model)
    found = {"status": row["status"], "reason": row["reason"], "seconds": row.get("seconds"), "peer": note}
    found |= {"nodes_before": before.total(), "params_before": counting.count(model).params}
    for name, made in (("", own), ("_peer", peer)):
        if made is not None:
            found |= {f"nodes{name}": operators(made).total(), f"params{name}": counting.count(made).params}
    if own is not None and peer is not None:
        more = operators(own) - operators(peer)
        found["extra"] = " ".join(f"{op}:{n}" for op, n in more.most_common(6))
    return found


def simplified(model: onnx.ModelProto, python: str) -> tuple[onnx.ModelProto | None, str]:
    """Run onnxsim; return what it makes, or what it says."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.onnx"), Path(folder, "b.onnx")
        onnx.save(model, source)
        command = [python, "-c", PEER, str(source), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return None, "timeout"
        if done.returncode or not target.exists():
            return None, (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:200]
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return onnx.load(target), "done" if answer["ok"] else "unequal"


def share(part: int, whole: int) -> str:
    """Write a share."""
    return f"{part}/{whole} ({100 * part / whole:.1f}%)" if whole else "-"


def within(row: Row) -> bool:
    """Whether few enough nodes are left."""
    return row.nodes is not None and row.nodes_peer is not None and row.nodes <= NODES * max(1, row.nodes_peer)


def show(rows: Sequence[Row]) -> None:
    """Print the tables."""
    both = [r for r in rows if r.nodes is not None and r.nodes_peer is not None]
    print(
        f"\n{'family':14}{'graphs':>7}{'equal':>7}{'both':>6}{'nodes':>9}{'ours':>9}{'onnxsim':>9}{'ratio':>7}{'<=1.1':>7}"
    )
    for name in [*sorted({r.family for r in rows}), "all"]:
        own = [r for r in rows if name in (r.family, "all")]
        pairs = [r for r in own if r in both]
        ours, peer = sum(r.nodes or 0 for r in pairs), sum(r.nodes_peer or 0 for r in pairs)
        print(
            f"{name:14}{len(own):7}{sum(r.status == 'certified' for r in own):7}{len(pairs):6}"
            f"{sum(r.nodes_before for r in pairs):9}{ours:9}{peer:9}{ours / max(1, peer):7.3f}"
            f"{sum(map(within, pairs)):7}"
        )
    print(f"\nvalid and equal: {share(sum(r.status == 'certified' for r in rows), len(rows))}")
    print(f"nodes at most {NODES} times those of onnxsim: {share(sum(map(within, both)), len(both))}")
    fewer = [r for r in both if (r.params or 0) <= PARAMS * (r.params_peer or 0)]
    print(f"parameters not more than those of onnxsim: {share(len(fewer), len(both))}")
    print(f"parameters not more than before: {share(sum((r.params or 0) <= r.params_before for r in both), len(both))}")
    print(f"onnxsim: {dict(Counter(r.peer.split(':')[0][:40] for r in rows).most_common(6))}")
    for title, listed in (
        ("not equal", [r for r in rows if r.status != "certified"]),
        (
            "more nodes",
            sorted((r for r in both if not within(r)), key=lambda r: -(r.nodes or 0) / max(1, r.nodes_peer or 0)),
        ),
        ("more parameters", [r for r in both if r not in fewer]),
    ):
        for r in listed[:60]:
            print(
                f"{title}: {r.file} {r.status} nodes {r.nodes_before} -> {r.nodes} / {r.nodes_peer}, params "
                f"{r.params_before} -> {r.params} / {r.params_peer} {r.extra} {r.reason[:150]}"
            )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("zoo", nargs="?", type=Path, default=Path("../shared/zoo"), help="folder with index.tsv and weightless.py")
    add("--peer", default=sys.executable, help="interpreter that has onnxsim")
    add("--sample", type=int, help="only N graphs, evenly spaced over all in order of size")
    add("--only", action="append", metavar="GLOB", help="only files that match (may be repeated)")
    add("--max-params", type=int, help="only graphs with at most so many parameters")
    add("--jobs", type=int, default=1, help="graphs at the same time")
    add("--timeout", type=float, default=240.0, help="wall-clock seconds per graph")
    add("--csv", type=Path, help="write a line per graph here")
    add("--show", type=Path, metavar="CSV", help="only print the tables of an earlier run")
    parser.set_defaults(family=None, again=None)
    return parser.parse_args(argv)


def read_rows(path: Path) -> list[Row]:
    """Read the rows of an earlier run."""
    numbers = {f.name for f in fields(Row) if "int" in str(f.type)}
    with path.open(newline="") as f:
        lines: list[dict[str, Any]] = list(csv.DictReader(f))
    return [Row(**{k: (int(v) if v else None) if k in numbers else v for k, v in line.items()}) for line in lines]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = parse(argv)
    if args.show:
        show(read_rows(args.show))
        return 0
    entries = select(read_index(args.zoo), args)
    import_prunepass()
    filler(args.zoo)
    tasks = [Task(Job(args.zoo, e.file, {"lossless": True}), args.peer) for e in entries]
    rows: list[Row] = []
    out = args.csv.open("w", newline="") if args.csv else None
    writer = csv.DictWriter(out, [f.name for f in fields(Row)], lineterminator="\n") if out else None
    if writer:
        writer.writeheader()
    for outcome in run_forked(compare_one, tasks, args.jobs, Limits(args.timeout)):
        entry = entries[outcome.index]
        last = (outcome.detail.strip().splitlines() or [""])[-1]
        value = outcome.value or {"status": outcome.ended, "reason": f"{last} (while: {outcome.stage})"}
        rows.append(Row(entry.file, family(entry), **value))
        if writer and out:
            writer.writerow(asdict(rows[-1]))
            out.flush()
    show(rows)
    return int(any(r.status in ("invalid", "mismatch", "traceback", "crash") for r in rows))


if __name__ == "__main__":
    sys.exit(main())
