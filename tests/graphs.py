"""Grow random typed graphs: chains, branches and merges of the blocks that networks are made of.

`grow(random)` takes any source of choices with the interface of `random.Random`; `graphs()` is the hypothesis strategy,
which shrinks. Values are images (N, C, H, W), sequences (N, L, D) or vectors (N, D); bridges lead from one to another.
A size that only a run tells (a dynamic batch or length) stands as 0.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import onnx
from graph_forms import feeds_for, other_form
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fixtures.tiny import Net

T = TypeVar("T")
OPSETS = (17, 13, 18, 21, 23, 11, 9)
CHANNELS = (8, 12, 16, 6, 4)
CLASSES = 3  # of the graph's outputs


@dataclass(frozen=True)
class Value:
    """A float value under construction; sizes that only a run tells are 0."""

    name: str
    shape: tuple[int, ...]

    @property
    def channel(self) -> int:
        """The axis that layers mix."""
        return 1 if len(self.shape) == 4 else len(self.shape) - 1

    @property
    def width(self) -> int:
        """Length of that axis."""
        return self.shape[self.channel]

    @property
    def static(self) -> bool:
        """Whether all axes but the batch have a known length."""
        return all(self.shape[1:])


@dataclass(frozen=True)
class Grown:
    """A finished graph, and inputs for it: as it was grown, and with other dynamic sizes."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    larger: dict[str, np.ndarray]
    nodes: int
    blocks: tuple[str, ...]


Block = Callable[["Grower", Value], "Value | Sequence[Value] | None"]
BLOCKS: dict[str, list[Block]] = {"image": [], "sequence": [], "vector": []}
KINDS = {4: "image", 3: "sequence", 2: "vector"}


def block(*kinds: str) -> Callable[[Block], Block]:
    """Register a block for values of some kinds (all where none is named)."""

    def register(build: Block) -> Block:
        for kind in kinds or tuple(BLOCKS):
            BLOCKS[kind].append(build)
        return build

    return register


@dataclass
class Grower:
    """A graph that grows, and the choices that make it."""

    rng: random.Random
    net: Net
    dynamic: bool
    values: list[Value] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    weights: dict[tuple[int, ...], str] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)

    # ---- choices -------------------------------------------------------------------------------------------------
    def pick(self, options: Sequence[T]) -> T:
        """Choose one; the first is the simplest."""
        return options[self.rng.randrange(len(options))]

    def rarely(self, times: int = 4) -> bool:
        """Say yes once in so many times."""
        return self.rng.randrange(times) == times - 1

    def divisor(self, size: int, options: Sequence[int] = (2, 4, 3)) -> int | None:
        """Choose one of the options that divide a size."""
        fits = [d for d in options if size and size % d == 0 and size > d]
        return self.pick(fits) if fits else None

    # ---- nodes ---------------------------------------------------------------------------------------------------
    @property
    def opset(self) -> int:
        return self.net.opset

    def __call__(self, op: str, *inputs: str | Value, **attrs: Any) -> str:
        return self.many(op, 1, *inputs, **attrs)[0]

    def many(self, op: str, count: int, *inputs: str | Value, **attrs: Any) -> list[str]:
        """Append a node."""
        names = [v.name if isinstance(v, Value) else v for v in inputs]
        self.used.update(names)
        return self.net.many(op, count, *names, **attrs)

    def ints(self, *values: int) -> str:
        return self.net.const(list(values))

    def scalar(self, value: float) -> str:
        return self.net.const(np.float32(value))

    def with_axes(self, op: str, x: str | Value, axes: list[int], since: int = 13, **attrs: Any) -> str:
        """Squeeze, Unsqueeze and the Reduce operators: axes as an attribute, later as an input."""
        if self.opset < since:
            return self(op, x, axes=axes, **attrs)
        return self(op, x, self.ints(*axes), **attrs)

    def reduce(self, op: str, x: str | Value, axes: list[int], keep: int = 1) -> str:
        return self.with_axes(op, x, axes, 13 if op == "ReduceSum" else 18, keepdims=keep)

    def transpose(self, x: str | Value, *perm: int) -> str:
        return self("Transpose", x, perm=list(perm))

    def slice(self, x: str | Value, axis: int, start: int, end: int, step: int = 1) -> str:
        if self.opset < 10:
            return self("Slice", x, axes=[axis], starts=[start], ends=[end])
        return self("Slice", x, *(self.ints(v) for v in (start, end, axis, step)))

    def split(self, x: str | Value, axis: int, sizes: list[int]) -> list[str]:
        if self.opset < 13:
            return self.many("Split", len(sizes), x, axis=axis, split=sizes)
        if self.opset >= 18 and len(set(sizes)) == 1:
            return self.many("Split", len(sizes), x, axis=axis, num_outputs=len(sizes))
        implied = len(set(sizes)) == 1 and self.rarely(2)
        return self.many("Split", len(sizes), x, *([] if implied else [self.ints(*sizes)]), axis=axis)

    def gather(self, x: str | Value, index: int, axis: int) -> str:
        return self("Gather", x, self.net.const(np.int64(index)), axis=axis)

    def clip(self, x: str | Value, low: float, high: float) -> str:
        if self.opset < 11:
            return self("Clip", x, min=low, max=high)
        return self("Clip", x, self.scalar(low), self.scalar(high))

    def size_of(self, x: str | Value, axis: int) -> str:
        """Compute one size at run time."""
        return self("Gather", self("Shape", x), self.ints(axis), axis=0)

    def reshape(self, x: str | Value, *target: int) -> str:
        """Reshape; 0 copies a size of the input, -1 is what is left. The target is stored or computed."""
        way = self.pick(("stored", "computed", "inferred"))
        zeros = [axis for axis, size in enumerate(target) if size == 0]
        if way == "inferred" and len(zeros) == 1 and -1 not in target:
            return self("Reshape", x, self.ints(*(-1 if size == 0 else size for size in target)))
        if way == "computed" and zeros:
            entries = [self.size_of(x, a) if size == 0 else self._entry(x, size) for a, size in enumerate(target)]
            return self("Reshape", x, self("Concat", *entries, axis=0))
        return self("Reshape", x, self.ints(*target))

    def _entry(self, x: str | Value, size: int) -> str:
        """One known size of a computed target; at times computed from a channel axis, as exporters do."""
        shape = x.shape if isinstance(x, Value) else ()
        axes = [axis for axis, length in enumerate(shape) if axis and size > 0 and length and length % size == 0]
        if not axes or not self.rarely(3):
            return self.ints(size)
        known = self.size_of(x, axes[-1])
        times = shape[axes[-1]] // size
        return self("Div", known, self.ints(times)) if times > 1 else known

    # ---- weights -------------------------------------------------------------------------------------------------
    def array(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        return self.net.rng.normal(0, scale, shape).astype(np.float32)

    def vector(self, size: int, mean: float = 0.0) -> str:
        """A bias or scale; some are shared, as exporters store equal ones once."""
        if mean == 0.0 and self.rarely(5):
            return self.shared((size,), lambda: self.net.const(np.zeros(size, np.float32), "zeros"))
        return self.net.vector(size, mean)

    def shared(self, key: tuple[int, ...], make: Callable[[], str]) -> str:
        """The weight of this shape that was shared before, or a new one."""
        if key not in self.weights:
            self.weights[key] = make()
        return self.weights[key]

    def weight(self, *shape: int, fan_in: int, axis: int = 0) -> str:
        """A weight: a constant mostly; or tied, quantised, normalised, moved or cast at run time."""

        def plain() -> str:
            return self.net.weight(*shape, fan_in=fan_in)

        way = self.pick(("plain",) * 8 + ("tied", "tied", "int8", "normal", "node", "scaled", "moved"))
        if way == "tied":
            return self.shared(shape, plain)
        if way == "int8" and self.opset >= 13:
            return self._int8(shape, fan_in, axis)
        if way == "normal":
            raw = plain()
            others = [a for a in range(len(shape)) if a != axis]
            gain = self.net.const(1 + 0.2 * self.array(*(s if a == axis else 1 for a, s in enumerate(shape))))
            return self("Mul", raw, self("Div", gain, self.reduce("ReduceL2", raw, others)))
        if way == "node":
            name = self.net.fresh("constant")
            value = numpy_helper.from_array(self.array(*shape, scale=fan_in**-0.5))
            self.net.nodes.append(helper.make_node("Constant", [], [name], name=name, value=value))
            return name
        if way == "scaled":
            return self("Mul", plain(), self.scalar(0.9))
        if way == "moved":
            back = list(range(len(shape)))[::-1]
            return self.transpose(self.net.weight(*(shape[a] for a in back), fan_in=fan_in), *back)
        return plain()

    def _int8(self, shape: tuple[int, ...], fan_in: int, axis: int) -> str:
        data = np.clip(self.array(*shape, scale=40), -127, 127).astype(np.int8)
        size = shape[axis] if self.rarely(2) else 1
        scale = (np.abs(self.array(size)) + 0.5) * fan_in**-0.5 / 40
        stored = self.net.const(scale if size > 1 else np.float32(scale[0]))
        zero = [self.net.const(np.zeros(scale.shape if size > 1 else (), np.int8))] if self.rarely(2) else []
        return self("DequantizeLinear", self.net.const(data), stored, *zero, axis=axis)

    # ---- values --------------------------------------------------------------------------------------------------
    def linear(self, x: str | Value, into: int, out: int, bias: bool = True) -> str:
        """Multiply the last axis by a weight."""
        if bias and self.rarely(8) and self.opset >= 12 and isinstance(x, Value) and len(x.shape) == 3:
            y = self("Einsum", x, self.weight(out, into, fan_in=into), equation="bld,ed->ble")
        else:
            y = self("MatMul", x, self.weight(into, out, fan_in=into, axis=1))
        return self("Add", *self.either(y, self.vector(out))) if bias else y

    def either(self, a: str, b: str) -> tuple[str, str]:
        """Two operands on either side."""
        return (b, a) if self.rarely(3) else (a, b)

    def partner(self, x: Value) -> Value:
        """Another value of the same shape: an old one, or a new projection of one."""
        same = [v for v in self.values if v.shape == x.shape and v.name != x.name]
        if same and not self.rarely(3):
            return self.pick(same)
        if len(x.shape) == 4:
            weight = self.weight(x.width, x.width, 1, 1, fan_in=x.width)
            return Value(self("Conv", x, weight, self.vector(x.width)), x.shape)
        return Value(self.linear(x, x.width, x.width), x.shape)

    def along(self, x: Value) -> int | None:
        """An axis of known length: the channels mostly."""
        axes = [a for a in range(1, len(x.shape)) if x.shape[a] > 1]
        return None if not axes else x.channel if not self.rarely(4) and x.width > 1 else self.pick(axes)


def resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    """Shape with another length on one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


# ---- the whole graph -------------------------------------------------------------------------------------------------
def grow(rng: random.Random, most: int = 60) -> Grown:
    """Grow a graph of 5 to `most` nodes."""
    import graph_blocks  # noqa: F401  (fills BLOCKS)
    import graph_odd  # noqa: F401
    import graph_sequences  # noqa: F401

    opset = OPSETS[rng.randrange(len(OPSETS))]
    g = Grower(rng, Net(f"grown{rng.randrange(8)}", opset), dynamic=rng.randrange(3) != 2)
    budget = 3 + rng.randrange(max(1, most - 24))
    history = []
    start(g)
    for _ in range(40):
        if len(g.net.nodes) >= budget:
            break
        recent = g.values[-3:] if not g.rarely(4) else g.values
        x = recent[-1 - g.rng.randrange(len(recent))]
        build = g.pick(BLOCKS[KINDS[len(x.shape)]])
        made = build(g, x)
        if made is not None:
            history.append(build.__name__)
            g.values += [made] if isinstance(made, Value) else made
    finish(g)
    return grown(g, history)


def start(g: Grower) -> None:
    """Declare one or two inputs."""
    batch: list[int | str] = ["batch"] if g.dynamic else [g.pick((1, 2, 3))]
    for number in range(1 + g.rarely(4)):
        kind = g.pick(("image", "sequence", "image", "vector", "tokens"))
        length: list[int | str] = ["length"] if kind in ("sequence", "tokens") and g.dynamic and g.rarely(3) else []
        dims = {
            "image": [3, g.pick((8, 4, 6)), 8],
            "sequence": [*(length or [g.pick((4, 6))]), 8],
            "tokens": length or [g.pick((4, 6))],
            "vector": [10],
        }[kind]
        known = tuple(0 if isinstance(d, str) else d for d in (*batch, *dims))
        feed = tuple({"batch": 1, "length": 5}.get(d, 0) if isinstance(d, str) else d for d in (*batch, *dims))
        if kind == "tokens":
            name = g.net.tokens(f"tokens{number}", [*batch, *dims], feed, 11)
            size = g.pick(CHANNELS)
            table = g.shared((11, size), partial(g.net.weight, 11, size, fan_in=1))
            g.values.append(Value(g("Gather", table, name), (*known, size)))
        else:
            g.values.append(Value(g.net.input(f"{kind}{number}", [*batch, *dims], feed), known))


def finish(g: Grower) -> None:
    """Declare one to three outputs; what is left over is summed into one more, or nobody reads it."""
    inputs = set(g.net.feeds)
    leaves = [v for v in g.values if v.name not in g.used and v.name not in inputs]
    last = leaves.pop() if leaves else g.values[-1]
    parts = [last, *(v for v in leaves if not g.rarely(3))][:4]
    if len(parts) > 1 and g.rarely(3):
        extra = parts.pop()
        g.net.output(g("Identity", extra), "shown", [None] * len(extra.shape))
    total = ""
    for part in parts:
        y = score(g, part)
        total = g("Add", total, y) if total else y
    g.net.output(total, "scores", [None, CLASSES])
    if g.rarely(4):
        seen = g.pick(g.values)
        g.net.output(g("Abs", seen), "inner", [None] * len(seen.shape))


def score(g: Grower, x: Value) -> str:
    """Pool what is left to (N, width), and classify."""
    axes = [a for a in range(1, len(x.shape)) if a != x.channel]
    y = g.reduce(g.pick(("ReduceMean", "ReduceMax", "ReduceSum")), x, axes, 0) if axes else x.name
    return g("Gemm", y, g.net.weight(x.width, CLASSES, fan_in=x.width), g.net.vector(CLASSES))


def grown(g: Grower, history: list[str]) -> Grown:
    """Finish the net; dynamic axes are larger in the second set of inputs."""
    model, feeds = g.net.finish()
    if any(node.domain for node in model.graph.node):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.ir_version = max(8, helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True))
    larger = {}
    for info in list(model.graph.input):
        shape = [{"batch": 2, "length": 7}.get(d.dim_param, d.dim_value) for d in info.type.tensor_type.shape.dim]
        integers = info.type.tensor_type.elem_type == TensorProto.INT64
        made = g.net.rng.integers(0, 11, shape) if integers else g.net.rng.standard_normal(shape, np.float32)
        larger[info.name] = made
    nodes = len(model.graph.node)
    if g.rarely(3):
        history.append(other_form(g.rng, model))
    return Grown(model, feeds_for(model, feeds), feeds_for(model, larger), nodes, tuple(history))


@st.composite
def graphs(draw: st.DrawFn, most: int = 60) -> Grown:
    """Graphs of 5 to `most` nodes."""
    return grow(draw(st.randoms(use_true_random=False)), most)


def elements(shape: Sequence[int]) -> int:
    """Number of elements without the batch."""
    return math.prod(shape[1:])
