"""Calls of functions are replaced by what the functions say.

As onnx_ir's ``InlinePass`` and ``LiftConstantsToInitializersPass`` do it, to the same names. Those
look for the next free ``name_7`` from ``name_2`` on each time, and remove one node at a time, which
goes through all outputs of the graph: that takes the square of the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import onnx_ir as ir

from bnnopt.training_step import replace_uses


@dataclass
class _Names:
    """The names that are taken, and how far each was counted up."""

    taken: set[str] = field(default_factory=set)
    counted: dict[str, int] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """`name`, or the first of ``name_2``, ``name_3`` .. that is not in use."""
        candidate, n = name, self.counted.get(name, 1)
        while candidate in self.taken:
            n += 1
            candidate = f"{name}_{n}"
        self.counted[name] = n
        self.taken.add(candidate)
        return candidate


def inline_calls(model: ir.Model) -> None:
    """Put the nodes of functions in the place of their calls, those in functions too."""
    graph = model.graph
    values = _Names({v.name for v in graph.inputs if v.name is not None} | {*graph.initializers})
    nodes = _Names({node.name for node in graph if node.name})
    values.taken |= {v.name for node in graph for v in node.outputs if v.name is not None}
    calls = []
    for call in graph:
        function = model.functions.get(call.op_identifier())
        if function is None:
            continue
        for domain, version in function.opset_imports.items():
            graph.opset_imports.setdefault(domain, version)
        made, results = _instance(call, function)
        for node in made:
            node.name = nodes.unique(node.name or "node")
            for output in node.outputs:
                output.name = values.unique(output.name or "val")
        for old, new in zip(call.outputs, results, strict=True):
            new.type = new.type if old.type is None else old.type
            new.shape = new.shape if old.shape is None else old.shape
            new.name = new.name if old.name is None else old.name
            replace_uses(old, new)
        graph.insert_after(call, made)
        calls.append(call)
    graph.remove(calls, safe=True)
    model.functions.clear()


def _instance(call: ir.Node, function: ir.Function) -> tuple[list[ir.Node], list[ir.Value]]:
    """Copies of a function's nodes that read what a call gives, and what they give in turn."""
    known = dict(zip_longest(function.inputs, call.inputs))
    given = {name: a for name, a in function.attributes.items() if a.value is not None}
    given |= call.attributes
    nodes = []
    for inner in function:
        outputs = [ir.Value(name=output.name) for output in inner.outputs]
        known.update(zip(inner.outputs, outputs, strict=True))
        node = ir.Node(
            inner.domain,
            inner.op_type,
            [None if value is None else known[value] for value in inner.inputs],
            _resolved(inner.attributes, given),
            outputs=outputs,
            name=inner.name,
            metadata_props={**call.metadata_props, **inner.metadata_props},
        )
        nodes.append(node)
    results = [known[output] for output in function.outputs]
    return nodes, [value for value in results if value is not None]


def _resolved(own: Mapping[str, ir.Attr], given: Mapping[str, ir.Attr]) -> list[ir.Attr]:
    """Attributes with those of the call where they refer to them; none where the call has none."""
    found = []
    for name, attribute in own.items():
        if not attribute.is_ref():
            found.append(attribute)
        elif (taken := given.get(str(attribute.ref_attr_name))) is not None:
            found.append(ir.Attr(name, taken.type, taken.value))
    return found


def lift_constants(graph: ir.Graph) -> None:
    """Make initialisers of the nodes that hold a constant, but for a result of the graph."""
    constants = [node for node in graph if node.op_type == "Constant" and not node.domain]
    constants = [node for node in constants if not node.outputs[0].is_graph_output()]
    for node in constants:
        (output,) = node.outputs
        (attribute,) = node.attributes.values()
        kind = _KINDS.get(attribute.name)
        tensor = (
            attribute.as_tensor()
            if kind is None
            else ir.Tensor(np.array(attribute.value, kind.numpy()), name=output.name)
        )
        initializer = ir.val(output.name, const_value=tensor)
        initializer.metadata_props.update(output.metadata_props)
        graph.register_initializer(initializer)
        output.replace_all_uses_with(initializer)
    graph.remove(constants, safe=True)


_KINDS = {
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
}
