"""Numbers into a report: plain dictionaries that JSON can hold, and the JSON files themselves.

Units
    params: elements of the float constants. macs: multiply-accumulates of one inference with the shapes in use.
    bytes: the model in its file, external data included. ram: bytes of activations at the worst moment.
    nodes: operators, without those inside subgraphs.
    seconds: wall-clock time; a pass's own, without the analyses that it asked for.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import prunepass
from prunepass.errors import ModelError

if TYPE_CHECKING:
    from prunepass.coupling import Barrier, Coupling
    from prunepass.explain import Explanation
    from prunepass.manager import Timing
    from prunepass.pinned import Holder, PinnedAxis
    from prunepass.plan import Plan
    from prunepass.verify import Certificate

SCHEMA = "prunepass/report/1"
INSPECT_SCHEMA = "prunepass/inspect/2"
LIBRARIES = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "scipy", "networkx")


def versions() -> dict[str, str]:
    """Return the versions of everything that had a part in the result."""
    found = {"prunepass": prunepass.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        found[library] = importlib.metadata.version(library)
    return found


def timing(stages: Iterable[Timing]) -> dict[str, Any]:
    """Return the stages in the order in which they ended, and their sum."""
    ended = list(stages)
    listed = [{"name": t.name, "seconds": round(t.seconds, 6), "changes": t.changes} for t in ended]
    return {"total": round(sum(t.seconds for t in ended), 6), "stages": listed}


def certificate(found: Certificate | None) -> dict[str, Any]:
    """Return what was compared; status "skipped" where nothing was."""
    if found is None:
        return {"status": "skipped", "max_abs": None, "max_rel": None, "inputs": 0, "tolerance": None}
    return dataclasses.asdict(found)


def barriers(found: Iterable[Barrier]) -> list[dict[str, Any]]:
    """Return the nodes that keep axes whole, the costliest first."""
    return [dataclasses.asdict(barrier) for barrier in sorted(found, key=lambda b: -b.params_blocked)]


def coupling_groups(coupling: Coupling, explained: Explanation) -> list[dict[str, Any]]:
    """Return the coupling groups: producing axes, units in all and in how many blocks, their weight, exact or not."""
    return [
        {
            "name": group.name,
            "units": int(group.units.size),
            "blocks": len(group.units),
            "sites": [f"{tensor}[{axis}]" for tensor, axis in group.axes],
            "params": facts.params,
            "macs": facts.macs,
            "removal": "exact" if facts.exact else "renormalised",
            "renormalised_by": facts.renormalised_by,
        }
        for group, facts in zip(coupling.groups, explained.groups)
    ]


def holders(found: Iterable[Holder]) -> list[dict[str, Any]]:
    """Return the nodes that keep axes whole: what hangs on them, and what could go if only this one let go."""
    return [
        {
            "op": holder.op,
            "reason": holder.reason,
            "nodes": holder.nodes,
            "sources": holder.sources,
            "axes": holder.axes,
            "params_blocked": holder.params,
            "macs_blocked": holder.macs,
            "gain": {"params": holder.gain_params, "macs": holder.gain_macs},
        }
        for holder in found
    ]


def pinned_axes(found: Iterable[PinnedAxis]) -> list[dict[str, Any]]:
    """Return the axes of weights that stay, with the chain of nodes to the reason."""
    return [
        {
            "site": f"{axis.tensor}[{axis.axis}]",
            "length": axis.length,
            "indices": axis.indices,
            "node": axis.node,
            "op": axis.op,
            "reason": axis.reason,
            "source": axis.source,
            "chain": axis.chain,
            "others": axis.others,
            "params": axis.params,
            "macs": axis.macs,
        }
        for axis in found
    ]


def plan_groups(plan: Plan) -> list[dict[str, Any]]:
    """Return what each coupling group loses."""
    return [{"name": g.name, "units": g.units, "removed": g.removed, "sites": g.sites} for g in plan.groups]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole or not at all."""
    write_text(path, to_json(value))


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all.

    Raises
        ModelError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Turn numpy values, tuples and numbers that JSON does not know into what it knows; not-a-number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any) -> str:
    """Return the JSON text of a report or plan: one line per key or record, the same bytes for the same content."""
    return _encode(plain(value), "") + "\n"


def _encode(value: Any, indent: str) -> str:
    deeper = indent + " "
    if isinstance(value, dict) and value:
        rows = [f"{json.dumps(key, ensure_ascii=False)}: {_encode(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + row for row in rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(deeper + _encode(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises
        ModelError: the file cannot be read or holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"'{path}' is no JSON file: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"'{path}' holds no JSON object")
    return found
