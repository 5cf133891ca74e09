"""The ladder of recovery on the digits network: each rung is better than the one below, from 64 unlabelled images."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from conftest import DIGITS

from prunepass import load
from prunepass.manager import Context, Facts, Pipeline
from prunepass.recovery.batches import from_arrays
from prunepass.runtime import session

DRAWS, IMAGES = 4, 64
RECOVERY = {
    "none": (),
    "batch normalisation": ("recalibrate-batchnorm",),
    "grail": ("compensate{method=grail}",),
    "grail, batch normalisation": ("compensate{method=grail}", "recalibrate-batchnorm"),
    "least squares": ("compensate",),
}


def accuracies(digits, ratio, criterion, recoveries):
    """Return the percentage of right answers after each recovery of one cut, the mean over sets of images."""
    graph = load(DIGITS)
    found = np.zeros(len(recoveries))
    for draw in range(DRAWS):
        images = {"image": digits["calibration"][draw * IMAGES : (draw + 1) * IMAGES]}
        context = Context(calibration=from_arrays(images, graph), seed=draw)
        select = f"select{{ratio={ratio} align=1 scope=local criterion={criterion.format(seed=draw)}}}"
        chosen = Pipeline.parse(f"canonicalize,{select}").run_on(Facts(graph.copy(), context))
        for at, recovery in enumerate(recoveries):
            facts = Facts(chosen.graph.copy(), context)
            facts.plan = chosen.plan
            Pipeline.parse(",".join(["slice-channels", *recovery])).run_on(facts)
            logits = session(facts.graph, optimise="off").run({"image": digits["image"]})["logits"]
            found[at] += 100 * (logits.argmax(axis=1) == digits["labels"]).mean() / DRAWS
    return found.tolist()


def ladder(digits, ratio, criterion):
    return dict(zip(RECOVERY, accuracies(digits, ratio, criterion, list(RECOVERY.values()))))


def test_every_rung_is_better_than_the_one_below(digits):
    found = ladder(digits, 0.5, "obs")
    rungs = [found[name] for name in RECOVERY]
    assert all(below < above - 2 for below, above in pairwise(rungs)), found
    assert found["none"] < 25
    assert found["least squares"] > 95


def test_the_selection_that_knows_of_the_refit_is_best(digits):
    names = ("obs", "random{{seed={seed}}}", "l2", "flap")
    found = {name: accuracies(digits, 0.6, name, [("compensate",)])[0] for name in names}
    assert found["obs"] == max(found.values()), found
    assert found["obs"] > 93
    assert found["obs"] > found["l2"] + 5


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["random{{seed={seed}}}", "l2", "wanda", "flap", "obs"])
@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.75])
def test_least_squares_is_the_top_of_every_ladder(digits, ratio, criterion):
    found = ladder(digits, ratio, criterion)
    assert found["least squares"] > max(value for name, value in found.items() if name != "least squares") + 2, found
    assert found["batch normalisation"] > found["none"] - 2, found
    assert found["grail, batch normalisation"] > found["none"] - 2, found
