"""How many threads linear algebra uses: one in recovery, more for large matrices, and as before afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from prunepass.errors import PipelineError
from prunepass.recovery.moments import Gram
from prunepass.recovery.threads import LARGE, one_thread, threads_for


def counts() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_threads_are_limited_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEPASS_THREADS", "2")
    with threadpool_limits(limits=2, user_api="blas"):
        before = counts()
        with one_thread():
            assert counts() == {1}
            with threads_for(LARGE - 1):
                assert counts() == {1}
            with threads_for(LARGE):
                assert counts() == before
            assert counts() == {1}
        assert counts() == before
        with pytest.raises(ValueError, match="inside"), one_thread():
            raise ValueError("inside")
        assert counts() == before


def test_a_wrong_number_of_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEPASS_THREADS", "many")
    with pytest.raises(PipelineError, match="PRUNEPASS_THREADS"):
        Gram().add(np.ones((1, 2, LARGE)))
