"""Share the networks of `fixtures/` with every test.

`fixtures` is not installed, and the folder above the tests must not be on the path: there, the source tree would hide
an installed prunepass. So the package is loaded from its place.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices are small here: more threads of numpy only wait

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job, where Ctrl-C could not be tested
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _load_package(name: str, folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_load_package("fixtures", ROOT / "fixtures")

from fixtures import DIGITS, GRAPHS, load_graph  # noqa: E402
from fixtures import digits as load_digits  # noqa: E402

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")  # the same examples in every run; `slow` tests draw many more from fixed seeds

__all__ = ["DIGITS", "GRAPHS", "ROOT", "load_digits", "load_graph"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the times that tests measure out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEPASS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits() -> dict[str, np.ndarray]:
    """Give the digits data: image, labels, calibration, calibration_labels."""
    return load_digits()
