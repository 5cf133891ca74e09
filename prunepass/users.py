"""Functions of the user, named as `module:function`: found, called, and their mistakes told in one line."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prunepass.errors import ModelError, PipelineError, PruneError
from prunepass.options import suggest

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def names_function(text: str) -> bool:
    """Say whether a text is `module:function`, and no file that exists."""
    return _NAME.fullmatch(text) is not None and not Path(text).exists()


def find_function(text: str, what: str) -> Callable[..., Any]:
    """Import a function that is given as `module:function`; the current directory comes first.

    Raises
        PipelineError: there is no such module or function, or the module cannot be imported.
    """
    if not names_function(text):
        raise PipelineError(f"{what}: '{text}' names no function; give module:function, as in quality:{what}")
    module_name, _, name = text.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise PipelineError(f"{what}: module '{module_name}' cannot be imported: {_said(error)}") from error
        hint = "run from its folder, or install it"
        raise PipelineError(f"{what}: there is no module '{module_name}'; {hint}") from error
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise PipelineError(f"{what}: module '{module_name}' cannot be imported: {_said(error)}") from error
    finally:
        sys.path.remove(folder)
        sys.path.append(folder)  # for what the function imports later
    found = getattr(module, name, None)
    if found is None:
        raise PipelineError(f"{what}: module '{module_name}' has no '{name}'{suggest(name, dir(module))}")
    if not callable(found):
        raise PipelineError(f"{what}: '{text}' is a {type(found).__name__}; a function is needed")
    return found  # type: ignore[no-any-return]


def call(function: Callable[..., Any], what: str, *arguments: Any) -> Any:
    """Call a function of the user.

    Raises
        ModelError: it fails.
    """
    try:
        return function(*arguments)
    except PruneError as error:
        raise ModelError(f"{what}: {name_of(function)} failed: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's function does
        raise ModelError(f"{what}: {name_of(function)} failed: {_said(error)}") from error


def items(found: Iterable[Any], what: str) -> Iterator[Any]:
    """Yield what a user's iterable yields.

    Raises
        ModelError: it fails, or nothing can be taken from it.
    """
    if not isinstance(found, Iterable):
        raise ModelError(f"{what}: a {type(found).__name__} is no data; yield dicts of arrays by input name")
    try:
        yield from found
    except PruneError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's generator does
        raise ModelError(f"{what}: failed on the way: {_said(error)}") from error


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function, as a user knows it."""
    return str(getattr(function, "__name__", type(function).__name__))


def _said(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
