"""Changes of ONNX models that keep the file readable: what goes wrong lies in what it says."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from tests.fuzz.mutations import change_bytes, integer, number, text

Model = onnx.ModelProto
Change = Callable[[Model, random.Random], None]

OPERATORS = (
    *("Relu", "Sign", "Conv", "Gemm", "MatMul", "Add", "Mul", "Div", "Pow", "Reshape", "Flatten"),
    *("Transpose", "Concat", "Split", "Slice", "Gather", "Pad", "Expand", "Clip", "Cast", "Where"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization", "Dropout", "Softmax"),
    *("LogSoftmax", "ReduceMean", "ReduceSum", "Squeeze", "Unsqueeze", "Identity", "Constant"),
    *("PRelu", "ConvTranspose", "LayerNormalization", "LSTM", "Einsum", "Loop", "If", "Scan"),
    *("NonZero", "Tile", "Resize", "Shape", "Range", "ConstantOfShape", "QuantizeLinear", "TopK"),
    *("DequantizeLinear", "SequenceAt", "StringNormalizer", "OneHot", "ScatterND", "Unheard"),
)
ATTRIBUTES = {
    **{name: [1, 1] for name in ("kernel_shape", "strides", "pads", "dilations", "axes", "perm")},
    **dict.fromkeys(("group", "axis", "ceil_mode", "storage_order", "keepdims", "to"), 1),
    **dict.fromkeys(("training_mode", "allowzero", "transA", "transB", "hidden_size"), 1),
    **dict.fromkeys(("alpha", "beta", "epsilon", "momentum", "value_float", "ratio"), 0.5),
    **dict.fromkeys(("auto_pad", "mode", "direction", "equation", "domain"), "SAME_UPPER"),
}
MOST_ELEMENTS = 100_000  # of a weight that is made
ELEMENT_TYPES = tuple(sorted(TensorProto.DataType.values()))


# Operators of one input, with attributes, and the constants that they read beside it.
FITTING: tuple[tuple[str, dict[str, Any], tuple[Any, ...]], ...] = (
    *((name, {}, ()) for name in ("Relu", "Sign", "Sigmoid", "Tanh", "Abs", "Exp", "Identity")),
    *((name, {}, ()) for name in ("Neg", "Sqrt", "Log", "HardSwish", "Softplus", "Erf", "Elu")),
    *((name, {}, ()) for name in ("Flatten", "GlobalAveragePool", "GlobalMaxPool", "Reciprocal")),
    *(("Softmax", {"axis": axis}, ()) for axis in (-1, 0, 1, 5)),
    *(("Flatten", {"axis": axis}, ()) for axis in (0, 1, -1, 2)),
    *(("Transpose", {"perm": perm}, ()) for perm in ([1, 0], [0, 1], [0, 2, 1], [0, 3, 2, 1])),
    *(("Reshape", {}, (shape,)) for shape in ([0, -1], [-1, 6], [4, 6], [2, -1], [1, 0, -1])),
    *(("Unsqueeze", {}, ([axis],)) for axis in (0, 1, -1)),
    *(("ReduceMean", {"axes": [axis], "keepdims": keep}, ()) for axis in (0, 1) for keep in (0, 1)),
    *(("ReduceSum", {"keepdims": keep}, ([axis],)) for axis in (0, 1) for keep in (0, 1)),
    *(
        ("Slice", {}, ([begin], [end], [axis]))
        for begin, end in ((0, 1), (1, 99))
        for axis in (0, 1)
    ),
    *(("Gather", {"axis": axis}, (index,)) for axis in (0, 1) for index in ([0], [0, 0, 1], [-1])),
    *(("Pad", {}, (pads,)) for pads in ([0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0])),
    *(("Cast", {"to": kind}, ()) for kind in (1, 7, 9, 10, 11)),
    *(
        ("MaxPool", {"kernel_shape": [k, k], "strides": [s, s]}, ())
        for k in (1, 2, 3)
        for s in (1, 2)
    ),
    *(("AveragePool", {"kernel_shape": [2, 2], "ceil_mode": c}, ()) for c in (0, 1)),
    *(("Expand", {}, (shape,)) for shape in ([1, 1], [4, 1], [3, 1, 1])),
    *(("Split", {"axis": axis}, ()) for axis in (0, 1)),
    *(("Tile", {}, ([1, 2],)), ("Squeeze", {}, ([0],)), ("Clip", {}, ()), ("Dropout", {}, ())),
    *(
        ("ArgMax", {}, ()),
        ("Shape", {}, ()),
        ("Size", {}, ()),
        ("Not", {}, ()),
        ("CumSum", {}, (1,)),
    ),
)
OF_TWO = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "MatMul", "PRelu", "Greater", "Concat")


def change_model(model: Model, rng: random.Random) -> None:
    """Some changes, one after the other, in place; most of them pass onnx's own checks."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(VALID_CHANGES if rng.random() < 0.8 else CHANGES)(model, rng)


def _some(items: Any, rng: random.Random) -> Any | None:
    return rng.choice(items) if len(items) else None


def _names(model: Model) -> list[str]:
    made = [name for node in model.graph.node for name in node.output]
    return [*made, *(e.name for e in (*model.graph.input, *model.graph.initializer))]


# Nodes --------------------------------------------------------------------------------------------


def other_attribute(model: Model, rng: random.Random) -> None:
    """An attribute of another value, another length or another type, or none."""
    with_some = [node for node in model.graph.node if node.attribute]
    node = _some(with_some, rng)
    if node is None:
        return
    attribute = rng.choice(node.attribute)
    kind = rng.randrange(8)
    if kind == 0:
        node.attribute.remove(attribute)
    elif kind == 1:
        attribute.name = rng.choice((*ATTRIBUTES, text(rng)))
    elif kind == 2:
        attribute.type = rng.choice(AttributeProto.AttributeType.values())
    elif kind == 3:
        node.attribute.add().CopyFrom(attribute)
    else:
        _change_attribute(attribute, rng)


def _change_attribute(attribute: AttributeProto, rng: random.Random) -> None:
    if attribute.ints:
        values = list(attribute.ints)
        place = rng.randrange(len(values))
        values[place] = integer(rng, values[place])
        if rng.random() < 0.3:
            values = values[:place] if rng.random() < 0.5 else [*values, *values]
        del attribute.ints[:]
        attribute.ints.extend(values)
    elif attribute.HasField("t"):
        _change_tensor(attribute.t, rng)
    elif attribute.HasField("s"):
        attribute.s = rng.choice((text(rng).encode(), b"\xff\xfe", b"SAME_LOWER", attribute.s[:-1]))
    elif attribute.HasField("f"):
        attribute.f = float(np.clip(number(rng), -3e38, 3e38))
    else:
        attribute.i = integer(rng, attribute.i)


def new_attribute(model: Model, rng: random.Random) -> None:
    """An attribute that the operator may not have."""
    node = _some(model.graph.node, rng)
    if node is not None:
        name = rng.choice(list(ATTRIBUTES))
        value = ATTRIBUTES[name]
        if isinstance(value, list):
            value = [integer(rng, 1) for _ in range(rng.randrange(5))] or [1]
        elif isinstance(value, int):
            value = integer(rng, 1)
        node.attribute.append(helper.make_attribute(name, value))


def other_operator(model: Model, rng: random.Random) -> None:
    """A node of another operator or domain."""
    node = _some(model.graph.node, rng)
    if node is not None and rng.random() < 0.8:
        node.op_type = rng.choice(OPERATORS)
    elif node is not None:
        node.domain = rng.choice(("bnnopt", "com.microsoft", "ai.onnx", "qonnx.custom_op.general"))


def other_edge(model: Model, rng: random.Random) -> None:
    """A node that reads or gives something else, nothing, itself, or more or less."""
    node = _some(model.graph.node, rng)
    if node is None:
        return
    ends = rng.choice((node.input, node.input, node.output))
    name = rng.choice((*_names(model), "", "nowhere", text(rng), *node.output))
    kind = rng.randrange(4)
    if kind == 0 and len(ends):
        del ends[rng.randrange(len(ends))]
    elif kind == 1 or not len(ends):
        ends.append(name)
    else:
        ends[rng.randrange(len(ends))] = name


def other_order(model: Model, rng: random.Random) -> None:
    """A node left out, twice, or before what it reads."""
    nodes = list(model.graph.node)
    if not nodes:
        return
    place, kind = rng.randrange(len(nodes)), rng.randrange(3)
    if kind == 0:
        del nodes[place]
    elif kind == 1:
        nodes.insert(rng.randrange(len(nodes)), nodes[place])
    else:
        rng.shuffle(nodes)
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(fresh)


def another_node(model: Model, rng: random.Random) -> None:
    """An operator in the middle of an edge, with attributes that may not fit it."""
    node = _some([n for n in model.graph.node if n.input], rng)
    if node is None:
        return
    place = rng.randrange(len(node.input))
    names = _names(model)
    reads = [node.input[place], *(rng.choice(names) for _ in range(rng.choice((0, 0, 1, 2))))]
    fresh = f"inserted{rng.randrange(10**6)}"
    made = helper.make_node(rng.choice(OPERATORS), reads, [fresh])
    before = list(model.graph.node).index(node)
    model.graph.node.insert(before, made)
    model.graph.node[before + 1].input[place] = fresh
    if rng.random() < 0.5:
        new_attribute(model, rng)


def fitting_node(model: Model, rng: random.Random) -> None:
    """An operator in the middle of an edge, with as many operands as it takes."""
    node = _some([n for n in model.graph.node if n.input], rng)
    if node is None:
        return
    before, edge = list(model.graph.node).index(node), rng.randrange(len(node.input))
    reads, fresh = [node.input[edge]], f"inserted{rng.randrange(10**6)}"
    made: list[onnx.NodeProto] = []
    if rng.random() < 0.3:
        name, attributes = rng.choice(OF_TWO), {}
        reads.append(rng.choice(_made_before(model, before)))
        if name == "Concat":
            attributes = {"axis": rng.choice((0, 1, -1))}
    else:
        name, attributes, constants = rng.choice(FITTING)
        for place, constant in enumerate(constants):
            kind = "value_ints" if isinstance(constant, list) else "value_int"
            reads.append(f"{fresh}_{place}")
            made.append(helper.make_node("Constant", [], [reads[-1]], **{kind: constant}))
    made.append(helper.make_node(name, reads, [fresh], **attributes))
    for offset, entry in enumerate(made):
        model.graph.node.insert(before + offset, entry)
    model.graph.node[before + len(made)].input[edge] = fresh


def _made_before(model: Model, place: int) -> list[str]:
    made = [name for node in list(model.graph.node)[:place] for name in node.output if name]
    return [*made, *(e.name for e in (*model.graph.input, *model.graph.initializer))]


def earlier_edge(model: Model, rng: random.Random) -> None:
    """A node that reads something else that is there."""
    node = _some([n for n in model.graph.node if n.input], rng)
    if node is not None:
        known = _made_before(model, list(model.graph.node).index(node))
        node.input[rng.randrange(len(node.input))] = rng.choice(known)


def earlier_output(model: Model, rng: random.Random) -> None:
    """Something else as the output, or as another one; what leads nowhere stays."""
    made = [name for node in model.graph.node for name in node.output if name]
    if made and len(model.graph.output) and rng.random() < 0.8:
        entry = rng.choice(model.graph.output)
    else:
        entry = model.graph.output.add()
    entry.name = rng.choice((*made, "x"))
    entry.type.tensor_type.elem_type = entry.type.tensor_type.elem_type or TensorProto.FLOAT
    if rng.random() < 0.7:
        entry.type.tensor_type.ClearField("shape")


def near_attribute(model: Model, rng: random.Random) -> None:
    """A number of an attribute a little larger or smaller."""
    node = _some([n for n in model.graph.node if any(a.ints or a.i for a in n.attribute)], rng)
    if node is not None:
        attribute = rng.choice([a for a in node.attribute if a.ints or a.i])
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((0, 1, 2, 3, 4, 7, -1))
        else:
            attribute.i = rng.choice((0, 1, 2, 3, 4, -1, min(attribute.i, 1 << 62) + 1))


def other_shape(model: Model, rng: random.Random) -> None:
    """A weight of another shape that is whole in itself."""
    tensor = _some(model.graph.initializer, rng)
    if tensor is None:
        return
    dims = list(tensor.dims)
    kind = rng.randrange(4)
    if kind == 0 and dims:
        dims[rng.randrange(len(dims))] = rng.choice((0, 1, 2, 3, 5, 8, 17))
    elif kind == 1:
        rng.shuffle(dims)
    elif kind == 2:
        dims = [*dims, 1] if rng.random() < 0.5 else dims[1:]
    else:
        dims = [int(np.prod(dims))]
    if np.prod([float(d) for d in dims]) > MOST_ELEMENTS:  # another change has made it so
        return
    dtype = rng.choice((np.float32,) * 6 + (np.float64, np.float16, np.int64, np.bool_))
    drawn = np.random.default_rng(rng.getrandbits(32)).standard_normal(dims)
    tensor.CopyFrom(onnx.numpy_helper.from_array(drawn.astype(dtype), tensor.name))


def other_sample(model: Model, rng: random.Random) -> None:
    """An axis of the input a little longer, shorter, fixed, or open."""
    axes = model.graph.input[0].type.tensor_type.shape.dim if model.graph.input else ()
    axis = _some(axes, rng)
    if axis is not None:
        if rng.random() < 0.2:
            axis.dim_param = rng.choice(("n", "batch", "N"))
        else:
            axis.dim_value = rng.choice((1, 2, 3, 4, 5, 6, 8, 12))


# Tensors ------------------------------------------------------------------------------------------


def _change_tensor(tensor: TensorProto, rng: random.Random) -> None:
    kind = rng.randrange(9)
    if kind == 0:
        tensor.data_type = rng.choice((*ELEMENT_TYPES, 99))
    elif kind == 1 and tensor.dims:
        place = rng.randrange(len(tensor.dims))
        tensor.dims[place] = integer(rng, tensor.dims[place])
    elif kind == 2:
        tensor.dims.append(integer(rng, 1))
    elif kind == 3 and tensor.dims:
        del tensor.dims[rng.randrange(len(tensor.dims))]
    elif kind == 4:
        tensor.raw_data = change_bytes(tensor.raw_data, rng)
    elif kind == 5:
        tensor.name = rng.choice((text(rng), b"\xff".decode("latin1")))
    elif kind == 6:
        _fill(tensor, number(rng))
    elif kind == 7:
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", text(rng)), ("offset", "0"), ("length", str(integer(rng)))):
            tensor.external_data.add(key=key, value=value)
    else:
        tensor.float_data.extend([number(rng) if rng.random() < 0.1 else 1.0] * 3)


def _fill(tensor: TensorProto, value: float) -> None:
    """All elements the same, if it is one of floats in raw data."""
    if tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
        with np.errstate(over="ignore"):
            tensor.raw_data = np.float32(value).tobytes() * (len(tensor.raw_data) // 4)


def other_weight(model: Model, rng: random.Random) -> None:
    """An initialiser of another shape, type, length, name or place, or of other values."""
    tensor = _some(model.graph.initializer, rng)
    if tensor is not None:
        _change_tensor(tensor, rng)


def another_weight(model: Model, rng: random.Random) -> None:
    """An initialiser left out, twice, or sparse."""
    tensor = _some(model.graph.initializer, rng)
    if tensor is None:
        return
    kind = rng.randrange(3)
    if kind == 0:
        model.graph.initializer.remove(tensor)
    elif kind == 1:
        model.graph.initializer.add().CopyFrom(tensor)
    else:
        sparse = model.graph.sparse_initializer.add()
        sparse.values.CopyFrom(tensor)
        sparse.dims.extend(tensor.dims)


def other_interface(model: Model, rng: random.Random) -> None:
    """An input or output of another shape or type, left out, doubled or renamed."""
    entries = rng.choice((model.graph.input, model.graph.output))
    entry = _some(entries, rng)
    kind = rng.randrange(7)
    if entry is None or kind == 0:
        made = helper.make_tensor_value_info(text(rng), rng.choice(ELEMENT_TYPES), [1, 3])
        entries.append(made)
    elif kind == 1:
        entries.remove(entry)
    elif kind == 2:
        entry.name = rng.choice((*_names(model), text(rng)))
    elif kind == 3:
        entry.type.tensor_type.elem_type = rng.choice((*ELEMENT_TYPES, 99))
    elif kind == 4:
        entry.type.ClearField("value")
    else:
        _change_shape(entry.type.tensor_type.shape.dim, rng)


def _change_shape(axes: Any, rng: random.Random) -> None:
    if not len(axes) or rng.random() < 0.2:
        axes.add().dim_value = integer(rng, 1)
    elif rng.random() < 0.2:
        del axes[rng.randrange(len(axes))]
    elif rng.random() < 0.2:
        rng.choice(axes).dim_param = text(rng)
    else:
        axis = rng.choice(axes)
        axis.dim_value = integer(rng, axis.dim_value)


def claimed_type(model: Model, rng: random.Random) -> None:
    """A value's type as the file claims it, which need not be right."""
    shape = [integer(rng, 2) for _ in range(rng.randrange(5))]
    name, kind = rng.choice(_names(model)), rng.choice(ELEMENT_TYPES)
    model.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


# Whole models -------------------------------------------------------------------------------------


def other_version(model: Model, rng: random.Random) -> None:
    """Another opset, another domain's, twice, or none; another version of the format."""
    kind = rng.randrange(4)
    if kind == 0:
        model.ir_version = integer(rng, model.ir_version)
    elif kind == 1:
        del model.opset_import[:]
    elif kind == 2:
        model.opset_import.add(domain=text(rng), version=integer(rng, 1))
    else:
        for entry in model.opset_import:
            entry.version = rng.choice((*range(1, 30), integer(rng, entry.version)))


def in_a_function(model: Model, rng: random.Random) -> None:
    """A node as a function of the file's own; some call themselves or are called for ever more."""
    node = _some([n for n in model.graph.node if n.op_type != "Local"], rng)
    if node is None:
        return
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    names = list(dict.fromkeys(filter(None, node.input)))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    body, depth = [inner], rng.choice((0, 0, 0, 1, 4, 40))
    for level in range(depth):  # each calls the one before it twice: 2 to the depth nodes
        again = [helper.make_node(f"Level{level}", ["a"], [out], domain="local") for out in "bc"]
        again[1].input[0] = "b"
        first = helper.make_node("Relu", ["a"], ["c"])
        made = again if level else [first]
        function = helper.make_function("local", f"Level{level + 1}", ["a"], ["c"], made, imports)
        model.functions.append(function)
    if depth:
        body.append(helper.make_node(f"Level{depth}", [inner.output[0]], ["deep"], domain="local"))
    if rng.random() < 0.2:
        body = [helper.make_node("Local", names, list(node.output), domain="local")]
    function = helper.make_function("local", "Local", names, list(node.output), body, imports)
    model.functions.append(function)
    node.op_type, node.domain = "Local", "local"
    del node.input[:]
    node.input.extend(names)
    del node.attribute[:]
    model.opset_import.append(helper.make_opsetid("local", 1))


def in_a_loop(model: Model, rng: random.Random) -> None:
    """A node as the body of a Loop or of an If with a constant condition."""
    node = _some([n for n in model.graph.node if len(n.output) == 1 and n.input], rng)
    if node is None:
        return
    place = list(model.graph.node).index(node)
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    inner.output[0] = "within"
    result = onnx.ValueInfoProto(name="within")
    condition = helper.make_node("Constant", [], ["always"], value_ints=[1])
    made = [helper.make_node("Cast", ["always_int"], ["always"], to=TensorProto.BOOL)]
    condition.output[0] = "always_int"
    if rng.random() < 0.5:
        branch = helper.make_graph([inner], "branch", [], [result])
        made.append(
            helper.make_node("If", ["always"], node.output, then_branch=branch, else_branch=branch)
        )
    else:
        count = helper.make_node("Constant", [], ["times"], value_int=abs(integer(rng)) % 2**62)
        inner.input[0] = "carried"
        loop_inputs = [onnx.ValueInfoProto(name=n) for n in ("i", "go", "carried")]
        outputs = [onnx.ValueInfoProto(name="go"), result]
        body = helper.make_graph([inner], "body", loop_inputs, outputs)
        made += [
            count,
            helper.make_node("Loop", ["times", "always", node.input[0]], node.output, body=body),
        ]
    model.graph.node.remove(node)
    for offset, fresh in enumerate([condition, *made]):
        model.graph.node.insert(place + offset, fresh)


def other_note(model: Model, rng: random.Random) -> None:
    """Texts beside the graph, those that the compiler reads among them."""
    node = _some(model.graph.node, rng)
    target = rng.choice((model, model.graph, *([node] if node is not None else [])))
    key = rng.choice(("bnnopt.role", "bnnopt.phase", "pkg.torch.onnx", text(rng)))
    target.metadata_props.add(key=key, value=text(rng))
    if node is not None:
        node.name = text(rng)
        node.doc_string = rng.choice((text(rng), "Backward pass"))


CHANGES: tuple[Change, ...] = (
    *(other_attribute, other_attribute, new_attribute, other_operator, other_edge, other_edge),
    *(other_order, another_node, other_weight, other_weight, another_weight, other_interface),
    *(claimed_type, other_version, in_a_function, in_a_loop, other_note),
)

VALID_CHANGES: tuple[Change, ...] = (
    *(fitting_node, fitting_node, fitting_node, earlier_edge, earlier_output, near_attribute),
    *(near_attribute, other_shape, other_sample),
)
