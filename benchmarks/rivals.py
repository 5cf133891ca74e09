"""Prune ResNet-56 with Torch-Pruning or onnxsim in this process, to a share of its MACs; one line of JSON per result.

`recovery_peers.py` starts this file with the interpreter that has the tools. Widths are whole numbers: every tool gets
the ratio that leaves the fewest MACs not below the target. The seconds are those of the last pruning and of the repair,
in CPU time; the search for the ratio, gradients apart, and the export are not counted.

python benchmarks/rivals.py torch-pruning ../shared/models FOLDER 0.5 512
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from contenders import version  # sets the number of threads first

FOLDED, NORMALISED = "resnet56_cifar10", "resnet56_cifar10_bn"
STEPS = 9
"""Of the bisection for the ratio; half a channel of the widest layer is 1/128."""
BATCH = 64
TRAINED = "L2, local"
"""The choice of channels whose network onnxsim also trains; that takes minutes."""
TUNING = {"num_iterations": 300, "learning_rate": 1e-3, "batch_size": BATCH, "teacher_forced_inputs": False}
"""Of onnxsim's training of one block toward the dense network; each block sees the inputs that it will really get."""


class Folder:
    """Write models into a folder and tell about them, one line each."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0

    def tell(self, write: Callable[[str], None], criterion: str, uses: str, seconds: float, extra: str = "") -> None:
        """Write one model with `write`; extra: why it is no answer to the question, "" when it is one."""
        file = self.path / f"{self.number}.onnx"
        self.number += 1
        write(str(file))
        row = {"criterion": criterion, "uses": uses, "file": str(file), "seconds": seconds, "extra": extra}
        print(json.dumps(row), flush=True)


def closest(target: float, prune: Callable[[float], tuple[Any, float]]) -> tuple[Any, float]:
    """Bisect for the ratio with the fewest MACs not below the target; return what it gave, and its CPU seconds."""
    low, high, best = 0.0, 1.0, None
    for _ in range(STEPS):
        middle = (low + high) / 2
        start = time.process_time()
        made, macs = prune(middle)
        spent = time.process_time() - start
        if macs < target:
            high = middle
        else:
            low, best = middle, (made, spent)
    if best is None:
        raise ValueError("no ratio leaves enough MACs")
    return best


def images(models: Path, samples: int) -> tuple[Any, Any]:
    """Return the first training images as the network takes them, and their labels."""
    np = importlib.import_module("numpy")
    with np.load(models / "data" / "cifar10.npz") as data:
        x, y = data["xtr"][:samples], data["ytr"][:samples]
    return (x.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32), y


def run_torch_pruning(models: Path, folder: Folder, target: float, samples: int, training: bool) -> None:
    """Every criterion, global and local, over all groups and only inside the blocks; with BatchNorm folded and kept."""
    torch, resnet = importlib.import_module("torch"), importlib.import_module("resnet56")
    torch.set_num_threads(1)
    x, y = (torch.from_numpy(a) for a in images(models, samples))
    for name in (FOLDED, NORMALISED):
        normalised = name == NORMALISED
        note = ", BatchNorm kept" if normalised else ""
        dense = resnet.load(models / f"{name}.onnx", normalised)
        folder.tell(partial(resnet.export, dense), f"dense, rebuilt in torch{note}", "-", 0.0, "dense")
        for criterion, labels, make in importances(normalised):
            start = time.process_time()
            if labels:
                resnet.gradients(dense, x, y, BATCH)
            scoring = time.process_time() - start
            for scope, inside in product(("global", "local"), (False, True)):
                network, spent = closest(target, partial(shrink, dense, make, scope, inside))
                where = "inside the blocks" if inside else "all groups"
                what, extra = f"{criterion}, {scope}, {where}{note}", "labels" if labels else ""
                spent += scoring
                folder.tell(partial(resnet.export, network), what, extra or "-", spent, extra)
                if normalised:
                    start = time.process_time()
                    resnet.reestimate(network, x, BATCH)
                    spent += time.process_time() - start
                    folder.tell(
                        partial(resnet.export, network), f"{what}, re-estimated", "images", spent, "not its own"
                    )


def importances(normalised: bool) -> list[tuple[str, bool, Callable[[], Any]]]:
    """Return the criteria of Torch-Pruning: name, whether it asks for gradients, and how it is made."""
    tp = importlib.import_module("torch_pruning").importance
    l2 = ("L2", False, lambda: tp.GroupMagnitudeImportance(p=2))
    if normalised:
        return [l2, ("BN scale", False, tp.BNScaleImportance)]
    return [
        ("L1", False, lambda: tp.GroupMagnitudeImportance(p=1)),
        l2,
        ("LAMP", False, tp.LAMPImportance),
        ("FPGM", False, tp.FPGMImportance),
        ("Taylor", True, tp.GroupTaylorImportance),
    ]


def shrink(dense: Any, make: Callable[[], Any], scope: str, inside: bool, ratio: float) -> tuple[Any, float]:
    """Prune a copy in one step; return it, and the share of the MACs that is left."""
    resnet, tp = importlib.import_module("resnet56"), importlib.import_module("torch_pruning")
    network = resnet.copied(dense)
    pruner = tp.pruner.BasePruner(
        network,
        resnet.example(),
        make(),
        pruning_ratio=ratio,
        global_pruning=scope == "global",
        ignored_layers=[network.linear, *(network.stream() if inside else ())],
    )
    pruner.step()
    return network, resnet.macs(network) / resnet.macs(dense)


def run_onnxsim(models: Path, folder: Folder, target: float, samples: int, training: bool) -> None:
    """Every criterion, global and local, as it is, and all but L1 with each repair; training only for the plainest."""
    onnx = importlib.import_module("onnx")
    dense = onnx.load(models / f"{FOLDED}.onnx")
    x, _ = images(models, samples)
    data = [{dense.graph.input[0].name: x[at : at + BATCH]} for at in range(0, samples, BATCH)]
    for criterion, uses, prune in selections():
        made, spent = closest(target, partial(narrow, dense, partial(prune, dense, data)))
        folder.tell(partial(onnx.save, made), criterion, uses, spent)
        for name, repair, extra in REPAIRS:
            if criterion.startswith("L1") or (extra and not (training and criterion == TRAINED)):
                continue
            start = time.process_time()
            repaired = repair(dense, made, data)
            more = time.process_time() - start
            folder.tell(partial(onnx.save, repaired), f"{criterion}, {name}", "images", spent + more, extra)


def narrow(dense: Any, prune: Callable[[float], Any], ratio: float) -> tuple[Any, float]:
    """Prune; return the model, and the share of the MACs that is left."""
    made = prune(ratio)
    return made, multiply_adds(made) / multiply_adds(dense)


def selections() -> Iterator[tuple[str, str, Callable[[Any, list[Any], float], Any]]]:
    """Yield the ways to choose channels: name, what it uses, and the function of model, images and ratio."""
    for scope, norm in product(("local", "global"), ("l2", "l1")):
        yield f"{norm.upper()}, {scope}", "-", partial(by_norm, norm, scope == "global")
    for scope in ("local", "global"):
        yield f"Wanda, {scope}", "images", partial(by_wanda, scope == "global")


def by_norm(norm: str, everywhere: bool, model: Any, data: list[Any], ratio: float) -> Any:
    """Keep the filters of the largest norm."""
    work = importlib.import_module("onnxsim.pruning").apply_structured_pruning
    return work(model, ratio, importance_norm=norm, global_sparsity=everywhere)


def by_wanda(everywhere: bool, model: Any, data: list[Any], ratio: float) -> Any:
    """Keep the filters of the largest norm times activation, on the first batch."""
    work = importlib.import_module("onnxsim.pruning").apply_structured_wanda_pruning
    return work(model, data[:1], sparsity=ratio, global_sparsity=everywhere)


def corrected(dense: Any, pruned: Any, data: list[Any]) -> Any:
    """Correct the mean of every layer that has all its outputs (`correct_bias`)."""
    return importlib.import_module("onnxsim.bias_correction").correct_bias(dense, pruned, data)


def renormalised(dense: Any, pruned: Any, data: list[Any]) -> Any:
    """Match mean and variance of every convolution that has all its outputs (`recover_batch_norm`)."""
    work = importlib.import_module("onnxsim.bn_recovery").recover_batch_norm
    width = {t.name: t.dims[0] for t in dense.graph.initializer if t.dims}
    now = {t.name: t.dims[0] for t in pruned.graph.initializer if t.dims}
    convs = [n for n in pruned.graph.node if n.op_type == "Conv" and now[n.input[1]] == width[n.input[1]]]
    return work(pruned, [n.output[0] for n in convs], calibration_data=data, target_model=dense)


def refitted(dense: Any, pruned: Any, data: list[Any]) -> Any:
    """Fit the matrix products by ridge regression (`apply_pruning_finetune`, which leaves convolutions alone)."""
    return importlib.import_module("onnxsim").apply_pruning_finetune(dense, pruned, data)


def trained(dense: Any, pruned: Any, data: list[Any]) -> Any:
    """Train the second convolution of block after block with Adam (`apply_block_finetune`).

    `apply_block_finetune_all_blocks` finds the blocks by itself, but refuses those that hold a pruned tensor.
    """
    work = importlib.import_module("onnxsim.qat").apply_block_finetune
    maker = {name: node for node in pruned.graph.node for name in node.output}
    for node in [n for n in pruned.graph.node if n.op_type == "Add"]:
        entry = maker[node.input[0]].input[0]
        pruned = work(dense, pruned, entry, node.output[0], calibration_data=data, **TUNING)
    return pruned


REPAIRS: list[tuple[str, Callable[..., Any], str]] = [
    ("correct_bias", corrected, ""),
    ("recover_batch_norm", renormalised, ""),
    ("pruning_finetune", refitted, ""),
    ("block_finetune", trained, "training"),
]


def multiply_adds(model: Any) -> int:
    """Count the multiply-accumulates of convolutions and of the last layer for one image."""
    onnx = importlib.import_module("onnx")
    model = onnx.shape_inference.infer_shapes(model)
    places = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    sizes = {t.name: t for t in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight, out = sizes[node.input[1]], places.get(node.output[0], [])
            total += math.prod(weight.dims) * math.prod(out[2:])
    return total


TOOLS: dict[str, tuple[str, Callable[..., None]]] = {
    "torch-pruning": ("torch_pruning", run_torch_pruning),
    "onnxsim": ("onnxsim", run_onnxsim),
}


def main(argv: list[str]) -> int:
    """Run all variants of one tool; a missing tool is an answer, not an error."""
    tool, models, folder, target, samples, *training = argv
    module, work = TOOLS[tool]
    if not version(module):
        print(json.dumps({"missing": "not installed"}))
        return 0
    print(json.dumps({"version": version(module)}), flush=True)
    out = sys.stdout
    with contextlib.suppress(BrokenPipeError):
        work(Path(models), Folder(Path(folder)), float(target), int(samples), training == ["training"])
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
