"""Exchange models with onnx_graphsurgeon; the only module that imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from prunepass.errors import ModelError
from prunepass.graph import Graph

SurgeonGraph: TypeAlias = gs.Graph


def from_graphsurgeon(graph: SurgeonGraph) -> onnx.ModelProto:
    """Return the model of a graphsurgeon graph, which is not changed.

    Raises
        ModelError: it cannot be exported.
    """
    with _quiet(), _as_model_error("the graphsurgeon graph cannot be exported"):
        model: onnx.ModelProto = gs.export_onnx(graph)
    return model


def to_graphsurgeon(model: onnx.ModelProto | Graph) -> SurgeonGraph:
    """Return a model as a graphsurgeon graph.

    Raises
        ModelError: it cannot be imported.
    """
    proto = model.to_proto() if isinstance(model, Graph) else model
    with _quiet(), _as_model_error("graphsurgeon cannot import the model"):
        return gs.import_onnx(proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep graphsurgeon from printing; what matters comes as an exception."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL + 1
    try:
        yield
    finally:
        G_LOGGER.severity = before


@contextmanager
def _as_model_error(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ModelError(
            f"{what}: {str(error).partition(chr(10))[0]}; look at its inputs, outputs and types"
        ) from error
