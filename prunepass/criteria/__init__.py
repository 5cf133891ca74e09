"""Criteria: how much a unit matters. One small class each, registered by subclassing, found by walking this package."""

import importlib
import pkgutil

from prunepass.criteria.base import Criterion, criteria, criterion
from prunepass.criteria.combine import NORMALISERS, REDUCTIONS
from prunepass.criteria.rate import ImportanceFacts, rate, weights_for
from prunepass.criteria.weights import Site, Weights

__all__ = [
    "NORMALISERS",
    "REDUCTIONS",
    "Criterion",
    "ImportanceFacts",
    "Site",
    "Weights",
    "criteria",
    "criterion",
    "rate",
    "weights_for",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
