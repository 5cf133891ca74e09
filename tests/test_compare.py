"""Numbers agree within a tolerance for their type and measured by what is around them; everything else exactly."""

from __future__ import annotations

import numpy as np
import pytest

from prunepass.compare import Tally


@pytest.mark.parametrize(
    ("expected", "found", "message"),
    [
        (np.ones(3, np.float32), np.ones(3, np.float32), ""),
        (np.ones(3, np.float32), np.ones(3), "float64[3] instead of float32[3]"),
        (np.ones(3, np.float32), np.ones((3, 1), np.float32), "float32[3, 1] instead of float32[3]"),
        (np.ones(3, np.float32), None, "only one of the models has it"),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), ""),
        (np.float32([1, np.nan]), np.float32([np.nan, 1]), "NaN or infinity in other places"),
        (np.float32([1, np.inf]), np.float32([1, -np.inf]), "NaN or infinity in other places"),
        (np.float32([1, np.inf]), np.float32([1, 2]), "NaN or infinity in other places"),
        (np.float32([1, 2]), np.float32([1.00009, 2]), ""),
        (np.float32([1, 2]), np.float32([1.0002, 2]), "differs by 0.0002, relative 0.0002 > 0.0001"),
        (np.float32([0, 0]), np.float32([0, 1e-12]), ""),
        (np.float32([0, 0]), np.float32([0, 1e-9]), "relative 0.001 > 0.0001"),
        (np.float64([1, 2]), np.float64([1.00002, 2]), "relative 2e-05 > 1e-05"),
        (np.float16([1, 2]), np.float16([1.01, 2]), ""),
        (np.complex64([1j, 2]), np.complex64([-1j, 2]), "differs by 2, "),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 entries differ"),
        (np.array([True]), np.array([False]), "1 of 1 entries differ"),
        ([np.ones(2)], [np.ones(2), np.ones(2)], "another number of elements"),
        ([np.ones(2)], [np.zeros(2)], "differs by 1"),
        ([{1: 0.5}], [{1: 0.25}], "differs by 0.25"),
        ([{1: 0.5}], [{2: 0.5}], "another number of elements"),
        # boxes up to 640 beside scores up to 1, in rows of their own: the scores are measured by themselves
        (np.float32([[640, 320], [0.5, 1]]), np.float32([[640, 320], [0.5, 1.005]]), ""),
        (np.float32([[640, 320], [0.5, 1]]), np.float32([[640, 320], [0.49, 1]]), "relative 0.000156"),
        (np.float32([[640, 320], [0.5, 1]]), np.float32([[640, 320.03], [0.5, 1]]), ""),
    ],
)  # fmt: skip
def test_comparison(expected: object, found: object, message: str) -> None:
    tally = Tally()
    assert tally.agree("y", expected, found) == (message == "")
    assert [message in fault for fault in tally.faults] == [True] * bool(message)
