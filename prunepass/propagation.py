"""Run a graph on labels: every node once a round, until labels are stable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from prunepass.graph import Graph
from prunepass.labels import Labels, Pin
from prunepass.node import Node
from prunepass.rules import DIMS
from prunepass.rules.control import ENTER
from prunepass.rules.step import Refused, Step, World

OUTPUT = -2
"""Owner of the pins that graph outputs ask for."""
_MAX_ROUNDS = 12


@dataclass(frozen=True)
class Asked:
    """The pins that were asked for; the values before any was applied, and the class of each label then."""

    pins: tuple[Pin, ...]
    world: World
    classes: np.ndarray


class Propagation:
    """Repeat the interpretation of the whole graph until labels are stable."""

    def __init__(
        self,
        graph: Graph,
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, np.ndarray],
        elem_types: Mapping[str, int],
        labels: Labels,
    ) -> None:
        self.graph, self.shapes, self.values, self.elem_types = graph, shapes, values, elem_types
        self.labels = labels
        self.place = {id(node): place for place, node in enumerate(graph.walk())}

    def run(self) -> tuple[World, Asked, int]:
        """Equalities first, until stable; then with pins."""
        world, rounds = self.equalities()
        asked = Asked(tuple(self.labels.pins), world, self.labels.classes)
        world, rounds = self.settle(rounds)
        return world, asked, rounds

    def equalities(self) -> tuple[World, int]:
        """Merge what is equal until nothing changes; the pins that were asked for wait in `labels.pins`."""
        rounds = 0
        changed = True
        while changed and rounds < _MAX_ROUNDS:
            world = self.round()
            rounds += 1
            changed = self.labels.solve(with_pins=False)
            if changed and not self.labels.joint_seen:
                break  # without joint factors no rule looks at the labels: one round finds every equality
        return world, rounds

    def settle(self, rounds: int) -> tuple[World, int]:
        """Apply the pins until nothing changes."""
        stable = False
        self.labels.solve(with_pins=True)
        while not stable and rounds < 2 * _MAX_ROUNDS:
            world = self.round()
            rounds += 1
            stable = not self.labels.solve(with_pins=True)
        return world, rounds

    def round(self) -> World:
        """Interpret every node once."""
        graph = self.graph
        self.labels.begin_round()
        world = World(self.labels, graph.consts, self.shapes, self.values, self.elem_types, graph.opset)
        world.states.update((name, ()) for name in graph.input_names)
        self._visit(world, graph.nodes)
        self.labels.owner = OUTPUT
        for name in graph.output_names:
            self.labels.pin_all(world.states.get(name, ()), "a graph output")
        return world

    def _visit(self, world: World, nodes: Iterable[Node]) -> None:
        """Interpret nodes in turn; the bodies of a node belong to it."""
        for node in nodes:
            step = Step(world, node)
            if node.bodies:
                self.labels.owner = self.place[id(node)]
                ENTER[node.op](step)
                for body in node.bodies:
                    self._visit(world, body.nodes)
            self.labels.owner = self.place[id(node)]
            self._interpret(step, node)

    def _interpret(self, step: Step, node: Node) -> None:
        row = DIMS.get(node.op)
        try:
            if row is None:
                raise Refused(f"no rule for operator {node.op}")
            row(step)
        except Refused as refusal:
            step.refuse(str(refusal))
        step.finish()
        world = step.world
        ins = [name for name in node.inputs if name]
        if ins and not node.bodies and all(name in world.consts or name in world.derived for name in ins):
            world.derived.update(node.outputs)
