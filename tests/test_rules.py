"""Every row of the rule tables against onnxruntime: cutting commutes with the operator."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from fixtures.tiny import Net
from onnx import TensorProto, helper

from prunepass import runtime
from prunepass.api import Job
from prunepass.coupling import Coupling
from prunepass.ephemeral import mask_graph
from prunepass.graph import Graph
from prunepass.labels import spans
from prunepass.kept import cut, kept_masks, new_shape
from prunepass.manager import Pipeline
from prunepass.plan import Plan
from prunepass.selection import ladder, protected_units, removed_by
from prunepass.slicing import slice_graph

from rule_table import Record, Value
from rule_records import RECORDS

FAR = 2  # size of the axes of the graph's outputs
NEAR = 3  # size of the axes of the graph's inputs


# ---- the network around an operator ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bench:
    """A network around one operator, and the names of the operator's values."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    inputs: list[str]
    outputs: list[str]


def flat_shape(value: Value) -> list[int]:
    return [math.prod(d) if isinstance(d, tuple) else d for d in value.shape]


def sizes(value: Value) -> list[int]:
    return [s for d in value.shape for s in (d if isinstance(d, tuple) else (d,))]


def each_axis(net: Net, y: str, weights: list[np.ndarray | None]) -> str:
    """Multiply every axis that has one by its weight, the last axis first."""
    rank = len(weights)
    if all(weight is None for weight in weights):
        return y
    for weight in reversed(weights):
        if weight is not None:
            y = net("MatMul", y, net.const(weight, "weight"))
        if rank > 1:
            y = net("Transpose", y, perm=[rank - 1, *range(rank - 1)])
    return y


def in_domain(net: Net, y: str, domain: str) -> str:
    """Move random numbers to where an operator takes them."""
    if domain == "real":
        return y
    if domain == "unit":
        return net("Sigmoid", y)
    if domain == "above1":
        return net("Exp", net("Abs", y))
    if domain == "one":
        return net("Cast", net("Add", net("Sigmoid", y), net.const(np.float32(1))), to=TensorProto.INT64)
    if domain == "index":
        return net("Cast", net("Mul", net("Sigmoid", y), net.const(np.float32(2.99))), to=TensorProto.INT64)
    if domain == "bool":
        return net("Greater", y, net.const(np.float32(0)))
    large = net("Mul", net("Abs", y), net.const(np.float32(10)))
    return net("Cast", large, to=helper.np_dtype_to_tensor_dtype(np.dtype(domain)))


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


def matrix(net: Net, into: int, out: int) -> np.ndarray:
    return net.rng.normal(0, into**-0.5, (into, out)).astype(np.float32)


def feed_value(net: Net, value: Value, name: str) -> str:
    if value.kind == "absent":
        return ""
    if value.data is not None:
        return net.const(value.data, name)
    shape = flat_shape(value)
    if value.kind == "constant":
        data = net.rng.normal(0, max(1, math.prod(shape)) ** -0.25, shape)
        if value.domain == "unit":
            data = 1 / (1 + np.exp(-data))
        elif value.domain == "bool":
            data = data > 0
        elif value.domain != "real":
            data = (np.abs(data) * 10).astype(value.domain)
        return net.const(np.asarray(data), name)
    labelled = [axis in value.on and size > 1 for axis, size in enumerate(shape)]
    start = [NEAR if own else size for own, size in zip(labelled, shape)]
    y = net.input(name, list(start), tuple(start))
    y = each_axis(net, y, [matrix(net, NEAR, s) if own else None for own, s in zip(labelled, shape)])
    if sizes(value) != shape:
        y = net("Reshape", y, net.const(sizes(value), "shape"))
    return in_domain(net, y, value.domain)


@functools.cache
def bench(number: int) -> Bench:
    """Build the network of a record."""
    record = RECORDS[number]
    net = Net(f"{record.op}{number}", record.opset)
    ins = [feed_value(net, value, f"in{i}") for i, value in enumerate(record.inputs)]
    if record.build is not None:
        outs = record.build(net, *ins)
    else:
        count = len(record.terms[1])
        outs = net.many(record.op, count, *ins, **record.attrs)
    shown = finish(net, [onnx.ValueInfoProto(name=name) for name in outs])
    found = runtime.session(shown, optimise="off").run(net.feeds)
    net.outputs = []
    for i, name in enumerate(outs):
        y = name
        if found[name].dtype != np.float32:
            y = net("Cast", y, to=TensorProto.FLOAT)
        net.output(weighted_sum(net, y, found[name].shape), f"out{i}", [FAR])
    return Bench(finish(net, net.outputs), dict(net.feeds), ins, outs)


def finish(net: Net, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    own, net.outputs = net.outputs, outputs
    model, _ = net.finish()
    net.outputs = own
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))
    return model


# ---- one record ------------------------------------------------------------------------------------------------------
class Trial:
    """The analysis of one record."""

    def __init__(self, number: int) -> None:
        self.record, self.bench = RECORDS[number], bench(number)
        job = Job.open(self.bench.model, (), None, None, 0, None)
        self.graph: Graph = job.facts.graph
        self.coupling: Coupling = job.facts.get("coupling", policy=self.record.policy)
        self.rng = np.random.default_rng(number)
        left, right = self.record.terms
        ins = [name for name in self.bench.inputs]
        assert len(left) == len(ins) and len(right) == len(self.bench.outputs), "one term per value"
        self.terms = [*zip(ins, left), *zip(self.bench.outputs, right)]

    def units(self, name: str, axis: int) -> np.ndarray:
        """Units on one axis of a value; those of blocks stand on the inner axis."""
        found = [f for f in self.coupling.factors.get(name, ()) if spans(f)[-1:] == (axis,)]
        ids = np.unique(np.concatenate([f.reshape(-1) for f in found])) if found else np.zeros(0, int)
        return ids[ids > 0]

    def plan(self, all_of_it: bool, frozen: np.ndarray | None = None) -> np.ndarray:
        """Remove as much as `select` may, or a random part of it."""
        coupling = self.coupling
        scores = self.rng.random(coupling.n_units)
        held = protected_units(coupling, scores)
        if frozen is not None:
            held |= frozen
        chosen = []
        for events in ladder(coupling.groups, scores, held, align=1):
            chosen += events[: len(events) if all_of_it else int(self.rng.integers(0, len(events) + 1))]
        return removed_by(chosen, coupling.n_units)

    def new_shape(self, name: str, removed: np.ndarray) -> tuple[int, ...]:
        return new_shape(self.shape(name), kept_masks(self.coupling.factors.get(name, ()), removed))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.coupling.shapes[name]

    def describe(self, removed: np.ndarray) -> str:
        """Say which axes shrink."""
        terms = []
        for name, _ in self.terms:
            pairs = zip(self.shape(name), self.new_shape(name, removed)) if name else []
            terms.append("".join("-" if a == b else "x" for a, b in pairs))
        left = len(self.bench.inputs)
        return f"{','.join(terms[:left])}->{','.join(terms[left:])} units={self.coupling.n_units - 1}"

    # ---- what is claimed -----------------------------------------------------------------------------------------
    def check_axes(self) -> None:
        removed = self.plan(all_of_it=True)
        found = self.describe(removed)
        letters: dict[str, np.ndarray] = {}
        count = 0
        for name, term in self.terms:
            shape = self.shape(name) if name else ()
            assert len(term) == len(shape), f"{term} for shape {shape}: {found}"
            for axis, (letter, old, new) in enumerate(zip(term, shape, self.new_shape(name, removed) if name else ())):
                assert (letter != "_") == (old != new), f"{self.record.axes}: axis {axis} of {name}: {found}"
                if letter in "_*":
                    continue
                units = self.units(name, axis)
                count += old if letter not in letters else 0
                assert np.array_equal(letters.setdefault(letter, units), units), f"{letter} differs: {found}"
        for a in letters:
            for b in letters:
                assert a >= b or not np.intersect1d(letters[a], letters[b]).size, f"{a} and {b} share units: {found}"
        expected = self.record.units if self.record.units is not None else count
        units = self.coupling.n_units - 1
        assert units == expected, f"{expected} units expected: {found}"

    # ---- laws ----------------------------------------------------------------------------------------------------
    def sliced(self, removed: np.ndarray) -> Graph:
        twin = self.graph.copy()
        slice_graph(twin, Plan.of(twin, self.coupling, removed))
        return twin

    def check_masked(self, removed: np.ndarray) -> None:
        """The sliced network computes what the masked one does."""
        coupling = self.coupling
        masked = mask_graph(self.graph, coupling.shapes, coupling.elem_types, coupling.factors, removed, coupling.values)
        expected = runtime.session(masked, optimise="basic", threads=1).run(self.bench.feeds)
        found = runtime.session(self.sliced(removed), threads=1).run(self.bench.feeds)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)

    def check_cut(self, removed: np.ndarray) -> None:
        """The operator in the sliced network gives the cut of what it gives in the whole one."""
        outs = self.bench.outputs
        whole = runtime.session(self.graph, optimise="off", threads=1, taps=outs).run(self.bench.feeds)
        small = runtime.session(self.sliced(removed), optimise="off", threads=1, taps=outs).run(self.bench.feeds)
        for name in outs:
            expected = cut(whole[name], kept_masks(self.coupling.factors.get(name, ()), removed))
            assert small[name].shape == expected.shape
            np.testing.assert_allclose(small[name], expected, rtol=1e-5, atol=1e-6)

    def mixed(self) -> np.ndarray:
        """Mark the units that the operator mixes."""
        marked = np.zeros(self.coupling.n_units, bool)
        for name, term in self.terms:
            for axis, letter in enumerate(term):
                if letter.isupper():
                    marked[self.units(name, axis)] = True
        return marked

    def check(self) -> None:
        reasons = " ".join(b.reason for b in self.coupling.barriers)
        assert self.record.barrier in reasons and bool(self.record.barrier) == bool(reasons), reasons
        self.check_axes()
        for all_of_it in (True, False):
            removed = self.plan(all_of_it)
            if removed.any():
                self.check_masked(removed)
        removed = self.plan(True, self.mixed())
        if removed.any():
            self.check_cut(removed)


NAMES = [f"{i}-{r.op}-{r.axes}" for i, r in enumerate(RECORDS)]


@pytest.mark.parametrize("number", range(len(RECORDS)), ids=NAMES)
def test_record(number: int) -> None:
    Trial(number).check()
