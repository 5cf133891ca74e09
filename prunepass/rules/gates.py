"""The gates of recurrent operators: which rows of W and R add up to one pre-activation; one row per operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunepass.consts import FLOAT_TYPES
from prunepass.graph import Graph, Node
from prunepass.rules.table import Table


@dataclass(frozen=True)
class Gates:
    """See a recurrent node as products with constant matrices.

    x, y: the input sequence and the hidden states of all steps. initial: the first hidden state, "" for zeros. w, r, b:
    constants, b "" where there is none. joint: gates whose parts from x and from the state are just added; apart: gates
    in which something stands between the two. reset: of the joint ones, a gate that reads the state times the Sigmoid
    of another, which comes before it, as (gate, other).
    """

    node: Node
    x: str
    y: str
    initial: str
    w: str
    r: str
    b: str
    joint: tuple[int, ...]
    apart: tuple[int, ...] = ()
    reset: tuple[int, int] | None = None

    @property
    def reverse(self) -> tuple[bool, ...]:
        """For each direction, whether time runs backwards."""
        kinds = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
        return kinds[self.node.attr("direction", "forward")]

    @property
    def batch_first(self) -> bool:
        """Whether the batch stands before the time."""
        return bool(self.node.attr("layout", 0))


@dataclass(frozen=True)
class Kinds:
    """Sort the gates of an operator as `Gates` has them."""

    joint: tuple[int, ...]
    apart: tuple[int, ...] = ()
    reset: tuple[int, int] | None = None


GATES: Table[Callable[[Node], Kinds]] = Table("gates")
GATES("RNN", lambda node: Kinds((0,)))
GATES("LSTM", lambda node: Kinds((0, 1, 2, 3)))


@GATES.row("GRU")
def _gru(node: Node) -> Kinds:
    if node.attr("linear_before_reset", 0):
        return Kinds((0, 1), (2,))
    usual = all(name.lower() == "sigmoid" for name in node.attr("activations", [])[::2]) and not node.attr("clip", 0.0)
    return Kinds((0, 1, 2), (), (2, 1)) if usual else Kinds((0, 1))


def gates(node: Node, graph: Graph) -> Gates | None:
    """Return the gates of a node; None where it has none, its weights are no constants, or it shows no states."""
    known = GATES[node.op](node) if node.op in GATES else None
    if known is None or not node.outputs or not node.outputs[0]:
        return None
    given = [*node.inputs, *[""] * (8 - len(node.inputs))]
    x, w, r, b, lengths, initial = given[:6]
    weights = [name for name in (w, r, b) if name]
    if lengths or any(n not in graph.consts or graph.consts.elem_type(n) not in FLOAT_TYPES for n in weights):
        return None
    return Gates(node, x, node.outputs[0], initial, w, r, b, known.joint, known.apart, known.reset)
