"""Passes as classes: the bases, registration by subclassing, discovery, and making one from its name and options."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import logging
import pkgutil
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from prunepass.errors import PipelineError
from prunepass.options import format_value, suggest, type_text

if TYPE_CHECKING:
    from prunepass.graph import Graph
    from prunepass.manager import Facts

log = logging.getLogger(__name__)

REGISTRY: dict[str, type[Pass]] = {}
"""Every pass class that has been imported so far, by name; `passes()` imports the rest first."""


@dataclass(frozen=True)
class Pass:
    """Hold the options of one pass: a frozen dataclass whose fields are the options and their text form."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            return
        other = REGISTRY.get(cls.name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise PipelineError(f"two passes are called '{cls.name}': {other.__module__} and {cls.__module__}")
        REGISTRY[cls.name] = cls

    def __str__(self) -> str:
        hints = typing.get_type_hints(type(self))
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != _default(f)]
        texts = [f"{f.name}={format_value(getattr(self, f.name), hints[f.name])}" for f in changed]
        return f"{self.name}{{{' '.join(texts)}}}" if texts else self.name


@dataclass(frozen=True)
class Analysis(Pass):
    """Read the graph and return a fact about it; never change it."""

    def run(self, graph: Graph, facts: Facts) -> Any:
        """Return the fact."""
        raise NotImplementedError(self.name)


@dataclass(frozen=True)
class Rewrite(Pass):
    """Change the graph in place and return how many changes were made; 0 means that nothing was touched."""

    keeps: ClassVar[tuple[str, ...]] = ()
    """Analyses that stay valid after a change."""
    idempotent: ClassVar[bool] = True
    """Whether a second run finds nothing left to do."""

    def run(self, graph: Graph, facts: Facts) -> int:
        """Change the graph and return the number of changes."""
        raise NotImplementedError(self.name)


def _default(option: dataclasses.Field[Any]) -> Any:
    return option.default_factory() if callable(option.default_factory) else option.default


@functools.cache
def discover() -> None:
    """Import every first-party pass and the plug-ins of `prunepass.rules` and `prunepass.passes`, once per process."""
    package = importlib.import_module("prunepass.passes")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    load_plugins("prunepass.rules")
    load_plugins("prunepass.passes")


def load_plugins(group: str) -> None:
    """Load the entry points of a group; one that fails is left out with a warning."""
    for entry in sorted(importlib.metadata.entry_points(group=group), key=lambda e: (e.name, e.value)):
        try:
            entry.load()
        except Exception as error:  # noqa: BLE001  a plug-in may raise anything
            log.warning("plug-in %s (%s) left out: %s: %s", entry.name, entry.value, type(error).__name__, error)


def passes() -> dict[str, type[Pass]]:
    """Return every known pass class by name, in alphabetical order."""
    discover()
    return dict(sorted(REGISTRY.items()))


def find(name: str) -> type[Pass]:
    """Return the pass class of that name.

    Raises
        PipelineError: there is none; the message names the nearest.
    """
    discover()
    if name not in REGISTRY:
        raise PipelineError(f"unknown pass '{name}'{suggest(name, REGISTRY)}")
    return REGISTRY[name]


@dataclass(frozen=True)
class OptionInfo:
    """Describe one option of a pass: its name, type and default as text."""

    name: str
    type: str
    default: str


def options(cls: type[Pass]) -> tuple[OptionInfo, ...]:
    """Return the options of a pass in declaration order."""
    hints = typing.get_type_hints(cls)
    return tuple(
        OptionInfo(f.name, type_text(hints[f.name]), format_value(_default(f), hints[f.name]))
        for f in dataclasses.fields(cls)
    )


def build(name: str, **given: Any) -> Pass:
    """Make a pass from its name and typed option values.

    Raises
        PipelineError: unknown pass or option, or a value that the pass refuses.
    """
    cls = find(name)
    check_options(cls, given)
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise PipelineError(f"pass '{name}': {error}") from error


def check_options(cls: type[Pass], given: Iterable[str]) -> None:
    """Refuse option names that the pass does not have.

    Raises
        PipelineError: the message names the nearest option.
    """
    known = [f.name for f in dataclasses.fields(cls)]
    for option in given:
        if option not in known:
            raise PipelineError(f"pass '{cls.name}' has no option '{option}'{suggest(option, known)}")
