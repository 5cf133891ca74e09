"""The arguments of the command line, checked as far as possible before any file is opened."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import prunepass
from prunepass.errors import PipelineError

BUDGETS = ("macs", "params", "bytes", "ram", "latency")
MEASURING = ("threads", "batch", "provider", "cache")
SELECTION = ("ratio", *BUDGETS, "criterion", "scope", "align")


class Parser(argparse.ArgumentParser):
    """Report a usage error in one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Return the parsed arguments; `command` says which of prune, inspect, apply and list is meant."""
    parsers = {"inspect": inspect_parser, "apply": apply_parser}
    if argv and argv[0] in parsers:
        command, argv = argv[0], argv[1:]
    else:
        command = "prune"
    parser = parsers.get(command, prune_parser)()
    args = parser.parse_args(argv)
    args.command = "list" if vars(args).get("list") else command
    if args.command == "prune":
        check_prune(parser, args)
    return args


def prune_parser() -> Parser:
    """Return the parser of the main job."""
    parser = Parser(
        prog="prunepass",
        description="Prune a neural network in an ONNX file and check the result against a masked run.",
        epilog="Other commands: prunepass inspect MODEL; prunepass apply PLAN MODEL. "
        "A model file with such a name is given as ./inspect. "
        "Exit codes: 0 done, 1 error, 2 wrong usage, 3 verification failed, 130 interrupted.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the ONNX file")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help="file to write (default: MODEL.pruned.onnx)")
    amount = parser.add_argument_group("how much (default: --ratio 0.3); budgets are shares or amounts, all must hold")
    amount.add_argument("--ratio", metavar="R", type=ratio, help="share of the channels to remove, 0 <= R < 1")
    amount.add_argument("--macs", metavar="F", type=budget("macs"), help="most MACs that may stay: 0.5, 120M")
    amount.add_argument("--params", metavar="F", type=budget("params"), help="most parameters that may stay: 0.5, 2M")
    amount.add_argument("--bytes", metavar="F", type=budget("bytes"), help="largest file: 0.5, 256KB, 1.5MiB")
    amount.add_argument("--ram", metavar="F", type=budget("ram"), help="largest peak of activations: 0.5, 256KB")
    amount.add_argument("--latency", metavar="F", type=budget("latency"), help="longest run, measured here: 0.5, 8ms")
    amount.add_argument("--lossless", action="store_true", help="remove only what changes no output")
    how = parser.add_argument_group("how --latency is measured in onnxruntime")
    how.add_argument("--threads", metavar="N", type=positive, help="threads (default: 1)")
    how.add_argument("--batch", metavar="N", type=positive, help="samples at a time, where free (default: 1)")
    how.add_argument("--provider", metavar="P", help="execution provider (default: CPUExecutionProvider)")
    how.add_argument("--cache", metavar="DIR", help="where times of operators are kept")
    which = parser.add_argument_group("which channels")
    which.add_argument("--criterion", metavar="C", help="importance criterion, see --list (default: l2)")
    which.add_argument("--scope", metavar="S", help="what is ranked together, see --list (default: global)")
    which.add_argument("--align", metavar="N", type=positive, help="keep multiples of N channels (default: 8)")
    which.add_argument("--keep", metavar="REGEX", type=regex, action="append", default=[], help="keep what it matches")
    which.add_argument("--max-drop", metavar="P", type=share, help="find the smallest model that loses no more: 1%%")
    which.add_argument("-p", "--pipeline", metavar="PIPELINE", help="the passes to run instead of the default ones")
    add_run_options(parser)
    parser.add_argument("--metric", metavar="M:F", help="measure quality by function F of module M; larger is better")
    parser.add_argument("--no-recover", action="store_true", help="use --data to verify only, refit no weights")
    parser.add_argument("--report", metavar="FILE.json", type=Path, help="write the report")
    parser.add_argument("--plan", metavar="FILE.json", type=Path, help="write the plan: what was removed, by index")
    parser.add_argument("--time", action="store_true", help="print the time of every pass and analysis")
    parser.add_argument("--verify-each", action="store_true", help="check the model after every pass")
    parser.add_argument("--list", action="store_true", help="print the passes, their options, and the criteria")
    parser.add_argument("--version", action="version", version=f"prunepass {prunepass.__version__}")
    add_loudness(parser)
    return parser


def inspect_parser() -> Parser:
    """Return the parser of `prunepass inspect`."""
    parser = Parser(
        prog="prunepass inspect", description="Show what can be pruned, what is coupled, and what stands in the way."
    )
    parser.add_argument("model", metavar="MODEL", help="the ONNX file")
    parser.add_argument("--cost", action="store_true", help="show what it costs: MACs, bytes, RAM, per node and group")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything as JSON")
    parser.add_argument(
        "--dot", metavar="FILE", type=Path, help="write the graph with its coupling groups for Graphviz"
    )
    parser.add_argument("--force", action="store_true", help="allow an output that is the input")
    add_shape(parser)
    add_loudness(parser)
    return parser


def apply_parser() -> Parser:
    """Return the parser of `prunepass apply`."""
    parser = Parser(prog="prunepass apply", description="Carry out a plan that an earlier run wrote with --plan.")
    parser.add_argument("plan", metavar="PLAN", type=Path, help="the plan, a JSON file")
    parser.add_argument("model", metavar="MODEL", help="the ONNX file that the plan was made for")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="file to write")
    parser.add_argument("--ephemeral", action="store_true", help="mask during computation instead of slicing")
    add_run_options(parser)
    add_loudness(parser)
    return parser


def add_run_options(parser: Parser) -> None:
    """Add what the jobs that write a model share."""
    add_shape(parser)
    text = "typical inputs, to refit weights and to verify: arrays by input name; or M:F, a function that yields dicts"
    parser.add_argument("--data", metavar="FILE.npz", help=text)
    parser.add_argument("--seed", metavar="N", type=natural, default=0, help="seed of every random choice (default: 0)")
    parser.add_argument("--no-verify", action="store_true", help="write the result without checking it")
    parser.add_argument("--force", action="store_true", help="allow an output that is the input")


def add_shape(parser: Parser) -> None:
    """Add --shape."""
    text = "shape of an input whose axes are dynamic, as in data=1,3,224,224"
    parser.add_argument("--shape", metavar="NAME=N,N,...", type=shape, action="append", default=[], help=text)


def add_loudness(parser: Parser) -> None:
    """Add -q, -v and --debug."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    group.add_argument("-v", "--verbose", action="store_true", help="print what each pass did")
    group.add_argument("--debug", action="store_true", help="print every change, and the traceback of an error")


def check_prune(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse options of the main job that do not go together."""
    if args.model is None:
        parser.error("the model file is missing")
    if args.max_drop is not None and args.data is None and args.metric is None:
        parser.error("--max-drop needs --data or --metric to judge by")
    if args.pipeline is not None and args.no_recover:
        parser.error("--no-recover does not go with --pipeline; leave compensate out of the text")
    given = [name for name in (*SELECTION, "max_drop") if getattr(args, name) is not None]
    if args.lossless and (args.pipeline is not None or given):
        name = "pipeline" if args.pipeline is not None else given[0].replace("_", "-")
        parser.error(f"--{name} does not go with --lossless")
    budgets = [name for name in BUDGETS if name in given]
    if args.ratio is not None and budgets:
        parser.error(f"argument --{budgets[0]}: not allowed with argument --ratio")
    how = [name for name in MEASURING if getattr(args, name) is not None]
    if args.pipeline is not None:
        given += [name for name in how if name != "cache"]
    elif how and args.latency is None:
        parser.error(f"--{how[0]} says how --latency is measured; give --latency, too")
    if args.pipeline is not None and given:
        if given == ["max_drop"]:
            parser.error("--max-drop does not go with --pipeline; it chooses the amount")
        parser.error(f"--{given[0]} does not go with --pipeline; write it in the text, as in select{{{given[0]}=...}}")


def share(text: str) -> float:
    """Read a share, also in per cent."""
    rule = "a share from 0 to below 1 is expected, as in 1% or 0.01"
    percent = text.endswith("%")
    try:
        found = number(text.rstrip("%"), lambda p: 0 <= p < (100 if percent else 1), rule)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' does not fit: {rule}") from None
    return found / 100 if percent else found


def ratio(text: str) -> float:
    """Read a pruning ratio."""
    return number(text, lambda r: 0 <= r < 1, "a ratio is a number from 0 to below 1")


def budget(kind: str) -> Callable[[str], float | str]:
    """Return the reader of one kind of budget: a share of the source, or an amount."""

    def read(text: str) -> float | str:
        from prunepass.budgets import Budget  # numpy takes its time to import

        value: float | str = text
        with contextlib.suppress(ValueError):
            value = float(text)
        try:
            Budget.parse(kind, value)
        except PipelineError as error:
            raise argparse.ArgumentTypeError(f"'{text}' does not fit: {error}") from None
        return value

    return read


def number(text: str, fits: Callable[[float], bool], rule: str) -> float:
    """Read a finite number that fits the rule."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"'{text}' does not fit: {rule}")
    return value


def positive(text: str) -> int:
    """Read an integer of at least 1."""
    return integer(text, 1)


def natural(text: str) -> int:
    """Read an integer of at least 0."""
    return integer(text, 0)


def integer(text: str, least: int) -> int:
    """Read an integer that is not below `least`."""
    try:
        value = int(text, 10)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"'{text}' does not fit: a whole number of at least {least} is expected")
    return value


def regex(text: str) -> str:
    """Read a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no regular expression: {error}") from None
    return text


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read NAME=1,3,224,224; the name may hold '=' itself."""
    name, _, sizes = text.rpartition("=")
    try:
        axes = tuple(int(size) for size in sizes.split(",")) if sizes else ()
    except ValueError:
        name = ""
        axes = ()
    if not name or any(size < 1 for size in axes):
        raise argparse.ArgumentTypeError(f"'{text}' does not fit: NAME=1,3,224,224 is expected, every size at least 1")
    return name, axes
