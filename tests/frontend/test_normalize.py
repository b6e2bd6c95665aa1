"""Forward graphs of good files: what is folded, named, set apart, and that the numbers stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnnopt.errors import UsageError
from bnnopt.frontend import ForwardGraph, load_forward
from bnnopt.ops import dims
from bnnopt.training_step import Role, role
from tests.autodiff.interpreter import Array, run, session
from tests.frontend.models import BATCH, WEIGHTS, X, good, load, parse, rejected, save
from tests.zoo import FIRST, LARGE, build_small


def output(forward: ForwardGraph, x: Array = X) -> Array:
    """The first output in float32; sign(0) as the graph has it."""
    values = run(forward.graph, {"x": x, **forward.weights}, np.float32)
    return values[str(forward.graph.outputs[0].name)]


def original(model: onnx.ModelProto, x: Array = X) -> Array:
    return session(model.SerializeToString()).run(None, {"x": x})[0]


def assert_same_function(model: onnx.ModelProto, forward: ForwardGraph, x: Array = X) -> None:
    want = original(model, x)
    bound = 1e-4 * max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(output(forward, x), want, rtol=0, atol=bound)


# Opsets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17, 18, 19, 20, 21])
def test_good_export_in_every_opset(opset: int, tmp_path: Path) -> None:
    forward = load(parse(good(opset), WEIGHTS, opset), tmp_path)
    newest = load(parse(good(17), WEIGHTS, 17), tmp_path)
    np.testing.assert_array_equal(output(forward), output(newest))
    assert forward.graph.opset_imports[""] == max(18, opset)
    assert forward.weights.keys() == WEIGHTS.keys()
    for name, array in forward.weights.items():
        np.testing.assert_array_equal(array, WEIGHTS[name])
    assert [b.name for b in forward.binarized] == ["conv.sign", "act.sign", "fc.sign"]
    roles = {str(v.name): role(v) for v in forward.graph.inputs}
    assert roles["x"] is Role.DATA
    for name in WEIGHTS:
        expected = Role.STATISTIC if "running" in name else Role.PARAMETER
        assert roles[name] is expected
    bn = next(node for node in forward.graph if node.op_type == "BatchNormalization")
    assert bn.attributes["training_mode"].as_int() == 1
    assert bn.attributes["epsilon"].as_float() == pytest.approx(0.001)


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 18])
def test_axes_that_moved_from_attribute_to_input(opset: int, tmp_path: Path) -> None:
    mean = "<axes = [1], keepdims = 0> (h)" if opset < 18 else "<keepdims = 0> (h, a)"
    text = f"""g (float[batch,6] x) => (float[batch,2] y) {{
        a = Constant <value_ints = [1]> ()
        s = Constant <value_ints = [0, 3, 2]> ()
        h = Reshape (x, s)
        m = ReduceMean {mean}
        y = Mul (m, w) }}"""
    model = parse(text, {"w": np.array([2, -1], np.float32)}, opset)
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert_same_function(model, load(model, tmp_path), x)


def test_split_of_opset_17(tmp_path: Path) -> None:
    text = """g (float[batch,6] x) => (float[batch,3] y) {
        h = Mul (x, w) a, b = Split <axis = 1> (h) y = Add (a, b) }"""
    model = parse(text, {"w": np.arange(6, dtype=np.float32)})
    assert_same_function(model, load(model, tmp_path), np.ones((4, 6), np.float32))


# The zoo ---------------------------------------------------------------------------------------


# The 18-layer networks have the block of resnet-e-mini, over and over: rounding decides some sign.
@pytest.mark.parametrize("name", [n for n in FIRST if n not in LARGE])
def test_zoo_keeps_its_function(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    ir.save(build_small(name, seed=3), path)
    model = onnx.load(path)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
    # A batch norm of integers can give 0, and rounding decides its sign: move it off.
    for tensor in model.graph.initializer:
        if tensor.name.endswith("bias"):
            bias = np.random.default_rng(2).normal(0, 0.3, tensor.dims).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias, tensor.name))
    forward = load(model, tmp_path, 2)
    want = original(model, x)
    np.testing.assert_allclose(output(forward, x), want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", FIRST)
def test_zoo_values_are_typed_and_static(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    ir.save(build_small(name), path)
    forward = load(onnx.load(path), tmp_path, 7)
    for node in forward.graph:
        for value in node.outputs:
            assert value.dtype is not None
            assert all(isinstance(d, int) for d in value.shape or [None])
    assert dims(forward.graph.outputs[0]) == (7, 10)
    assert not {"Constant", "Identity", "Sign"} & {node.op_type for node in forward.graph}


# Batches and reshapes --------------------------------------------------------------------------

VIEW = """k = Shape (s) z = Constant <value_int = 0> () n0 = Gather <axis = 0> (k, z)
    i = Constant <value_ints = [0]> () u = Unsqueeze (n0, i)
    r = Constant <value_ints = [-1]> () t = Concat <axis = 0> (u, r) f = Reshape (s, t)"""
FLATTENS = {
    "view-chain": VIEW,
    "minus-one": "t = Constant <value_ints = [-1, 64]> () f = Reshape (s, t)",
    "zero": "t = Constant <value_ints = [0, -1]> () f = Reshape (s, t)",
    "fixed-batch": "t = Constant <value_ints = [4, 64]> () f = Reshape (s, t)",
    "fixed-batch-minus-one": "t = Constant <value_ints = [4, -1]> () f = Reshape (s, t)",
    "allow-zero": "t = Constant <value_ints = [4, 64]> () f = Reshape <allowzero = 1> (s, t)",
    "two-steps": "t = Constant <value_ints = [16, -1]> () q = Reshape (s, t)"
    " u = Constant <value_ints = [4, 64]> () f = Reshape (q, u)",
    "identity": "e = Identity (s) h = Identity (e) f = Flatten (h)",
    "pool-of-one": "e = AveragePool <kernel_shape = [1, 1], strides = [1, 1]> (s) f = Flatten (e)",
    "idle-cast": "e = Cast <to = 1> (s) f = Flatten (e)",
    "dropout-off": "e = Dropout (s) f = Flatten (e)",
}


@pytest.mark.parametrize("flatten", FLATTENS)
@pytest.mark.parametrize("batch", ["batch", "4", ""])
def test_any_reshape_runs_a_smaller_batch_too(flatten: str, batch: str, tmp_path: Path) -> None:
    model = parse(good(flatten=FLATTENS[flatten], batch=batch or "batch"), WEIGHTS)
    if not batch:  # a dimension without a name
        model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
        model.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    forward = load(model, tmp_path)
    assert_same_function(model, forward)
    if "two-steps" not in flatten:
        assert not {"Shape", "Gather", "Concat"} & {node.op_type for node in forward.graph}
    assert output(forward, X[:3]).shape == (3, 5)
    assert dims(forward.graph.outputs[0]) == (BATCH, 5)


def test_expand_of_a_fixed_batch(tmp_path: Path) -> None:
    text = """g (float[4,1,3] x) => (float[4,2,3] y) {
        t = Constant <value_ints = [4, 2, 3]> () e = Expand (x, t) y = Mul (e, w) }"""
    model = parse(text, {"w": np.ones((2, 3), np.float32)})
    forward = load(model, tmp_path, None)
    assert output(forward, np.ones((3, 1, 3), np.float32)).shape == (3, 2, 3)


def test_a_parameter_that_is_expanded_as_the_data(tmp_path: Path) -> None:
    """As ``x + b.expand_as(x)`` comes out: no map of the batch, and a smaller batch runs too."""
    text = """g (float[batch,2,3] x) => (float[batch,2,3] y) {
        s = Shape (x) e = Expand (w, s) a = Add (x, e) y = Mul (a, a) }"""
    forward = load(parse(text, {"w": np.ones((2, 1), np.float32)}), tmp_path)
    assert [node.op_type for node in forward.graph] == ["Add", "Mul"]
    assert (output(forward, np.ones((3, 2, 3), np.float32)) == 4).all()


def test_an_expand_that_is_needed_stays(tmp_path: Path) -> None:
    text = """g (float[batch,2,3] x) => (float[batch,2,3] y) {
        s = Shape (x) e = Expand (w, s) y = Mul (e, e) }"""
    forward = load(parse(text, {"w": np.ones((2, 1), np.float32)}), tmp_path)
    assert [node.op_type for node in forward.graph] == ["Expand", "Mul"]


def test_the_batch_of_the_file_needs_no_option(tmp_path: Path) -> None:
    model = parse(good(batch="4"), WEIGHTS)
    assert load(model, tmp_path, None).batch_size == 4
    assert load(model, tmp_path, 4).batch_size == 4
    rejected(
        save(model, tmp_path), "net.onnx", "fixes the batch at 4, not 8", "--batch-size 4",
        batch_size=8, kind=UsageError,
    )  # fmt: skip


def test_unnamed_dimensions_are_not_all_the_batch(tmp_path: Path) -> None:
    model = parse("g (float[?,3,?,?] x) => (float[?,3,?,?] y) { y = Mul (x, w) }",
                  {"w": np.ones((3, 1, 1), np.float32)})  # fmt: skip
    rejected(save(model, tmp_path), "net.onnx: input 'x' has symbolic dimensions", "fixed size")


def test_a_dimension_of_minus_one_is_symbolic(tmp_path: Path) -> None:
    model = parse(good(), WEIGHTS)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert load(model, tmp_path, 4).batch_size == 4


def test_two_inputs_share_the_batch(tmp_path: Path) -> None:
    text = """g (float[n,3] x, float[m,3] z) => (float[n,3] y) { s = Add (x, z) y = Mul (s, w) }"""
    forward = load(parse(text, {"w": np.ones(3, np.float32)}), tmp_path, 6)
    data = [v for v in forward.graph.inputs if role(v) is Role.DATA]
    assert [dims(v) for v in data] == [(6, 3), (6, 3)]


# Where weights come from -----------------------------------------------------------------------


def test_initializers_that_are_inputs_too(tmp_path: Path) -> None:
    """As IR version 3 wants it, and as torch writes with keep_initializers_as_inputs."""
    model = parse(good(13), WEIGHTS, 13, ir_version=3)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4, 64]), "shape"))
    for name, array in WEIGHTS.items():
        kind = onnx.TensorProto.FLOAT
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    shape = onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [2])
    model.graph.input.append(shape)
    forward = load(model, tmp_path)
    assert [v.name for v in forward.graph.inputs if role(v) is Role.DATA] == ["x"]
    assert forward.weights.keys() == WEIGHTS.keys()
    np.testing.assert_array_equal(output(forward), output(load(parse(good(), WEIGHTS), tmp_path)))


def test_external_data(tmp_path: Path) -> None:
    model = parse(good(), WEIGHTS)
    options = {"save_as_external_data": True, "location": "net.onnx.data", "size_threshold": 0}
    path = save(onnx.ModelProto.FromString(model.SerializeToString()), tmp_path, **options)
    assert (tmp_path / "net.onnx.data").exists()
    forward = load_forward(path, BATCH)
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(forward.weights[name], array)
    (tmp_path / "net.onnx.data").write_bytes(b"short")
    rejected(path, "net.onnx: ", "external data", "data file")
    (tmp_path / "net.onnx.data").unlink()
    rejected(path, "net.onnx: ", "net.onnx.data", "copy the data file along with the model")


def test_external_data_outside_the_folder(tmp_path: Path) -> None:
    model = parse(good(), WEIGHTS)
    options = {"save_as_external_data": True, "location": "net.onnx.data", "size_threshold": 0}
    path = save(model, tmp_path, **options)
    content = path.read_bytes().replace(b"net.onnx.data", b"../../secrets")
    path.write_bytes(content)
    rejected(path, "net.onnx: ", "external data")


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_of_another_float_type(kind: type, tmp_path: Path) -> None:
    values = {**WEIGHTS, "fc.weight": WEIGHTS["fc.weight"].astype(kind)}
    name = {np.float16: "float16", np.float64: "double"}[kind]
    path = save(parse(good(), values), tmp_path)
    rejected(path, f"net.onnx: initializer 'fc.weight' is {name}, expected float32", "export")


def test_weights_shared_through_identity(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        v = Identity (w) h = MatMul (x, w) y = MatMul (h, v) }"""
    model = parse(text, {"w": np.arange(9, dtype=np.float32).reshape(3, 3)})
    forward = load(model, tmp_path)
    assert [node.op_type for node in forward.graph] == ["MatMul", "MatMul"]
    assert list(forward.weights) == ["w"]
    assert_same_function(model, forward, np.eye(4, 3, dtype=np.float32))


def test_settings_are_not_weights(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        c = Clip (x, low, high) p = Pow (c, two) y = Mul (p, w) }"""
    settings = {"low": np.float32(-1), "high": np.float32(1), "two": np.float32(2)}
    values = {name: np.asarray(value) for name, value in settings.items()}
    forward = load(parse(text, {**values, "w": np.ones(3, np.float32)}), tmp_path)
    assert list(forward.weights) == ["w"]


def test_what_reaches_no_output_is_dropped(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        u = Mul (x, unread) y = Mul (x, w) }"""
    values = {"w": np.ones(3, np.float32), "unread": np.ones(3, np.float32)}
    forward = load(parse(text, {**values, "stray": np.ones(3, np.float32)}), tmp_path)
    assert list(forward.weights) == ["w"]
    assert len(list(forward.graph)) == 1


def test_model_local_functions_are_inlined(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) { y = my.twice (x, w) }
        <domain: "my", opset_import: ["": 17]> twice (a, b) => (c) {
            h = my.once (a, b) c = my.once (h, b) }
        <domain: "my", opset_import: ["": 17]> once (a, b) => (c) { c = Mul (a, b) }"""
    text = text.replace('opset_import: ["": 17]> twice', 'opset_import: ["": 17, "my": 1]> twice')
    model = parse(text, {"w": np.array([1, 2, 3], np.float32)}, domains=', "my": 1')
    forward = load(model, tmp_path)
    assert [node.op_type for node in forward.graph] == ["Mul", "Mul"]
    assert_same_function(model, forward, np.ones((4, 3), np.float32))


def test_nodes_without_a_name_are_named_after_their_output(tmp_path: Path) -> None:
    text = "g (float[batch,3] x) => (float[batch,3] y) { s = Sign (x) y = Mul (s, w) }"
    forward = load(parse(text, {"w": np.ones(3, np.float32)}), tmp_path)
    assert [node.name for node in forward.graph] == ["s", "y"]
    assert [b.name for b in forward.binarized] == ["s"]


def test_constants_of_every_kind_are_folded(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        a = Constant <value_float = 2.0> () b = Constant <value_floats = [1.0, 2.0, 3.0]> ()
        c = Constant <value = float[3] {1, 1, 1}> () d = Mul (a, b) e = Sub (d, c)
        k = Constant <value_ints = [3]> () f = ConstantOfShape <value = float[1] {4}> (k)
        h = Add (e, f) i = Mul (x, h) y = Mul (i, w) }"""
    model = parse(text, {"w": np.ones(3, np.float32)})
    forward = load(model, tmp_path)
    assert [node.op_type for node in forward.graph] == ["Mul", "Mul"]
    assert_same_function(model, forward, np.ones((4, 3), np.float32))


def test_a_cast_like_is_a_cast(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[4, 3] x) => (float[4, 3] y) {
            one = Constant <value_int = 1> ()
            like = CastLike (one, x)
            same = CastLike (x, x)
            whole = CastLike (same, one)
            back = CastLike (whole, x)
            y = Add (back, like)
        }""")
    onnx.save(model, tmp_path / "m.onnx")
    forward = load_forward(tmp_path / "m.onnx", None)
    assert [node.op_type for node in forward.graph] == ["Cast", "Cast", "Add"]
    x = np.arange(12, dtype=np.float32).reshape(4, 3) * 0.7
    np.testing.assert_array_equal(output(forward, x), np.trunc(x) + 1)
