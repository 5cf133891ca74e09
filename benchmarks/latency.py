"""Measure what a latency budget gives: pruned and original in turn, in one process, after the job is done.

python benchmarks/latency.py ../shared/zoo ../shared/models --latency 0.6 --align 8
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

from summary import print_table  # noqa: E402
from zoo import filler  # noqa: E402

NETWORKS = {
    "ResNet-50, 224 px": "zoo:onnx_light/light_resnet50__orig.onnx.gz",
    "MobileNetV2, 224 px": "models:mobilenet_v2_imagenet.onnx",
    "ResNet-56, 32 px": "models:resnet56_cifar10.onnx",
    "ViT-B/16, 224 px": "zoo:torchvision/vit_b_16__dy18.onnx.gz",
}
LOW, HIGH = 0.5, 0.63
"""Measured ratios that a budget of 0.6 should end between."""
HEADER = ("network", "MACs left", "time left", "least CPU", "realised", "align", "ms before", "ms after", "job s", "")


@dataclass(frozen=True)
class Setting:
    """How both models are run.

    Units
        rounds: runs of each, in turn.
    """

    threads: int
    batch: int
    rounds: int

    def start(self, path: Path) -> Any:
        """Start a session with all optimisations."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds_of(session: Any, batch: int) -> dict[str, Any]:
    """Draw inputs; a free axis gets 1, the first one the batch."""
    import numpy as np

    rng = np.random.default_rng(0)
    found = {}
    for info in session.get_inputs():
        shape = [n if isinstance(n, int) else batch if i == 0 else 1 for i, n in enumerate(info.shape)]
        found[info.name] = rng.standard_normal(shape, np.float32)
    return found


def compare(before: Path, after: Path, setting: Setting) -> tuple[list[float], list[float]]:
    """Run two models in turn and return the seconds of each run, on the clock that fits."""
    clock: Callable[[], float] = time.thread_time if setting.threads == 1 else time.perf_counter
    sessions = [setting.start(before), setting.start(after)]
    feeds = feeds_of(sessions[0], setting.batch)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(setting.rounds + 2):
        for session, own in zip(sessions, times):
            start = clock()
            session.run(None, feeds)
            if number >= 2:
                own.append(clock() - start)
    return times


def prune(path: Path, out: Path, args: argparse.Namespace, cache: Path) -> tuple[dict[str, Any], float]:
    """Prune one file by the command line; return its report and the seconds that it took."""
    report = out.with_suffix(".json")
    command = [sys.executable, "-m", "prunepass", str(path), "-o", str(out), "--report", str(report), "-q"]
    command += ["--latency", str(args.latency), "--align", str(args.align), "--threads", str(args.threads)]
    command += ["--batch", str(args.batch), "--cache", str(cache)]
    start = time.monotonic()
    subprocess.run(command, check=True)
    return json.loads(report.read_text()), time.monotonic() - start


def row(name: str, path: Path, args: argparse.Namespace, folder: Path) -> tuple[str, ...]:
    """Prune one network, measure it, and return its line of the table."""
    out = folder / f"{path.stem}.pruned.onnx"
    report, seconds = prune(path, out, args, folder / "cache")
    before, after = compare(path, out, Setting(args.threads, args.batch, args.rounds))
    macs = report["after"]["macs"] / report["before"]["macs"]
    ratio = statistics.median(after) / statistics.median(before)
    realised = (1 - ratio) / (1 - macs) if macs < 1 else 1.0
    verdict = "" if args.latency != 0.6 else "as promised" if LOW <= ratio <= HIGH else "off"
    numbers = (f"{macs:.3f}", f"{ratio:.3f}", f"{min(after) / min(before):.3f}", f"{realised:.2f}")
    times = (f"{1e3 * statistics.median(before):.2f}", f"{1e3 * statistics.median(after):.2f}", f"{seconds:.0f}")
    why = "; ".join(report["latency"]["reasons"])
    return (name, *numbers, str(report["latency"]["align"]), *times, ": ".join(filter(None, (verdict, why))))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit with 1 when a ratio is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("zoo", nargs="?", type=Path, default=Path("../shared/zoo"), help="folder with weightless.py")
    add("models", nargs="?", type=Path, default=Path("../shared/models"), help="folder with the real models")
    add("--latency", type=float, default=0.6, help="share of the time that may stay (default 0.6)")
    add("--align", type=int, default=8, help="kept channels are a multiple of this (default 8)")
    add("--threads", type=int, default=1)
    add("--batch", type=int, default=1)
    add("--rounds", type=int, default=60, help="runs of each model, in turn (default 60)")
    add("--only", help="only networks whose name holds this")
    args = parser.parse_args(argv)
    rows = [HEADER]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network, place in NETWORKS.items():
            if args.only and args.only.lower() not in network.lower():
                continue
            kind, _, file = place.partition(":")
            path = args.models / file if kind == "models" else filled(args.zoo, file, folder)
            rows.append(row(network, path, args, folder))
            print(*rows[-1], file=sys.stderr, flush=True)
    print_table(rows)
    return int(any(line[-1].startswith("off") for line in rows))


def filled(zoo: Path, file: str, folder: Path) -> Path:
    """Write one graph of the zoo with its weights filled in."""
    import onnx

    path = folder / Path(file).name.removesuffix(".gz")
    onnx.save(filler(zoo).load(str(zoo / file)), path)
    return path


if __name__ == "__main__":
    sys.exit(main())
