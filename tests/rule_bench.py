"""Put a record of rule_table into a network, analyse it, and check what it claims in onnxruntime."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import rule_records_compute
import rule_records_indexing
import rule_records_layout
import rule_records_more
from onnx import TensorProto, helper
from rule_table import Value

from fixtures.tiny import Net
from prunepass import runtime
from prunepass.coupling import Coupling
from prunepass.ephemeral import mask_graph
from prunepass.graph import Graph
from prunepass.job import Job
from prunepass.kept import cut, kept_masks, new_shape
from prunepass.labels import Policy, spans
from prunepass.plan import Plan
from prunepass.selection import ladder, protected_units, removed_by
from prunepass.slicing import slice_graph

RECORDS = [
    *rule_records_compute.RECORDS,
    *rule_records_layout.RECORDS,
    *rule_records_indexing.RECORDS,
    *rule_records_more.RECORDS,
]
NEAR, FAR = 3, 2  # sizes of the axes of the graph's inputs, and of its outputs


# ---- the network around an operator ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bench:
    """A network around one operator, and the names of the operator's values."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    inputs: list[str]
    outputs: list[str]


def matrix(net: Net, into: int, out: int) -> np.ndarray:
    return net.rng.normal(0, into**-0.5, (into, out)).astype(np.float32)


def produced(net: Net, name: str, value: Value) -> str:
    """Declare an input, dynamic where it can be, with a layer behind it for each labelled axis; the last axis last."""
    rank = len(value.flat)
    own = [axis in value.labelled and size > 1 for axis, size in enumerate(value.flat)]
    feed = [NEAR if labelled else size for labelled, size in zip(own, value.flat)]
    dims: list[int | str] = [NEAR if labelled else f"{name}_{axis}" for axis, labelled in enumerate(own)]
    first = 1 if any(own) else 0
    y = net.input(name, [*dims[first:], *dims[:first]], (*feed[first:], *feed[:first]))
    for axis in range(rank) if any(own) else ():
        if axis > 0:
            y = net("Transpose", y, perm=[*range(1, rank), 0])
        if own[axis]:
            y = net("MatMul", y, net.const(matrix(net, NEAR, value.flat[axis]), "weight"))
    return net("Reshape", y, net.const(value.shape, "shape")) if value.shape != value.flat else y


def in_domain(net: Net, y: str, domain: str) -> str:
    """Move random numbers to where an operator takes them."""
    if domain == "real":
        return y
    if domain == "above1":
        return net("Exp", net("Abs", y))
    if domain == "bool":
        return net("Greater", y, net.const(0.0))
    if domain in ("unit", "one", "index"):  # between 0 and 1; always 1; 0, 1 or 2
        y = net("Sigmoid", y)
        y = net("Add", y, net.const(1.0)) if domain == "one" else y
        y = net("Mul", y, net.const(2.99)) if domain == "index" else y
        return y if domain == "unit" else net("Cast", y, to=TensorProto.INT64)
    large = net("Mul", net("Abs", y), net.const(10.0))
    return net("Cast", large, to=helper.np_dtype_to_tensor_dtype(np.dtype(domain)))


def constant(net: Net, value: Value) -> np.ndarray:
    """Draw a constant; matrices so that products keep their size."""
    if value.data is not None:
        return value.data
    data = np.asarray(net.rng.normal(0, max(1, math.prod(value.shape)) ** -0.25, value.shape))
    if value.domain == "real":
        return data.astype(np.float32)
    if value.domain == "unit":
        return (1 / (1 + np.exp(-data))).astype(np.float32)
    if value.domain == "bool":
        return data > 0
    return (data * 10 if value.domain.startswith("int") else np.abs(data) * 10).astype(value.domain)


def operand(net: Net, value: Value, name: str) -> str:
    if value.kind == "absent":
        return ""
    if value.kind == "constant":
        return net.const(constant(net, value), name)
    return in_domain(net, produced(net, name, value), value.domain)


def weighted_sum(net: Net, y: str, shape: tuple[int, ...]) -> str:
    """Mix all axes at once, with a weight for each element, so that blocks stay apart."""
    weight = net.rng.normal(0, math.prod(shape) ** -0.5, (FAR, *shape)).astype(np.float32)
    y = net("Mul", y, net.const(weight, "weight"))
    axes = list(range(1, len(shape) + 1))
    if not axes:
        return y
    if net.opset < 13:
        return net("ReduceSum", y, axes=axes, keepdims=0)
    return net("ReduceSum", y, net.const(axes), keepdims=0)


def finish(net: Net, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    own, net.outputs = net.outputs, outputs
    model, _ = net.finish()
    net.outputs = own
    model.opset_import.extend(helper.make_opsetid(d, 1) for d in sorted({n.domain for n in net.nodes} - {""}))
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    return model


@functools.cache
def bench(number: int) -> Bench:
    """Build the network of a record."""
    record = RECORDS[number]
    net = Net(str(record), record.opset)
    ins = [operand(net, value, f"in{i}") for i, value in enumerate(record.inputs)]
    if record.build is not None:
        outs = record.build(net, *ins)
    else:
        domain, _, op = record.op.rpartition("::")
        outs = net.many(op, len(record.terms[1]), *ins, domain=domain, **record.attrs)
    bare = finish(net, [onnx.ValueInfoProto(name=name) for name in outs])
    found = runtime.session(bare, optimise="off", threads=1).run(net.feeds)
    for i, name in enumerate(outs):
        y = name if found[name].dtype == np.float32 else net("Cast", name, to=TensorProto.FLOAT)
        net.output(weighted_sum(net, y, found[name].shape), f"out{i}", [FAR])
    return Bench(finish(net, net.outputs), dict(net.feeds), ins, outs)


# ---- one record ------------------------------------------------------------------------------------------------------
class Trial:
    """The analysis of one record under one policy."""

    def __init__(self, number: int, policy: Policy | None = None) -> None:
        self.record, self.bench = RECORDS[number], bench(number)
        shapes = {name: feed.shape for name, feed in self.bench.feeds.items()}
        facts = Job.open(self.bench.model, (), shapes, None, 0, None).facts
        self.graph: Graph = facts.graph
        self.coupling: Coupling = facts.get("coupling", policy=policy or self.record.policy)
        self.rng = np.random.default_rng(len(str(self.record)))
        left, right = self.record.terms
        assert (len(left), len(right)) == (len(self.bench.inputs), len(self.bench.outputs)), "one term per value"
        terms = [*zip(self.bench.inputs, left), *zip(self.bench.outputs, right)]
        self.terms = [(name, term) for name, term in terms if name]

    def units(self, name: str, axis: int) -> np.ndarray:
        """Units on one axis of a value; those of blocks stand on the inner axis."""
        found = [f.reshape(-1) for f in self.coupling.factors.get(name, ()) if spans(f)[-1:] == (axis,)]
        ids = np.unique(np.concatenate([*found, np.zeros(1, np.int64)]))
        return ids[ids > 0]

    def plan(self, share: float, frozen: np.ndarray | None = None) -> np.ndarray:
        """Remove a share of what `select` may remove, of each group, best first in a random order."""
        coupling = self.coupling
        scores = self.rng.random(coupling.n_units)
        held = protected_units(coupling, scores)
        held = held if frozen is None else held | frozen
        steps = ladder(coupling, coupling.groups, scores, held, align=1)
        return removed_by([e for events in steps for e in events[: round(share * len(events))]], coupling.n_units)

    def masks(self, name: str, removed: np.ndarray) -> list[np.ndarray]:
        return kept_masks(self.coupling.factors.get(name, ()), removed)

    def axes(self, removed: np.ndarray) -> Iterator[tuple[str, int, str, int, int]]:
        """Yield name, axis, letter, size before and size after of every axis."""
        for name, term in self.terms:
            before = self.coupling.shapes[name]
            assert len(term) == len(before), f"{term} for a value of shape {before}"
            for axis, sizes in enumerate(zip(before, new_shape(before, self.masks(name, removed)))):
                yield name, axis, term[axis], *sizes

    # ---- what the record claims ----------------------------------------------------------------------------------
    def check_spec(self) -> None:
        """What may shrink is what the letters say, and letters stand for units."""
        letters: dict[str, np.ndarray] = {}
        found, count = "", 0
        for name, axis, letter, before, after in self.axes(self.plan(1.0)):
            found += f" {name}[{axis}]:{before}->{after}"
            assert (letter != "_") == (before != after), f"axis {axis} of {name}, letter {letter}:{found}"
            if letter not in "_*":
                count += before if letter not in letters else 0
                own = self.units(name, axis)
                assert np.array_equal(letters.setdefault(letter, own), own), f"{letter} differs:{found}"
        for a in letters:
            for b in letters:
                assert a >= b or not np.intersect1d(letters[a], letters[b]).size, f"{a} and {b} share units:{found}"
        units = self.coupling.n_units - 1
        assert units == (count if self.record.units is None else self.record.units), f"{units} units:{found}"
        reasons = " ".join(b.reason for b in self.coupling.barriers)
        assert self.record.barrier in reasons and bool(self.record.barrier) == bool(reasons), reasons

    def mixed(self) -> np.ndarray:
        """Mark the units that the operator mixes."""
        marked = np.zeros(self.coupling.n_units, bool)
        for name, term in self.terms:
            for axis, letter in enumerate(term):
                if letter.isupper():
                    marked[self.units(name, axis)] = True
        return marked

    # ---- laws ----------------------------------------------------------------------------------------------------
    def sliced(self, removed: np.ndarray) -> Graph:
        twin = self.graph.copy()
        slice_graph(twin, Plan.of(twin, self.coupling, removed))
        return twin

    def check_masked(self, share: float) -> None:
        """The sliced network computes what the masked one does."""
        removed, c = self.plan(share), self.coupling
        if removed.any():
            masked = mask_graph(self.graph, c.shapes, c.elem_types, c.factors, removed, c.values)
            expected = runtime.session(masked, optimise="basic", threads=1).run(self.bench.feeds)
            found = runtime.session(self.sliced(removed), threads=1).run(self.bench.feeds)
            for name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)

    def check_cut(self) -> None:
        """Without what it mixes, the operator gives in the sliced network the cut of what it gives in the whole one."""
        removed, outs = self.plan(1.0, self.mixed()), self.bench.outputs
        if removed.any():
            whole, small = (
                runtime.session(graph, optimise="off", threads=1, taps=outs).run(self.bench.feeds)
                for graph in (self.graph, self.sliced(removed))
            )
            for name in outs:
                np.testing.assert_allclose(small[name], cut(whole[name], self.masks(name, removed)), 1e-5, 1e-6)

    def check(self) -> None:
        self.check_spec()
        self.check_masked(1.0)
        self.check_masked(0.5)
        self.check_cut()

    @property
    def has_blocks(self) -> bool:
        """Whether the policy can make a difference."""
        return any(len(spans(f)) > 1 for factors in self.coupling.factors.values() for f in factors)
