"""Prune one network with one tool in this process and print what it cost, as one line of JSON.

`speed.py` starts this file with the interpreter that has the tool. Only the work between the ticks is timed: imports,
and making the torch network, are outside. CPU seconds count every thread of the process.

python benchmarks/contenders.py prunepass resnet50 resnet50.onnx out.onnx 1,3,64,64 0.5
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")


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


def run_torch_pruning(name: str, source: str, out: str, shape: tuple[int, ...], ratio: float, files: bool) -> Found:
    """Dependency graph and pruner, then one step, on the torchvision network (random weights, same shapes).

    With `files` the loading of a checkpoint before and the saving of the pruned network behind it are timed too.
    """
    torch, nn = importlib.import_module("torch"), importlib.import_module("torch.nn")
    tp = importlib.import_module("torch_pruning")
    torch.set_num_threads(1)
    model = _torchvision(torch, name)
    inputs = torch.randn(shape)
    before = sum(p.numel() for p in model.parameters())
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    if files:
        torch.save(model.state_dict(), out)
    stages = Stages()
    if files:
        model.load_state_dict(torch.load(out))
        stages.tick("load")
    pruner = tp.pruner.BasePruner(
        model, inputs, importance, pruning_ratio=ratio, global_pruning=True, ignored_layers=[last], num_heads=heads
    )
    stages.tick("graph and pruner")
    pruner.step()
    stages.tick("step")
    if files:
        torch.save(model, out)
        stages.tick("save")
    if hasattr(model, "conv_proj"):
        model.hidden_dim = model.conv_proj.out_channels  # torchvision's ViT asks for it in forward
    model(inputs)
    return {"seconds": stages.seconds, "kept": sum(p.numel() for p in model.parameters()) / before}


def _torchvision(torch: Any, name: str) -> Any:
    """Make a torchvision network; what its compiled half defines is declared where that half does not load."""
    origin = importlib.util.find_spec("torchvision")
    for compiled in Path(origin.origin).parent.glob("_C*.so") if origin and origin.origin else ():
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(compiled))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision").models.get_model(name, weights=None).eval()


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
    "prunepass analysis": ("prunepass", run_prunepass_analysis, {}),
    "torch-pruning": ("torch_pruning", run_torch_pruning, {"files": False}),
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
