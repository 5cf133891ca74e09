"""Pipelines as text: `canonicalize,select{ratio=0.5 criterion=l2},clean` into passes, with errors that say where."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prunepass.errors import PipelineError
from prunepass.options import SPACE, parse_value, value_end
from prunepass.registry import Pass, build, check_options, find

_NAME = re.compile(r"[A-Za-z_][\w.-]*")


@dataclass(frozen=True)
class Step:
    """Hold one pass of a pipeline with the text that it was written as."""

    run: Pass
    text: str


def parse_steps(text: str) -> Iterator[Step]:
    """Read the steps of a pipeline: name, optional options in braces, comma.

    Raises
        PipelineError: with the column, and the nearest name where a name is unknown.
    """
    at = 0
    while True:
        at = _skip_space(text, at)
        start = at
        match = _NAME.match(text, at)
        if match is None:
            raise _error(text, at, "a pass name is expected")
        at = match.end()
        given: dict[str, tuple[int, str]] = {}
        if text[at : at + 1] == "{":
            at = _parse_options(text, at, given)
        yield Step(_build_from_text(text, start, match.group(), given), text[start:at])
        at = _skip_space(text, at)
        if at == len(text):
            return
        if text[at] != ",":
            raise _error(text, at, f"a comma is expected before '{text[at]}'")
        at += 1


def _parse_options(text: str, at: int, given: dict[str, tuple[int, str]]) -> int:
    """Read `{name=value name=value}` that opens at `at` into name -> (column, value) and return where it ends."""
    opened = at
    at = _skip_space(text, at + 1)
    while text[at : at + 1] != "}":
        match = _NAME.match(text, at)
        if at == len(text):
            raise _error(text, opened, "this brace is never closed")
        if match is None:
            raise _error(text, at, f"an option name is expected instead of '{text[at]}'")
        option, at = match.group(), match.end()
        if text[at : at + 1] != "=":
            raise _error(text, match.start(), f"option '{option}' needs a value: {option}=...")
        if option in given:
            raise _error(text, match.start(), f"option '{option}' is given twice")
        end = value_end(text, at + 1, SPACE)
        given[option] = (match.start(), text[at + 1 : end])
        at = _skip_space(text, end)
    return at + 1


def _build_from_text(text: str, at: int, name: str, given: dict[str, tuple[int, str]]) -> Pass:
    typed: dict[str, Any] = {}
    with _located(text, at):
        cls = find(name)
    for option, (column, value) in given.items():
        with _located(text, column):
            typed[option] = parse_option(cls, option, value)
    with _located(text, at):
        return build(name, **typed)


def parse_option(cls: type[Pass], option: str, value: str) -> Any:
    """Read the value of one option of a pass from its text.

    Raises
        PipelineError: the pass has no such option, or the text does not fit its type.
    """
    check_options(cls, [option])
    try:
        return parse_value(value, typing.get_type_hints(cls)[option])
    except PipelineError as error:
        raise PipelineError(f"option '{option}' of '{cls.name}': {error}") from None


@contextmanager
def _located(text: str, at: int) -> Iterator[None]:
    try:
        yield
    except PipelineError as error:
        raise _error(text, at, str(error)) from None


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at


def _error(text: str, at: int, message: str) -> PipelineError:
    return PipelineError(f"{message} (column {at + 1} of '{text}')")
