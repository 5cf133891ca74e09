"""Fold BatchNormalization into the linear operators around it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunepass.batchnorm import Fold, affine
from prunepass.graph import Graph
from prunepass.manager import Facts, Rewrite


@dataclass(frozen=True)
class FoldBatchnorm(Rewrite):
    """Fold BatchNormalization into Conv, ConvTranspose, Gemm or MatMul in front of it or behind it, where exact.

    A shift in front of a convolution that pads with zeros stays, as do weights that other nodes use.

    Units
        keep: regular expressions of names of nodes that stay; `.*` keeps all, for bn-scale and recalibration.
    """

    name = "fold-batchnorm"

    keep: tuple[str, ...] = ()

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of nodes that were folded."""
        changes = 0
        for node in list(graph.walk()):
            found = affine(graph, node)
            if found is None or any(re.search(pattern, node.name) for pattern in self.keep):
                continue
            fold = Fold(graph, facts.get("shapes"), node, *found)
            changes += fold.into_producer(graph.producers()) or fold.into_reader()
        return changes
