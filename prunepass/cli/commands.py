"""The four commands; each takes the parsed arguments and leaves through an exception when something is wrong."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from prunepass import api, inputs, users
from prunepass.cli import costs, inspection, show
from prunepass.cli.arguments import MEASURING, SELECTION
from prunepass.cli.catalogue import catalogue
from prunepass.errors import PipelineError, PruneError
from prunepass.job import Result
from prunepass.registry import build, find
from prunepass.report import write_json, write_text
from prunepass.syntax import parse_option


def prune(args: argparse.Namespace) -> None:
    """Do the main job."""
    model = Path(args.model)
    output = args.output or model.with_name(f"{model.stem}.pruned.onnx")
    _check_words(args)
    inputs.check_outputs([output, args.report, args.plan], _sources(args), args.force)
    selection = {name: value for name in SELECTION if (value := getattr(args, name)) is not None}
    with _bar(args) as progress:
        result = api.prune(
            model,
            **selection,
            lossless=args.lossless,
            keep=args.keep,
            running={name: value for name in MEASURING if (value := getattr(args, name)) is not None},
            metric=None if args.metric is None else users.find_function(args.metric, "metric"),
            recover=not args.no_recover,
            max_drop=args.max_drop,
            seed=args.seed,
            pipeline=args.pipeline,
            verify_each=args.verify_each,
            progress=progress,
            **_shared(args),
        )
        _write(result, output, args.force, args.report, args.plan)
    if not args.quiet:
        show.show_report(Console(), result.report, str(output), args.time)


def apply(args: argparse.Namespace) -> None:
    """Replay a plan."""
    inputs.check_outputs([args.output], [*_sources(args), args.plan], args.force)
    with _bar(args) as progress:
        result = api.apply(
            args.plan, args.model, ephemeral=args.ephemeral, seed=args.seed, progress=progress, **_shared(args)
        )
        _write(result, args.output, args.force)
    if not args.quiet:
        show.show_report(Console(), result.report, str(args.output), False)


def inspect(args: argparse.Namespace) -> None:
    """Show what can be pruned."""
    inputs.check_outputs([args.json, args.dot], [Path(args.model)], args.force)
    with _bar(args) as progress:
        found = api.inspect(args.model, shapes=dict(args.shape), progress=progress)
    if args.json:
        write_json(args.json, found.to_json(args.cost))
    if args.dot:
        from prunepass.dot import to_dot  # networkx takes its time to import

        write_text(args.dot, to_dot(found))
    if not args.quiet:
        if args.cost:
            costs.show_costs(Console(), found.costs())
        else:
            inspection.show_inspection(Console(), found.to_json())


def list_all(args: argparse.Namespace) -> None:
    """Print passes, options and criteria."""
    print(catalogue(), end="")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "prune": prune,
    "inspect": inspect,
    "apply": apply,
    "list": list_all,
}


class UsageError(PruneError):
    """Report an argument that only the registered plug-ins could judge."""

    exit_code = 2


def _check_words(args: argparse.Namespace) -> None:
    """Refuse a criterion or scope that no pass or plug-in knows."""
    for option in ("criterion", "scope"):
        text = getattr(args, option)
        if text is not None:
            try:
                build("select", **{option: parse_option(find("select"), option, text)})
            except PipelineError as error:
                raise UsageError(f"argument --{option}: {error}") from error


def _sources(args: argparse.Namespace) -> list[Path]:
    return [Path(args.model), *([Path(args.data)] if args.data and not users.names_function(args.data) else [])]


def _shared(args: argparse.Namespace) -> dict[str, Any]:
    return {"shapes": dict(args.shape), "data": _data(args.data), "verify": not args.no_verify}


def _data(text: str | None) -> inputs.Data | None:
    """Return the arrays of a file, or the user's function."""
    if text is None:
        return None
    return users.find_function(text, "data") if users.names_function(text) else inputs.read_data(Path(text))


def _bar(args: argparse.Namespace) -> show.Bar:
    return show.Bar(Console(stderr=True), enabled=not args.quiet)


def _write(result: Result, output: Path, force: bool, report: Path | None = None, plan: Path | None = None) -> None:
    """Write what was asked for; an interrupt waits until all of it is there."""
    if plan is not None and result.plan is None:
        raise PipelineError("the pipeline made no plan, or several; --plan needs one select pass")
    with _uninterrupted():
        result.save(output, force=force)
        if plan is not None and result.plan is not None:
            write_json(plan, result.plan.to_json())
        if report is not None:
            write_json(report, result.report)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back, so that either all files are written or none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
