"""Run work in processes of its own, with limits on time and memory: a function on many items, or a command.

For a function the parent has paid for the imports; a forked child starts in milliseconds, cannot hurt its neighbours,
and gives all of its memory back. It reports the stage it is in, so that the reason of a kill can say where it happened.
"""

from __future__ import annotations

import gc
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")
Say = Callable[[str], None]
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
POLL_S = 0.1


@dataclass(frozen=True)
class Limits:
    """What one child may use.

    Units
        seconds: wall-clock. bytes: resident. cpu_s: seconds of all its threads, where the machine is shared.
    """

    seconds: float = 120.0
    bytes: int = 6 << 30
    cpu_s: float = math.inf


@dataclass(frozen=True)
class Outcome:
    """How one child ended: `done` with a value, or `timeout`, `memory` or `crash` in a stage."""

    index: int
    ended: str
    stage: str
    value: dict[str, Any] | None
    detail: str
    cpu_s: float
    wall_s: float
    peak_bytes: int


@dataclass
class _Child:
    index: int
    pid: int
    fd: int
    started: float
    buffer: bytearray = field(default_factory=bytearray)
    killed: str = ""
    peak_bytes: int = 0


def run_forked(
    work: Callable[[T, Say], dict[str, Any]], items: Sequence[T], jobs: int, limits: Limits
) -> Iterator[Outcome]:
    """Yield an outcome per item, in the order in which they end, with at most `jobs` children at a time."""
    gc.collect()
    gc.freeze()
    running: dict[int, _Child] = {}
    waiting = iter(enumerate(items))
    with selectors.DefaultSelector() as selector:
        try:
            while True:
                while len(running) < jobs and (task := next(waiting, None)) is not None:
                    child = _spawn(work, *task)
                    running[child.fd] = child
                    selector.register(child.fd, selectors.EVENT_READ)
                if not running:
                    return
                for key, _ in selector.select(POLL_S):
                    if _read(running[key.fd]):
                        selector.unregister(key.fd)
                        yield _reap(running.pop(key.fd))
                for child in running.values():
                    _enforce(child, limits)
        finally:
            for child in running.values():
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)


def _spawn(work: Callable[[T, Say], dict[str, Any]], index: int, item: T) -> _Child:
    read_fd, write_fd = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _child_main(work, item, write_fd)
    os.close(write_fd)
    return _Child(index, pid, read_fd, time.monotonic())


def _child_main(work: Callable[[T, Say], dict[str, Any]], item: T, fd: int) -> None:
    """Do the work, write its lines, and leave without running the parent's exit handlers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)

    def send(message: dict[str, Any]) -> None:
        view = memoryview(json.dumps(message).encode() + b"\n")
        while view:
            view = view[os.write(fd, view) :]

    try:
        send({"value": work(item, lambda stage: send({"stage": stage}))})
    except BaseException as error:  # noqa: BLE001 - whatever it was, the parent prints it
        send({"crash": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()})
    finally:
        sys.stdout.flush()
        os._exit(0)


def _read(child: _Child) -> bool:
    """Take what the child wrote; true at the end of its pipe."""
    chunk = os.read(child.fd, 1 << 16)
    child.buffer += chunk
    return not chunk


def _enforce(child: _Child, limits: Limits) -> None:
    if child.killed:
        return
    used = _resident_bytes(child.pid)
    child.peak_bytes = max(child.peak_bytes, used)
    if time.monotonic() - child.started > limits.seconds or _cpu_seconds(child.pid) > limits.cpu_s:
        child.killed = "timeout"
    elif used > limits.bytes:
        child.killed = "memory"
    if child.killed:
        os.kill(child.pid, signal.SIGKILL)


def run_command(command: Sequence[str], limits: Limits) -> Outcome:
    """Run one command; what ended well has printed its value as JSON in its last line."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
        child = _Child(0, process.pid, out.fileno(), time.monotonic())
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                _enforce(child, limits)
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - child.started
        printed, complaints = (_lines(file) for file in (out, errors))
    value = json.loads(printed[-1]) if printed and not process.returncode else None
    ended, detail = child.killed or ("done" if value is not None else "crash"), ""
    if ended == "crash":
        died = f"the process died of {signal.Signals(-process.returncode).name}" if process.returncode < 0 else ""
        detail = died or (complaints or ["no message"])[-1]
    cpu_s = usage.ru_utime + usage.ru_stime
    return Outcome(0, ended, "", value, detail, cpu_s, wall_s, child.peak_bytes)


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").strip().splitlines()


def _resident_bytes(pid: int) -> int:
    """Read the resident memory of a process; 0 where /proc does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def _cpu_seconds(pid: int) -> float:
    """Read the CPU time of a process; 0 where /proc does not say."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / TICKS_PER_S
    except (OSError, IndexError, ValueError):
        return 0.0


def _reap(child: _Child) -> Outcome:
    os.close(child.fd)
    _, status, usage = os.wait4(child.pid, 0)
    lines = [json.loads(line) for line in bytes(child.buffer).split(b"\n") if line.endswith(b"}")]
    stage = next((line["stage"] for line in reversed(lines) if "stage" in line), "start")
    value = next((line["value"] for line in lines if "value" in line), None)
    crash = next((line for line in lines if "crash" in line), None)
    ended, detail = child.killed or "done", ""
    if crash is not None:
        ended, detail = "crash", crash["trace"]
    elif value is None and not child.killed:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        ended, detail = "crash", f"the process died of {signal.Signals(number).name if number else 'an unknown cause'}"
    cpu_s = usage.ru_utime + usage.ru_stime
    wall_s = time.monotonic() - child.started
    return Outcome(child.index, ended, stage, value, detail, cpu_s, wall_s, child.peak_bytes)
