"""The command line: arguments in, tables and exit code out; all work is done by the Python API.

Exit codes: 0 done, 1 error, 2 wrong usage, 3 verification failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prunepass.cli.arguments import parse_arguments
from prunepass.errors import InternalError, PruneError

INTERRUPTED = 130
LEVELS = {"quiet": logging.ERROR, "verbose": logging.INFO, "debug": logging.DEBUG}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        args = parse_arguments(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as stop:  # usage error, --help, --version
        return int(stop.code or 0)
    with logging_to_stderr(args):
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Run one command and return its exit code; no exception gets out."""
    try:
        from prunepass.cli import commands

        commands.COMMANDS[args.command](args)
    except KeyboardInterrupt:
        return complain("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PruneError as error:
        return fail(error, error.exit_code, args.debug)
    except Exception as error:  # noqa: BLE001  no traceback reaches a user
        broken = InternalError(f"{type(error).__name__}: {error}; this is a bug, please report it with --debug")
        broken.__cause__ = error
        return fail(broken, broken.exit_code, args.debug)
    return 0


def fail(error: PruneError, code: int, debug: bool) -> int:
    """Report an error in one line; with --debug its traceback and reproducer too."""
    if debug:
        traceback.print_exception(error)
        if isinstance(error, InternalError) and error.reproducer:
            complain(error.reproducer, code)
    return complain(f"error: {error}", code)


def complain(message: str, code: int) -> int:
    """Print one line on standard error."""
    line = " ".join(message.split())
    print(f"prunepass: {line}", file=sys.stderr)
    return code


@contextmanager
def logging_to_stderr(args: argparse.Namespace) -> Iterator[None]:
    """Log to standard error: warnings, with -v also one line per pass, with --debug one per rewrite."""
    level = next((level for name, level in LEVELS.items() if vars(args).get(name)), logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("prunepass: %(levelname)s: %(message)s"))
    logger = logging.getLogger("prunepass")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
