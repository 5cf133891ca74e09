"""Measure how budgets are kept: each kind at several shares, with and without alignment, on graphs of the zoo.

python benchmarks/budgets.py ../shared/zoo --sample 60 --csv budgets.csv
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fnmatch
import re
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

from families import family  # noqa: E402
from pool import Limits, Outcome, Say, run_forked  # noqa: E402
from summary import print_table, share  # noqa: E402
from zoo import Entry, filler, read_index  # noqa: E402

KINDS = ("macs", "params", "bytes", "ram")
SHARES = (0.7, 0.5, 0.25)
NEAR = {1: 0.02, 8: 0.05}
"""Share of a budget that may stay unused, by alignment."""


@dataclass(frozen=True)
class Task:
    """One graph and what is asked of it."""

    zoo: Path
    file: str
    aligns: tuple[int, ...]
    kinds: tuple[str, ...]


@dataclass
class Row:
    """One budget on one graph.

    Units
        asked, reached: shares of the source. least: the nearest share that can be reached, where less was asked for.
        seconds: CPU time of select alone. exact: what was predicted equals what was counted on the sliced graph.
    """

    file: str
    kind: str
    asked: float
    align: int
    status: str
    reached: float | None = None
    least: float | None = None
    exact: bool | None = None
    units_left: float | None = None
    seconds: float = 0.0
    reason: str = ""


def measure(task: Task, say: Say) -> dict[str, Any]:
    """Select for every budget on one graph; runs in a process of its own."""
    from prunepass.job import Job
    from prunepass.manager import Pipeline

    say("load")
    weightless = filler(task.zoo)
    model = weightless.load(str(task.zoo / task.file))
    shapes = {name: array.shape for name, array in weightless.make_inputs(model).items()}
    job = Job.open(model, (), shapes, None, 0, None)
    say("analyse")
    Pipeline.parse("canonicalize").run_on(job.facts)
    for fact in ("coupling", "importance", "cost"):
        job.facts.get(fact)
    rows = []
    for kind in task.kinds:
        for align in task.aligns:
            for asked in SHARES:
                say(f"{kind}={asked} align={align}")
                rows.append(asdict(_one(job.facts, task.file, kind, asked, align)))
    return {"rows": rows}


def _one(facts: Any, file: str, kind: str, asked: float, align: int) -> Row:
    from prunepass.errors import BudgetError, PruneError
    from prunepass.manager import Pipeline

    row = Row(file, kind, asked, align, "held")
    start = time.process_time()
    try:
        Pipeline.parse(f"select{{{kind}={asked} align={align}}}").run_on(facts)
    except BudgetError as error:
        found = re.search(r"is (\d+\.\d+) \(", str(error))
        row.least, row.reason = float(found[1]) if found else None, str(error)
        row.seconds = time.process_time() - start
        again = _one(facts, file, kind, row.least, align) if row.least and row.least < 1 else None
        row.status = "unreachable" if again is None or again.status == "held" else "wrong nearest"
        return row
    except PruneError as error:
        row.status, row.reason = "refused", str(error)
        return row
    row.seconds = time.process_time() - start
    _count(facts, row)
    return row


def _count(facts: Any, row: Row) -> None:
    """Cut a copy, and count everything again."""
    from prunepass import wire
    from prunepass.cost import cost_of, source_cost
    from prunepass.manager import Facts, Pipeline

    plan, whole = facts.plan, source_cost(facts)
    predicted = facts.get("cost").predict(plan.removed)
    cut = Facts(facts.graph.copy(), facts.context)
    cut.plan = plan
    Pipeline.parse("slice-channels").run_on(cut)
    counted = cost_of(cut.graph, cut.get("shapes")).total
    row.exact = (predicted.macs, predicted.params, predicted.ram) == (counted.macs, counted.params, counted.ram)
    left = getattr(counted, row.kind)
    if row.kind == "bytes":
        Pipeline.parse("clean").run_on(cut)
        left = sum(map(len, wire.encode(cut.graph)))
    row.reached = left / max(getattr(whole, row.kind), 1)
    row.units_left = 1 - float(plan.removed[1:].mean()) if len(plan.removed) > 1 else 1.0
    if row.reached > row.asked:
        row.status = "broken"
    elif not row.exact:
        row.reason = f"predicted {predicted}, counted {counted}"


def collect(outcomes: Iterator[Outcome], tasks: Sequence[Task]) -> Iterator[list[Row]]:
    """Yield the rows of each graph as it is done."""
    for outcome in outcomes:
        if outcome.ended == "done" and outcome.value is not None and "rows" in outcome.value:
            yield [Row(**row) for row in outcome.value["rows"]]
        else:
            last = outcome.detail.strip().splitlines()[-1] if outcome.detail else ""
            yield [Row(tasks[outcome.index].file, "", 0.0, 0, outcome.ended, reason=f"{outcome.stage}: {last}")]


def print_tables(rows: Sequence[Row]) -> None:
    """Print one line per kind, alignment and share, then what did not go as it should."""
    header = (
        "budget",
        "align",
        "share",
        "cases",
        "reachable",
        "held",
        "exact",
        "near",
        "unused",
        "worst",
        "s",
        "s max",
    )
    lines: list[tuple[str, ...]] = [header]
    for kind in KINDS:
        for align in sorted({row.align for row in rows if row.kind == kind}):
            for asked in SHARES:
                own = [r for r in rows if (r.kind, r.align, r.asked) == (kind, align, asked)]
                lines.append((kind, str(align), str(asked), *_line(own, NEAR.get(align, 0.05))))
    print_table(lines)
    print("\nnear: at most 2% (align=1) or 5% (align=8) of the budget unused; unused: median; s: CPU seconds of select")
    failed = [row for row in rows if row.status not in ("held", "unreachable")]
    print(f"\n{len({row.file for row in rows})} graphs; {len(failed)} cases went wrong")
    for row in failed:
        print(f"  {row.file} {row.kind}={row.asked} align={row.align}: {row.status} {row.reached} {row.reason[:200]}")
    inexact = [row for row in rows if row.exact is False]
    for row in inexact[:10]:
        print(f"  not exact: {row.file} {row.kind}={row.asked} align={row.align}: {row.reason[:240]}")


def _line(own: Sequence[Row], near: float) -> tuple[str, ...]:
    reachable = [row for row in own if row.status != "unreachable"]
    held = [row for row in reachable if row.status == "held"]
    unused = [1 - row.reached / row.asked for row in held if row.reached is not None]
    seconds = [row.seconds for row in own]
    return (
        str(len(own)),
        str(len(reachable)),
        share(len(held), len(reachable)),
        share(sum(bool(row.exact) for row in held), len(held)),
        share(sum(gap <= near for gap in unused), len(unused)),
        f"{statistics.median(unused):.2%}" if unused else "-",
        f"{max(unused):.1%}" if unused else "-",
        f"{statistics.median(seconds):.2f}" if seconds else "-",
        f"{max(seconds):.1f}" if seconds else "-",
    )


def choose(entries: Sequence[Entry], args: argparse.Namespace) -> list[Entry]:
    """Return an even sample of the CNN classifiers and transformers, one file per network, by size."""
    networks: dict[tuple[str, str], Entry] = {}
    for entry in sorted(entries, key=lambda e: e.file):
        fits = not args.only or any(fnmatch.fnmatch(entry.file, f"*{glob}*") for glob in args.only)
        if fits and family(entry) in ("cnn-classifier", "transformer") and entry.params <= args.max_params:
            networks.setdefault((entry.source, entry.name), entry)
    chosen = sorted(networks.values(), key=lambda e: (e.params + 20_000 * e.nodes, e.file))
    if args.sample < len(chosen):
        chosen = [chosen[i * len(chosen) // args.sample] for i in range(args.sample)]
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit with 1 when a budget was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("zoo", nargs="?", type=Path, default=Path("../shared/zoo"), help="folder with index.tsv and weightless.py")
    add("--sample", type=int, default=60, help="networks, evenly spaced by size (default 60)")
    add("--only", action="append", metavar="GLOB", help="only files that match (may be repeated)")
    add("--max-params", type=int, default=10**9, help="only networks with at most so many parameters")
    add("--align", type=int, action="append", help="alignments (default 1 and 8)")
    add("--kind", action="append", choices=KINDS, help="budgets (default all)")
    add("--jobs", type=int, default=1, help="graphs at the same time (default 1)")
    add("--timeout", type=float, default=900.0, help="seconds per graph (default 900)")
    add("--csv", type=Path, help="write a line per case here")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill ends the workers and prints what there is
    filler(args.zoo)
    tasks = [
        Task(args.zoo, entry.file, tuple(args.align or NEAR), tuple(args.kind or KINDS))
        for entry in choose(read_index(args.zoo), args)
    ]
    rows: list[Row] = []
    with contextlib.ExitStack() as files:
        out = files.enter_context(args.csv.open("w", newline="")) if args.csv else None
        writer = csv.DictWriter(out, [f.name for f in fields(Row)], lineterminator="\n") if out else None
        if writer:
            writer.writeheader()
        with contextlib.suppress(KeyboardInterrupt):
            limits = Limits(args.timeout, cpu_s=args.timeout)
            for number, own in enumerate(collect(run_forked(measure, tasks, args.jobs, limits), tasks), 1):
                rows += own
                if writer and out:
                    writer.writerows(asdict(row) for row in own)
                    out.flush()
                print(f"[{number}/{len(tasks)}] {own[0].file}: {own[-1].status}", file=sys.stderr, flush=True)
    print_tables(rows)
    return int(any(row.status not in ("held", "unreachable") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
