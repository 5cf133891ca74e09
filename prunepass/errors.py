"""What can go wrong, one class per kind of trouble; `exit_code` is what the command line returns."""

from __future__ import annotations

from typing import ClassVar


class PruneError(Exception):
    """Report a problem that the user can act on: what, where and what to do, in one line."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # a name in the model may hold anything


class ModelError(PruneError):
    """Report a model file or model data that cannot be used."""


class NotFiniteError(ModelError):
    """Report a value that is NaN or infinite on calibration data."""


class PipelineError(PruneError):
    """Report a pipeline text, a pass name or an option that makes no sense."""


class UnsupportedError(PruneError):
    """Report something that is valid but that prunepass cannot do."""


class BudgetError(PruneError):
    """Report a budget that cannot be reached; the message names the nearest that can."""


class VerifyError(PruneError):
    """Report that the pruned model and the masked model disagree."""

    exit_code: ClassVar[int] = 3


class InternalError(PruneError):
    """Report a pass that broke: a bug in prunepass or in a plug-in, never the user's mistake."""

    def __init__(self, message: str, reproducer: str = "") -> None:
        super().__init__(message)
        self.reproducer = reproducer
