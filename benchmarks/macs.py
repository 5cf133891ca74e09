"""Compare the MACs of the cost model with two counters that run the network in torch.

python benchmarks/macs.py ../shared/zoo --peer-python PATH/bin/python

The peers: `torch.utils.flop_counter` (every matrix product and convolution that torch dispatches, divided by two) and
Torch-Pruning's counter of layers. Ours reads the ONNX file of the zoo, at the same input size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE),) if p not in sys.path]

from architectures import ARCHITECTURES, Architecture  # noqa: E402
from summary import print_table  # noqa: E402
from zoo import filler  # noqa: E402

NEAR = 0.01
"""Relative difference that counts as equal."""
VARYING = {
    "rcnn": "how many regions there are depends on the weights",
    "raft": "the file leaves out upsampling that nobody reads",
}
"""Networks whose counts need not be equal."""


def ours(zoo: Path, architecture: Architecture) -> tuple[int, list[list[int]]]:
    """Return MACs and input shapes of one graph."""
    from prunepass.job import Job

    weightless = filler(zoo)
    model = weightless.load(str(zoo / "torchvision" / f"{architecture.file}.onnx.gz"))
    shapes = {name: array.shape for name, array in weightless.make_inputs(model).items()}
    return Job.open(model, (), shapes, None, 0, None).before()["macs"], [list(shape) for shape in shapes.values()]


def theirs(network: str, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Count one torchvision network; runs under the interpreter that has torch."""
    import torch
    from networks import build
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    made = build(network, tuple(shapes[0]))
    made.model.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made.run()  # the fused attention of the CPU is an operator that the counter does not know
    found: dict[str, Any] = {"torch": counter.get_total_flops() // 2}
    try:
        import torch_pruning

        found["torch-pruning"] = int(torch_pruning.utils.count_ops_and_params(made.model, made.inputs[0])[0])
    except Exception as error:  # noqa: BLE001  its hooks do not know every network
        found["why"] = f"{type(error).__name__}: {error}"[:80]
    return found


def ask(python: str, network: str, shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Count one network in a process of its own."""
    command = [python, "-W", "ignore", str(Path(__file__).resolve()), "--count", network, json.dumps(shapes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"why": (done.stderr.strip().splitlines() or ["no message"])[-1][:80]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit with 1 when a count differs from that of torch by more than 1%."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("zoo", nargs="?", type=Path, default=Path("../shared/zoo"), help="folder with weightless.py")
    add("--peer-python", default=sys.executable, help="interpreter with torch and torchvision (default: this one)")
    add("--only", help="only networks whose name holds this")
    add("--count", nargs=2, metavar=("NETWORK", "SHAPES"), help="count one network with torch and print JSON")
    args = parser.parse_args(argv)
    if args.count:
        print(json.dumps(theirs(args.count[0], json.loads(args.count[1]))))
        return 0
    rows: list[tuple[str, ...]] = [("network", "input", "ours, M", "torch, M", "ours/torch", "torch-pruning, M", "")]
    off = 0
    for architecture in ARCHITECTURES:
        if not architecture.file or (args.only and args.only not in architecture.network):
            continue
        macs, shapes = ours(args.zoo, architecture)
        peer = ask(args.peer_python, architecture.network, shapes)
        ratio = macs / peer["torch"] if peer.get("torch") else None
        why = next((reason for part, reason in VARYING.items() if part in architecture.network), "")
        off += ratio is not None and abs(ratio - 1) > NEAR and not why
        rows.append(
            (
                architecture.network,
                "x".join(map(str, shapes[0])),
                f"{macs / 1e6:,.1f}",
                f"{peer['torch'] / 1e6:,.1f}" if "torch" in peer else "-",
                f"{ratio:.4f}" if ratio is not None else "-",
                f"{peer['torch-pruning'] / 1e6:,.1f}" if "torch-pruning" in peer else "-",
                why or peer.get("why", ""),
            )
        )
        print(*rows[-1], file=sys.stderr, flush=True)
    print_table(rows)
    return int(off > 0)


if __name__ == "__main__":
    sys.exit(main())
