"""Prune one architecture with one tool in this process, uniformly, and print what happened as one line of JSON.

`compare.py` starts this file with the interpreter that has the tool. Only the tool's own work is timed, in CPU seconds
of all threads; imports, the making of the torch network and the export of it are outside.

python benchmarks/cells.py prunepass FOLDER 0.5
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from contenders import Found, Stages, import_prunepass, version  # sets the number of threads first

HOLDERS = 3
"""How many of the reasons why axes of weights stay whole are named, the costliest first."""


def export_network(folder: Path, order: dict[str, Any]) -> Found:
    """Write the torchvision network as ONNX, for the tools that take ONNX."""
    networks = importlib.import_module("networks")
    networks.export(networks.build(order["network"], order["shape"]), folder / "source.onnx")
    return {}


def prune_prunepass(folder: Path, order: dict[str, Any]) -> Found:
    """Prune file to file with the certificate, then in memory without it, which is what the peers do."""
    import_prunepass()
    import numpy as np
    import onnx

    from prunepass import api, errors

    data = dict(np.load(folder / "inputs.npz"))
    options: dict[str, Any] = {"ratio": order["ratio"], "scope": "local", "align": 1, "data": data, "recover": False}
    options["shapes"] = {name: array.shape for name, array in data.items()}
    source = folder / "source.onnx"
    model = onnx.load(source)
    stages = Stages()
    try:
        result = api.prune(source, output=folder / "pruned.onnx", **options)
        stages.tick("certified")
        api.prune(model, verify=False, **options).model  # noqa: B018 - the ModelProto is made when it is asked for
        stages.tick("prune")
    except errors.PruneError as error:
        stages.tick("failed")
        return {"seconds": stages.seconds, "reason": f"{type(error).__name__}: {error}"}
    inspected = api.inspect(source, shapes=options["shapes"]).to_json()
    holders = sorted([*inspected["barriers"], *inspected["pinned"]], key=lambda holder: -holder["params_blocked"])
    checked = (result.report["certificate"] or {}).get("status") == "passed"
    return {"seconds": stages.seconds, "checked": checked, "held": [_held(holder) for holder in holders[:HOLDERS]]}


def _held(holder: dict[str, Any]) -> str:
    more = len(holder["nodes"]) - 1
    where = f"{holder['op']} {holder['nodes'][0]}".strip() + (f" and {more} more" if more else "")
    return f"{where}: {holder['reason']} ({holder['params_blocked']:,} parameters)"


def prune_torch_pruning(folder: Path, order: dict[str, Any]) -> Found:
    """Build the dependency graph and the pruner, and take one step; the networks before and behind are exported.

    Uniform (`global_pruning=False`), group magnitude, heads given, output layers ignored (`networks.IGNORED`).
    """
    torch, networks = importlib.import_module("torch"), importlib.import_module("networks")
    tp = importlib.import_module("torch_pruning")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = networks.build(order["network"], order["shape"])
    dense, params = network.shapes(), network.params()
    unexported = _exported(networks, network, folder / "dense.onnx")
    macs = _macs(tp, network)
    stages = Stages()
    pruner = tp.pruner.BasePruner(
        network.model,
        network.inputs,
        tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=order["ratio"],
        global_pruning=False,
        ignored_layers=network.ignored,
        num_heads=network.heads,
        round_to=network.round_to,
        forward_fn=lambda model, inputs: model(*inputs),
        output_transform=lambda outputs: [t for t in networks.tensors(outputs) if t.requires_grad],
    )
    stages.tick("graph and pruner")
    pruner.step()
    stages.tick("step")
    network.repair()
    found: Found = {"seconds": stages.seconds, "params": network.params() / params}
    try:
        shapes = network.shapes()
    except Exception as error:  # noqa: BLE001 - torch raises what it likes; that the network is broken is the finding
        return found | {"reason": f"the pruned network does not run: {_first_line(error)}"}
    compared = [[len(s) for s in each] for each in (dense, shapes)] if network.detects else [dense, shapes]
    if compared[0] != compared[1]:
        return found | {"reason": f"output shapes {dense} became {shapes}"}
    found["macs"] = _macs(tp, network) / macs if macs else None
    return found | {"unexported": unexported or _exported(networks, network, folder / "pruned.onnx")}


def _exported(networks: Any, network: Any, path: Path) -> str:
    """Write a network as ONNX; return why it cannot be, or ""."""
    try:
        networks.export(network, path)
    except Exception as error:  # noqa: BLE001 - as above; Torch-Pruning's own count is used then
        return _first_line(error)
    return ""


def _macs(tp: Any, network: Any) -> float:
    """Count multiply-accumulates with Torch-Pruning's own counter, 0 where that fails."""
    try:
        return float(tp.utils.count_ops_and_params(network.model, network.inputs)[0])
    except Exception:  # noqa: BLE001 - as above; the number is only wanted where there is no ONNX
        return 0.0


def prune_onnxsim(folder: Path, order: dict[str, Any]) -> Found:
    """Load, `onnxsim.simplify` (its pruning asks for folded constants and BatchNorms), prune, save."""
    import onnx

    package, pruning = importlib.import_module("onnxsim"), importlib.import_module("onnxsim.pruning")
    stages = Stages()
    model = onnx.load(folder / "source.onnx")
    stages.tick("load")
    model, _ = package.simplify(model)
    stages.tick("simplify")
    model = pruning.apply_structured_pruning(model, order["ratio"])
    stages.tick("prune")
    onnx.save(model, folder / "pruned.onnx")
    stages.tick("save")
    return {"seconds": stages.seconds}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


WORK = {
    "export": ("torch", export_network),
    "prunepass": ("prunepass", prune_prunepass),
    "torch-pruning": ("torch_pruning", prune_torch_pruning),
    "onnxsim": ("onnxsim", prune_onnxsim),
}


def main(argv: list[str]) -> int:
    """Do one cell; a missing tool and an exception of the tool are answers, not errors."""
    tool, folder = argv[0], Path(argv[1])
    module, work = WORK[tool]
    if not version(module):
        print(json.dumps({"reason": "not installed"}))
        return 0
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    order = json.loads((folder / "order.json").read_text())
    try:
        found = work(folder, order)
    except Exception as error:  # noqa: BLE001 - whatever the tool raises is what the table reports
        found = {"reason": _first_line(error)}
    print(json.dumps(found | {"version": version(module)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
