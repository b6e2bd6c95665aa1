"""What the TorchScript training exports hold, as the frontend has to read them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from tests.exports.torch_models import MODELS, BinarySign, export, make_batch  # noqa: E402

pytestmark = pytest.mark.oracle

OPTIONS = {"binarynet": {"width": 1 / 8}}
OP_TYPES = {
    "mlp": {"Sign": 9, "Transpose": 5, "MatMul": 5, "BatchNormalization": 5},
    "binarynet": {
        "Sign": 17,
        "Conv": 6,
        "MaxPool": 3,
        "Constant": 1,
        "Reshape": 1,
        "Transpose": 3,
        "MatMul": 3,
        "BatchNormalization": 9,
    },
    "residual": {
        "Sign": 12,
        "Conv": 9,
        "AveragePool": 2,
        "BatchNormalization": 9,
        "Add": 6,
        "Relu": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    },
    "relu": {
        "Conv": 3,
        "BatchNormalization": 3,
        "Clip": 2,
        "Relu": 1,
        "MaxPool": 2,
        "Shape": 1,
        "Gather": 1,
        "Unsqueeze": 2,
        "Concat": 1,
        "Constant": 8,
        "Reshape": 1,
        "Gemm": 1,
    },
}
# Neither is trained, nor read in train mode; the exporter leaves it out.
NOT_EXPORTED = "num_batches_tracked"

each_model = pytest.mark.parametrize("name", MODELS)


def exported(name: str, folder: Path, batch: int | None = None, seed: int = 0):
    path = folder / f"{name}.onnx"
    module = export(name, path, batch, seed, **OPTIONS.get(name, {}))
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    return module, proto


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@each_model
def test_op_types(name: str, tmp_path: Path) -> None:
    _, proto = exported(name, tmp_path)
    assert Counter(n.op_type for n in proto.graph.node) == OP_TYPES[name]
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 17)]


@each_model
def test_batch_is_symbolic(name: str, tmp_path: Path) -> None:
    _, proto = exported(name, tmp_path)
    x, logits = proto.graph.input[0], proto.graph.output[0]
    assert (x.name, logits.name) == ("x", "logits")
    assert dims(x)[0] == dims(logits)[0] == "batch"
    assert dims(logits)[1] == 10


@each_model
def test_batch_can_be_fixed(name: str, tmp_path: Path) -> None:
    _, proto = exported(name, tmp_path, batch=4)
    assert dims(proto.graph.input[0])[0] == dims(proto.graph.output[0])[0] == 4


@each_model
def test_batch_norm_is_in_training_mode_with_three_outputs(name: str, tmp_path: Path) -> None:
    _, proto = exported(name, tmp_path)
    for node in (n for n in proto.graph.node if n.op_type == "BatchNormalization"):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["training_mode"] == 1
        assert attributes["momentum"] == pytest.approx(0.9)
        assert len(node.output) == 3


@each_model
def test_initializers_are_the_fresh_state_dict(name: str, tmp_path: Path) -> None:
    module, proto = exported(name, tmp_path)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    state = {k: v.numpy() for k, v in module.state_dict().items() if NOT_EXPORTED not in k}
    assert found.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
        if key.endswith("running_mean"):
            assert not value.any()
        if key.endswith("running_var"):
            assert (value == 1).all()
    assert module.training


@pytest.mark.parametrize("name", ["mlp", "binarynet", "residual"])
def test_sign_reads_the_latent_weights(name: str, tmp_path: Path) -> None:
    _, proto = exported(name, tmp_path)
    weights = {t.name: len(t.dims) for t in proto.graph.initializer}
    signed = {n.input[0] for n in proto.graph.node if n.op_type == "Sign"} & weights.keys()
    real = {k for k, rank in weights.items() if rank > 1} - signed
    downsamples = {f"layer{i}.0.downsample.1.weight" for i in (2, 3)}
    assert real == ({"conv1.weight", "fc.weight", *downsamples} if name == "residual" else set())


@pytest.mark.slow
@each_model
def test_seed_decides_the_weights(name: str, tmp_path: Path) -> None:
    (_, a), (_, b), (_, c) = (exported(name, tmp_path, seed=s) for s in (0, 0, 1))
    assert a == b
    assert a != c


def test_onnxruntime_agrees_on_the_float_model(tmp_path: Path) -> None:
    module, proto = exported("relu", tmp_path)
    x, _ = make_batch("relu", 5, seed=0)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"x": x})
    expected = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_sign_is_plus_one_at_zero_and_its_gradient_is_clipped() -> None:
    x = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    y = BinarySign.apply(x)
    y.backward(torch.arange(1.0, 9.0))
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]


@each_model
def test_make_batch(name: str) -> None:
    x, y = make_batch(name, 7, seed=3)
    assert (x.dtype, y.dtype, len(x), y.shape) == (np.float32, np.int64, 7, (7,))
    again = make_batch(name, 7, seed=3)
    np.testing.assert_array_equal(x, again[0])
    np.testing.assert_array_equal(y, again[1])
    assert ((y >= 0) & (y < 10)).all()
