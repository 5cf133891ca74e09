"""The table of operator times on this machine: measured one by one in onnxruntime, kept on disk.

An entry is a *kernel*: a node and the element-wise nodes behind it that onnxruntime can fuse with it. Its key says
everything that its time depends on: operators, attributes, shapes, element types, which operands are constant, opset,
threads, execution provider, and the version of onnxruntime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from prunepass.errors import PruneError
from prunepass.graph import Graph, Node
from prunepass.rules.cost import MACS, Shape
from prunepass.rules.memory import REUSE
from prunepass.stopwatch import Setting, quickest_ms

log = logging.getLogger(__name__)
_MOST_S = 0.06
_SMALL = 64
"""Elements of an integer constant whose contents belong to the key."""


def cache_folder(given: str = "") -> Path:
    """Return where tables are kept: what is given, PRUNEPASS_CACHE, or prunepass in the user's cache folder."""
    if chosen := given or os.environ.get("PRUNEPASS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunepass"


def kernels(graph: Graph) -> list[list[Node]]:
    """Return the nodes in order, each with those that onnxruntime can fuse with it; bodies are left out."""
    uses, results = graph.uses(), graph.results
    found: list[list[Node]] = []
    inside: set[int] = set()
    for node in graph.nodes:
        if id(node) in inside:
            continue
        chain = [node]
        while node.op in MACS and (follower := _follower(graph, chain[-1], uses, results)) is not None:
            chain.append(follower)
            inside.add(id(follower))
        found.append(chain)
    return found


def _follower(graph: Graph, node: Node, uses: Mapping[str, Any], results: frozenset[str]) -> Node | None:
    """Return the node that alone reads the result of a node, element by element, together with constants only."""
    name = node.outputs[0]
    readers = uses.get(name, ())
    if len(readers) != 1 or name in results or any(node.outputs[1:]):
        return None
    reader: Node = readers[0][0]
    others = [other for other in reader.inputs if other and other != name]
    fits = REUSE.get(reader.op) == "in place" and all(other in graph.consts for other in others)
    return reader if fits and readers[0][1] >= 0 else None


class Table:
    """Hold the times of kernels in milliseconds; `save` writes those that are new."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        import onnxruntime

        self.setting, self.path = setting, folder / "operators.json"
        self.common = [onnxruntime.__version__, platform.machine(), setting.provider, setting.threads]
        self.times: dict[str, float | None] = {}
        self.measured = 0
        self._read()

    def _read(self) -> None:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            self.times = {str(key): None if ms is None else float(ms) for key, ms in known.items()}
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, AttributeError, TypeError) as error:
            log.warning("the table of operator times '%s' cannot be read and is made anew: %s", self.path, error)

    def save(self) -> None:
        """Write the table, whole or not at all; a folder that cannot be written is no error."""
        if not self.measured:
            return
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.times, indent=0, sort_keys=True), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            log.warning("the table of operator times '%s' cannot be written: %s", self.path, error.strerror)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def time_ms(
        self, graph: Graph, chain: Sequence[Node], shapes: Mapping[str, Shape], types: Mapping[str, int]
    ) -> float | None:
        """Return how long a kernel takes, measured now if nobody did before; None where it cannot run alone."""
        key = json.dumps([*self.common, *_describe(graph, chain, shapes, types)], separators=(",", ":"))
        if key not in self.times:
            self.times[key] = self._measure(graph, chain, shapes, types)
            self.measured += 1
        return self.times[key]

    def _measure(
        self, graph: Graph, chain: Sequence[Node], shapes: Mapping[str, Shape], types: Mapping[str, int]
    ) -> float | None:
        names = [name for name in _reads(chain) if name not in graph.consts]
        if any(name not in shapes or name not in types for name in names):
            return None
        try:
            feeds = {name: _contents(shapes[name], types[name]) for name in names}
            session = self.setting.session(_alone(graph, chain, shapes, types))
            return round(quickest_ms(session, feeds, self.setting.clock, _MOST_S), 5)
        except (PruneError, KeyError, ValueError, TypeError) as error:
            log.info("%s cannot be measured alone: %s", chain[0].label, error)
            return None


def _reads(chain: Sequence[Node]) -> list[str]:
    """Return what a kernel reads from outside."""
    made = {name for node in chain for name in node.outputs}
    return list(dict.fromkeys(name for node in chain for name in node.inputs if name and name not in made))


def _describe(graph: Graph, chain: Sequence[Node], shapes: Mapping[str, Shape], types: Mapping[str, int]) -> list[Any]:
    rows: list[Any] = [graph.opset]
    made = {name for node in chain for name in node.outputs}
    for node in chain:
        proto = node.to_proto()
        texts = sorted(a.SerializeToString(deterministic=True).hex() for a in proto.attribute)
        text = "".join(texts)
        row: list[Any] = [node.op, text if len(text) <= 2 * _SMALL else hashlib.sha256(text.encode()).hexdigest()]
        for name in node.inputs:
            if name in graph.consts:
                row.append(["const", graph.consts.elem_type(name), *graph.consts.shape(name), *_numbers(graph, name)])
            elif name in made:
                row.append("before")
            else:
                row.append([types.get(name, 0), *shapes.get(name, ("?",))] if name else [])
        rows.append(row)
    return rows


def _numbers(graph: Graph, name: str) -> list[Any]:
    """Return the contents of a small integer constant: sizes, axes, indices."""
    array = graph.consts[name]
    return ["=", *array.reshape(-1).tolist()] if array.dtype.kind in "iub" and array.size <= _SMALL else []


def _contents(shape: Shape, elem_type: int) -> np.ndarray:
    """Return data of a type: random numbers, or zeros where they may be indices."""
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    if np.dtype(dtype).kind == "f" or "float" in str(dtype):
        return np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)
    return np.zeros(shape, dtype)


def _alone(graph: Graph, chain: Sequence[Node], shapes: Mapping[str, Shape], types: Mapping[str, int]) -> bytes:
    """Encode a model of one kernel."""
    model = graph.structure()
    for part in (model.graph.input, model.graph.output, model.graph.initializer, model.graph.metadata_props):
        del part[:]
    model.graph.node.extend(node.to_proto() for node in chain)
    for name in _reads(chain):
        if name in graph.consts:
            model.graph.initializer.append(graph.consts.proto(name))
        else:
            model.graph.input.append(helper.make_tensor_value_info(name, types[name], shapes[name]))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in chain[-1].outputs if name)
    return bytes(model.SerializeToString())
