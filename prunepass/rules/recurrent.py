"""LSTM, GRU and RNN: hidden units go together over gates, weights, biases, peepholes and states.

Both directions of a bidirectional operator have units of their own, and lose the same number.
"""

from __future__ import annotations

import numpy as np

from prunepass.labels import Factor
from prunepass.rules.dims import DIMS
from prunepass.rules.masks import MASKS, Masking
from prunepass.rules.resize import Resizing
from prunepass.rules.sizes import SIZES
from prunepass.rules.step import Operand, Refused, Step

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_X, _W, _R, _B, _LENGTHS, _H, _C, _P = range(8)


@DIMS.row("LSTM GRU RNN")
def recurrent(step: Step) -> None:
    gates = _GATES[step.node.op]
    directions, size = step.shape(_R)[0], step.shape(_R)[2]
    for position in (_W, _R, _B, _P):
        if step.has(position) and step.node.inputs[position] not in step.world.consts:
            raise Refused("a recurrent layer whose weights are computed")
    hidden = step.labels.fresh((step.node.inputs[_W], "hidden"), directions * size).reshape(directions, size)
    _input(step, hidden, gates)
    _own(step, _R, (_tiled(hidden, gates)[:, :, None], hidden[:, None, :]))
    _own(step, _B, (_tiled(hidden, 2 * gates),))
    _own(step, _P, (_tiled(hidden, 3),))
    layout = step.node.attr("layout", 0)
    state = ("d", None, "h") if layout == 0 else (None, "d", "h")
    for position in (_H, _C):
        if step.has(position):
            _meet(step, position, hidden, state)
    step.produce(step.operand(_W), 1, hidden)
    step.set(0, [hidden[None, :, None, :] if layout == 0 else hidden[None, None]])
    for position in (1, 2):
        step.set(position, [hidden[:, None, :] if layout == 0 else hidden[None]])


def _tiled(hidden: Factor, times: int) -> Factor:
    """Labels of gates that lie side by side."""
    return np.tile(hidden, (1, times))


def _input(step: Step, hidden: Factor, gates: int) -> None:
    """Contract the features of the input with W, whose rows are the gates."""
    x, name = step.operand(_X), step.node.inputs[_W]
    shape = step.shape(_W)
    known = step.world.states.pop(name, None)
    weight = Operand(name, shape, (), adoptable=True, derived=True)
    step.read.add(_W)
    step.equate([(x, [None, None, "i"]), (weight, [None, None, "i"])], [])
    step.world.states[name] += (_tiled(hidden, gates)[:, :, None],)
    if known is not None:
        _same(step, known, step.world.states[name])


def _own(step: Step, position: int, factors: tuple[Factor, ...]) -> None:
    """Give a weight the labels of the hidden units."""
    if not step.has(position):
        return
    name = step.node.inputs[position]
    step.read.add(position)
    fitting = tuple(f for f in factors if f.size > 1)
    if name in step.world.states:
        _same(step, step.world.states[name], fitting)
    step.world.states[name] = fitting


def _same(step: Step, before: tuple[Factor, ...], after: tuple[Factor, ...]) -> None:
    """A weight that two layers share ties them."""
    if len(before) != len(after) or any(a.shape != b.shape for a, b in zip(before, after)):
        step.labels.pin_all(before + after, f"{step.node.label}: a weight shared with another kind of layer")
        return
    for a, b in zip(before, after):
        step.labels.unify(a, b)


def _meet(step: Step, position: int, hidden: Factor, letters: tuple[str | None, ...]) -> None:
    """Equate an initial state with the hidden units."""
    state = step.operand(position)
    axes = [axis for axis, x in enumerate(letters) if x is not None]
    shape = [1] * 3
    for axis, length in zip(axes, hidden.shape):
        shape[axis] = length
    tracked = frozenset(axis for axis in axes if shape[axis] > 1)
    own = Operand("", tuple(shape), (hidden.reshape(shape),) if tracked else (), tracked=tracked)
    step.equate([(own, list(letters)), (state, list(letters))], list(letters))


# ---- with stored integers, (input, gates) instead of (gates, input) --------------------------------------------------
_DYNAMIC = "com.microsoft::DynamicQuantizeLSTM"
_SCALE_W, _ZERO_W, _SCALE_R, _ZERO_R = range(8, 12)


@DIMS.row(_DYNAMIC)
def quantised_lstm(step: Step) -> None:
    """The states are quantised by their range, so what is removed must compute zero: see `silent`."""
    directions, size = step.shape(_R)[:2]
    for position in (_W, _R, _B, _P, *range(_SCALE_W, _ZERO_R + 1)):
        if step.has(position) and step.node.inputs[position] not in step.world.consts:
            raise Refused("a recurrent layer whose weights are computed")
    if "activations" in step.node.attrs:
        raise Refused("a quantised recurrent layer with activations of its own")
    if any(len(np.unique(step.world.consts[step.node.inputs[i]])) > 1 for i in (_ZERO_W, _ZERO_R)):
        raise Refused("a quantised recurrent layer with several zero points")
    hidden = step.labels.fresh((step.node.inputs[_W], "hidden"), directions * size).reshape(directions, size)
    gates = _tiled(hidden, 4)
    x, features = step.operand(_X), step.labels.fresh((step.node.inputs[_W], 1), step.shape(_W)[1])
    weight = Operand("", (features.size,), (features,) if features.size > 1 else (), tracked=frozenset({0}))
    step.equate([(x, [None, None, "i"]), (weight, ["i"])], [])
    _own(step, _W, (features[None, :, None], gates[:, None, :]))
    _own(step, _R, (hidden[:, :, None], gates[:, None, :]))
    _own(step, _B, (_tiled(hidden, 8),))
    _own(step, _P, (_tiled(hidden, 3),))
    for position in range(_SCALE_W, _ZERO_R + 1):
        _own(step, position, (gates,) if len(step.shape(position)) == 2 else ())
    for position in (_H, _C):
        if step.has(position):
            _meet(step, position, hidden, ("d", None, "h"))
    step.produce(step.operand(_W), 2, hidden)
    step.set(0, [hidden[None, :, None, :]])
    for position in (1, 2):
        step.set(position, [hidden[:, None, :]])


@MASKS.row(_DYNAMIC)
def silent(m: Masking) -> None:
    """Without weights, bias and state a unit computes tanh(0) = 0, and does not widen the range of the states."""
    m.fill(_X, [2], 0.0)
    for position, axes, zero in ((_W, [2], _ZERO_W), (_R, [1, 2], _ZERO_R)):
        mask = m.mask(position, axes)
        if mask is not None:
            stored = m.graph.consts[m.given[position]]
            fill = m.graph.consts[m.given[zero]].reshape(-1)[0]
            m.node.inputs[position] = m.constant(np.where(mask, stored, fill))
    for position, axes in ((_B, [1]), (_P, [1]), (_H, [2]), (_C, [2])):
        if position < len(m.given) and m.given[position]:
            m.fill(position, axes, 0.0)


@SIZES.row(f"LSTM GRU RNN {_DYNAMIC}")
def hidden_size(r: Resizing) -> None:
    axis = 1 if r.node.op == _DYNAMIC else 2
    size = r.change.shape(r.node.inputs[_R])[axis]
    if "hidden_size" in r.node.attrs:
        r.node.set_attr("hidden_size", size)


@MASKS.row("LSTM GRU RNN")
def masked(m: Masking) -> None:
    m.fill(_X, [2], 0.0)
    m.fill(_R, [2], 0.0)
