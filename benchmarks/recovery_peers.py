"""Prune ResNet-56 (CIFAR-10) to the same MACs with prunepass, Torch-Pruning and onnxsim, and measure what is left.

python benchmarks/recovery_peers.py ../shared/models --peer-python PATH/bin/python

prunepass recovers from unlabelled training images. For every tool alike, MACs are counted on the ONNX files by
prunepass's cost model, and accuracy is that on the 4,000 test images in onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

import calibration  # noqa: E402
from contenders import THREADS, import_prunepass  # noqa: E402 - sets one thread
from summary import print_table  # noqa: E402
from zoo import load_module  # noqa: E402

NETWORK = "resnet56_cifar10"
PEERS = ("torch-pruning", "onnxsim")
PIPELINE = "canonicalize,select{{macs={:g} align=1 criterion=obs allocate=error}},slice-channels,compensate,clean"
LEAD = 0.2
"""By how much prunepass must be ahead of the best row of a peer that is its own, and asks for no labels."""


@dataclass
class Row:
    """One pruned network.

    Units
        uses: what is asked for beside the network. macs: share of the original. seconds: CPU seconds. extra: why the
        row is no answer of the tool itself, "" when it is one.
    """

    tool: str
    criterion: str
    uses: str
    macs: float
    accuracy: float
    seconds: float
    extra: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return what the table shows."""
        numbers = (f"{self.macs:.4f}", f"{self.accuracy:.4f}", f"{self.seconds:.1f}")
        return (self.tool, self.criterion, self.uses, *numbers, self.extra)


@dataclass
class Bench:
    """Measure ONNX files against the dense network."""

    models: Path
    samples: int

    def __post_init__(self) -> None:
        self.quality = load_module(self.models / "quality.py")
        self.source = str(self.models / f"{NETWORK}.onnx")
        self.whole = self._macs(self.source)

    def row(self, tool: str, file: str, found: dict[str, Any]) -> Row:
        """Measure one file."""
        macs, accuracy = self._macs(file) / self.whole, float(self.quality.measure(NETWORK, file))
        return Row(tool, found["criterion"], found["uses"], macs, accuracy, found["seconds"], found.get("extra", ""))

    def _macs(self, file: str) -> int:
        from prunepass.job import Job

        return Job.open(file, (), {"input": (1, 3, 32, 32)}, None, 0, None).before()["macs"]


def ours(bench: Bench, target: float, folder: Path) -> Iterator[Row]:
    """Yield the row of prunepass."""
    import_prunepass()
    from prunepass.job import Job
    from prunepass.manager import Pipeline
    from prunepass.recovery.batches import from_dicts

    job = Job.open(bench.source, (), None, None, 0, None)
    session = bench.quality.session(bench.source)
    feeds = list(calibration.feeds_for(bench.quality, NETWORK, session, bench.samples))
    start = time.process_time()
    job.context.calibration = from_dicts(feeds, job.facts.graph)
    Pipeline.parse(PIPELINE.format(target)).run_on(job.facts)
    result = job.finish(True, {})
    spent = time.process_time() - start
    result.save(folder / "ours.onnx")
    found = {"criterion": "obs, allocated by error, compensated", "uses": "images", "seconds": spent}
    yield bench.row("prunepass", str(folder / "ours.onnx"), found)


def theirs(bench: Bench, tool: str, folder: Path, args: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of one peer, which runs in a process of its own."""
    command = [
        args.peer_python,
        "-W",
        "ignore",
        str(HERE / "rivals.py"),
        tool,
        str(bench.models.resolve()),
        str(folder),
    ]
    command += [str(args.macs), str(bench.samples), *(["training"] if args.training else ())]
    env = os.environ | dict.fromkeys(THREADS, "1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        for line in process.stdout or ():
            found = json.loads(line) if line.startswith("{") else {}
            if "missing" in found:
                print(f"{tool}: {found['missing']}", file=sys.stderr)
            elif "version" in found:
                print(f"{tool} {found['version']}", file=sys.stderr)
            elif found:
                yield bench.row(tool, found["file"], found)
                Path(found["file"]).unlink()
    if process.returncode:
        print(f"{tool}: ended with {process.returncode}", file=sys.stderr)


def verdict(rows: Sequence[Row]) -> bool:
    """Print how far prunepass is ahead; return whether that is far enough, which it is not without any peer."""
    best = max((r for r in rows if r.tool == "prunepass"), key=lambda r: r.accuracy)
    leads = []
    print()
    for tool in PEERS:
        own = [r for r in rows if r.tool == tool and not r.extra]
        others = [r for r in rows if r.tool == tool and r.extra not in ("", "dense")]
        for kind, found in (("best", own), ("best with extras", others)):
            if found:
                row = max(found, key=lambda r: r.accuracy)
                lead = best.accuracy - row.accuracy
                print(f"{tool}, {kind}: {row.criterion}: {row.accuracy:.4f}; prunepass is {100 * lead:+.1f} points")
        leads += [best.accuracy - r.accuracy for r in own]
    return bool(leads) and min(leads) >= LEAD


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the table and print it; exit with 1 where prunepass is not far enough ahead of all peers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="?", type=Path, default=Path("../shared/models"), help="folder with quality.py")
    add("--peer-python", default=sys.executable, help="interpreter with torch-pruning and onnxsim (default: this one)")
    add("--macs", type=float, default=0.5, help="share of the MACs that remains (default 0.5)")
    add("--samples", type=int, default=512, help="unlabelled training images (default 512)")
    add("--tool", action="append", choices=PEERS, help="only this peer (may be repeated)")
    add("--training", action="store_true", help="let onnxsim also train block after block (minutes)")
    args = parser.parse_args(argv)
    bench = Bench(args.models, args.samples)
    rows = [bench.row("-", bench.source, {"criterion": "dense", "uses": "-", "seconds": 0.0, "extra": "dense"})]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [ours(bench, args.macs, folder)]
        sources += [theirs(bench, tool, folder, args) for tool in args.tool or PEERS]
        for source in sources:
            for row in source:
                rows.append(row)
                print(*row.cells(), file=sys.stderr, flush=True)
    print_table([("tool", "criterion", "uses", "MACs kept", "accuracy", "CPU s", ""), *(r.cells() for r in rows)])
    return int(not verdict(rows))


if __name__ == "__main__":
    sys.exit(main())
