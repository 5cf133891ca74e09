"""Fold BatchNormalization into the linear operators around it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from prunepass.batchnorm import Fold, affine, swap_stored, tie, untie
from prunepass.graph import Graph
from prunepass.manager import Facts, Rewrite
from prunepass.rules.affine import AFFINE, SCALE_OUTPUTS


@dataclass(frozen=True)
class FoldBatchnorm(Rewrite):
    """Fold BatchNormalization into Conv, ConvTranspose, Gemm or MatMul in front of it or behind it, where exact.

    A Mul, Div, Add or Sub with one number per channel, which is a part of a BatchNormalization, folds alike. A shift in
    front of a convolution that pads with zeros stays, as do weights that other nodes use.

    Units
        keep: regular expressions of names of nodes that stay; `.*` keeps all, for bn-scale and recalibration.
    """

    name = "fold-batchnorm"

    keep: tuple[str, ...] = ()

    def run(self, graph: Graph, facts: Facts) -> int:
        """Return the number of nodes that were folded."""
        changes = 0
        nodes = [node for node in graph.nodes if node.op in AFFINE]  # in a body, what it reads may be made outside
        if not nodes or not any(node.op in SCALE_OUTPUTS for node in graph.walk()):
            return 0
        known = facts.get("shapes")
        shapes = replace(known, shape=dict(known.shape))
        copies = {} if self.keep else untie(graph, shapes)
        for node in nodes:
            turned = swap_stored(graph, node)
            found = affine(graph, turned, shapes)
            if found is None or any(re.search(pattern, node.name) for pattern in self.keep):
                continue
            fold = Fold(graph, shapes, node, turned.inputs[0], *found)
            changes += fold.into_producer(graph.producers()) or fold.into_reader()
        tie(graph, copies)
        return changes
