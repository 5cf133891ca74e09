"""Prune one network with one tool in this process and print what it cost, as one line of JSON.

`speed.py` starts this file with the interpreter that has the tool. Only the work between the ticks is timed: imports,
and making the torch network, are outside. CPU seconds count every thread of the process.

python benchmarks/contenders.py prunepass resnet50 resnet50.onnx out.onnx 1,3,64,64 0.5
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PRUNEPASS_THREADS")
for _variable in THREADS:
    os.environ.setdefault(_variable, "1")


Found = dict[str, Any]
"""What a contender prints: `seconds` per stage, and `kept`, the share of the parameters that is left."""


class Stages:
    """Take the CPU time between named points."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.process_time()

    def tick(self, name: str) -> None:
        """Book the time since the last tick under this name."""
        now = time.process_time()
        self.seconds[name] = now - self.last
        self.last = now


def stored_params(path: str) -> int:
    """Count the float elements of an ONNX file, in initializers and constants."""
    import onnx

    graph = onnx.load(path).graph
    tensors = [*graph.initializer, *(a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute)]
    return sum(math.prod(t.dims) for t in tensors if t.data_type in (1, 10, 11, 16))


def import_prunepass() -> None:
    """Pay for every import of prunepass now; opens no onnxruntime session, so that a process may still be forked."""
    import onnxruntime  # noqa: F401

    import prunepass
    from prunepass import registry

    home = str(Path(prunepass.__file__).parent)
    for module in pkgutil.walk_packages([home], "prunepass."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    registry.discover()


def run_prunepass(name: str, source: str, out: str, shape: tuple[int, ...], ratio: float, verify: bool) -> Found:
    """File to file, with or without the certificate."""
    import_prunepass()
    from prunepass import api

    stages = Stages()
    result = api.prune(source, ratio=ratio, align=1, output=out, force=True, verify=verify)
    stages.tick("file to file")
    wall = sorted(result.report["timing"]["stages"], key=lambda stage: -float(stage["seconds"]))
    note = "wall: " + ", ".join(f"{stage['name']} {stage['seconds']:.3f}" for stage in wall[:4])
    return {"seconds": stages.seconds, "kept": stored_params(out) / stored_params(source), "note": note}


def run_prunepass_analysis(name: str, source: str, out: str, shape: tuple[int, ...], ratio: float) -> Found:
    """Shapes and coupling of a graph that is loaded and canonical."""
    import_prunepass()
    import prunepass

    facts = prunepass.Pipeline.parse("canonicalize").run(prunepass.load(source))
    stages = Stages()
    facts.get("shapes")
    stages.tick("shapes")
    facts.get("coupling")
    stages.tick("coupling")
    return {"seconds": stages.seconds}


def run_prunepass_in_memory(name: str, source: str, out: str, shape: tuple[int, ...], ratio: float) -> Found:
    """From ModelProto to ModelProto, without the certificate; no file is read, written or hashed."""
    import_prunepass()
    import onnx

    from prunepass import api

    model = onnx.load(source)
    stages = Stages()
    result = api.prune(model, ratio=ratio, align=1, verify=False)
    stages.tick("prune")
    pruned = result.model
    stages.tick("to ModelProto")
    onnx.save(pruned, out)
    return {"seconds": stages.seconds, "kept": stored_params(out) / stored_params(source)}


def run_torch_pruning(
    name: str, source: str, out: str, shape: tuple[int, ...], ratio: float, files: bool = False, pixels: int = 0
) -> Found:
    """Dependency graph and pruner, then one step, on the torchvision network (random weights).

    With `files` the loading of a checkpoint before and the saving of the pruned network behind it are timed too; with
    `pixels` one picture of that size takes the place of the input that the ONNX file has.
    """
    torch, networks = importlib.import_module("torch"), importlib.import_module("networks")
    tp = importlib.import_module("torch_pruning")
    torch.set_num_threads(1)
    network = networks.build(name, (1, 3, pixels, pixels) if pixels else shape)
    before = network.params()
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    if files:
        torch.save(network.model.state_dict(), out)
    stages = Stages()
    if files:
        network.model.load_state_dict(torch.load(out))
        stages.tick("load")
    pruner = tp.pruner.BasePruner(
        network.model,
        network.inputs[0],
        importance,
        pruning_ratio=ratio,
        global_pruning=True,
        ignored_layers=network.ignored,
        num_heads=network.heads,
        round_to=network.round_to,
    )
    stages.tick("graph and pruner")
    pruner.step()
    stages.tick("step")
    if files:
        torch.save(network.model, out)
        stages.tick("save")
    network.repair()
    network.run()
    return {"seconds": stages.seconds, "kept": network.params() / before}


def run_onnxsim(name: str, source: str, out: str, shape: tuple[int, ...], ratio: float, native: bool) -> Found:
    """File to file with `onnxsim.pruning.apply_structured_pruning`, or with its C++ port."""
    import onnx

    package, pruning = importlib.import_module("onnxsim"), importlib.import_module("onnxsim.pruning")
    work = package.apply_structured_pruning_cpp if native else pruning.apply_structured_pruning
    stages = Stages()
    model = onnx.load(source)
    stages.tick("load")
    model = work(model, ratio)
    stages.tick("prune")
    onnx.save(model, out)
    stages.tick("save")
    return {"seconds": stages.seconds, "kept": stored_params(out) / stored_params(source)}


CONTENDERS: dict[str, tuple[str, Callable[..., Found], dict[str, Any]]] = {
    "prunepass": ("prunepass", run_prunepass, {"verify": True}),
    "prunepass --no-verify": ("prunepass", run_prunepass, {"verify": False}),
    "prunepass in memory": ("prunepass", run_prunepass_in_memory, {}),
    "prunepass analysis": ("prunepass", run_prunepass_analysis, {}),
    "torch-pruning": ("torch_pruning", run_torch_pruning, {}),
    "torch-pruning, 224 px": ("torch_pruning", run_torch_pruning, {"pixels": 224}),
    "torch-pruning, files": ("torch_pruning", run_torch_pruning, {"files": True}),
    "onnxsim": ("onnxsim", run_onnxsim, {"native": False}),
    "onnxsim C++": ("onnxsim", run_onnxsim, {"native": True}),
}


def version(module: str) -> str:
    """Return the installed version of a tool, "" when it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(module.replace("_", "-"))
    except metadata.PackageNotFoundError:
        checkout = Path(__file__).resolve().parents[1] / module / "__init__.py"
        return "checkout" if checkout.exists() else ""


def main(argv: list[str]) -> int:
    """Run one contender; a missing tool is an answer, not an error."""
    contender, name, source, out, shape, ratio = argv
    module, work, options = CONTENDERS[contender]
    if not version(module):
        print(json.dumps({"missing": "not installed"}))
        return 0
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    dims = tuple(int(d) for d in shape.split(","))
    result = work(name, source, out, dims, float(ratio), **options)
    print(json.dumps(result | {"version": version(module), "process": time.process_time()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
