"""Pass options as text: typed values in, canonical text out; `parse_value(format_value(v), type(v)) == v`.

A value stands bare (`0.5`, `l2`, `random{seed=3}`, `conv[0-9]{2}`), or in JSON quotes when it holds white space outside
braces, a quote, or braces that do not pair up. The items of a tuple are separated by commas.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, Union

from prunepass.errors import PipelineError

SPACE = " \t\n\r\f\v"


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or the list of known words when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else "; it takes none"


def value_end(text: str, start: int, stops: str) -> int:
    """Return where the value from `start` ends: at a stop character outside quotes and braces, or at the end."""
    depth, i = 0, start
    while i < len(text):
        char = text[i]
        if char == '"':
            i = quote_end(text, i)
            continue
        if depth == 0 and char in stops:
            return i
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return i
        i += 1
    return i


def quote_end(text: str, start: int) -> int:
    """Return the index behind the closing quote of the string that opens at `start`."""
    i = start + 1
    while i < len(text):
        if text[i] == '"':
            return i + 1
        i += 2 if text[i] == "\\" else 1
    raise PipelineError(f"the quote at column {start + 1} is never closed in: {text}")


def parse_value(text: str, hint: Any) -> Any:
    """Read one option value of the declared type.

    Raises
        PipelineError: the text is no such value; the message says what is expected.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _literal(text, args)
    if origin in (Union, types.UnionType):
        return _union(text, args)
    if origin is tuple:
        return tuple(parse_value(item, args[0]) for item in split_items(text))
    if hint is bool:
        if text not in ("true", "false"):
            raise PipelineError(f"'{text}' is neither true nor false")
        return text == "true"
    if hint is str:
        return unquote(text)
    return _number(text, hint)


def _number(text: str, hint: Any) -> int | float:
    try:
        value: int | float = int(text, 10) if hint is int else float(text)
    except ValueError:
        raise PipelineError(f"'{text}' is not {type_text(hint)}") from None
    if not math.isfinite(value):
        raise PipelineError(f"'{text}' is not a finite number")
    return value


def _literal(text: str, choices: tuple[Any, ...]) -> Any:
    word = unquote(text)
    for choice in choices:
        if str(choice) == word:
            return choice
    raise PipelineError(f"'{word}' is not one of {', '.join(map(str, choices))}")


def _union(text: str, members: tuple[Any, ...]) -> Any:
    if type(None) in members and text == "none":
        return None
    *others, last = [m for m in members if m is not type(None)]
    for member in others:
        with contextlib.suppress(PipelineError):
            return parse_value(text, member)
    return parse_value(text, last)


def split_items(text: str) -> list[str]:
    """Split the text of a tuple at its commas; the empty text is the empty tuple."""
    items, start = [], 0
    while start < len(text):
        end = value_end(text, start, ",")
        items.append(text[start:end])
        start = end + 1
    return [*items, ""] if text.endswith(",") else items


def unquote(text: str) -> str:
    """Return the string that a bare or quoted value stands for."""
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except json.JSONDecodeError as error:
        raise PipelineError(f"{text} is not a well-formed quoted string: {error.msg}") from None


def format_value(value: Any, hint: Any = None) -> str:
    """Write one option value in its canonical text; the declared type tells whether the text "none" needs quotes."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(_quoted(v, SPACE + ",") if isinstance(v, str) else format_value(v) for v in value)
    if isinstance(value, str):
        means_none = value == "none" and type(None) in typing.get_args(hint)
        return json.dumps(value) if means_none else _quoted(value, SPACE)
    return repr(value)


def _quoted(text: str, stops: str) -> str:
    bare = text and '"' not in text and text.count("{") == text.count("}")
    return text if bare and value_end(text, 0, stops) == len(text) else json.dumps(text, ensure_ascii=False)


def type_text(hint: Any) -> str:
    """Return how messages and `--list` call an option's type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join("none" if a is type(None) else type_text(a) for a in args)
    if origin is tuple:
        return f"list of {type_text(args[0])}"
    return {int: "an integer", float: "a number", str: "a text", bool: "true|false"}.get(hint, str(hint))
