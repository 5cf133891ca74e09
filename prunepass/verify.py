"""The certificate: the sliced model and the masked execution of the same plan agree in onnxruntime.

For one cut the chain is: source = canonical graph (numerically), ephemeral form of the canonical graph = result. For
several cuts each one is certified on its own, the last against the file that is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunepass.ephemeral import mask_graph
from prunepass.errors import VerifyError
from prunepass.graph import Graph
from prunepass.manager import Context, Cut
from prunepass.feeds import random_inputs
from prunepass.runtime import Feeds, Optimise, seed_random_nodes, session

TRIALS = 3
_TOLERANCE = {"float16": 2e-2, "bfloat16": 5e-2, "float32": 1e-4, "float64": 1e-4}
_INTEGER_SLACK = 0.0


@dataclass(frozen=True)
class Certificate:
    """What was compared, and how well it agreed.

    Units
        max_abs: largest absolute difference of any output. max_rel: largest difference relative to the largest
        magnitude of its output. tolerance: for max_rel, of the narrowest float type among the outputs. inputs: trials.
    """

    status: str
    max_abs: float
    max_rel: float
    tolerance: float
    inputs: int
    outputs: int
    details: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def raise_if_failed(self) -> None:
        """Raise VerifyError unless the certificate holds."""
        if self.status != "passed":
            raise VerifyError(f"verification failed, nothing is written: {'; '.join(self.details[:2])}")


@dataclass
class _Tally:
    """Collect differences over outputs and trials."""

    max_abs: float = 0.0
    max_rel: float = 0.0
    tolerance: float = math.inf
    compared: int = 0
    details: list[str] = field(default_factory=list)

    def compare(self, what: str, reference: Mapping[str, np.ndarray], result: Mapping[str, np.ndarray]) -> None:
        """Compare all outputs of one run."""
        for name, expected in reference.items():
            self._compare_one(f"{what}: output {name!r}", expected, result[name])

    def _compare_one(self, what: str, expected: object, found: object) -> None:
        if isinstance(expected, list):
            same_length = isinstance(found, list) and len(found) == len(expected)
            if not same_length:
                self.details.append(f"{what}: sequences of different length")
                return
            for a, b in zip(expected, found):  # type: ignore[call-overload]
                self._compare_one(what, a, b)
            return
        a, b = np.asarray(expected), np.asarray(found)
        if a.shape != b.shape or a.dtype != b.dtype:
            self.details.append(f"{what}: {b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}")
            return
        if a.dtype.kind in "OSU" or a.size == 0:
            if not bool((a == b).all()):
                self.details.append(f"{what}: different contents")
            return
        self._compare_numbers(what, a, b)

    def _compare_numbers(self, what: str, a: np.ndarray, b: np.ndarray) -> None:
        exact = a.dtype.kind in "iub"
        tolerance = _INTEGER_SLACK if exact else _TOLERANCE.get(a.dtype.name, 1e-4)
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if not np.array_equal(finite, np.isfinite(y)):
            self.details.append(f"{what}: NaN or infinity in other places")
            return
        if not finite.any():
            return
        self.compared += 1
        difference = float(np.abs(x[finite] - y[finite]).max())
        scale = float(np.abs(x[finite]).max())
        relative = difference / max(scale, 1e-6)
        if not exact:
            self.tolerance = min(self.tolerance, tolerance) if self.tolerance < math.inf else tolerance
            self.max_abs, self.max_rel = max(self.max_abs, difference), max(self.max_rel, relative)
        if relative > tolerance:
            self.details.append(f"{what}: differs by {difference:.3g}, relative {relative:.3g} > {tolerance:g}")


def certify(source: Graph, cuts: Sequence[Cut], result: Graph, context: Context) -> Certificate:
    """Run masked and sliced models side by side and compare every output.

    Raises
        PruneError: onnxruntime cannot run the source, or refuses the result.
    """
    shapes = _input_shapes(source, cuts, context)
    trials = _trials(source, shapes, context)
    tally = _Tally()
    first = cuts[0].before if cuts else result
    runs = _run(source, trials)
    _compare(tally, "source and canonical graph", runs, first, trials, "basic")
    for position, cut in enumerate(cuts):
        last = position == len(cuts) - 1
        after = result if last else cuts[position + 1].before
        plan = cut.plan
        assert plan.coupling is not None and plan.removed is not None
        coupling = plan.coupling
        masked = mask_graph(cut.before, coupling.shapes, coupling.elem_types, coupling.factors, plan.removed)
        _compare(tally, "masked and sliced graph", _run(masked, trials), after, trials, "all" if last else "basic")
    if not tally.compared and not tally.details:
        tally.details.append("no output is finite on any input tried, so nothing can be compared; give --data")
    status = "failed" if tally.details else "passed"
    tolerance = tally.tolerance if tally.tolerance < math.inf else 0.0
    return Certificate(
        status,
        tally.max_abs,
        tally.max_rel,
        tolerance,
        len(trials),
        len(source.output_names),
        tuple(tally.details),
        _versions(),
    )


def _run(graph: Graph, trials: Sequence[Feeds], optimise: Optimise = "basic") -> list[dict[str, np.ndarray]]:
    running = session(seed_random_nodes(graph), optimise=optimise)
    return [running.run(feeds) for feeds in trials]


def _compare(
    tally: _Tally,
    what: str,
    reference: Sequence[Mapping[str, np.ndarray]],
    graph: Graph,
    trials: Sequence[Feeds],
    optimise: Optimise,
) -> None:
    for expected, found in zip(reference, _run(graph, trials, optimise)):
        tally.compare(what, expected, found)


def _input_shapes(source: Graph, cuts: Sequence[Cut], context: Context) -> dict[str, tuple[int, ...]]:
    known = cuts[0].plan.coupling.shapes if cuts and cuts[0].plan.coupling is not None else context.shapes
    return {name: tuple(known[name]) for name in source.input_names if name in known}


def _trials(source: Graph, shapes: dict[str, tuple[int, ...]], context: Context) -> list[Feeds]:
    """Given inputs if there are any, else random ones from different seeds."""
    if context.data is not None:
        return [dict(context.data)]
    return [random_inputs(source, shapes, context.seed + trial) for trial in range(TRIALS)]


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime

    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
