"""packed-products: run binary convolutions and dense layers on packed bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import ScaledSigns, is_binary, scaled_signs
from bnnopt.ops import Emitter, Form, dims, in_form, ints, is_view, traits, window
from bnnopt.ops.emit import Attribute
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.precision import is_half
from bnnopt.passes.shared.rebuilding import packed_form
from bnnopt.passes.shared.rewriting import replace_node
from bnnopt.training_step import TrainingStep, drop_unread, phase

Attributes = dict[str, Attribute]


@dataclass(frozen=True)
class PackedProducts(Pass):
    """Map products with a binary operand to the kernels that read its bits.

    Forward:   y = conv(xb, wb) of two binary tensors: XNOR and popcount.
    Backward:  dw = xb correlated with dy;  dx = dy *^T wb: signed sums of dy, selected by bits.
    Scales:    conv(xb, a wb) = a conv(xb, wb) where a is one number for each output channel, and
               dx = (a dy) *^T wb; one number may scale xb as well.
               Where dw is only packed (binary-weight-gradients), its bits alone are written.
    Saves:     every unpacked copy of xb and wb, and each such dw.
    Numbers:   y is exact; dw and dx are float32 sums in the kernels' own order, so the reference is
               mapped as well before it is compared.
    Skips:     products of two real tensors; a scaled Gemm; 3-D convolution.
    Levels:    all of them, since they share their kernels; -O0 keeps what it kept.
    Source:    Rastegari et al., arXiv:1603.05279 (XNOR products, scales); Arlazarov et al., 1970
               (tables).
    """

    name: ClassVar[str] = "packed-products"
    after: ClassVar[Mapping[str, str]] = {
        "binary-weight-gradients": "writes only the bits of a gradient that is kept as signs",
        "redirect-consumers": "reads signs of weights where they are taken again",
        "sign-pack": "reads the bits that are kept",
        "recompute-binary-products": "a product that is computed again runs on bits as well",
    }
    maps_kernels: ClassVar[bool] = True

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        count = 0
        for node in list(step.graph):
            rule = _RULES.get(node.op_type)
            if rule is None:
                continue
            mapping = _Mapping(step, node)
            if rule(mapping):
                replace_node(step, node, mapping.emit)
                count += 1
        count += sum(_turn_back(node) for node in step.graph)
        drop_unread(step.graph)
        packs = [node for node in step.graph if node.op_type == "SignPack"]
        count += sum(_pack_at_once(step, node) for node in packs)
        drop_unread(step.graph)
        packs = [node for node in step.graph if node.op_type == "BinarizePack"]
        count += sum(_signs_at_once(step, node) for node in packs)
        drop_unread(step.graph)
        return count


class _Mapping:
    """One product, and the nodes that are to replace it."""

    def __init__(self, step: TrainingStep, node: ir.Node) -> None:
        self.node = node
        self.emit = Emitter(step.graph, phase(node))
        self._packs = self.emit.fork("rebuild" if phase(node) == "backward" else phase(node))
        self._packs.nodes = self.emit.nodes

    def operand(self, index: int) -> ir.Value:
        """Input `index` of the product."""
        value = self.node.inputs[index]
        assert value is not None
        return value

    def flag(self, name: str) -> bool:
        """A 0/1 attribute of the product."""
        attribute = self.node.attributes.get(name)
        return attribute is not None and bool(attribute.as_int())

    def make(self, op_type: str, *inputs: ir.Value, **attributes: Attribute) -> ir.Value:
        """Emit a node named after the product's output."""
        name = str(self.node.outputs[0].name)
        return self.emit(op_type, *inputs, name=name, n_outputs=1, **attributes)

    def bits(self, value: ir.Value) -> ir.Value:
        """The sign bits of a binary value, packed by rows; those that are there, if there are."""
        producer = value.producer()
        assert producer is not None, "a binary value is made by a node"
        source = producer.inputs[0]
        assert source is not None
        kept = packed_form(value)
        if kept is not None and phase(self.node) == "forward":
            return kept
        if producer.op_type == "SignUnpack" and ints(producer, "shape") == list(dims(value)[1:]):
            return source
        if is_view(producer) and dims(source)[:1] == dims(value)[:1] and is_binary(source):
            return self.bits(source)
        return self._packs("SignPack", value, name=f"{value.name}.signs")

    def transposed(self, value: ir.Value) -> ir.Value | None:
        """The matrix that `value` is the transpose of, where it is binary, scaled perhaps."""
        source = _turned(value.producer())
        return source if scaled_signs(source) is not None else None

    def scaled(self, value: ir.Value, *operands: ScaledSigns) -> ir.Value:
        """`value`, whose second axis is that of the rows of the operands, times their scales."""
        column = [-1, *[1] * (len(dims(value)) - 2)]
        for scale in (scale for operand in operands for scale in operand.scales):
            shape = self.emit.constant(column, "int64", "channel")
            value = self.make("Mul", value, self.make("Reshape", scale, shape))
        return value


def _conv(m: _Mapping) -> bool:
    x, w = scaled_signs(m.operand(0)), scaled_signs(m.operand(1))
    if x is None or w is None or not x.is_uniform or len(dims(x.signs)) > 4:
        return False
    shape = window(m.node, dims(w.signs)[2:])
    group = m.node.attributes.get("group")
    y = m.make(
        "BinaryConv",
        m.bits(x.signs),
        m.bits(w.signs),
        x_shape=list(dims(x.signs)[1:]),
        w_shape=list(dims(w.signs)[1:]),
        group=group.as_int() if group is not None else 1,
        dtype=int(ir.DataType.FLOAT),
        **shape.attributes(),
    )
    y = m.scaled(y, x, w)
    if len(m.node.inputs) > 2:
        bias = m.emit.constant([1, -1, *[1] * (len(dims(y)) - 2)], "int64", "channel")
        m.make("Add", y, m.make("Reshape", m.operand(2), bias))
    return True


def _conv_weight_grad(m: _Mapping) -> bool:
    x, dy = scaled_signs(m.operand(0)), m.operand(1)
    if x is None or not x.is_uniform or len(dims(x.signs)) > 4:
        return False
    attributes = _own(m.node)
    shape = list(dims(x.signs)[1:])
    m.scaled(m.make("BinaryConvWeightGrad", m.bits(x.signs), dy, x_shape=shape, **attributes), x)
    return True


def _conv_input_grad(m: _Mapping) -> bool:
    dy, w = m.operand(0), scaled_signs(m.operand(1))
    if w is None or len(dims(dy)) > 4:
        return False
    dy, shape = m.scaled(dy, w), list(dims(w.signs)[1:])
    m.make("BinaryConvInputGrad", dy, m.bits(w.signs), w_shape=shape, **_own(m.node))
    return True


def _own(node: ir.Node) -> Attributes:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _gemm(m: _Mapping) -> bool:
    """y = A B: both binary, or a gradient dy with the bits of x or w; rows stay rows."""
    alpha = m.node.attributes.get("alpha")
    is_scaled = alpha is not None and alpha.as_float() != 1
    if is_scaled or len(dims(m.node.outputs[0])) != 2:
        return False
    a, b = m.operand(0), m.operand(1)
    a_turned, b_turned = m.flag("transA"), m.flag("transB")
    source = m.transposed(b)
    if source is not None:
        b, b_turned = source, not b_turned
    left, right = scaled_signs(a), scaled_signs(b)
    if left is not None and not left.is_uniform:
        left = None
    if left is not None and right is not None and not a_turned and b_turned:
        return _dense(m, left, right)
    if right is not None and left is None and not b_turned:
        return _dense_grad(m, a, right, a_turned)
    if left is not None and a_turned and not b_turned and right is None:
        shape = list(dims(left.signs)[1:])
        dw = m.make("BinaryGemmWeightGrad", m.bits(left.signs), b, x_shape=shape)
        m.make("Transpose", m.scaled(dw, left), perm=[1, 0])
        return True
    return False


def _dense(m: _Mapping, x: ScaledSigns, w: ScaledSigns) -> bool:
    y = m.make(
        "BinaryGemm",
        m.bits(x.signs),
        m.bits(w.signs),
        x_shape=list(dims(x.signs)[1:]),
        w_shape=list(dims(w.signs)[1:]),
        dtype=int(ir.DataType.FLOAT),
    )
    y = m.scaled(y, x, w)
    if len(m.node.inputs) > 2:
        m.make("Add", y, m.operand(2))
    return True


def _dense_grad(m: _Mapping, dy: ir.Value, binary: ScaledSigns, dy_turned: bool) -> bool:
    """dx = dy w, or dw = dy^T x."""
    if len(m.node.inputs) > 2 or (dy_turned and not binary.is_uniform):
        return False
    shape = list(dims(binary.signs)[1:])
    if dy_turned:
        dw = m.make("BinaryGemmWeightGrad", m.bits(binary.signs), dy, x_shape=shape)
        m.scaled(dw, binary)
    else:
        scaled = m.scaled(dy, binary)
        m.make("BinaryGemmInputGrad", scaled, m.bits(binary.signs), w_shape=shape)
    return True


_RULES: dict[str, Callable[[_Mapping], bool]] = {
    "Conv": _conv,
    "ConvInputGrad": _conv_input_grad,
    "ConvWeightGrad": _conv_weight_grad,
    "Gemm": _gemm,
    "MatMul": _gemm,
}


def _turn_back(node: ir.Node) -> int:
    """Let what reads a matrix turned twice read the matrix, as dw of x @ w.T."""
    matrix = _turned(node)
    source = _turned(matrix.producer()) if matrix is not None else None
    result = node.outputs[0]
    if source is None or result.is_graph_output() or not result.uses():
        return 0
    result.replace_all_uses_with(source)
    return 1


def _turned(node: ir.Node | None) -> ir.Value | None:
    """The matrix that a node transposes."""
    if node is None or node.op_type != "Transpose" or len(dims(node.outputs[0])) != 2:
        return None
    is_turned = "perm" not in node.attributes or ints(node, "perm") == [1, 0]
    return node.inputs[0] if is_turned else None


def _pack_at_once(step: TrainingStep, node: ir.Node) -> int:
    """SignPack(Binarize(x)) that nothing else reads becomes BinarizePack(x).

    Where x is another map cast to float32, the bits of that one are the same.
    """
    signs = node.inputs[0]
    binarize = signs.producer() if signs is not None else None
    if binarize is None or binarize.op_type != "Binarize" or len(binarize.outputs[0].uses()) != 1:
        return 0
    emit = Emitter(step.graph, phase(node))
    zero = binarize.attributes["zero"].as_float()
    x = binarize.inputs[0]
    wide = x.producer() if x is not None else None
    if wide is not None and wide.op_type == "Cast" and is_half(wide.inputs[0]):
        x = wide.inputs[0]
    emit("BinarizePack", x, name=str(node.name), zero=zero)
    replace_node(step, node, emit)
    return 1


def _signs_at_once(step: TrainingStep, node: ir.Node) -> int:
    """BinarizePack(BinaryConvWeightGrad(...)) that nothing else reads becomes the bits alone."""
    dw = node.inputs[0]
    product = dw.producer() if dw is not None else None
    signs = in_form(product.op_type, Form.SIGNS) if product is not None else None
    if product is None or signs is None or not traits(product).gives_dw:
        return 0
    is_read_once = len(product.outputs[0].uses()) == 1 and not product.outputs[0].is_graph_output()
    if not is_read_once or node.attributes["zero"].as_float() != 1:
        return 0
    emit = Emitter(step.graph, phase(node))
    own = _own(product)
    emit(signs, *product.inputs, name=str(node.name), n_outputs=1, **own)
    replace_node(step, node, emit)
    return 1
