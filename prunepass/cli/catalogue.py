"""The text of `prunepass --list`: every pass with its options, every criterion. The README holds the same text."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator

from prunepass.criteria import criteria
from prunepass.manager import Analysis, Pass, passes
from prunepass.registry import options

WIDTH = 22


def catalogue() -> str:
    """Return the list as plain text, the same on every terminal."""
    known = passes().values()
    blocks = [
        ["Analyses (read the graph)", *_passes(p for p in known if issubclass(p, Analysis))],
        ["Rewrites (change the graph)", *_passes(p for p in known if not issubclass(p, Analysis))],
        ["Criteria", *_criteria()],
    ]
    return "\n".join("\n".join(block) + "\n" for block in blocks)


def _passes(classes: Iterable[type[Pass]]) -> Iterator[str]:
    for cls in classes:
        yield f"  {cls.name:<{WIDTH}}{first_line(cls)}"
        for option in options(cls):
            yield f"    {option.name + '=' + option.default:<{WIDTH}}{option.type}"


def _criteria() -> Iterator[str]:
    for name, cls in sorted(criteria().items()):
        yield f"  {name:<{WIDTH}}{first_line(cls)}"


def first_line(documented: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]
