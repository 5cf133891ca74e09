"""Cut a model, certify it, and get the cut wrong in two simple ways."""

from __future__ import annotations

import numpy as np
import onnx
from textmodels import model, weight

from fixtures.tiny import TINY
from prunepass import load
from prunepass.manager import Context, Facts, Pipeline
from prunepass.verify import Certificate, certify

SMALL = {name: {"image": (1, 3, 16, 16)} for name in ("conv_chain", "pixel_shuffle")}
"""Sizes for networks that take images of any size."""
MAIN = "canonicalize,select{ratio=0.5 align=1},slice-channels,clean"


def cut(source: onnx.ModelProto, text: str = MAIN, **context) -> Facts:
    """Run a pipeline on a model."""
    return Pipeline.parse(text).run(load(source), Context(**context))


def cut_tiny(name: str) -> Facts:
    """Run the main passes on a small network."""
    return cut(TINY[name]()[0], shapes=SMALL.get(name, {}))


def certificate(facts: Facts) -> Certificate:
    """Certify what was cut."""
    return certify(facts.source, facts.cuts, facts.graph, facts.context)


def sliced(facts: Facts, axes: int = 1) -> list[str]:
    """Return the sliced float constants that the result reads, with at least so many axes."""
    graph, tensors = facts.graph, facts.cuts[-1].plan.tensors
    return [n for n in graph.consts if n in tensors and len(graph.consts.shape(n)) >= axes]


def change(facts: Facts, name: str, array: np.ndarray) -> None:
    facts.graph.consts[name] = np.ascontiguousarray(array)


def corrupt_a_weight(facts: Facts) -> None:
    name = sliced(facts)[0]
    array = facts.graph.consts[name].copy()
    array.flat[array.size // 2] += 2 * np.abs(array).max()
    change(facts, name, array)


def permute_kept_indices(facts: Facts) -> None:
    """Give a weight the right channels in the wrong order."""
    name = max(sliced(facts, 2), key=lambda n: facts.graph.consts.shape(n)[0])
    change(facts, name, facts.graph.consts[name][::-1])


def layers(output: str, rest: str, first: str = "h = MatMul(x, w)  z = MatMul(h, v)", **constants):
    """Return a model of two linear layers with something behind them."""
    constants = {"w": weight(8, 16), "v": weight(16, 4), **constants}
    return model(f"g (float[n, 8] x) => ({output}) {{ {first}  {rest} }}", **constants)
