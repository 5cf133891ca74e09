"""The certificate: the sliced model and the masked execution of the same plan agree in onnxruntime.

For one cut the chain is: source = canonical graph (numerically), ephemeral form of the canonical graph = result. Of a
lossless cut, the graph before it takes the place of the ephemeral form. For
several cuts each one is certified on its own, the last against the file that is written.

Where two models of the chain differ end to end, they are compared node by node on equal inputs (see `stepwise`). That
tells a wrong cut, which shows at the node where it was made, from rounding that the network amplifies and from
near-ties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prunepass.binding import declared
from prunepass.compare import Tally, is_finite
from prunepass.ephemeral import mask_graph
from prunepass.errors import PruneError, VerifyError
from prunepass.feeds import random_inputs
from prunepass.graph import Graph
from prunepass.manager import Context, Cut, Facts
from prunepass.recovery.batches import trial_runs
from prunepass.runtime import Feeds, Optimise, Session, seed_random_nodes, session
from prunepass.stepwise import Finding, Pair, compare_nodes

Outputs = dict[str, np.ndarray]
TRIALS = 3
MOST_SAMPLES = 16
"""Of given data: more are not run."""


@dataclass(frozen=True)
class Certificate:
    """What was compared, and how well it agreed.

    Units
        status: passed or failed. max_abs: largest absolute difference of any output. max_rel: largest difference
        relative to the magnitude around it (see `compare`), of the output that comes nearest to its tolerance.
        inputs: trials. details: what failed. notes: what to know about a certificate that passed.
    """

    status: str
    max_abs: float
    max_rel: float
    tolerance: float
    inputs: int
    outputs: int
    details: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def raise_if_failed(self) -> None:
        """Raise VerifyError unless the certificate holds."""
        if self.status != "passed":
            raise VerifyError(f"verification failed, nothing is written: {'; '.join(self.details[:2])}")


def certify(source: Graph, cuts: Sequence[Cut], result: Graph, context: Context) -> Certificate:
    """Run masked and sliced models side by side and compare every output.

    Raises
        PruneError: onnxruntime cannot run the source.
    """
    report = _Report(*_trials(source, cuts, context))
    chain = _chain(source, cuts, result)
    if cuts and _identical(source, cuts[0].before):
        del chain[0]
    for pair in chain:
        expected = report.run(pair, must=pair.first is source)
        if expected:
            report.compare(pair, expected, "all" if pair is chain[-1] else "basic")
        elif pair is chain[0]:  # is it the fault of the source?
            report.run(replace(pair, first=source), must=True)
    report.note_what_is_not_finite(source)
    return report.certificate(len(source.output_names))


def _chain(source: Graph, cuts: Sequence[Cut], result: Graph) -> list[Pair]:
    """List what must agree: the source and its canonical form, then the masked and the sliced form of each cut."""
    after = [*(cut.before for cut in cuts), result]
    shapes = cuts[0].plan.coupling.shapes if cuts and cuts[0].plan.coupling is not None else {}
    pairs = [Pair("source and canonical graph" if cuts else "source and result", source, after[0], shapes)]
    for cut, sliced in zip(cuts, after[1:]):
        coupling, removed = cut.plan.coupling, cut.plan.removed
        assert coupling is not None and removed is not None
        what, first = "graph before and after folding", cut.before
        if not cut.lossless:
            whole, factors = cut.refitted or cut.before, coupling.factors
            what = "masked and sliced graph"
            first = mask_graph(whole, coupling.shapes, coupling.elem_types, factors, removed, coupling.values)
        pairs.append(Pair(what, first, sliced, coupling.shapes, coupling.factors, removed))
    return pairs


def _identical(a: Graph, b: Graph) -> bool:
    """Say whether two graphs have the same nodes and the same constants, so that running both would prove nothing."""
    if len(a.nodes) != len(b.nodes) or a.consts.keys() != b.consts.keys():
        return False
    if any(x.to_proto() != y.to_proto() for x, y in zip(a.nodes, b.nodes)):
        return False
    return all(_same_bits(a.consts[name], b.consts[name]) for name in a.consts)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


class _Report:
    """Collect what the pairs of the chain say.

    spare: takes the place of the last trial, of two samples, where a model takes only one.
    """

    def __init__(self, trials: list[Feeds], spare: Feeds | None, notes: list[str]) -> None:
        self.trials, self.spare, self.notes = trials, spare, notes
        self.tally, self.faults = Tally(), list[str]()
        self.found: Sequence[Outputs] = ()  # outputs of the last model that was run

    def run(self, pair: Pair, must: bool) -> list[Outputs]:
        """Run the first model of a pair on all trials; nothing where it fails, unless it must not."""
        try:
            running = session(seed_random_nodes(pair.first), optimise="basic")
            expected = [running.run(feeds) for feeds in self.trials[:-1]]
            return [*expected, self._run_last(running)]
        except PruneError as error:
            if must:
                raise
            self.faults.append(f"{pair.what}: {error}")
            return []

    def _run_last(self, running: Session) -> Outputs:
        if self.spare is not None:
            try:
                return running.run(self.trials[-1])
            except PruneError:
                self.trials[-1], self.spare = self.spare, None
        return running.run(self.trials[-1])

    def compare(self, pair: Pair, expected: Sequence[Outputs], optimise: Optimise) -> None:
        """Compare the second model of a pair with the first end to end and, where they differ, node by node."""
        pair = replace(pair, first=seed_random_nodes(pair.first), second=seed_random_nodes(pair.second))
        try:
            found = self.found = self._run_all(session(pair.second, optimise=optimise))
        except PruneError as error:
            self.faults.append(f"{pair.what}: {error}")
            return
        tally = Tally()
        for a, b in zip(expected, found):
            tally.compare(a, b)
        if tally.faults or not tally.compared:
            tally = self._explained(pair, tally, compare_nodes(pair, self.trials, where=bool(tally.faults)))
        self.faults += [f"{pair.what}: {fault}" for fault in tally.faults]
        self.tally.add(tally)

    def _run_all(self, running: Session) -> list[Outputs]:
        return [running.run(feeds) for feeds in self.trials]

    def _explained(self, pair: Pair, outputs: Tally, finding: Finding | None) -> Tally:
        """Return the tally that decides: of the nodes, where it says that each of them is right."""
        if finding is None or finding.nodes.faults:
            outputs.faults[:0] = finding.nodes.faults[:3] if finding else []
            return outputs
        if not outputs.faults:
            self.notes.append(f"{pair.what}: outputs are empty or not finite, {finding.values} values agree instead")
            return finding.nodes
        start = f", from {finding.start} on" if finding.start else ", by the optimisations of onnxruntime"
        self.notes.append(
            f"{pair.what}: {outputs.faults[0]}{start}; amplified rounding or a near-tie, as each of {finding.values} "
            "values agrees when it is computed from equal inputs"
        )
        return finding.nodes

    def note_what_is_not_finite(self, source: Graph) -> None:
        """Note an output that is finite in the source only: the network may divide by what is left."""
        for feeds, found in zip(self.trials, self.found):
            broken = [name for name, value in found.items() if not is_finite(value)]
            whole = session(source, optimise="basic").run(feeds) if broken else {}
            for name in [name for name in broken if is_finite(whole[name])][:1]:
                self.notes.append(
                    f"output {name!r} is no longer finite: the cut is right, but the network divides by what is left, "
                    "or takes its root; remove less"
                )
                return

    def certificate(self, outputs: int) -> Certificate:
        """Sum up."""
        tally = self.tally
        if not tally.compared and not self.faults:
            self.faults.append("no output is finite on any input tried, so nothing can be compared; give --data")
        if tally.compared and not tally.moving:
            self.notes.append("all outputs are zero on the inputs tried, which says little; give --data")
        return Certificate(
            "failed" if self.faults else "passed",
            tally.max_abs,
            tally.max_rel,
            tally.tolerance if tally.tolerance < math.inf else 0.0,
            len(self.trials),
            outputs,
            tuple(self.faults),
            _versions(),
            tuple(self.notes),
        )


def _trials(source: Graph, cuts: Sequence[Cut], context: Context) -> tuple[list[Feeds], Feeds | None, list[str]]:
    """Given inputs if there are any, else random ones from different seeds, the last with two samples if it can be."""
    if context.data is not None:
        chosen, left = trial_runs(context.data, context.calibration, source, MOST_SAMPLES)
        return chosen, None, [f"the other {left} samples of the data were not compared"] if left > 0 else []
    coupling = cuts[0].plan.coupling if cuts else None
    known = coupling.shapes if coupling else Facts(source, context).get("shapes").shape
    shapes = {name: tuple(known[name]) for name in source.input_names if name in known}
    trials = [random_inputs(source, shapes, context.seed + trial) for trial in range(TRIALS)]
    larger = _with_two_samples(source, shapes)
    if larger == shapes:
        return trials, None, []
    return [*trials[:-1], random_inputs(source, larger, context.seed + TRIALS - 1)], trials[-1], []


def _with_two_samples(source: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Raise dynamic axes of size 1 that stand first in some input, the batch, to 2."""
    names = {info.name: declared(info) or [] for info in source.inputs}
    batch = {dims[0] for name, dims in names.items() if dims and isinstance(dims[0], str) and shapes[name][0] == 1}
    return {name: tuple(2 if d in batch else n for d, n in zip(names[name], shape)) for name, shape in shapes.items()}


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime

    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
