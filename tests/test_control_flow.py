"""Labels flow through the bodies of If, Loop and Scan: what they capture, what they hold, and what they carry."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from textmodels import model, weight

from prunepass import prune
from prunepass.bodies import enter_bodies
from prunepass.errors import VerifyError
from prunepass.graph import Graph
from prunepass.manager import Context, Facts, Pipeline
from prunepass.runtime import session
from prunepass.verify import certify

MAIN = "canonicalize,select{ratio=0.5 align=1},slice-channels,clean"

IF = """
m (float[1,8] x, bool c) => (float[1,5] y) {
    h = MatMul(x, w0)
    r = Relu(h)
    z = If(c) <then_branch = t () => (float[1,16] a) { a1 = MatMul(r, wa) a = Tanh(a1) },
               else_branch = e () => (float[1,16] b) { b1 = MatMul(r, wb) b2 = Sigmoid(b1)
                                                       b3 = MatMul(b2, wc) b = Relu(b3) }>
    y = MatMul(z, w1)
}"""
IF_WEIGHTS = {"w0": (8, 24), "wa": (24, 16), "wb": (24, 12), "wc": (12, 16), "w1": (16, 5)}

SAME_NAMES = """
m (float[1,8] x, bool c) => (float[1,5] y) {
    h = MatMul(x, w0)
    z = If(c) <then_branch = t () => (float[1,16] out) { k = Constant<value_float = 2.0>() a = Mul(h, k)
                                                         out = Tanh(a) },
               else_branch = e () => (float[1,16] out) { k = Constant<value_float = 3.0>() a = Mul(h, k)
                                                         out = Relu(a) }>
    y = MatMul(z, w1)
}"""

LOOP = """
m (float[1,7,8] x) => (float[1,5] y, float[7,1,16] hs) {
    turns = Constant<value_int = 7>()
    yes = Constant<value = bool {1}>()
    h0 = Constant<value = float[1,16] {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}>()
    h, hs = Loop(turns, yes, h0) <body = b (int64 i, bool go, float[1,16] s) => (bool on, float[1,16] n, float[1,16] o)
    {
        on = Identity(go)
        one = Constant<value_int = 1>()
        xi = Gather<axis = 1>(x, i)
        a = MatMul(xi, w)
        p = MatMul(s, r)
        q = Add(a, p)
        n = Tanh(q)
        o = Identity(n)
    }>
    y = MatMul(h, w1)
}"""
LOOP_WEIGHTS = {"w": (8, 16), "r": (16, 16), "w1": (16, 5)}


def build(text: str, weights: dict[str, tuple[int, ...]], opset: int = 17) -> onnx.ModelProto:
    """Parse a model and give it random weights."""
    made = model(text, opset, **{name: 0.4 * weight(*shape) for name, shape in weights.items()})
    onnx.checker.check_model(made, full_check=True)
    return made


def pruned(model: onnx.ModelProto, text: str = MAIN, **context) -> Facts:
    """Run a pipeline and check the certificate."""
    facts = Pipeline.parse(text).run(Graph(model), Context(**context))
    certify(facts.source, facts.cuts, facts.graph, facts.context).raise_if_failed()
    return facts
