"""Prune neural networks as ONNX files: find what can only go together, remove it physically, certify the result.

Example
    import prunepass

    result = prunepass.prune("model.onnx", ratio=0.3, output="small.onnx")
    print(result.report["after"]["params"], result.report["certificate"]["max_abs"])
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunepass.api import Inspection, apply, inspect, prune
    from prunepass.criteria import Criterion, criterion
    from prunepass.files import load, save
    from prunepass.graph import Graph
    from prunepass.job import Result
    from prunepass.manager import Analysis, Context, Facts, Pass, Pipeline, Rewrite
    from prunepass.plan import Plan
    from prunepass.rules import rule

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Context",
    "Criterion",
    "Facts",
    "Graph",
    "Inspection",
    "Pass",
    "Pipeline",
    "Plan",
    "Result",
    "Rewrite",
    "apply",
    "criterion",
    "inspect",
    "load",
    "prune",
    "rule",
    "save",
]

_HOME = {
    "prunepass.api": "Inspection apply inspect prune",
    "prunepass.criteria": "Criterion criterion",
    "prunepass.files": "load save",
    "prunepass.graph": "Graph",
    "prunepass.job": "Result",
    "prunepass.manager": "Analysis Context Facts Pass Pipeline Rewrite",
    "prunepass.plan": "Plan",
    "prunepass.rules": "rule",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

if not Path(__file__).with_name("passes").is_dir():  # a wheel has ./passes, a checkout has ../passes
    __path__.append(str(Path(__file__).resolve().parents[1]))


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import prunepass` stays quick."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'prunepass' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
