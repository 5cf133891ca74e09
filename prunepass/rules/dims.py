"""How labels pass through each operator: computing operators, as index equations.

A row is a function of a `Step`, or the text of an equation:

    rule("Gemm", "mk,kn,n->mn")

One operand per comma, one letter per axis, `*` for all further axes. A letter on two operands means equal labels; a
letter that is missing on the right is mixed (summed, averaged, normalised over); `*` and `_` are axes that keep their
length.
Operators that only move data are in `layout.py`, indexing ones in `indexing.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from prunepass.graph import Node
from prunepass.labels import Factors, spans
from prunepass.rules.step import Letter, Operand, Refused, Step
from prunepass.rules.table import Table

DimsRow = Callable[[Step], None]
DIMS: Table[DimsRow] = Table("dims")


def rule(ops: str, row: DimsRow | str) -> DimsRow:
    """Register how labels pass through operators: a function of a Step, or an index equation as text."""
    return DIMS(ops, equation(row) if isinstance(row, str) else row)


# ---- equations as text -----------------------------------------------------------------------------------------------
def equation(text: str) -> DimsRow:
    """Build a row from the text of an index equation."""
    left, out = text.split("->")
    terms = left.split(",")

    def row(step: Step) -> None:
        operands = []
        for position, term in enumerate(terms):
            if step.has(position):
                operand = step.operand(position)
                operands.append((operand, letters_of(term, len(operand.shape))))
        step.set(0, step.equate(operands, letters_of(out, len(step.out_shape()))))

    return row


def letters_of(term: str, rank: int) -> list[Letter]:
    """Spell a term for a given rank: `nc*` and 4 give n, c and two pinned axes."""
    named = [None if x == "_" else x for x in term.replace("*", "")]
    if "*" not in term:
        if len(named) != rank:
            raise Refused(f"expected {len(named)} axes, found {rank}")
        return list(named)
    at = term.index("*")
    return [*named[:at], *[None] * (rank - len(named)), *named[at:]]


# ---- element-wise ----------------------------------------------------------------------------------------------------
def broadcast(step: Step, operands: list[Operand], rank: int, normalised: tuple[int, ...] = ()) -> Factors:
    """Equate operands under numpy broadcasting to `rank` axes."""
    letters = list(range(rank))
    pairs = [(op, letters[rank - len(op.shape) :]) for op in operands]
    return step.equate(pairs, letters, normalised)


def same(step: Step) -> None:
    """The first input element by element; further inputs are settings."""
    factors = step.factors(0)
    for position in range(len(step.node.outputs)):
        step.set(position, factors)


@DIMS.row("CastLike")
def cast_like(step: Step) -> None:
    step.read.add(1)  # only its type matters
    same(step)


def elementwise(step: Step) -> None:
    """All inputs element by element, with broadcasting."""
    operands = [step.operand(i) for i in range(len(step.node.inputs)) if step.has(i)]
    if len(operands) == 1 and not operands[0].adoptable:
        step.set(0, operands[0].factors)
        return
    step.set(0, broadcast(step, operands, len(step.out_shape())))


rule(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish "
    "Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Celu Shrink Sigmoid Sign Sin Sinh "
    "Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu Cast Clip Dropout",
    same,
)
rule(
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
    "Mod Mul Or Pow PRelu Sub Sum Where Xor",
    elementwise,
)


# ---- contractions ----------------------------------------------------------------------------------------------------
@DIMS.row("Gemm")
def gemm(step: Step) -> None:
    a = "km" if step.node.attr("transA", 0) else "mk"
    b = "nk" if step.node.attr("transB", 0) else "kn"
    operands = [(step.operand(0), list(a)), (step.operand(1), list(b))]
    if step.has(2):
        c = step.operand(2)
        operands.append((c, list("mn")[2 - len(c.shape) :]))
    step.set(0, step.equate(operands, list("mn")))


@DIMS.row("MatMul")
def matmul(step: Step) -> None:
    a, b = step.operand(0), step.operand(1)
    batch = max(len(a.shape), len(b.shape)) - 2
    ids = list(range(max(batch, 0)))
    left = ["k"] if len(a.shape) == 1 else [*ids[len(ids) - len(a.shape) + 2 :], "m", "k"]
    right = ["k"] if len(b.shape) == 1 else [*ids[len(ids) - len(b.shape) + 2 :], "k", "n"]
    out: list[Letter] = [*ids, *(["m"] if len(a.shape) > 1 else []), *(["n"] if len(b.shape) > 1 else [])]
    step.set(0, step.equate([(a, left), (b, right)], out))


@DIMS.row("Einsum")
def einsum(step: Step) -> None:
    text = step.node.attr("equation", "").replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    operands = []
    for position, term in enumerate(terms):
        operand = step.operand(position)
        letters = _einsum_letters(term, len(operand.shape))
        if len(set(letters)) < len(letters):
            raise Refused(f"equation {text!r} takes a diagonal")
        operands.append((operand, letters))
    rank = len(step.out_shape())
    if arrow:
        out = _einsum_letters(right, rank)
    else:
        once = sorted(x for x in set(left) - {",", "."} if left.count(x) == 1)
        out = [*range(len(once) - rank, 0), *once]
    step.set(0, step.equate(operands, out))


def _einsum_letters(term: str, rank: int) -> list[Letter]:
    if "..." not in term:
        return list(term)
    head, tail = term.split("...")
    dots = rank - len(head) - len(tail)
    return [*head, *range(-dots, 0), *tail]


# ---- normalisation ---------------------------------------------------------------------------------------------------
def trains(node: Node, opset: int) -> bool:
    """Say whether a BatchNormalization uses statistics of the data; before opset 14, further outputs ask for that."""
    return bool(node.attr("training_mode", 0)) or (opset < 14 and any(node.outputs[1:]))


@DIMS.row("BatchNormalization")
def batch_norm(step: Step) -> None:
    """Channel by channel; in training mode the statistics are those of the data."""
    x = step.operand(0)
    letters: list[Letter] = list(range(len(x.shape)))
    operands = [(x, letters)] + [(step.operand(i), letters[1:2]) for i in range(1, 5)]
    over = [a for a in letters if a != 1] if trains(step.node, step.opset) else []
    factors = step.equate(operands, letters, over)
    step.set(0, factors)
    channels = [f.reshape(-1) for f in factors if spans(f) == (1,)]
    for position in range(1, len(step.node.outputs)):
        step.set(position, channels)


@DIMS.row("InstanceNormalization")
def instance_norm(step: Step) -> None:
    x = step.operand(0)
    letters: list[Letter] = list(range(len(x.shape)))
    operands = [(x, letters)] + [(step.operand(i), letters[1:2]) for i in (1, 2)]
    step.set(0, step.equate(operands, letters, letters[2:]))


@DIMS.row("LayerNormalization RMSNormalization SimplifiedLayerNormalization")
def layer_norm(step: Step) -> None:
    if any(step.node.outputs[1:]):
        raise Refused("its statistics are read")
    rank = len(step.shape(0))
    axis = step.node.attr("axis", -1) % rank
    operands = [step.operand(i) for i in range(len(step.node.inputs)) if step.has(i)]
    step.set(0, broadcast(step, operands, rank, tuple(range(axis, rank))))


@DIMS.row("MeanVarianceNormalization LpNormalization Softmax LogSoftmax")
def normalise(step: Step) -> None:
    x = step.operand(0)
    rank = len(x.shape)
    if "axes" in step.node.attrs or step.node.op == "MeanVarianceNormalization":
        axes = [a % rank for a in step.node.attr("axes", [0, 2, 3])]
    elif step.opset < 13 and step.node.op in ("Softmax", "LogSoftmax"):
        axes = list(range(step.node.attr("axis", 1) % rank, rank))
    else:
        axes = [step.node.attr("axis", -1) % rank]
    letters: list[Letter] = list(range(rank))
    step.set(0, step.equate([(x, letters)], letters, axes))


def along_fixed(step: Step, axes: list[int], reason: str) -> None:
    """Pass factors through; `axes` keep their length, and all indices along them are alike."""
    factors = step.labels.drop_axes(step.factors(0), axes, f"{step.node.label}: {reason}")
    rank = len(step.shape(0))
    for position, name in enumerate(step.node.outputs):
        if name and len(step.out_shape(position)) == rank:
            step.set(position, factors)


@DIMS.row("LRN")
def lrn(step: Step) -> None:
    along_fixed(step, [1], "normalises over neighbouring channels")


@DIMS.row("Hardmax TopK CumSum")
def ordered(step: Step) -> None:
    """The order of the indices along one axis matters: that axis stays."""
    rank = len(step.shape(0))
    axis = step.node.attr("axis", -1)
    if step.node.op == "CumSum":
        known = step.ints(1)
        if known is None:
            raise Refused("the axis is computed at run time")
        axis = known[0]
    axes = [axis % rank]
    if step.node.op == "Hardmax" and step.opset < 13:
        axes = list(range(step.node.attr("axis", 1) % rank, rank))
    along_fixed(step, axes, "the position along this axis matters")


@DIMS.row("Trilu")
def trilu(step: Step) -> None:
    rank = len(step.shape(0))
    along_fixed(step, [rank - 2, rank - 1], "cuts a triangle")


# ---- pools and reductions --------------------------------------------------------------------------------------------
@DIMS.row("MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool")
def pool(step: Step) -> None:
    if any(step.node.outputs[1:]):
        raise Refused("its positions count all channels")
    rank = len(step.shape(0))
    factors = step.labels.pin_axes(step.factors(0), range(2, rank), f"{step.node.label}: slides over this axis")
    step.set(0, factors)


def reduce_axes(step: Step) -> list[int]:
    """Axes that a Reduce operator removes."""
    rank = len(step.shape(0))
    given = step.ints(1, "axes")
    if given is None and step.has(1):
        raise Refused("the reduced axes are computed at run time")
    if not given:
        return [] if step.node.attr("noop_with_empty_axes", 0) else list(range(rank))
    return [a % rank for a in given]


@DIMS.row(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
def reduction(step: Step) -> None:
    x = step.operand(0)
    axes = reduce_axes(step)
    letters: list[Letter] = list(range(len(x.shape)))
    keep = step.node.attr("keepdims", 1)
    out = [("gone", a) if a in axes else a for a in letters] if keep else [a for a in letters if a not in axes]
    step.set(0, step.equate([(x, letters)], out))


@DIMS.row("ArgMax ArgMin")
def argument(step: Step) -> None:
    rank = len(step.shape(0))
    axis = step.node.attr("axis", 0) % rank
    reason = f"{step.node.label}: the position along this axis matters"
    left = [g for f in step.factors(0) if (g := step.labels.drop_axis(f, axis, reason)) is not None]
    if not step.node.attr("keepdims", 1):
        left = [f.reshape(f.shape[:axis] + f.shape[axis + 1 :]) for f in left]
    step.set(0, left)


# ---- operators that read no labels -----------------------------------------------------------------------------------
def untracked(step: Step) -> None:
    """Reads sizes only, or makes something new: the result has no labels, and the inputs are not touched."""
    step.read.update(range(len(step.node.inputs)))
    for position in range(len(step.node.outputs)):
        step.set(position, [])


rule("Shape Size Constant Range RandomNormal RandomUniform", untracked)


@DIMS.row("ConstantOfShape")
def constant_of_shape(step: Step) -> None:
    """A fill has no indices of its own: it takes the labels of whatever it meets."""
    step.world.soft.add(step.node.outputs[0])


@DIMS.row("SequenceConstruct SequenceEmpty SequenceInsert SequenceLength SequenceErase ConcatFromSequence")
def sequence(step: Step) -> None:
    raise Refused("sequences are not followed")


__all__ = ["DIMS", "DimsRow", "along_fixed", "broadcast", "equation", "letters_of", "reduce_axes", "rule"]
