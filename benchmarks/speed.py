"""Measure CPU seconds of prunepass, Torch-Pruning and onnxsim side by side, in one run.

python benchmarks/speed.py ../shared/zoo --peer-python PATH/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE),) if p not in sys.path]

from contenders import CONTENDERS, THREADS  # noqa: E402
from summary import print_table  # noqa: E402
from zoo import filler  # noqa: E402

# The exports next to what torchvision builds: one file per network, BatchNorm as the exporter leaves it by default.
FILES = {
    "resnet50": "torchvision/resnet50__dy18.onnx.gz",
    "densenet121": "torchvision/densenet121__dy20.onnx.gz",
    "mobilenet_v2": "torchvision/mobilenet_v2__ts16-b4.onnx.gz",
    "vit_b_16": "torchvision/vit_b_16__dy18.onnx.gz",
}
OURS = ("prunepass", "prunepass --no-verify", "prunepass in memory", "prunepass analysis")
PEERS = ("torch-pruning", "torch-pruning, 224 px", "torch-pruning, files", "onnxsim", "onnxsim C++")
# What does the same amount of work: in memory and unchecked, or from file to file.
ALIKE = {
    "prunepass in memory": ("torch-pruning", "torch-pruning, 224 px"),
    "prunepass --no-verify": ("torch-pruning, files", "onnxsim", "onnxsim C++"),
}


@dataclass(frozen=True)
class Network:
    """A network as an ONNX file with weights, and the shape of its input."""

    name: str
    file: Path
    shape: tuple[int, ...]


def fill(zoo: Path, name: str, file: str, folder: Path) -> Network:
    """Write one graph of the zoo with its weights filled in."""
    import onnx

    weightless = filler(zoo)
    model = weightless.load(str(zoo / file))
    shape = next(iter(weightless.make_inputs(model).values())).shape
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return Network(name, path, tuple(shape))


def measure(contender: str, python: str, network: Network, ratio: float, best_of: int) -> dict[str, Any]:
    """Run one contender in fresh processes and keep its fastest run."""
    shape = ",".join(map(str, network.shape))
    out = network.file.with_suffix(".out.onnx")
    command = [python, "-W", "ignore", str(HERE / "contenders.py"), contender, network.name]
    command += [str(network.file), str(out), shape, str(ratio)]
    threads = dict.fromkeys(THREADS, "1")
    runs = []
    for _ in range(best_of):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads, check=False)
        if done.returncode:
            return {"missing": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1][:80]}
        answer = json.loads(done.stdout.splitlines()[-1])
        if "missing" in answer:
            return dict(answer)
        runs.append(answer | {"total": sum(answer["seconds"].values())})
    return min(runs, key=lambda run: float(run["total"]))


def print_results(network: Network, results: dict[str, dict[str, Any]]) -> None:
    """Print one table: each contender and its stages."""
    rows = [("", "CPU s", "process CPU s", "params kept", "stages")]
    for contender, found in results.items():
        if "missing" in found:
            rows.append((contender, found["missing"], "", "", ""))
            continue
        stages = ", ".join(f"{name} {seconds:.3f}" for name, seconds in found["seconds"].items())
        stages = found.get("note", stages)
        kept = f"{found['kept']:.3f}" if "kept" in found else ""
        rows.append((contender, f"{found['total']:.3f}", f"{found['process']:.2f}", kept, stages))
    print(f"\n{network.name}, input {'x'.join(map(str, network.shape))}")
    print_table(rows)


def print_verdict(all_results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print the ratios ours / theirs for all networks in one table: like for like, then with the certificate."""
    rows = [("CPU seconds, ours / theirs", *all_results)]
    pairs = [(ours, peer) for ours, peers in ALIKE.items() for peer in peers]
    for ours, peer in [*pairs, *(("prunepass", peer) for peer in PEERS)]:
        cells = [_ratio(results[ours], results[peer]) for results in all_results.values()]
        rows.append((f"{ours} / {peer}", *cells))
    analysis = [results["prunepass analysis"] for results in all_results.values()]
    rows.append(("analysis, CPU s", *(f"{a['total']:.3f}" if "total" in a else "-" for a in analysis)))
    print()
    print_table(rows)


def _ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    return f"{ours['total'] / theirs['total']:.2f}" if "total" in ours and "total" in theirs else "-"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("zoo", nargs="?", type=Path, default=Path("../shared/zoo"), help="folder with weightless.py")
    add("--peer-python", default=sys.executable, help="interpreter with torch-pruning and onnxsim (default: this one)")
    add("--ratio", type=float, default=0.5, help="fraction of the channels to remove (default 0.5)")
    add("--best-of", type=int, default=3, help="processes per measurement, the fastest counts (default 3)")
    add("--only", action="append", choices=tuple(FILES), help="only this network (may be repeated)")
    add("--file", action="append", default=[], metavar="NAME=ZOO/FILE", help="another export of one of the networks")
    add("--json", type=Path, help="write every number here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every network with every contender and print the tables; no timing makes this fail."""
    args = parse(argv)
    files = FILES | dict(pair.split("=", 1) for pair in args.file)
    everything: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only or FILES:
            network = fill(args.zoo, name, files[name], Path(folder))
            results = {}
            for contender in CONTENDERS:
                python = sys.executable if contender in OURS else args.peer_python
                results[contender] = measure(contender, python, network, args.ratio, args.best_of)
            everything[name] = results
            print_results(network, results)
            for file in Path(folder).iterdir():
                file.unlink()
    print_verdict(everything)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
