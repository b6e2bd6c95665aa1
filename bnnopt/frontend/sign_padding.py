"""A border of +1 or -1 around signs, as larq pads: the signs of what has that border."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops import infer_types, traits
from bnnopt.ops.operands import Operands
from bnnopt.training_step import Role, role


def sign_padded(graph: ir.Graph) -> None:
    """Turn ``Pad (Binarize (x))`` with ones into ``Binarize (Pad (x))``: a layer reads signs.

    Forward: the border's own signs are what it was filled with. Backward: the border is cut off, as
    before, whatever the estimator makes of it.
    """
    for pad in list(graph):
        binarize = _signs_of(pad)
        if binarize is not None:
            _swap(graph, binarize, pad)


def _signs_of(pad: ir.Node) -> ir.Node | None:
    """The node that makes the signs that a Pad alone reads, and puts ones around."""
    if pad.op_type != "Pad" or pad.domain or pad.inputs[0] is None:
        return None
    operands, signs = Operands(pad), pad.inputs[0]
    fill, node = operands.array(2) if operands.has(2) else None, signs.producer()
    is_unit = fill is not None and abs(float(fill.item())) == 1
    if operands.text("mode", "constant") != "constant" or not is_unit or node is None:
        return None
    is_alone = len(signs.uses()) == 1 and not signs.is_graph_output()
    source = node.inputs[0]
    if node.op_type != "Binarize" or not traits(node).binarizes or not is_alone or source is None:
        return None
    return node if role(source) is not Role.PARAMETER else None


def _swap(graph: ir.Graph, binarize: ir.Node, pad: ir.Node) -> None:
    source, bordered = binarize.inputs[0], pad.outputs[0]
    signs = ir.Node(
        binarize.domain,
        binarize.op_type,
        [bordered],
        list(binarize.attributes.values()),
        outputs=[ir.Value(name=f"{bordered.name}.signs")],
        name=binarize.name,
    )
    bordered.replace_all_uses_with(signs.outputs[0], replace_graph_outputs=True)
    signs.replace_input_with(0, bordered)
    pad.replace_input_with(0, source)
    graph.insert_after(pad, signs)
    graph.remove(binarize, safe=True)
    infer_types(signs, graph.opset_imports[""])
