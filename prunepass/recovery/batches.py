"""Calibration data as batches: what one run of the model takes, again and again."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from prunepass.errors import ModelError, NotFiniteError, PruneError
from prunepass.feeds import Feeds, random_inputs, split_data
from prunepass.graph import Graph
from prunepass.recovery.drawing import scale_of
from prunepass.runtime import session

if TYPE_CHECKING:
    from prunepass.manager import Facts

log = logging.getLogger(__name__)
MOST_PER_BATCH = 32
MOST_USED = 4096
"""Samples; more hardly help, and cost as much again."""
HELD_BACK = 5
"""Every so many batches of those that are fitted, one is for choices; with fewer, none is for judging."""
JUDGED = 10
"""Every so many batches, one is for judging."""
DRAWN = 64
"""Samples that are drawn where no data are given."""


@dataclass(frozen=True)
class Batches:
    """Hold calibration data.

    Units
        feeds: one entry per run. samples: how many in all. drawn: they are random, for want of data.
    """

    feeds: tuple[Feeds, ...]
    samples: int
    drawn: bool = False

    def held_back(self, batch: int) -> bool:
        """Say whether a batch is for choices, not for fitting: every fifth, at least the last; not an only one."""
        count = len(self.feeds)
        return batch % HELD_BACK == HELD_BACK - 1 if count >= HELD_BACK else 0 < batch == count - 1

    def checked(self, name: str, value: np.ndarray, batch: int) -> np.ndarray:
        """Return a value that the model computes, or refuse it.

        Raises
            NotFiniteError: it has NaN or infinity.
        """
        if value.dtype.kind not in "iub" and not np.isfinite(value).all():
            advice = "give calibration data" if self.drawn else "take such samples out, or repair the model"
            raise NotFiniteError(
                f"value {name!r} has NaN or infinity on batch {batch} of the calibration data; {advice}"
            )
        return value

    def sampled(self, name: str, batch: int, rows: int, wanted: int, seed: int) -> np.ndarray:
        """Return which rows of a batch are looked at, ascending: its share of the wanted ones, drawn by a name."""
        take = min(rows, -(-wanted // len(self.feeds)))
        if take == rows:
            return np.arange(rows)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), batch])
        return np.sort(rng.choice(rows, take, replace=False))

    @property
    def parts(self) -> tuple[list[int], list[int]]:
        """The numbers of the batches to fit to, and of those that are held back."""
        numbers = range(len(self.feeds))
        return [at for at in numbers if not self.held_back(at)], [at for at in numbers if self.held_back(at)]

    def judged(self, batch: int) -> bool:
        """Say whether a batch is for judging the refitted model, and takes no part in it; none where there are few."""
        return len(self.feeds) >= HELD_BACK and batch % JUDGED == HELD_BACK - 1

    def parted(self) -> tuple[Batches, Batches]:
        """Return what to fit to, and what to judge on."""
        judged = tuple(feeds for at, feeds in enumerate(self.feeds) if self.judged(at))
        fitted = tuple(feeds for at, feeds in enumerate(self.feeds) if not self.judged(at))
        share = self.samples * len(judged) // max(1, len(self.feeds))
        return replace(self, feeds=fitted, samples=self.samples - share), replace(self, feeds=judged, samples=share)

    def first(self, count: int) -> Batches:
        """Return the first batches, of about `count` samples."""
        per = max(1, self.samples // len(self.feeds))
        chosen = self.feeds[: max(1, -(-count // per))]
        return Batches(chosen, min(self.samples, per * len(chosen)), self.drawn)


def from_arrays(data: Mapping[str, np.ndarray], graph: Graph) -> Batches:
    """Cut checked arrays into batches: many samples at a time where the first axis of every input is dynamic."""
    single = split_data(data, graph)
    if len(single) != 1 or not _dynamic_first(graph):
        used = tuple(single[: _at_most(len(single))])
        return Batches(used, len(used))
    count = {len(array) for array in data.values() if array.ndim}
    if len(count) != 1:
        return Batches(tuple(single), 1)
    total = _at_most(count.pop())
    size = max(1, min(MOST_PER_BATCH, total // 10))
    starts = range(0, total, size)
    parts = tuple({name: array[at : min(at + size, total)] for name, array in data.items()} for at in starts)
    return Batches(parts if _runs(graph, parts) else tuple(single), total)


def _at_most(samples: int) -> int:
    if samples > MOST_USED:
        log.warning("data: only the first %d samples are used", MOST_USED)
    return min(samples, MOST_USED)


def from_dicts(given: Iterable[Mapping[str, np.ndarray]], graph: Graph, most: int | None = None) -> Batches:
    """Take batches as a user's generator yields them; each must fit the inputs of the model.

    Raises
        ModelError: there is no batch, or one does not fit.
    """
    from prunepass.inputs import check_data

    found: list[Feeds] = []
    samples, most = 0, MOST_USED if most is None else most
    for number, entry in enumerate(given):
        if not isinstance(entry, Mapping):
            raise ModelError(f"batch {number} of the data is a {type(entry).__name__}; yield dicts of arrays by input")
        feeds = split_data(check_data(graph, entry, f"batch {number} of the data"), graph)
        found += feeds
        samples += len(feeds) if len(feeds) > 1 or not _dynamic_first(graph) else _first_length(feeds[0])
        if samples >= most:  # there may be no end
            log.warning("data: only the first %d samples are used", samples)
            break
    if not found:
        raise ModelError("the data hold no batch; yield at least one dict of arrays by input")
    if len(found) < HELD_BACK:  # large ones: some of their samples have to be held back
        return joined([from_arrays(feeds, graph) for feeds in found])
    return Batches(tuple(found), samples)


def drawn(graph: Graph, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Batches:
    """Draw random inputs that make sense for the model (`feeds.random_inputs`), on the scale that it stores of them."""
    known = {name: tuple(shapes[name]) for name in graph.input_names if name in shapes}
    scales = {name: scale_of(graph, name) for name in graph.input_names}

    def draw(number: int) -> Feeds:
        feeds = random_inputs(graph, known, seed + number)
        for name, scale in scales.items():
            noise = feeds[name].dtype.kind == "f" and feeds[name].size > 1 and (feeds[name] < 0).any()
            if scale is not None and noise:  # masks, lengths and what a root is taken of are never below 0
                feeds[name] = scale.of(feeds[name])
        return feeds

    return Batches(tuple(draw(number) for number in range(DRAWN)), DRAWN, drawn=True)


def calibration(facts: Facts) -> Batches:
    """Return the calibration data of a run: what it was given, else the data to verify on, else drawn inputs."""
    context = facts.context
    if context.calibration is None and context.data is not None:
        context.calibration = from_arrays(context.data, facts.source)
    if context.calibration is None:
        log.warning("no calibration data: %d random inputs are drawn; results are better with data", DRAWN)
        context.calibration = drawn(facts.source, facts.get("shapes").shape, context.seed)
    return context.calibration


def joined(parts: Sequence[Batches]) -> Batches:
    """Put several sets together."""
    return Batches(tuple(chain.from_iterable(p.feeds for p in parts)), sum(p.samples for p in parts))


def first_runs(given: Batches, graph: Graph, most: int) -> list[Feeds]:
    """Return the first runs, of at most so many samples in all where the first axis is the batch."""
    found: list[Feeds] = []
    left, batched = most, _dynamic_first(graph)
    for feeds in given.feeds:
        length = _first_length(feeds) if batched else 1
        cut = length > left and (len(given.feeds) > 1 or given.samples > 1)
        found.append({name: array[:left] for name, array in feeds.items()} if cut else feeds)
        left -= length
        if left <= 0:
            break
    return found


def trial_runs(data: Feeds, given: Batches | None, graph: Graph, most: int) -> tuple[list[Feeds], int]:
    """Return runs of at most so many samples to verify with, and how many samples are left.

    data: as checked; one run where they are few. given: the same as batches, or more of them.
    """
    whole = split_data(data, graph)
    held = _first_length(whole[0]) if len(whole) == 1 and _dynamic_first(graph) else len(whole)
    if given is None or given.drawn or given.samples <= held <= most:
        return whole[:most], len(whole) - most
    return first_runs(given, graph, most), given.samples - most


def varies(given: Batches, graph: Graph) -> bool:
    """Say whether the samples differ from one another."""
    batched = _dynamic_first(graph)
    for name, array in given.feeds[0].items():
        one = array[:1] if batched else array
        for feeds in given.feeds:
            other = feeds[name]
            fits = other.shape[1:] == one.shape[1:] if batched else other.shape == one.shape
            if not fits or (other != one).any():
                return True
    return False


def flat(given: Batches, graph: Graph) -> bool:
    """Say whether every input is one and the same value throughout, so that nothing can be fitted to it."""
    return not varies(given, graph) and all((a == a.flat[0]).all() for a in given.feeds[0].values() if a.size)


def _first_length(feeds: Feeds) -> int:
    """Return the length of the first axis, where all inputs have the same."""
    lengths = {len(array) for array in feeds.values() if array.ndim}
    return lengths.pop() if len(lengths) == 1 else 1


def _dynamic_first(graph: Graph) -> bool:
    """Say whether the first axis of every input is dynamic, so that it is the batch."""
    dims = [info.type.tensor_type.shape.dim for info in graph.inputs]
    return bool(dims) and all(d and d[0].dim_value <= 0 for d in dims)


def _runs(graph: Graph, parts: Sequence[Feeds]) -> bool:
    """Say whether the model takes a batch: a dynamic axis does not promise it."""
    try:
        session(graph, optimise="off").run(parts[0])
    except PruneError as error:
        log.info("data: samples are run together, not in batches: %s", error)
        return False
    return True
