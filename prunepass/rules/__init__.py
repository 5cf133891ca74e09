"""What each operator means, one table per question; plug-ins add rows through the entry points `prunepass.rules`."""

from prunepass.rules import (
    attention,
    control,
    convolution,
    experts,
    fused,
    indexing,
    layout,
    quantised,
    recurrent,
    sampling,
    value_norms,
)
from prunepass.rules.dims import DIMS, rule

__all__ = [
    "DIMS",
    "attention",
    "control",
    "convolution",
    "experts",
    "fused",
    "indexing",
    "layout",
    "quantised",
    "recurrent",
    "rule",
    "sampling",
    "value_norms",
]
