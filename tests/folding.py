"""Fold a model, and compare source and result on inputs of any kind."""

from __future__ import annotations

import numpy as np
import onnx

from prunepass import load
from prunepass.feeds import random_inputs
from prunepass.manager import Context, Facts, Pipeline
from prunepass.runtime import session
from prunepass.verify import certify

FOLD = "canonicalize,fold-zero-filters,clean"
RUNS = 8


def folded(source: onnx.ModelProto, text: str = FOLD, **context) -> Facts:
    """Run a pipeline, certify it, and compare the outputs of several runs within 1e-5 of the largest."""
    facts = Pipeline.parse(text).run(load(source), Context(**context))
    certificate = certify(facts.source, facts.cuts, facts.graph, facts.context)
    assert certificate.status == "passed", certificate.details
    onnx.checker.check_model(facts.graph.to_proto(), full_check=True)
    shapes = facts.first["shapes"][1].shape if "shapes" in facts.first else facts.get("shapes").shape
    given = {name: shapes[name] for name in facts.source.input_names}
    before, after = session(facts.source, optimise="off"), session(facts.graph)
    for run in range(RUNS):
        feeds = random_inputs(facts.source, given, seed=100 + run)
        if run % 2:
            feeds = {name: -3 * x if x.dtype.kind == "f" else x for name, x in feeds.items()}
        expected, found = before.run(feeds), after.run(feeds)
        for name, y in expected.items():
            assert y.dtype == found[name].dtype and y.shape == found[name].shape, name
            if y.dtype.kind == "f":
                wide = y.astype(np.float64)
                tolerance = 1e-5 if y.dtype == np.float32 else 5e-3
                np.testing.assert_allclose(
                    found[name], wide, 0, tolerance * max(1e-3, np.abs(wide).max()), err_msg=name
                )
            else:
                np.testing.assert_array_equal(found[name], y, err_msg=name)
    return facts


def units(facts: Facts) -> int:
    """Count the units that were folded."""
    return sum(int(cut.plan.removed.sum()) for cut in facts.cuts if cut.lossless)
