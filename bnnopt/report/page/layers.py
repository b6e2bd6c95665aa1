"""What each layer keeps for the backward pass, before and after."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass

import onnx_ir as ir

from bnnopt.analysis import kept_values, size_bytes
from bnnopt.ops import dims, is_view
from bnnopt.report.page.contents import Version
from bnnopt.training_step import phase

INPUT = "(fed in)"


@dataclass(frozen=True)
class LayerMemory:
    """A node of the forward pass, and what is kept of it for the backward pass.

    Attributes
    ----------
    name, operator, output : str
        Of the node before any pass; of what is fed in only the name.
    kept_elements : int
        Numbers that are kept of it before any pass; its output's if none are.
    bytes_before, bytes_after : int
        What is kept, whatever it is kept as.
    kernel : str
        After the passes; empty where the node is gone.
    """

    name: str
    operator: str
    output: str
    kept_elements: int
    bytes_before: int
    bytes_after: int
    kernel: str

    def bits(self, n_bytes: int) -> float:
        """Bits kept for each element."""
        return 8 * n_bytes / max(self.kept_elements, 1)


def layers(before: Version, after: Version) -> list[LayerMemory]:
    """The nodes of the forward pass that keep something, before or after.

    A value that a pass made is charged to the node of the first version that it is computed from:
    the nearest one in front of it, by its first inputs.
    """
    nodes = {str(n.name): n for n in before.nodes if phase(n) == "forward" and not is_view(n)}
    kept_before, kept_after = (_kept(version, nodes) for version in (before, after))
    numbers: dict[str, int] = {}
    for value in kept_values(before.step):
        owner = origin(value, nodes)
        numbers[owner] = numbers.get(owner, 0) + math.prod(dims(value))
    found = [
        _layer(name, nodes.get(name), numbers, kept_before, kept_after, after)
        for name in (INPUT, *nodes)
    ]
    return [layer for layer in found if layer.bytes_before or layer.bytes_after]


def origin(value: ir.Value, names: Container[str]) -> str:
    """The node among `names` that makes a value, or from which it is made; else `INPUT`."""
    node = value.producer()
    while node is not None and str(node.name) not in names:
        sources = [v for v in node.inputs if v is not None and v.producer() is not None]
        node = sources[0].producer() if sources else None
    return INPUT if node is None else str(node.name)


def _kept(version: Version, names: Container[str]) -> dict[str, int]:
    """Bytes kept, by the node that they are charged to."""
    found: dict[str, int] = {}
    for value in kept_values(version.step):
        owner = origin(value, names)
        found[owner] = found.get(owner, 0) + size_bytes(value)
    return found


def _layer(
    name: str,
    node: ir.Node | None,
    numbers: dict[str, int],
    kept_before: dict[str, int],
    kept_after: dict[str, int],
    after: Version,
) -> LayerMemory:
    shape = dims(node.outputs[0]) if node is not None else ()
    return LayerMemory(
        name,
        node.op_type if node is not None else "",
        " x ".join(map(str, shape)),
        numbers.get(name, math.prod(shape)),
        kept_before.get(name, 0),
        kept_after.get(name, 0),
        after.kernels.get(name, ""),
    )
