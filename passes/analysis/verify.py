"""The certificate as a pass: for pipelines that want it in the middle, and for checks after each pass."""

from __future__ import annotations

from dataclasses import dataclass

from prunepass.graph import Graph
from prunepass.manager import Analysis, Facts
from prunepass.verify import Certificate, certify


@dataclass(frozen=True)
class Verify(Analysis):
    """Compare the graph so far with a masked execution of everything that was cut, in onnxruntime.

    Raises
        VerifyError: they differ.
    """

    name = "verify"

    def run(self, graph: Graph, facts: Facts) -> Certificate:
        """Return the certificate; it holds."""
        certificate = certify(facts.source, facts.cuts, graph, facts.context)
        certificate.raise_if_failed()
        return certificate
