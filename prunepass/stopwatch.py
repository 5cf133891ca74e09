"""Measure how long models take in onnxruntime: one by one, or two of them in turn.

With one thread the clock is the CPU time of the calling thread, which is the one that computes; other work on the
machine hardly shows in it, and the median counts. With several threads it is the wall clock, and the lower quartile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from prunepass import runtime
from prunepass.errors import PipelineError
from prunepass.graph import Graph
from prunepass.runtime import CPU, Session

_LEAST_ROUNDS, _MOST_ROUNDS = 11, 200


@dataclass(frozen=True)
class Setting:
    """Hold how a model is run when it is measured.

    Units
        threads: of onnxruntime. batch: length of the first axis of inputs whose first axis is dynamic.
    """

    threads: int = 1
    batch: int = 1
    provider: str = CPU

    def check(self) -> None:
        """Refuse what this machine cannot do.

        Raises
            PipelineError: onnxruntime has no such execution provider here.
        """
        import onnxruntime

        known = onnxruntime.get_available_providers()
        if self.provider not in known:
            raise PipelineError(f"provider={self.provider!r} is not available here; known: {', '.join(sorted(known))}")

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds that count."""
        return time.thread_time if self.threads == 1 and self.provider == CPU else time.perf_counter

    def session(self, model: Graph | bytes) -> Session:
        """Start onnxruntime on a model with all optimisations."""
        return runtime.session(model, threads=self.threads, provider=self.provider)


def quickest_ms(session: Session, feeds: Mapping[str, np.ndarray], clock: Callable[[], float], most_s: float) -> float:
    """Return the shortest of several runs in milliseconds, after one that does not count."""
    session.run(feeds)
    found: list[float] = []
    while len(found) < 3 or (sum(found) < most_s and len(found) < _MOST_ROUNDS):
        start = clock()
        session.run(feeds)
        found.append(clock() - start)
    return 1e3 * min(found)


def in_turn_ms(
    sessions: tuple[Session, Session], feeds: Mapping[str, np.ndarray], clock: Callable[[], float], most_s: float = 2.0
) -> tuple[float, float]:
    """Run two models in turn; return what a run of each takes in milliseconds.

    Units
        most_s: seconds after which it is enough, if there were enough rounds.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for session in sessions:
        session.run(feeds)
    while len(found[0]) < _LEAST_ROUNDS or (sum(found[0]) + sum(found[1]) < most_s and len(found[0]) < _MOST_ROUNDS):
        for session, times in zip(sessions, found):
            start = clock()
            session.run(feeds)
            times.append(clock() - start)
    share = 0.5 if clock is time.thread_time else 0.25
    return 1e3 * float(np.quantile(found[0], share)), 1e3 * float(np.quantile(found[1], share))
