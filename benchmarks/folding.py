"""Fold real networks: with 30% of the filters zeroed at random, and as they are.

python benchmarks/folding.py ../shared/models

The first table zeroes filters (weights; weights and biases; BatchNormalization too), folds, compares the outputs of 8
random inputs, and compares every width with what `fixtures/widths.py` works out. The second lists what can be folded in
the networks as they were published.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

import prunepass  # noqa: E402
from fixtures.widths import Widths  # noqa: E402
from prunepass.feeds import random_inputs  # noqa: E402
from prunepass.manager import Context, Facts, Pipeline  # noqa: E402
from prunepass.runtime import session  # noqa: E402

ZEROED = ("resnet56_cifar10", "resnet56_cifar10_bn", "mobilenet_v2_imagenet", "efficientnet_lite0_imagenet")
WAYS = ("weights", "weights and biases", "norms too")
FOLD = "canonicalize,fold-zero-filters,clean"
RUNS = 8


def zero(model: onnx.ModelProto, way: str, share: float, seed: int) -> int:
    """Put zeros into a share of the filters of every Conv; return how many."""
    rng, count = np.random.default_rng(seed), 0
    tensors = {t.name: t for t in model.graph.initializer}
    readers = {node.input[0]: node for node in model.graph.node if node.op_type == "BatchNormalization"}

    def put(name: str, chosen: np.ndarray) -> None:
        array = numpy_helper.to_array(tensors[name]).copy()
        array[chosen] = 0
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    for node in model.graph.node:
        if node.op_type == "Conv":
            chosen = rng.random(tensors[node.input[1]].dims[0]) < share
            count += int(chosen.sum())
            put(node.input[1], chosen)
            if way != "weights" and len(node.input) > 2:
                put(node.input[2], chosen)
            norm = readers.get(node.output[0])
            if way == "norms too" and norm is not None:
                for name in norm.input[1:3]:
                    put(name, chosen)
    return count


def fold(model: onnx.ModelProto, text: str = FOLD) -> Facts:
    """Run the passes on a model, without the certificate."""
    return Pipeline.parse(text).run(prunepass.load(model), Context())


def difference(facts: Facts, runs: int = RUNS) -> float:
    """Return the largest difference of any output of several runs, relative to the largest value of that output."""
    known = Facts(facts.source, facts.context).get("shapes").shape
    given = {name: known[name] for name in facts.source.input_names}
    before, after = session(facts.source, optimise="off"), session(facts.graph)
    worst = 0.0
    for seed in range(runs):
        feeds = random_inputs(facts.source, given, seed)
        found = after.run(feeds)
        for name, y in before.run(feeds).items():
            if isinstance(y, np.ndarray) and y.dtype.kind == "f" and y.size:
                worst = max(worst, float(np.abs(y - found[name]).max() / max(1e-9, np.abs(y).max())))
    return worst


def size(graph: Any) -> tuple[int, int, int]:
    """Return parameters, MACs and bytes."""
    facts = Facts(graph, Context())
    cost = facts.get("cost").total
    return cost.params, cost.macs, cost.bytes


def folded_units(facts: Facts) -> int:
    """Count the units that went."""
    return sum(int(cut.plan.removed.sum()) for cut in facts.cuts)


def table_of_zeros(folder: Path, share: float) -> None:
    """Zero, fold and compare."""
    print(f"| network, {share:.0%} of the filters zeroed | zeroed | units gone | widths as expected | params | MACs |"
          " difference | again | s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name in ZEROED:
        for way in WAYS:
            model = fold(onnx.load(folder / f"{name}.onnx"), "canonicalize").graph.to_proto()
            if way == "norms too" and not any(n.op_type == "BatchNormalization" for n in model.graph.node):
                continue
            zeros = zero(model, way, share, 1)
            before = size(prunepass.load(model))
            start = time.process_time()
            facts = fold(model)
            seconds = time.process_time() - start
            after = size(facts.graph)
            wanted = Widths(model).expected()
            made = {n.inputs[1]: facts.graph.consts.shape(n.inputs[1]) for n in facts.graph.nodes if n.op == "Conv"}
            right = sum(shape[0] == wanted[weight] for weight, shape in made.items())
            again = fold(facts.graph.to_proto()).cuts
            print(
                f"| {name}, {way} | {zeros} | {folded_units(facts)} | {right} of {len(made)} | "
                f"{after[0] / before[0]:.3f} | {after[1] / before[1]:.3f} | {difference(facts):.1e} | "
                f"{len(again)} | {seconds:.2f} |",
                flush=True,
            )


def table_as_they_are(folder: Path) -> None:
    """List what the published networks have to fold."""
    print("\n| network | constant or dead channels | where | bytes | MACs | difference |\n|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        before = fold(model, "canonicalize,clean")
        facts = fold(model)
        a, b = size(before.graph), size(facts.graph)
        places: dict[str, int] = {}
        for cut in facts.cuts:
            for group in cut.plan.groups:
                if group.removed:
                    places[group.name] = places.get(group.name, 0) + group.removed
        where = ", ".join(f"{n[-40:]} {k}" for n, k in sorted(places.items(), key=lambda p: -p[1])[:4])
        print(
            f"| {path.stem} | {folded_units(facts)} | {where} | {a[2]} -> {b[2]} ({b[2] / a[2] - 1:+.2%}) | "
            f"{a[1]} -> {b[1]} ({b[1] / max(1, a[1]) - 1:+.2%}) | {difference(facts) if facts.cuts else 0:.1e} |",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="?", type=Path, default=Path("../shared/models"), help="folder with .onnx files"
    )
    parser.add_argument("--share", type=float, default=0.3, help="share of the filters to zero (default 0.3)")
    args = parser.parse_args(argv)
    table_of_zeros(args.models, args.share)
    table_as_they_are(args.models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
