"""Groups of units and their block structure: which labels stand in for each other, and which must be lost alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from prunepass.labels import PINNED


def components(joints: Sequence[np.ndarray], axes: Sequence[np.ndarray], count: int, classes: np.ndarray) -> np.ndarray:
    """Number the groups: labels of one producing axis, where blocks bind them, labels of one block structure."""
    bound = np.zeros(count, bool)
    for table in joints:
        bound[table] = True
    left, right = [], []

    def link(labels: np.ndarray) -> None:
        labels = labels[labels != PINNED]
        if labels.size > 1:
            left.append(np.full(labels.size - 1, labels[0]))
            right.append(labels[1:])

    for table in joints:
        link(np.unique(table))
    for labels in axes:
        link(labels[~bound[labels]])
    if not left:
        return np.arange(count)
    a, b = np.concatenate(left), np.concatenate(right)
    matrix = coo_matrix((np.ones(a.size, bool), (a, b)), shape=(count, count))
    _, member = connected_components(matrix, directed=False)
    return np.asarray(member, np.int64)


def block_rows(
    joints: Sequence[np.ndarray], produced: np.ndarray, member: np.ndarray, count: int
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Split the units of each block-structured group into rows that must lose alike; drop groups that cannot.

    Two labels are in the same row when they occur in the same blocks of all joint factors. Rows of one size make a
    group (`member` gets a new number for each further size). Where all blocks of a factor are made of the same number
    of its rows, taking one unit from each row keeps the factor rectangular.
    """
    usable = produced.copy()
    signature = np.zeros(count, np.int64)
    touched = np.zeros(count, bool)
    for number, table in enumerate(joints):
        live = usable[table]
        row = np.broadcast_to(_mix(np.arange(1, len(table) + 1) + (number << 32))[:, None], table.shape)
        ids, place = np.unique(table[live], return_inverse=True)
        code = np.zeros(ids.size, np.int64)
        np.add.at(code, place, row[live])
        touched[ids] = True
        signature[ids] = _mix(signature[ids] * 31 + code)
    rows: dict[int, np.ndarray] = {}
    related: dict[int, list[np.ndarray]] = {}
    for table in joints:  # all labels of a block structure are in one group
        related.setdefault(int(member[table.max()]), []).append(table)
    labels = np.flatnonzero(touched & usable)
    gids = member[labels]
    for gid in np.unique(gids):
        own = labels[gids == gid]
        own = own[np.argsort(signature[own], kind="stable")]
        tables = related.get(int(gid), [])
        found = next((g for g in _row_sets(own, signature) if _all_rectangular(g, tables, count)), None)
        if found is None:
            usable[own] = False
        for number, units in enumerate(found or ()):
            group = int(gid) if number == 0 else int(member.max()) + 1
            member[units] = group
            rows[group] = units
    return usable, rows


def _row_sets(own: np.ndarray, signature: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Ways to arrange the units of one group: a group for each size of rows, or all rows cut into equal pieces."""
    _, row, sizes = np.unique(signature[own], return_inverse=True, return_counts=True)
    distinct = np.unique(sizes)
    yield [own[sizes[row] == size].reshape(-1, size) for size in distinct]
    if distinct.size > 1 and not (distinct % distinct[0]).any():
        yield [own.reshape(-1, distinct[0])]


def _all_rectangular(groups: Sequence[np.ndarray], joints: Sequence[np.ndarray], count: int) -> bool:
    """Say whether each group occurs equally often in all blocks of every joint factor."""
    number = np.full(count, -1)
    for i, units in enumerate(groups):
        number[units] = i
    for table in joints:
        group = number[table]
        for i in distinct(group):
            in_block = (group == i).sum(axis=1)
            if in_block.min() != in_block.max():
                return False
    return True


def _mix(values: np.ndarray) -> np.ndarray:
    """Hash integers so that sums of them tell sets of rows apart."""
    mixed = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return np.asarray(mixed.astype(np.int64))


def distinct(ids: np.ndarray) -> list[int]:
    """Group numbers that occur, ascending; mostly there is one. -1 stands for none."""
    low, high = int(ids.min()), int(ids.max())
    if low == high:
        return [] if low < 0 else [low]
    return [int(x) for x in np.unique(ids) if x >= 0]
