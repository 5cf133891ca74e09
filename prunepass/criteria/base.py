"""What a criterion is, the registry, and criteria as text: `l2`, `random{seed=3}`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from prunepass.criteria.weights import Site, Weights
from prunepass.errors import PipelineError
from prunepass.options import SPACE, format_value, parse_value, suggest, value_end
from prunepass.registry import discover

CRITERIA: dict[str, type[Criterion]] = {}
"""Every criterion class that has been imported so far, by name."""


@dataclass(frozen=True)
class Criterion:
    """Say how much a unit matters: larger is more important. Fields are the options.

    A subclass with a `name` is registered. It needs `score`; `tiers` and `scores` have defaults.

    Example
        @dataclass(frozen=True)
        class L1(Criterion):
            name = "l1"
            def score(self, weights, site):
                return weights.power(site, 1)
    """

    name: ClassVar[str]
    normalise: ClassVar[str] = "mean"
    """The normaliser that `auto` stands for."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Analyses whose facts it asks `weights.fact` for."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            return
        other = CRITERIA.get(cls.name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise PipelineError(f"two criteria are called '{cls.name}': {other.__module__} and {cls.__module__}")
        CRITERIA[cls.name] = cls

    def tiers(self, weights: Weights) -> dict[str, Sequence[Site]]:
        """Return the sites that count, by what they are called.

        A group is scored by the first tier that has all of its units.
        """
        return {"weights": weights.matrices, "biases and gains": weights.sites}

    def scores(self, weights: Weights, sites: Iterable[Site]) -> Iterator[tuple[Site, np.ndarray]]:
        """Score several sites; override to share work among them."""
        return ((site, self.score(weights, site)) for site in sites)

    def score(self, weights: Weights, site: Site) -> np.ndarray:
        """Return one number for each of `site.units`."""
        raise NotImplementedError(self.name)

    def finish(self, scores: np.ndarray) -> np.ndarray:
        """Change the reduced scores of one group, before they are normalised."""
        return scores

    def sets(self, weights: Weights) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Return, for groups where the best sets of units to remove are not nested, the units and these sets.

        Shapes
            the second: boolean (widths, units), which of them go when 0, 1, ... of them go.
        """
        return ()

    def __str__(self) -> str:
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        texts = [f"{f.name}={format_value(getattr(self, f.name))}" for f in changed]
        return f"{self.name}{{{' '.join(texts)}}}" if texts else self.name


def criteria() -> dict[str, type[Criterion]]:
    """Return every known criterion class by name, those of plug-ins included."""
    discover()
    return dict(sorted(CRITERIA.items()))


def criterion(text: str) -> Criterion:
    """Make a criterion from its text, `name` or `name{option=value option=value}`.

    Raises
        PipelineError: unknown name or option, or a value that it refuses.
    """
    name, brace, rest = text.partition("{")
    known = CRITERIA if name in CRITERIA else criteria()
    if name not in known:
        raise PipelineError(f"unknown criterion '{name}'{suggest(name, known)}")
    if brace and not rest.endswith("}"):
        raise PipelineError(f"the brace of criterion '{text}' is never closed")
    hints = typing.get_type_hints(known[name])
    fields = {f.name: hints[f.name] for f in dataclasses.fields(known[name])}
    given = {}
    for option, value in _split(rest[:-1]):
        if option not in fields:
            raise PipelineError(f"criterion '{name}' has no option '{option}'{suggest(option, fields)}")
        given[option] = parse_value(value, fields[option])
    return known[name](**given)


def _split(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        end = value_end(text, at, SPACE)
        if end > at:
            option, _, value = text[at:end].partition("=")
            yield option, value
        at = end + 1
