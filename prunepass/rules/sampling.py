"""How labels pass through operators that sample an image at computed places: every channel alike."""

from __future__ import annotations

from prunepass.rules.dims import DIMS
from prunepass.rules.step import Letter, Step


@DIMS.row("GridSample")
def grid_sample(step: Step) -> None:
    x, grid = step.operand(0), step.operand(1)
    places: list[Letter] = [None] * (len(x.shape) - 2)
    operands = [(x, ["n", "c", *places]), (grid, ["n", *places, None])]
    step.set(0, step.equate(operands, ["n", "c", *places]))


@DIMS.row("RoiAlign MaxRoiPool")
def roi(step: Step) -> None:
    """Regions are read one by one from the images that an index names."""
    step.set(0, step.equate([(step.operand(0), [None, "c", None, None])], [None, "c", None, None]))
