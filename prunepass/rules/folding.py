"""Which nodes change nothing, which only move what they read, and which make more than they read."""

from __future__ import annotations

from collections.abc import Callable

from prunepass.graph import Consts, Node
from prunepass.rules.table import Table

NO_OPS: Table[Callable[[Node, Consts], bool]] = Table("whether the first output is the first input")
WHOLE_MOVES = frozenset("Flatten Identity Reshape Squeeze Transpose Unsqueeze".split())
"""The result holds the same elements, all of them."""
MOVES = WHOLE_MOVES | frozenset("Concat Gather ScatterElements ScatterND Slice Split".split())
"""The result is made of elements that were read; a large constant may be moved once and for all."""
GROWS: Table[int] = Table("the position of the operand that says how large the result is")
GROWS("ConstantOfShape EyeLike", 0)
GROWS("Expand OneHot Tile", 1)


def _alone(node: Node, consts: Consts) -> bool:
    return not any(node.outputs[1:])


NO_OPS("Identity", _alone)
NO_OPS("Concat Max Mean Min Sum", lambda node, consts: len(node.inputs) == 1)
NO_OPS("Dropout", lambda node, consts: _alone(node, consts) and len(node.inputs) < 3)


@NO_OPS.row("Transpose")
def transpose(node: Node, consts: Consts) -> bool:
    perm = node.attr("perm")
    return perm is not None and list(perm) == sorted(perm)


@NO_OPS.row("Scatter ScatterElements ScatterND")
def nothing_to_scatter(node: Node, consts: Consts) -> bool:
    """An assignment to an empty slice, which sizes that turn out to be 0 make."""
    return node.inputs[1] in consts and 0 in consts.shape(node.inputs[1])
