"""One question, one table: operator name -> row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Table(dict[str, Row], Generic[Row]):
    """Map operator names to the rows that answer one question about them.

    Names are those of `Node.op`: bare for the default domain, `domain::Op` for all others.

    Example
        MACS = Table[MacsRow]("macs")
        MACS("Conv FusedConv", conv)

        @MACS.row("Gemm")
        def gemm(node, in_shapes, out_shapes): ...
    """

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def __call__(self, ops: str, row: Row) -> Row:
        """Register `row` for each operator named in the space-separated `ops`.

        Raises
            ValueError: an operator has a row already.
        """
        for op in ops.split():
            if op in self:
                raise ValueError(f"table {self.question!r} has a row for {op} already")
            self[op] = row
        return row

    def row(self, ops: str) -> Callable[[Row], Row]:
        """Decorate a function that is the row of `ops`."""
        return lambda row: self(ops, row)
