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

DRAWS, IMAGES = 2, 64
RECOVERY = {
    "none": (),
    "batch normalisation": ("recalibrate-batchnorm",),
    "grail": ("compensate{method=grail}",),
    "grail, batch normalisation": ("compensate{method=grail}", "recalibrate-batchnorm"),
    "least squares": ("compensate",),
}


def accuracy(digits, ratio, criterion, *recovery):
    """Return the percentage of right answers, the mean over sets of calibration images."""
    graph = load(DIGITS)
    found = []
    for draw in range(DRAWS):
        images = {"image": digits["calibration"][draw * IMAGES : (draw + 1) * IMAGES]}
        facts = Facts(graph.copy(), Context(calibration=from_arrays(images, graph), seed=draw))
        chosen = criterion.format(seed=draw)
        select = f"select{{ratio={ratio} align=1 scope=local criterion={chosen}}}"
        Pipeline.parse(",".join(["canonicalize", select, "slice-channels", *recovery])).run_on(facts)
        logits = session(facts.graph, optimise="off").run({"image": digits["image"]})["logits"]
        found.append(100 * (logits.argmax(axis=1) == digits["labels"]).mean())
    return float(np.mean(found))


def test_every_rung_is_better_than_the_one_below(digits):
    found = {name: accuracy(digits, 0.5, "obs", *passes) for name, passes in RECOVERY.items()}
    rungs = [found[name] for name in RECOVERY]
    assert all(below < above - 2 for below, above in pairwise(rungs)), found
    assert found["none"] < 25
    assert found["least squares"] > 95


def test_the_selection_that_knows_of_the_refit_is_best(digits):
    found = {name: accuracy(digits, 0.6, name, "compensate") for name in ("obs", "random{{seed={seed}}}", "l2", "flap")}
    assert found["obs"] == max(found.values()), found
    assert found["obs"] > 93
    assert found["obs"] > found["l2"] + 5


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["random{{seed={seed}}}", "l2", "wanda", "flap", "obs"])
@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.75])
def test_least_squares_is_the_top_of_every_ladder(digits, ratio, criterion):
    found = {name: accuracy(digits, ratio, criterion, *passes) for name, passes in RECOVERY.items()}
    assert found["least squares"] > max(value for name, value in found.items() if name != "least squares") + 2, found
    assert found["batch normalisation"] >= found["none"], found
    assert found["grail, batch normalisation"] > found["none"] - 2, found
