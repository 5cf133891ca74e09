"""Which nodes change nothing, which only move what they read, and which make more than they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Consts, Node
from prunepass.rules.table import Table

NO_OPS: Table[Callable[[Node, Consts], bool]] = Table("whether the first output is the first input")
WHOLE_MOVES = frozenset("Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())
"""The result holds the same elements, all of them."""
RESHAPES = frozenset("Flatten Reshape Squeeze Unsqueeze".split())
"""The elements keep their order."""
BROADCASTS = frozenset(
    "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or "
    "Pow Sub Sum Where Xor".split()
)
"""Element by element; operands are stretched to one another."""
POINTWISE = BROADCASTS | frozenset(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu".split()
)
"""What one element becomes depends on no other one, and not on where it is."""
MOVES = WHOLE_MOVES | frozenset("Concat Gather ScatterElements ScatterND Slice Split".split())
"""The result is made of elements that were read; a large constant may be moved once and for all."""
GROWS: Table[int] = Table("the position of the operand that says how large the result is")
GROWS("ConstantOfShape EyeLike", 0)
GROWS("Expand OneHot Tile", 1)


def _alone(node: Node, consts: Consts) -> bool:
    return not any(node.outputs[1:])


NO_OPS("Identity", _alone)
NO_OPS("Concat Max Mean Min Sum", lambda node, consts: len(node.inputs) == 1)
NO_OPS("Split", lambda node, consts: len(node.outputs) == 1)
NO_OPS("Dropout", lambda node, consts: _alone(node, consts) and len(node.inputs) < 3)


@NO_OPS.row("Transpose")
def transpose(node: Node, consts: Consts) -> bool:
    perm = node.attr("perm")
    return perm is not None and list(perm) == sorted(perm)


@NO_OPS.row("Scatter ScatterElements ScatterND")
def nothing_to_scatter(node: Node, consts: Consts) -> bool:
    """An assignment to an empty slice, which sizes that turn out to be 0 make."""
    return node.inputs[1] in consts and 0 in consts.shape(node.inputs[1])


IMPURE = frozenset(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout".split()
)
"""Two of them, with equal operands, may give different results."""


SIZE_MOVES: Table[int] = Table("how many operands hold elements of the result, 0 for all; the others must be stored")
SIZE_MOVES("Cast Gather Identity Reshape Slice Split Squeeze Unsqueeze", 1)
SIZE_MOVES("Concat", 0)
KEEPS_ZERO = WHOLE_MOVES | frozenset("Cast Concat Expand Gather Slice Split Tile".split())
"""Made of zeros where the data are zeros, whatever indices and sizes turn out to be."""
KEEPS_ZERO_OF: Table[int] = Table("how many of the first operands are data; all where there is no row")
KEEPS_ZERO_OF("Expand Gather Reshape Slice Split Squeeze Tile Unsqueeze", 1)
ASSUMED: Table[tuple[int, ...]] = Table("the operands that are taken for zeros where they are left out")
ASSUMED("Conv ConvTranspose Gemm", (2,))
ASSUMED("LSTM", (3, 5, 6, 7))
ASSUMED("GRU RNN", (3, 5))


@dataclass(frozen=True)
class Shaped:
    """A node with the shapes that the file fixes; axes of the same name have the same length.

    Units
        kinds: element types. fixed: contents of small constants.
    """

    node: Node
    shapes: Mapping[str, tuple[int | str | None, ...]]
    kinds: Mapping[str, int]
    fixed: Mapping[str, np.ndarray]

    def same_shape(self, position: int = 0) -> bool:
        """Whether an input certainly has the shape of the result."""
        a, b = (self.shapes.get(name) for name in (self.node.inputs[position], self.node.outputs[0]))
        return a is not None and a == b and None not in a

    def known(self, position: int, attribute: str = "") -> list[int] | None:
        """Return integers that are an attribute or a stored operand."""
        if attribute and attribute in self.node.attrs:
            return [int(v) for v in np.ravel(self.node.attrs[attribute])]
        found = self.fixed.get(self.node.inputs[position]) if position < len(self.node.inputs) else None
        return None if found is None else [int(v) for v in np.ravel(found)]


SHAPED_NO_OPS: Table[Callable[[Shaped], int | None]] = Table("which input the result is, given the shapes")


@SHAPED_NO_OPS.row("Expand")
def same_shape(s: Shaped) -> int | None:
    return 0 if s.same_shape() else None


@SHAPED_NO_OPS.row("Reshape")
def reshape_to_itself(s: Shaped) -> int | None:
    """Each size of the target is that of the input, or copied; one may be left open, which leaves the rest for it."""
    shape, target = s.shapes.get(s.node.inputs[0]), s.known(1, "shape")
    if s.same_shape() or shape is None or target is None or len(shape) != len(target) or target.count(-1) > 1:
        return 0 if s.same_shape() else None
    copies = not s.node.attr("allowzero", 0)
    own = [size == given or (size == 0 and copies) or size == -1 for size, given in zip(target, shape)]
    return 0 if all(own) and (0 not in shape or -1 not in target) else None


@SHAPED_NO_OPS.row("Flatten Squeeze Unsqueeze Tile")
def same_shape_too(s: Shaped) -> int | None:
    return 0 if s.same_shape() and all(isinstance(d, int) for d in s.shapes[s.node.inputs[0]]) else None


@SHAPED_NO_OPS.row("Slice")
def slice_of_all(s: Shaped) -> int | None:
    starts, ends, steps = s.known(1, "starts"), s.known(2, "ends"), s.known(4)
    forward = len(s.node.inputs) < 5 or not s.node.inputs[4] or (steps is not None and set(steps) == {1})
    if starts is None or ends is None or not forward or any(starts):
        return None
    whole = s.same_shape() and all(isinstance(d, int) for d in s.shapes[s.node.inputs[0]])
    return 0 if whole or min(ends) >= np.iinfo(np.int64).max - 1 else None


@SHAPED_NO_OPS.row("Pad")
def pad_of_nothing(s: Shaped) -> int | None:
    pads = s.known(1, "pads" if "pads" in s.node.attrs else "paddings")
    return 0 if pads is not None and not any(pads) else None


@SHAPED_NO_OPS.row("Cast")
def cast_to_itself(s: Shaped) -> int | None:
    return 0 if s.kinds.get(s.node.inputs[0]) == s.node.attr("to") else None


def _unit(s: Shaped, number: float, positions: tuple[int, ...]) -> int | None:
    """Return the operand that a neutral number in the other place leaves as it is."""
    for position in positions:
        other = s.fixed.get(s.node.inputs[position])
        if other is not None and other.size and bool((other == number).all()) and s.same_shape(1 - position):
            return 1 - position
    return None


@SHAPED_NO_OPS.row("Mul")
def times_one(s: Shaped) -> int | None:
    return _unit(s, 1, (1, 0))


@SHAPED_NO_OPS.row("Div Pow")
def by_one(s: Shaped) -> int | None:
    return _unit(s, 1, (1,))


@SHAPED_NO_OPS.row("Add")
def plus_zero(s: Shaped) -> int | None:
    return _unit(s, 0, (1, 0))


@SHAPED_NO_OPS.row("Sub")
def minus_zero(s: Shaped) -> int | None:
    return _unit(s, 0, (1,))
