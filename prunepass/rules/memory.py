"""What running an operator does to memory: which results need no buffer of their own, and what it does not read.

An operator without a row writes its results into new buffers and reads its inputs whole.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from prunepass.rules.table import Table

Reuse: TypeAlias = Literal["view", "in place"]
Reading: TypeAlias = Literal["nothing", "what it returns"]

REUSE: Table[Reuse] = Table("reuse of buffers")
"""view: the result is its first input under another shape. in place: the result may overwrite any input of its size."""
READS: Table[Reading] = Table("what is read")
"""How much of its first input an operator reads where that is not all of it."""

REUSE("Identity Reshape Flatten Squeeze Unsqueeze Dropout", "view")
REUSE(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt Swish Tan Tanh ThresholdedRelu Cast BatchNormalization com.microsoft::Gelu com.microsoft::QuickGelu",
    "in place",
)
REUSE(
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor",
    "in place",
)
READS("Shape Size ConstantOfShape", "nothing")
READS("Gather GatherElements GatherND Slice Split com.microsoft::GatherBlockQuantized", "what it returns")
