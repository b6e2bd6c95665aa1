"""Files and options that cannot be used: always one line, that names the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnnopt.autodiff import (
    TrainingOptions,
    build_evaluation,
    build_training_step,
    make_optimizer,
)
from bnnopt.errors import BnnoptError, UsageError
from bnnopt.frontend import load_forward
from bnnopt.frontend.read import EXPORT_COMMAND
from tests.frontend.models import BATCH, WEIGHTS, good, parse, rejected, save

MLP = Path(__file__).parents[2] / "models" / "mlp.onnx"
OPTIONS = TrainingOptions("cross-entropy", make_optimizer("adam"))
W = {"w": np.ones(3, np.float32)}

# Not ONNX --------------------------------------------------------------------------------------


def test_no_such_file(tmp_path: Path) -> None:
    rejected(tmp_path / "net.onnx", "net.onnx: no such file")


def test_a_folder(tmp_path: Path) -> None:
    rejected(tmp_path, f"{tmp_path}: is a folder; expected an .onnx file")


CONTENTS = {
    "empty": b"",
    "random": np.random.default_rng(0).bytes(4096),
    "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(64),
    "json": json.dumps({"model": [1, 2, 3]}).encode(),
    "text": b"hello, world\n" * 10,
    "zip": b"PK\x03\x04" + bytes(100),
    "zeros": bytes(1000),
    "ff": b"\xff" * 1000,
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["net.onnx", "net.json", "net.textproto", "net"])
def test_not_onnx(content: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CONTENTS[content])
    rejected(tmp_path / name, f"{name}: not an ONNX file", "export or copy it again")


def test_cut_short_anywhere(tmp_path: Path) -> None:
    content = MLP.read_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / "net.onnx"
    for length in [*range(1, 300, 7), *rng.integers(300, len(content), 60), len(content) - 1]:
        path.write_bytes(content[:length])
        rejected(path, "net.onnx: ")


def test_small_file_cut_short_at_every_byte(tmp_path: Path) -> None:
    content = parse(good(), WEIGHTS).SerializeToString()
    path = tmp_path / "net.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        rejected(path, "net.onnx: ")


def damaged(seed: int) -> bytes:
    """models/mlp.onnx with one to three bytes changed outside of the large weights."""
    content = bytearray(MLP.read_bytes())
    rng = np.random.default_rng(seed)
    for _ in range(rng.integers(1, 4)):
        place = int(PLACES[rng.integers(len(PLACES))])
        content[place] ^= 1 << int(rng.integers(8))
    return bytes(content[: PLACES[rng.integers(len(PLACES))]] if seed % 5 == 0 else content)


def structure() -> np.ndarray:
    """Where the file is not the elements of a large tensor."""
    content = MLP.read_bytes()
    free = np.ones(len(content), bool)
    for tensor in onnx.load(MLP).graph.initializer:
        if len(tensor.raw_data) > 64:
            start = content.find(tensor.raw_data)
            free[start : start + len(tensor.raw_data)] = False
    return np.flatnonzero(free)


PLACES = structure()


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 240, 40))
def test_damaged_file(start: int, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    messages = []
    for seed in range(start, start + 40):
        path.write_bytes(damaged(seed))
        try:
            forward = load_forward(path, BATCH)
            build_evaluation(forward)
            build_training_step(forward, OPTIONS, path)
        except BnnoptError as error:
            messages.append(str(error))
    assert 5 < len(messages) < 40
    for message in messages:
        assert "\n" not in message
        assert "net.onnx: " in message
        assert len(message) < 600


# Not for training ------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [1, 7, 8, 99])
def test_wrong_opset(opset: int, tmp_path: Path) -> None:
    model = parse(good(), WEIGHTS)
    model.opset_import[0].version = opset
    text = rejected(save(model, tmp_path), f"net.onnx: opset {opset} found, expected 9 to")
    assert text.endswith("export again with opset_version=17")


def test_no_opset(tmp_path: Path) -> None:
    model = parse(good(), WEIGHTS)
    del model.opset_import[:]
    rejected(save(model, tmp_path), "net.onnx: no standard opset found", "opset_version=17")


def test_unknown_operator(tmp_path: Path) -> None:
    model = parse(good(), WEIGHTS)
    model.graph.node[1].op_type = "Convolve"
    rejected(save(model, tmp_path), "net.onnx: ", "Convolve", "export")


def test_unknown_domain(tmp_path: Path) -> None:
    text = 'g (float[batch,3] x) => (float[batch,3] y) { ["q"] y = acme.Quant (x, w) }'
    model = parse(text, W, domains=', "acme": 1')
    rejected(save(model, tmp_path), "net.onnx: node 'q' (acme.Quant)", "no operator acme.Quant")


def test_control_flow(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        z = Constant <value_float = 0.0> () s = ReduceSum <keepdims = 0> (x) k = Greater (s, z)
        h = Mul (x, w)
        ["branch"] y = If (k) <then_branch = a () => (float[batch,3] t) { t = Neg (h) },
            else_branch = b () => (float[batch,3] e) { e = Exp (h) }> }"""
    with pytest.raises(BnnoptError) as caught:
        load_forward(save(parse(text, W), tmp_path), BATCH)
    assert "net.onnx: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shape_that_depends_on_the_data(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (int64[2,k] y) { h = Mul (x, w) ["odd"] y = NonZero (h) }"""
    rejected(
        save(parse(text, W), tmp_path), "net.onnx: node 'odd' (NonZero)", "depends on the data"
    )


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    text = """g (float[batch,4] x) => (float[batch,4] y) { ["m"] y = Mul (x, w) }"""
    rejected(save(parse(text, W), tmp_path), "net.onnx: node 'm' (Mul)")


# Batch size ------------------------------------------------------------------------------------


def test_batch_size_is_missing(tmp_path: Path) -> None:
    path = save(parse(good(), WEIGHTS), tmp_path)
    rejected(path, "net.onnx: input 'x'", "pass --batch-size N", batch_size=None, kind=UsageError)


@pytest.mark.parametrize("batch_size", [0, -1, -(2**40), 2**20 + 1, 10**18])
@pytest.mark.parametrize("fixed", ["batch", "4"])
def test_batch_size_that_makes_no_sense(batch_size: int, fixed: str, tmp_path: Path) -> None:
    path = save(parse(good(batch=fixed), WEIGHTS), tmp_path)
    rejected(path, f"--batch-size {batch_size}: expected a number from 1 to", batch_size=batch_size,
             kind=UsageError)  # fmt: skip


# Inputs and outputs ----------------------------------------------------------------------------


def test_symbolic_height(tmp_path: Path) -> None:
    text = good().replace("float[batch,2,4,4] x", "float[batch,2,height,4] x")
    path = save(parse(text, WEIGHTS), tmp_path)
    rejected(path, "net.onnx: input 'x' has symbolic dimensions height", "fixed size")


def test_no_data_input(tmp_path: Path) -> None:
    text = "g () => (float[3] y) { y = Neg (w) }"
    rejected(save(parse(text, W), tmp_path), "net.onnx: the graph has no data input")


def test_a_running_statistic_as_an_activation(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        n, m, v = BatchNormalization <training_mode = 1> (x, g, b, mean, var)
        y = Mul (x, v)
    }"""
    weights = {name: np.ones(3, np.float32) for name in ("g", "b", "mean", "var")}
    path = save(parse(text, weights), tmp_path)
    with pytest.raises(BnnoptError, match="depends on its other outputs"):
        build_training_step(load_forward(path, BATCH), OPTIONS, path)


def test_an_output_that_no_input_reaches(tmp_path: Path) -> None:
    text = "g (float[batch,3] x) => (float[3] w) { y = Relu (x) }"
    rejected(save(parse(text, W), tmp_path), "output 'w' is the same for all inputs")


def test_no_output(tmp_path: Path) -> None:
    model = parse(good(), WEIGHTS)
    del model.graph.output[:]
    rejected(save(model, tmp_path), "net.onnx: ", "output", "export")


@pytest.mark.parametrize("text", ["float x", "seq(float[3]) x"])
def test_input_without_a_batch(text: str, tmp_path: Path) -> None:
    body = "y = Mul (x, w)" if text == "float x" else (
        "i = Constant <value_int = 0> () h = SequenceAt (x, i) y = Mul (h, w)"
    )  # fmt: skip
    model = parse(f"g ({text}) => (float[3] y) {{ {body} }}", W)
    if text == "float x":
        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [])
        model.graph.input[0].CopyFrom(x)
    rejected(save(model, tmp_path), "net.onnx: input 'x' has no shape with a batch dimension")


# Exports that lost what training needs ---------------------------------------------------------


@pytest.mark.parametrize("opset", [13, 17, 20])
def test_batch_norm_in_inference_mode(opset: int, tmp_path: Path) -> None:
    text = good(17).replace("n, m, v =", "n =").replace("training_mode = 1, ", "")
    path = save(parse(text, WEIGHTS, opset), tmp_path)
    text = rejected(path, "net.onnx: node 'bn' (BatchNormalization) is in inference mode")
    assert text.endswith(f"export with {EXPORT_COMMAND}")


SIGNS = np.sign(np.random.default_rng(0).standard_normal((6, 8))).astype(np.float32)
DENSE = 'g (float[batch,8] x) => (float[batch,6] y) { ["fc"] y = Gemm <transB = 1> (x, w) }'
MATMUL = 'g (float[batch,6] x) => (float[batch,8] y) { ["fc"] y = MatMul (x, w) }'


@pytest.mark.parametrize("text", [DENSE, MATMUL])
@pytest.mark.parametrize("scale", ["one", "0.9995", "row", "column"])
def test_weights_folded_to_signs(text: str, scale: str, tmp_path: Path) -> None:
    factors = {
        "one": 1, "0.9995": 0.9995, "row": np.linspace(0.5, 2, 6)[:, None],
        "column": np.linspace(0.5, 2, 8),
    }  # fmt: skip
    path = save(parse(text, {"w": (SIGNS * factors[scale]).astype(np.float32)}), tmp_path)
    text = rejected(path, "net.onnx: node 'fc'", "weight 'w'", "folded the latent weights away")
    assert text.endswith(f"export with {EXPORT_COMMAND}")


def test_signs_as_a_constant(tmp_path: Path) -> None:
    values = ", ".join(f"{v:g}" for v in SIGNS.reshape(-1))
    text = f"""g (float[batch,6] x) => (float[batch,8] y) {{
        k = Constant <value = float[6,8] {{{values}}}> () h = MatMul (x, k) y = Mul (h, b) }}"""
    path = save(parse(text, {"b": np.ones(8, np.float32)}), tmp_path)
    rejected(path, "net.onnx: ", "folded the latent weights away")


@pytest.mark.parametrize(
    "weight",
    [
        np.full((6, 8), 0.1),
        np.zeros((6, 8)),
        np.random.default_rng(0).standard_normal((6, 8)),
        np.sign(np.random.default_rng(0).standard_normal((6, 8))) + 0.001 * np.arange(8),
    ],
    ids=["constant", "zeros", "normal", "almost"],
)
def test_real_weights_are_let_through(weight: np.ndarray, tmp_path: Path) -> None:
    load_forward(save(parse(DENSE, {"w": weight.astype(np.float32)}), tmp_path), BATCH)


@pytest.mark.parametrize("shape", [(32, 1, 1, 1), (1, 32, 1, 1), (32, 1, 1, 3)])
def test_thin_convolutions_are_let_through(shape: tuple[int, ...], tmp_path: Path) -> None:
    group = 32 if shape[1] == 1 else 1
    text = f"""g (float[batch,32,4,4] x) => (float y) {{
        h = Conv <group = {group}> (x, w) y = ReduceSum <keepdims = 0> (h) }}"""
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    load_forward(save(parse(text, {"w": weight}), tmp_path), BATCH)


@pytest.mark.parametrize("ratio", ["1.0", "1.5", "-0.5"])
def test_dropout_ratio(ratio: str, tmp_path: Path) -> None:
    text = f"""g (float[batch,3] x) => (float[batch,3] y) {{
        r = Constant <value_float = {ratio}> () t = Constant <value = bool {{1}}> ()
        h = Mul (x, w) ["drop"] y = Dropout (h, r, t) }}"""
    rejected(save(parse(text, W), tmp_path), "net.onnx: node 'drop' (Dropout) has ratio", "export")


def test_dropout_whose_settings_are_computed(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        z = Constant <value_float = 0.0> () m = ReduceSum <keepdims = 0> (x) t = Greater (m, z)
        r = Constant <value_float = 0.5> () h = Mul (x, w) ["drop"] y = Dropout (h, r, t) }"""
    rejected(save(parse(text, W), tmp_path), "net.onnx: node 'drop' (Dropout)", "constant")


def test_dropout_whose_mask_is_read(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        r = Constant <value_float = 0.5> () t = Constant <value = bool {1}> ()
        h = Mul (x, w) ["drop"] d, m = Dropout (h, r, t) y = Where (m, d, h) }"""
    rejected(save(parse(text, W), tmp_path), "net.onnx: node 'drop' (Dropout): its mask is read")


def test_a_damaged_initializer(tmp_path: Path) -> None:
    model = parse(good(), WEIGHTS)
    model.graph.initializer[0].raw_data = b"123"
    rejected(save(model, tmp_path), "net.onnx: ", "export or copy")


def test_a_constant_that_cannot_be_computed(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        a = Constant <value_ints = [1, 2, 3]> () s = Constant <value_ints = [2, 2]> ()
        ["bad"] k = Reshape (a, s) c = Cast <to = 1> (k) h = Mul (x, w) y = Add (h, c) }"""
    rejected(save(parse(text, W), tmp_path), "net.onnx: node 'bad' (Reshape)", "export")


def test_a_constant_of_text(tmp_path: Path) -> None:
    text = """g (float[batch,3] x) => (float[batch,3] y) {
        ["label"] a = Constant <value_string = "cat"> () e = Equal (a, a)
        h = Mul (x, w) z = Neg (h) y = Where (e, h, z) }"""
    model = parse(text, W, opset=19)
    rejected(save(model, tmp_path), "net.onnx: node 'label' (Constant)", "not numeric")


def test_a_node_of_the_dynamo_exporter(tmp_path: Path) -> None:
    model = parse(good(), WEIGHTS)
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'fc']"
    text = rejected(save(model, tmp_path), "net.onnx: written by PyTorch's dynamo exporter")
    assert text.endswith(f"export with {EXPORT_COMMAND}")


def test_a_weight_that_is_no_number(tmp_path: Path) -> None:
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    name = next(iter(weights))
    weights[name].flat[-1] = np.nan
    path = save(parse(good(), weights), tmp_path)
    rejected(path, f"net.onnx: weight {name!r} holds nan, expected finite numbers")
