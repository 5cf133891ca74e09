"""Prune real pretrained networks and give them their quality back, on data that calibration never sees.

python benchmarks/recovery.py ../shared/models

One row per network and amount, one column per way to recover; every result is certified. Calibration uses unlabelled
inputs only, see `calibration.py`; CIFAR is measured on its 4,000 test images. NETWORK@int8 is quantised before, by
onnxruntime, to integers of 8 bits with a scale for each channel.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

import calibration  # noqa: E402
from zoo import load_module  # noqa: E402

CASES = [
    ("resnet56_cifar10", "ratio=0.2", 512),
    ("resnet56_cifar10", "macs=0.5", 512),
    ("resnet56_cifar10", "macs=0.33", 512),
    ("resnet56_cifar10_bn", "macs=0.5", 512),
    ("resnet56_cifar10@int8", "macs=0.5", 512),
    ("mobilenet_v2_imagenet", "macs=0.7", 250),
    ("efficientnet_lite0_imagenet", "macs=0.7", 250),
    ("ppocrv4_rec", "macs=0.75", 100),
    ("magika_v3_3", "params=0.6", 299),
    ("silero_vad_16k", "params=0.6", 400),
    ("nsnet2_16k", "params=0.6", 20),
]
L2, OBS = "criterion=l2 scope=local", "criterion=obs scope=local"
ALLOCATED = "criterion=obs allocate=error"
WAYS = {
    "prune only": (L2, ""),
    "+ BatchNorm": (L2, "recalibrate-batchnorm,"),
    "+ grail": (L2, "compensate{method=grail},"),
    "+ sequential LS": (L2, "compensate,"),
    "obs, LS": (OBS, "compensate,"),
    "+ allocation": (ALLOCATED, "compensate,"),
}


def source_of(models: Path, name: str, folder: Path) -> tuple[str, Path]:
    """Return a network and its file; a quantised one is made in the folder where it is not there yet."""
    network, _, kind = name.partition("@")
    source, target = models / f"{network}.onnx", folder / f"{name}.onnx"
    if not kind:
        return network, source
    if not target.exists():
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

        quality = load_module(models / "quality.py")
        feeds = calibration.feeds_for(quality, network, quality.session(str(source)), 128)

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> Any:
                return next(feeds, None)

        int8 = QuantType.QInt8
        quantize_static(source, target, Reader(), per_channel=True, activation_type=int8, weight_type=int8)
    return network, target


def run(models: Path, name: str, folder: Path, amount: str, samples: int, way: str, queue: Any) -> None:
    """Run one cell in a process of its own, and put what it gave into the queue."""
    from prunepass.job import Job
    from prunepass.manager import Pipeline
    from prunepass.recovery.batches import from_dicts

    quality = load_module(models / "quality.py")
    network, source = source_of(models, name, folder)
    job = Job.open(source, (), None, None, 0, None)
    feeds = calibration.feeds_for(quality, network, quality.session(str(source)), samples)
    job.context.calibration = from_dicts(feeds, job.facts.graph)
    choice, recovery = WAYS[way]
    start, wall = time.process_time(), time.perf_counter()
    pipeline = f"canonicalize,select{{{amount} align=1 {choice}}},slice-channels,{recovery}clean"
    Pipeline.parse(pipeline).run_on(job.facts)
    result = job.finish(True, {})
    spent, passed = time.process_time() - start, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, after = result.report["before"], result.report["after"]
    queue.put(
        {
            "quality": calibration.measured(quality, network, result.model.SerializeToString()),
            "macs": after["macs"] / before["macs"],
            "params": after["params"] / before["params"],
            "seconds": spent,
            "wall": passed,
            "mb": peak,
            "certificate": result.report["certificate"]["status"],
        }
    )


def cell(*arguments: Any) -> dict[str, Any]:
    """Run one cell; a cell that breaks says so."""
    queue: Any = multiprocessing.Queue()
    process = multiprocessing.Process(target=run, args=(*arguments, queue))
    process.start()
    while process.is_alive() and queue.empty():
        process.join(0.2)
    found: dict[str, Any] = queue.get() if not queue.empty() or process.exitcode == 0 else {"certificate": "broke"}
    process.join()
    return found


def main() -> None:
    """Fill the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="?", default=Path("../shared/models"))
    parser.add_argument("--only", metavar="GLOB", default="*", help="only networks that match")
    parser.add_argument("--ways", metavar="NAME", nargs="*", default=list(WAYS), help=f"of {', '.join(WAYS)}")
    args = parser.parse_args()
    quality = load_module(args.models / "quality.py")
    widths = [max(len(way), 9) for way in args.ways]
    ways = "  ".join(f"{way:>{w}}" for way, w in zip(args.ways, widths))
    tail = f"{'MACs':>6s} {'params':>6s} {'CPU s':>6s} {'wall s':>6s} {'MB':>6s}  certified"
    print(f"{'network':28s} {'amount':>10s} {'dense':>7s}  {ways}  {tail}")
    made = tempfile.TemporaryDirectory()
    folder = Path(made.name)
    for name, amount, samples in CASES:
        if not fnmatch.fnmatch(name, args.only):
            continue
        network, source = source_of(args.models, name, folder)
        dense = calibration.measured(quality, network, str(source))
        print(f"{name:28s} {amount:>10s} {dense:7.4f}  ", end="", flush=True)
        found: dict[str, Any] = {}
        certified = 0
        for way, width in zip(args.ways, widths):
            found = cell(args.models, name, folder, amount, samples, way)
            certified += found["certificate"] == "passed"
            print(f"{found.get('quality', float('nan')):>{width}.4f}  ", end="", flush=True)
        last = [found.get(key, float("nan")) for key in ("macs", "params", "seconds", "wall", "mb")]
        print("{:6.3f} {:6.3f} {:6.1f} {:6.1f} {:6.0f}".format(*last), f" {certified}/{len(args.ways)}", flush=True)


if __name__ == "__main__":
    main()
