"""The ephemeral form of each operator: every tensor stays whole, removed indices are taken out where they are mixed.

A row rewrites one node of a copy of the graph: zeros into contractions and sums, the kept count into means, minus
infinity into maxima and Softmax, masked statistics into normalisations. Operators that mix no index along an axis that
can shrink need no row. This is an execution of the plan that shares nothing with slicing: no tensor, no size and no
attribute changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import helper

from prunepass.graph import Graph, Node
from prunepass.labels import Factors, spans
from prunepass.rules.dims import trains
from prunepass.rules.table import Table

MASKS: Table[Callable[[Masking], None]] = Table("masks")
_INFINITY = {"float16": 65504.0, "float64": 1.0e300}


@dataclass
class Masking:
    """One node of the ephemeral graph under construction; `given` are its inputs before any was masked."""

    graph: Graph
    node: Node
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]
    factors: Mapping[str, Factors]
    removed: np.ndarray
    values: Mapping[str, np.ndarray]
    before: list[Node] = field(default_factory=list)
    after: list[Node] = field(default_factory=list)
    replaced: bool = False
    given: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.given = tuple(self.node.inputs)

    # ---- what is removed -----------------------------------------------------------------------------------------
    def mask(self, position: int, axes: Iterable[int]) -> np.ndarray | None:
        """Which elements of an input stay, by the factors that span one of `axes`; None where all of them do."""
        chosen = set(axes)
        found: np.ndarray | None = None
        for factor in self.factors.get(self.given[position], ()):
            if chosen & set(spans(factor)) and self.removed[factor].any():
                kept = ~self.removed[factor]
                found = kept if found is None else found & kept
        return found

    def rank(self, position: int = 0) -> int:
        """Number of axes of an input."""
        return len(self.shapes[self.given[position]])

    def dtype(self, position: int = 0) -> np.dtype:
        """Element type of an input."""
        return self.dtypes[self.given[position]]

    # ---- building ------------------------------------------------------------------------------------------------
    def constant(self, value: np.ndarray, hint: str = "mask") -> str:
        """Add a constant and return its name."""
        name = self.graph.fresh_name(f"{self.node.outputs[0]}_{hint}")
        self.graph.consts[name] = value
        return name

    def add(self, op: str, inputs: Sequence[str], **attrs: object) -> str:
        """Put a node in front of this one and return its result."""
        out = self.graph.fresh_name(f"{self.node.outputs[0]}_{op.lower()}")
        self.before.append(Node.make(op, inputs, [out], name=out, **attrs))
        return out

    def number(self, value: float, position: int = 0) -> str:
        """Add a scalar of the type of an input."""
        return self.constant(np.array(value, self.dtype(position)), "number")

    def where(self, name: str, mask: np.ndarray, fill: float, position: int = 0) -> str:
        """Replace what is removed by a constant."""
        if self.graph.opset < 9:  # no Where yet
            kept = self.constant(mask.astype(self.dtype(position)))
            rest = self.constant(np.where(mask, 0, fill).astype(self.dtype(position)), "fill")
            return self.add("Add", [self.add("Mul", [name, kept]), rest])
        if self.dtype(position) == np.bool_:  # onnxruntime has no Where for it
            return (
                self.add("Or", [name, self.constant(~mask)]) if fill else self.add("And", [name, self.constant(mask)])
            )
        return self.add("Where", [self.constant(mask), name, self.number(fill, position)])

    def fill(self, position: int, axes: Iterable[int], value: float) -> np.ndarray | None:
        """Replace what is removed along `axes` of an input by a constant; return the mask used."""
        mask = self.mask(position, axes)
        if mask is not None:
            self.node.inputs[position] = self.where(self.node.inputs[position], mask, value, position)
        return mask

    def become(self, name: str) -> None:
        """Put a value that was computed in front of the node in the place of its result."""
        self.replaced = True
        output = self.node.outputs[0]
        self.before.append(Node.make("Identity", [name], [output], name=self.graph.fresh_name(f"{output}_masked")))

    def total(self, name: str, axes: Sequence[int]) -> str:
        """Sum over axes, keeping them."""
        if self.graph.opset < 13:
            return self.add("ReduceSum", [name], axes=list(axes), keepdims=1)
        return self.add("ReduceSum", [name, self.constant(np.array(axes, np.int64), "axes")], keepdims=1)

    def count(self, name: str, mask: np.ndarray, axes: Sequence[int]) -> str:
        """Count what is kept along `axes`; how long the other ones of them are, a run tells."""
        kept = self.number(kept_share(mask, axes) * math.prod(mask.shape[a] for a in axes))
        rest = [a for a in axes if mask.shape[a] == 1]
        if not rest:
            return kept
        sizes = self.add("Gather", [self.add("Shape", [name]), self.constant(np.array(rest, np.int64), "axes")])
        product = self.add("ReduceProd", [sizes], keepdims=0)
        kind = helper.np_dtype_to_tensor_dtype(self.dtype())
        return self.add("Mul", [kept, self.add("Cast", [product], to=kind)])

    def standardise(self, name: str, mask: np.ndarray, axes: Sequence[int], epsilon: float, centre: bool = True) -> str:
        """Subtract the mean and divide by the standard deviation of what is kept along `axes`."""
        count = self.count(name, mask, axes)
        x = self.where(name, mask, 0.0)
        if centre:
            mean = self.add("Div", [self.total(x, axes), count])
            x = self.where(self.add("Sub", [x, mean]), mask, 0.0)
        variance = self.add("Div", [self.total(self.add("Mul", [x, x]), axes), count])
        deviation = self.add("Sqrt", [self.add("Add", [variance, self.number(epsilon)])])
        return self.add("Div", [x, deviation])


def kept_share(mask: np.ndarray, axes: Sequence[int]) -> float:
    """Fraction of the indices along `axes` that stay, in the blocks that keep anything."""
    chosen = tuple(a for a in axes if mask.shape[a] > 1)
    counts = mask.sum(axis=chosen)
    return float(counts.max() / math.prod(mask.shape[a] for a in chosen))


def lowest(m: Masking) -> float:
    """Stand-in for minus infinity, or the least value of a type that has none."""
    kind = m.dtype()
    if kind.kind in "biu":
        return int(np.iinfo(kind).min) if kind.kind != "b" else False
    return -_INFINITY.get(kind.name, 3.0e38)


def highest(m: Masking) -> float:
    """Stand-in for infinity, or the greatest value of a type that has none."""
    kind = m.dtype()
    if kind.kind in "biu":
        return int(np.iinfo(kind).max) if kind.kind != "b" else True
    return -lowest(m)


# ---- contractions ----------------------------------------------------------------------------------------------------
@MASKS.row("Conv ConvTranspose")
def conv(m: Masking) -> None:
    m.fill(0, [1], 0.0)


def zero_computed(m: Masking, position: int, axes: Iterable[int]) -> None:
    """Put zeros into a computed operand of a product: what is removed may be infinite, and zero times that is NaN."""
    if m.given[position] not in m.graph.consts:
        m.fill(position, axes, 0.0)


@MASKS.row("Gemm")
def gemm(m: Masking) -> None:
    m.fill(0, [0 if m.node.attr("transA", 0) else 1], 0.0)
    zero_computed(m, 1, [1 if m.node.attr("transB", 0) else 0])


@MASKS.row("MatMul")
def matmul(m: Masking) -> None:
    rows = [max(m.rank(1) - 2, 0)]
    if m.fill(0, [m.rank(0) - 1], 0.0) is None:
        m.fill(1, rows, 0.0)
    else:
        zero_computed(m, 1, rows)


@MASKS.row("Einsum")
def einsum(m: Masking) -> None:
    left, arrow, right = m.node.attr("equation", "").replace(" ", "").partition("->")
    if not arrow:
        right = "".join(x for x in left if left.count(x) == 1 and x.isalpha())
    done: set[str] = set()  # masked in a constant, which is finite; every computed operand is masked
    for position, term in enumerate(left.split(",")):
        head, _, tail = term.partition("...")
        shift = m.rank(position) - len(head) - len(tail)
        place = {x: i for i, x in enumerate(head)} | {x: len(head) + shift + i for i, x in enumerate(tail)}
        mixed = {x: axis for x, axis in place.items() if x not in right and x not in done}
        if m.fill(position, mixed.values(), 0.0) is not None and m.given[position] in m.graph.consts:
            done.update(mixed)


# ---- reductions ------------------------------------------------------------------------------------------------------
def _reduced(m: Masking) -> list[int]:
    given = m.node.attr("axes")
    if given is None and len(m.node.inputs) > 1 and m.node.inputs[1]:
        name = m.node.inputs[1]
        known = m.graph.consts[name] if name in m.graph.consts else m.values.get(name)
        if known is None:  # the rule for labels refuses that
            return []
        given = known.reshape(-1).tolist()
    if not given:
        return [] if m.node.attr("noop_with_empty_axes", 0) else list(range(m.rank()))
    return [a % m.rank() for a in given]


@MASKS.row("ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum")
def reduce_zero(m: Masking) -> None:
    m.fill(0, _reduced(m), 0.0)


@MASKS.row("ReduceMax ReduceLogSumExp")
def reduce_lowest(m: Masking) -> None:
    m.fill(0, _reduced(m), lowest(m))


@MASKS.row("ReduceMin")
def reduce_highest(m: Masking) -> None:
    m.fill(0, _reduced(m), highest(m))


@MASKS.row("ReduceProd")
def reduce_one(m: Masking) -> None:
    m.fill(0, _reduced(m), 1.0)


@MASKS.row("ReduceMean")
def reduce_mean(m: Masking) -> None:
    axes = _reduced(m)
    mask = m.fill(0, axes, 0.0)
    if mask is not None:
        scale_output(m, 1.0 / kept_share(mask, axes))


def scale_output(m: Masking, factor: float) -> None:
    """Multiply the result of the node by a number."""
    public = m.node.outputs[0]
    m.node.outputs[0] = m.graph.fresh_name(f"{public}_unscaled")
    m.after.append(Node.make("Mul", [m.node.outputs[0], m.number(factor)], [public], name=m.node.outputs[0]))


# ---- normalisation ---------------------------------------------------------------------------------------------------
@MASKS.row("Softmax LogSoftmax")
def softmax(m: Masking) -> None:
    old = m.graph.opset < 13
    axis = m.node.attr("axis", 1 if old else -1) % m.rank()
    m.fill(0, range(axis, m.rank()) if old else [axis], lowest(m))


@MASKS.row("LayerNormalization RMSNormalization SimplifiedLayerNormalization")
def layer_norm(m: Masking) -> None:
    axes = list(range(m.node.attr("axis", -1) % m.rank(), m.rank()))
    mask = m.mask(0, axes)
    if mask is None:
        return
    centre = m.node.op == "LayerNormalization"
    result = m.standardise(m.node.inputs[0], mask, axes, m.node.attr("epsilon", 1e-5), centre)
    result = m.add("Mul", [result, m.node.inputs[1]])
    if len(m.node.inputs) > 2 and m.node.inputs[2]:
        result = m.add("Add", [result, m.node.inputs[2]])
    m.become(result)


@MASKS.row("BatchNormalization")
def batch_norm(m: Masking) -> None:
    """In training mode the statistics are those of the data; further outputs stay with the node."""
    axes = [a for a in range(m.rank()) if a != 1]
    mask = m.mask(0, axes) if trains(m.node, m.graph.opset) else None
    if mask is None:
        return
    result = m.standardise(m.node.inputs[0], mask, axes, m.node.attr("epsilon", 1e-5))
    m.become(_per_channel(m, result))
    if any(m.node.outputs[1:]):
        m.node.outputs[0] = m.graph.fresh_name(f"{m.node.outputs[0]}_whole")
        m.replaced = False


@MASKS.row("InstanceNormalization")
def instance_norm(m: Masking) -> None:
    axes = list(range(2, m.rank()))
    mask = m.mask(0, axes)
    if mask is not None:
        result = m.standardise(m.node.inputs[0], mask, axes, m.node.attr("epsilon", 1e-5))
        m.become(_per_channel(m, result))


def _per_channel(m: Masking, name: str) -> str:
    """Apply scale and bias, one entry per channel."""
    shape = m.constant(np.array([1, -1] + [1] * (m.rank() - 2), np.int64), "shape")
    for op, position in (("Mul", 1), ("Add", 2)):
        name = m.add(op, [name, m.add("Reshape", [m.node.inputs[position], shape])])
    return name


@MASKS.row("GroupNormalization")
def group_norm(m: Masking) -> None:
    mask = m.mask(0, [1])
    groups, shape = int(m.node.attr("num_groups")), m.shapes[m.node.inputs[0]]
    if mask is None:
        return
    size = shape[1] // groups
    x = m.add("Reshape", [m.node.inputs[0], m.constant(np.array([0, groups, size, -1], np.int64), "split")])
    x = m.standardise(x, mask.reshape(1, groups, size, 1), [2, 3], m.node.attr("epsilon", 1e-5))
    x = m.add("Reshape", [x, m.add("Shape", [m.node.inputs[0]])])
    m.become(_per_channel(m, x))


@MASKS.row("MeanVarianceNormalization")
def mean_variance(m: Masking) -> None:
    axes = [a % m.rank() for a in m.node.attr("axes", [0, 2, 3])]
    mask = m.mask(0, axes)
    if mask is not None:
        m.become(m.standardise(m.node.inputs[0], mask, axes, 1e-9))


@MASKS.row("LpNormalization")
def lp_norm(m: Masking) -> None:
    m.fill(0, [m.node.attr("axis", -1) % m.rank()], 0.0)
