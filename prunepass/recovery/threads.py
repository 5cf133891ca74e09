"""How many threads numpy and scipy use for linear algebra: one, but for large matrices.

Recovery is made of many small products. Threads gain nothing there, and on a machine that has other work they wait for
each other: the same refit took ten times the CPU time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import scipy.linalg  # noqa: F401  (its library has to be there when the controller looks for libraries)
from threadpoolctl import ThreadpoolController

from prunepass.runtime import default_threads

LARGE = 2048
"""Rows of a matrix from which threads are worth it."""


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread inside; the setting from before comes back."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def threads_for(size: int) -> Iterator[None]:
    """Use as many threads as onnxruntime does for matrices of so many rows, if they are large."""
    if size < LARGE:
        yield
        return
    with _libraries().limit(limits=default_threads(), user_api="blas"):
        yield
