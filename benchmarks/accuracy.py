"""Prune real pretrained networks and measure how good they still are, on real data.

python benchmarks/accuracy.py ../shared/models --ratio 0.3 --macs 0.5
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fnmatch
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent)) if p not in sys.path]

from summary import print_table  # noqa: E402
from zoo import load_module  # noqa: E402


@dataclass
class Row:
    """One network at one setting.

    Units
        dense, pruned: the network's own metric, higher is better. kept: share of the original. seconds: CPU seconds of
        `prunepass.prune`, certificate included. target: for `macs=F`, whether the result is within 2% below F.
    """

    network: str
    setting: str
    dense: float
    pruned: float | None = None
    params_kept: float | None = None
    macs_kept: float | None = None
    target: str = ""
    certificate: str = ""
    max_rel: float | None = None
    valid: str = ""
    seconds: float | None = None


def measure(quality: Any, models: Path, network: str, setting: str, dense: float, options: dict[str, Any]) -> Row:
    """Prune one network at one setting and fill a row; a refusal or a crash is a row too."""
    import prunepass

    row = Row(network, setting, dense)
    start = time.process_time()
    try:
        result = prunepass.prune(models / f"{network}.onnx", **options)
        pruned = result.model
    except Exception as error:  # noqa: BLE001 - one network that fails must not hide the others
        row.valid, row.certificate = "no result", f"{type(error).__name__}: {error}"
        return row
    row.seconds = time.process_time() - start
    certificate = result.report["certificate"] or {}
    row.certificate, row.max_rel = str(certificate.get("status", "none")), certificate.get("max_rel")
    before, after = result.report["before"], result.report["after"]
    row.params_kept, row.macs_kept = (after[kind] / before[kind] for kind in ("params", "macs"))
    if "macs" in options:
        row.target = on_target(row.macs_kept, options["macs"])
    row.valid, row.pruned = run_it(quality, models, network, pruned)
    return row


def on_target(kept: float, target: float) -> str:
    """Say whether the MACs that are left are at most the target, and less than 2% below it."""
    return f"{'yes' if 0.98 * target <= kept <= target else 'no'} ({100 * (kept / target - 1):+.1f}%)"


def run_it(quality: Any, models: Path, network: str, pruned: Any) -> tuple[str, float | None]:
    """Check a pruned model and measure its quality; onnxruntime's default is all optimisations on."""
    import check
    import onnx

    if changed := check.interface_changed(onnx.load(models / f"{network}.onnx", load_external_data=False), pruned):
        return f"no: {changed}", None
    data = pruned.SerializeToString()
    try:
        onnx.checker.check_model(data)
        return "yes", float(quality.measure(network, data))
    except Exception as error:  # noqa: BLE001 - the checker and onnxruntime raise classes of their own
        return f"no: {check.first_line(error, 80)}", None


def settings(args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Return the settings to try, each with its name and the options of `prunepass.prune`."""
    ratios, macs = args.ratio or [], args.macs or []
    if not ratios and not macs:
        ratios, macs = [0.3], [0.5]
    common = {name: value for name in ("align", "criterion", "scope") if (value := getattr(args, name)) is not None}
    chosen = [("ratio", value) for value in ratios] + [("macs", value) for value in macs]
    return [(f"{name}={value:g}", {name: value} | common) for name, value in chosen]


def print_rows(rows: Sequence[Row]) -> None:
    """Print the table of all rows."""
    header = (
        "network",
        "setting",
        "dense",
        "pruned",
        "params kept",
        "MACs kept",
        "target",
        "valid",
        "max rel",
        "CPU s",
    )
    lines = [
        (
            r.network,
            r.setting,
            f"{r.dense:.3f}",
            *(f"{v:.3f}" if v is not None else "-" for v in (r.pruned, r.params_kept, r.macs_kept)),
            r.target or "-",
            r.valid or "-",
            f"{r.max_rel:.1e}" if r.max_rel is not None else "-",
            f"{r.seconds:.2f}" if r.seconds is not None else "-",
            r.certificate,
        )
        for r in rows
    ]
    print_table([(*header, "certificate"), *lines])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "models", nargs="?", type=Path, default=Path("../shared/models"), help="folder with quality.py and the networks"
    )
    add("--ratio", type=float, action="append", help="fraction of channels to remove (may be repeated)")
    add("--macs", type=float, action="append", help="fraction of MACs that may remain (may be repeated)")
    add("--only", action="append", metavar="GLOB", help="only these networks (may be repeated)")
    add("--align", type=int, help="kept channels per tensor are a multiple of this (default: prunepass's own)")
    add("--criterion", help="how channels are ranked (default: prunepass's own)")
    add("--scope", help="global, local or isomorphic (default: prunepass's own)")
    add("--csv", type=Path, help="write a line per row here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the chosen networks; exit with 1 when one is invalid, refused or not certified."""
    args = parse(argv)
    quality = load_module(args.models / "quality.py")
    globs = args.only or ["*"]
    networks = [name for name in quality.TASKS if any(fnmatch.fnmatch(name, f"*{glob}*") for glob in globs)]
    rows: list[Row] = []
    with contextlib.suppress(KeyboardInterrupt):
        for network in networks:
            dense = float(quality.measure(network))
            for setting, options in settings(args):
                print(f"{network} {setting}", file=sys.stderr, flush=True)
                rows.append(measure(quality, args.models, network, setting, dense, options))
    print_rows(rows)
    if args.csv:
        with args.csv.open("w", newline="") as f:
            writer = csv.DictWriter(f, [field.name for field in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, rows))
    return int(any(r.valid != "yes" or r.certificate != "passed" for r in rows))


if __name__ == "__main__":
    sys.exit(main())
