"""Prune every graph of the zoo, each in a process of its own, and check every result independently.

python benchmarks/coverage.py ../shared/zoo --ratio 0.5 --align 1 --jobs 2
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fnmatch
import functools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PRUNEPASS_THREADS"):
    os.environ.setdefault(_variable, "1")  # before numpy: one thread per worker, so that --jobs is the parallelism
HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

from contenders import import_prunepass  # noqa: E402
from families import FAMILIES, family  # noqa: E402
from pool import Limits, Outcome, run_forked  # noqa: E402
from summary import markdown, print_summary  # noqa: E402
from worker import Job, prune_one  # noqa: E402
from zoo import Entry, filler, read_index  # noqa: E402

SCOPES = ("local", "global", "isomorphic", "heads")


@dataclass
class Row:
    """One line of the CSV.

    Units
        seconds: CPU seconds of `prunepass.prune` alone. total_seconds: CPU seconds of the worker, with filling the
        weights and the harness's own checks. peak_mb: largest resident memory seen. params, body: see `counting.Count`.
    """

    file: str
    name: str
    source: str
    family: str
    status: str = ""
    reason: str = ""
    params_before: int | None = None
    params_after: int | None = None
    params_kept: float | None = None
    body_before: int | None = None
    body_after: int | None = None
    body_kept: float | None = None
    macs_before: float | None = None
    macs_after: float | None = None
    macs_kept: float | None = None
    max_rel: float | None = None
    certificate: str = ""
    seconds: float | None = None
    total_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_mb: int = 0
    stage: str = ""
    nodes_before: int = 0
    nodes_after: int | None = None
    opset: int = 0
    exporter: str = ""
    variant: str = ""
    sens: float = 0.0


def finish(entry: Entry, outcome: Outcome) -> tuple[Row, str]:
    """Join the index, what the worker said and how it ended into a row; the second part is a traceback or ""."""
    value = dict(outcome.value or {})
    trace = str(value.pop("trace", ""))
    if outcome.ended != "done":
        status = "traceback" if outcome.ended == "crash" else outcome.ended
        last = outcome.detail.strip().splitlines()[-1] if outcome.detail else f"killed after {outcome.wall_s:.0f} s"
        value |= {"status": status, "reason": f"{last} (while: {outcome.stage})"}
        trace = outcome.detail
    row = Row(
        entry.file, entry.name, entry.source, family(entry), opset=entry.opset, exporter=entry.exporter,
        variant=entry.variant, sens=entry.sens, stage=outcome.stage, total_seconds=round(outcome.cpu_s, 3),
        wall_seconds=round(outcome.wall_s, 3), peak_mb=outcome.peak_bytes >> 20,
    )  # fmt: skip
    for key, item in value.items():
        setattr(row, key, item)
    for kind in ("params", "body", "macs"):
        before, after = getattr(row, f"{kind}_before"), getattr(row, f"{kind}_after")
        if before and after is not None:
            setattr(row, f"{kind}_kept", round(after / before, 5))
    return row, trace


def select(entries: Sequence[Entry], args: argparse.Namespace) -> list[Entry]:
    """Choose the graphs that the options name, small ones first, and take an even sample of them."""
    chosen = sorted(entries, key=lambda e: (e.params + 20_000 * e.nodes, e.file))
    if args.only:
        chosen = [e for e in chosen if any(fnmatch.fnmatch(e.file, f"*{glob}*") for glob in args.only)]
    if args.family:
        chosen = [e for e in chosen if family(e) in args.family]
    if args.max_params:
        chosen = [e for e in chosen if e.params <= args.max_params]
    if args.again:
        with args.again.open(newline="") as f:
            good = {line["file"] for line in csv.DictReader(f) if line["status"] == "certified"}
        chosen = [e for e in chosen if e.file not in good]
    if args.sample and args.sample < len(chosen):
        chosen = [chosen[i * len(chosen) // args.sample] for i in range(args.sample)]
    return chosen


def run(entries: Sequence[Entry], args: argparse.Namespace, out: TextIO | None, traces: TextIO | None) -> Iterator[Row]:
    """Prune the chosen graphs and yield their rows as they are done, writing each at once."""
    options = {"align": args.align, "scope": args.scope}
    options |= {"macs": args.macs} if args.macs is not None else {"ratio": args.ratio}
    options |= {"recover": True} if args.recover else {}
    jobs = [Job(args.zoo, e.file, options) for e in entries]
    writer = csv.DictWriter(out, [f.name for f in fields(Row)], lineterminator="\n") if out else None
    if writer:
        writer.writeheader()
    for outcome in run_forked(prune_one, jobs, args.jobs, Limits(args.timeout, int(args.memory_gb * 2**30))):
        row, trace = finish(entries[outcome.index], outcome)
        if writer and out:
            writer.writerow(asdict(row))
            out.flush()
        if traces and trace:
            traces.write(f"==== {row.file}: {row.reason}\n{trace}\n")
            traces.flush()
        yield row


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Read the rows of earlier runs; of a graph that several have, the last row counts."""
    types = {f.name: str(f.type) for f in fields(Row)}
    rows: dict[str, Row] = {}
    for path in paths:
        with path.open(newline="") as f:
            for line in csv.DictReader(f):
                cells: dict[str, Any] = {k: _cell(text, types[k]) for k, text in line.items()}
                rows[line["file"]] = Row(**cells)
    return list(rows.values())


def _cell(text: str, kind: str) -> str | int | float | None:
    if kind == "str":
        return text
    if not text:
        return None
    return int(text) if kind.startswith("int") else float(text)


def progress(done: Sequence[Row], total: int, start: float) -> None:
    """Keep one line on the standard error up to date (a line per 50 graphs when it is not a terminal)."""
    certified = sum(r.status == "certified" for r in done)
    row = done[-1]
    text = f"[{len(done)}/{total}] {certified} certified, {time.monotonic() - start:.0f} s, {row.status}: {row.file}"
    if sys.stderr.isatty():
        print(f"\r{text[:118]:<118}", end="" if len(done) < total else "\n", file=sys.stderr, flush=True)
    elif len(done) % 50 == 0 or len(done) == total:
        print(text, file=sys.stderr, flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = functools.partial(parser.add_argument)
    add("zoo", nargs="?", type=Path, default=Path("../shared/zoo"), help="folder with index.tsv and weightless.py")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--ratio", type=float, default=0.5, help="fraction of the channels to remove (default 0.5)")
    target.add_argument("--macs", type=float, help="fraction of the MACs that may remain, instead of --ratio")
    add(
        "--scope",
        choices=SCOPES,
        default="local",
        help="which channels compete (default local: those of a group)",
    )
    parser.add_argument(
        "--recover", action="store_true", help="refit weights to the inputs, as prunepass does by default"
    )
    add("--align", type=int, default=1, help="kept channels per tensor are a multiple of this (default 1)")
    add("--jobs", type=int, default=2, help="graphs at the same time (default 2)")
    add("--timeout", type=float, default=120.0, help="wall-clock seconds per graph (default 120)")
    add("--memory-gb", type=float, default=6.0, help="resident memory per graph (default 6)")
    add("--sample", type=int, help="only N graphs, evenly spaced over the chosen ones in order of size")
    add("--only", action="append", metavar="GLOB", help="only files that match (may be repeated)")
    add("--family", action="append", choices=FAMILIES, help="only this family (may be repeated)")
    add("--max-params", type=int, help="only graphs with at most so many parameters")
    add("--again", type=Path, metavar="CSV", help="only graphs that an earlier run did not certify")
    add("--csv", type=Path, help="write a line per graph here")
    add(
        "--show", type=Path, nargs="+", metavar="CSV", help="only print the tables of earlier runs, the last row counts"
    )
    add("--markdown", action="store_true", help="print the table per family for README.md (.ci/refresh-readme does)")
    add("--traces", type=Path, metavar="FILE", help="write full tracebacks here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit with 1 when a result was wrong or a traceback escaped."""
    args = parse(argv)
    if args.show:
        rows = read_rows(args.show)
        if args.markdown:
            print(markdown(rows), end="")
            return 0
        print_summary(rows, len(rows), sum(r.wall_seconds for r in rows) / args.jobs, args.macs)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill ends the workers and prints what there is
    entries = select(read_index(args.zoo), args)
    import_prunepass()
    filler(args.zoo)
    done: list[Row] = []
    start = time.monotonic()
    with contextlib.ExitStack() as files:
        out, traces = (files.enter_context(p.open("w", newline="")) if p else None for p in (args.csv, args.traces))
        with contextlib.suppress(KeyboardInterrupt):
            for row in run(entries, args, out, traces):
                done.append(row)
                progress(done, len(entries), start)
    print_summary(done, len(entries), time.monotonic() - start, args.macs)
    return int(any(r.status in ("invalid", "mismatch", "traceback") for r in done))


if __name__ == "__main__":
    sys.exit(main())
