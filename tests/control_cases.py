"""Small models with If, Loop and Scan, and what half of their units leave."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import numpy_helper
from textmodels import model, weight

Sizes = dict[str, tuple[int, ...]]


def bodies(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return the bodies of the nodes of a graph."""
    return [a.g for node in graph.node for a in node.attribute if a.type == a.GRAPH]


@dataclass(frozen=True)
class Case:
    """A model as text, its weights, and what half of them leave.

    Units
        after: shapes of the weights afterwards. inside: vectors that every body has, each its own.
    """

    text: str
    weights: Sizes
    after: Sizes
    inside: tuple[str, ...] = ()

    def model(self) -> onnx.ModelProto:
        """Return the model with random weights."""
        made = model(self.text, **{name: 0.4 * weight(*shape) for name, shape in self.weights.items()})
        for name in self.inside:
            for body in bodies(made.graph):
                body.initializer.append(numpy_helper.from_array(weight(16) + len(body.name), name))
        onnx.checker.check_model(made, full_check=True)
        return made


IF = Case(
    """m (float[1,8] x, bool c) => (float[1,5] y) {
        h = MatMul(x, w0)
        r = Relu(h)
        z = If(c) <then_branch = t () => (float[1,16] a) { a1 = MatMul(r, wa) a = Tanh(a1) },
                   else_branch = e () => (float[1,16] b) { b1 = MatMul(r, wb) b2 = Sigmoid(b1)
                                                           b3 = MatMul(b2, wc) b = Relu(b3) }>
        y = MatMul(z, w1)
    }""",
    {"w0": (8, 24), "wa": (24, 16), "wb": (24, 12), "wc": (12, 16), "w1": (16, 5)},
    {"w0": (8, 12), "wa": (12, 8), "wb": (12, 6), "wc": (6, 8), "w1": (8, 5)},
)
SAME_NAMES = Case(
    """m (float[1,8] x, bool c) => (float[1,5] y) {
        h = MatMul(x, w0)
        z = If(c) <then_branch = t () => (float[1,16] out) { a = Add(h, k) out = Tanh(a) },
                   else_branch = e () => (float[1,16] out) { a = Sub(h, k) out = Relu(a) }>
        y = MatMul(z, w1)
    }""",
    {"w0": (8, 16), "w1": (16, 5)},
    {"w0": (8, 8), "w1": (8, 5)},
    inside=("k",),
)
RNN = """m (float[1,7,8] x) => (float[1,5] y, float[1,7,6] ys) {
    turns = Constant<value_int = 7>()
    yes = Constant<value = bool {1}>()
    h, hs = Loop(turns, yes, h0) <body = b (int64 i, bool go, float[1,16] s) => (bool on, float[1,16] n, float[1,16] o)
    {
        on = Identity(go)
        xi = Gather<axis = 1>(x, i)
        a = MatMul(xi, w)
        p = MatMul(s, r)
        q = Add(a, p)
        n = Tanh(q)
        o = Identity(n)
    }>
    y = MatMul(h, w1)
    t = Transpose<perm = [1, 0, 2]>(hs)
    ys = MatMul(t, w2)
}"""
LOOP = Case(
    RNN,
    {"w": (8, 16), "r": (16, 16), "w1": (16, 5), "w2": (16, 6), "h0": (1, 16)},
    {"w": (8, 8), "r": (8, 8), "w1": (8, 5), "w2": (8, 6), "h0": (1, 8)},
)
COMPUTED_START = Case(
    RNN.replace("h, hs = Loop", "h0 = MatMul(first, w0)  h, hs = Loop").replace("8] x)", "8] x, float[1,3] first)"),
    {"w": (8, 16), "r": (16, 16), "w0": (3, 16), "w1": (16, 5), "w2": (16, 6)},
    {"w": (8, 8), "r": (8, 8), "w0": (3, 8), "w1": (8, 5), "w2": (8, 6)},
)
INVARIANT = Case(
    """m (float[1,8] x) => (float[1,5] y) {
        turns = Constant<value_int = 3>()
        h = MatMul(x, w0)
        e, same = Loop(turns, , h, r) <body = b (int64 i, bool go, float[1,16] s, float[16,16] passed)
            => (bool on, float[1,16] n, float[16,16] back)
        {
            on = Identity(go)
            a = MatMul(s, passed)
            n = Relu(a)
            back = Identity(passed)
        }>
        f = MatMul(e, same)
        y = MatMul(f, w1)
    }""",
    {"w0": (8, 16), "r": (16, 16), "w1": (16, 5)},
    {"w0": (8, 8), "r": (8, 8), "w1": (8, 5)},
)
SCAN = Case(
    """m (float[7,1,8] x) => (float[1,5] y, float[1,7,6] ys) {
        h, hs = Scan(h0, x) <num_scan_inputs = 1, scan_output_axes = [1], body = b (float[1,16] s, float[1,8] xi)
            => (float[1,16] n, float[1,16] o)
        {
            a = MatMul(xi, w)
            p = MatMul(s, r)
            q = Add(a, p)
            n = Tanh(q)
            o = Identity(n)
        }>
        y = MatMul(h, w1)
        ys = MatMul(hs, w2)
    }""",
    LOOP.weights,
    LOOP.after,
)
SCANNED = Case(  # the scanned value is computed, and its features go with those that it meets in the body
    """m (float[7,8] x) => (float[1,5] y) {
        f = MatMul(x, w0)
        h = Scan(h0, f) <num_scan_inputs = 1, scan_input_directions = [1],
            body = b (float[1,16] s, float[16] xi) => (float[1,16] n) { a = Tanh(s) n = Add(a, xi) }>
        y = MatMul(h, w1)
    }""",
    {"w0": (8, 16), "h0": (1, 16), "w1": (16, 5)},
    {"w0": (8, 8), "h0": (1, 8), "w1": (8, 5)},
)
NESTED = Case(
    """m (float[1,8] x, bool c) => (float[1,5] y) {
        turns = Constant<value_int = 3>()
        h = MatMul(x, w0)
        z = If(c) <then_branch = t () => (float[1,16] a)
        {
            a = Loop(turns, , h) <body = b (int64 i, bool go, float[1,16] s) => (bool on, float[1,16] n)
            {
                on = Identity(go)
                n = If(c) <then_branch = tt () => (float[1,16] p) { p1 = MatMul(s, r) p2 = MatMul(p1, r2)
                                                                         p = Relu(p2) },
                           else_branch = ee () => (float[1,16] q) { q = Tanh(h) }>
            }>
        }, else_branch = e () => (float[1,16] d) { d = Relu(h) }>
        y = MatMul(z, w1)
    }""",
    {"w0": (8, 16), "r": (16, 24), "r2": (24, 16), "w1": (16, 5)},
    {"w0": (8, 8), "r": (8, 12), "r2": (12, 8), "w1": (8, 5)},
)
CASES = {
    "if": IF,
    "same names": SAME_NAMES,
    "loop": LOOP,
    "computed start": COMPUTED_START,
    "invariant": INVARIANT,
    "scan": SCAN,
    "scanned": SCANNED,
    "nested": NESTED,
}
