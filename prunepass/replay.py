"""Carry out a plan that was read from a file."""

from __future__ import annotations

from prunepass.ephemeral import mask_graph
from prunepass.errors import ModelError
from prunepass.graph import Graph
from prunepass.manager import Context, Cut, Facts, Pipeline
from prunepass.plan import Plan


def apply_plan(facts: Facts, plan: Plan, ephemeral: bool = False) -> Graph:
    """Slice (or mask) the graph of `facts` by a plan, after the canonicalisation that made the plan's names.

    Raises
        ModelError: the plan was made for another model.
    """
    sha = facts.context.source_sha256
    if plan.source_sha256 and sha and plan.source_sha256 != sha:
        raise ModelError(f"the plan was made for a file with sha256 {plan.source_sha256[:12]}..., not {sha[:12]}...")
    Pipeline.parse("canonicalize").run_on(facts)
    bound = plan.bind(facts.graph, facts.get("coupling", policy=plan.policy))
    if ephemeral:
        coupling = bound.coupling
        assert coupling is not None and bound.removed is not None
        before = facts.graph
        facts.graph = mask_graph(
            before, coupling.shapes, coupling.elem_types, coupling.factors, bound.removed, coupling.values
        )
        facts.cuts.append(Cut(before, bound, facts.graph))
        return facts.graph
    facts.plan = bound
    Pipeline.parse("slice-channels,clean").run_on(facts)
    return facts.graph


__all__ = ["Context", "apply_plan"]
