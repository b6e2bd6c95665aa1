"""What ``export`` writes, against the session, stock onnxruntime and the user's own module."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

import bnnopt
from bnnopt.artifact.bare_signs import bare_signs, with_bare_signs
from bnnopt.errors import ArtifactError
from bnnopt.models import build
from bnnopt.runtime import exporting
from bnnopt.runtime.source import with_weights
from tests.graphs import write
from tests.passes.networks import batch_norm, batch_norm_weights

Array = NDArray[Any]
BATCH = 8


def trained(path: Path, shape: tuple[int, ...], **options: Any) -> tuple[Path, Any, Array]:
    """The folder of a model file, a session after five steps, and images to predict."""
    folder = path.parent / "out"
    bnnopt.optimize(path, batch_size=BATCH, **options).save(folder)
    session = bnnopt.TrainingSession(folder)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = rng.standard_normal((BATCH, *shape)).astype(np.float32)
        session.step(x, rng.integers(0, 10, BATCH))
    return folder, session, rng.standard_normal((30, *shape)).astype(np.float32)


def on_onnxruntime(model: bytes, x: Array) -> Array:
    runner = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = runner.run(None, {runner.get_inputs()[0].name: x})
    return np.asarray(found)


def assert_same_classes(ours: Array, theirs: Array) -> None:
    """Signs that rounding turns change a score by a few steps; a wrong weight changes them all."""
    assert ours.shape == theirs.shape
    near = np.isclose(ours, theirs, rtol=1e-3, atol=1e-3).all(axis=1)
    assert near.mean() >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *product(["mlp", "resnet-e-mini", "relu-mini"], [{"level": "O1"}, {"level": "O2"}]),
        *product(["mlp", "resnet-e-mini"], [{"optimizer": "bop"}]),  # for binary layers
    ],
    ids=str,
)
def test_predictions_are_the_sessions(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    import onnx_ir as ir

    model = build(name, 0)
    ir.save(model, tmp_path / "m.onnx")
    shape = tuple(onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim)[1:]
    folder, session, x = trained(tmp_path / "m.onnx", tuple(d.dim_value for d in shape), **options)
    before = onnx.load(tmp_path / "m.onnx")
    content = exporting.trained_model(folder, session)
    after = onnx.load_model_from_string(content)
    onnx.checker.check_model(after, full_check=True)
    assert [e.version for e in after.opset_import] == [e.version for e in before.opset_import]
    assert [i.name for i in after.graph.input] == ["x"]
    assert {t.name for t in before.graph.initializer} <= {t.name for t in after.graph.initializer}
    assert_same_classes(on_onnxruntime(content, x), session.predict(x))
    fresh = exporting.trained_model(folder, bnnopt.TrainingSession(folder))
    with pytest.raises(AssertionError):
        assert_same_classes(on_onnxruntime(fresh, x), session.predict(x))


ZEROS = "g (float[batch,6] x) => (float[batch,3] y) { s = Sign (x)\n y = MatMul (s, w) }"


@pytest.mark.parametrize(("sign_zero", "at_zero"), [("+1", 1.0), ("keep", 0.0)])
def test_a_sign_is_written_as_it_was_trained(
    sign_zero: str, at_zero: float, tmp_path: Path
) -> None:
    path = write(ZEROS, {"w": [6, 3]}, tmp_path)
    bnnopt.optimize(path, batch_size=4, sign_zero=sign_zero).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    x = np.array([[0, 1, -1, 0, 2, -0.0]], np.float32)
    found = on_onnxruntime(exporting.trained_model(tmp_path / "out", session), x)
    signs = np.where(x == 0, at_zero, np.sign(x)).astype(np.float32)
    np.testing.assert_allclose(found, signs @ session.parameters()["w"], rtol=1e-6)
    np.testing.assert_allclose(found, session.predict(x), rtol=1e-6)


DROPOUT = """g (float[batch,6] x) => (float[batch,3] y) {
    ratio = Constant <value_float = 0.5> ()
    yes = Constant <value = bool {1}> ()
    d, mask = Dropout (x, ratio, yes)
    y = MatMul (d, w)
}"""


def test_dropout_passes_on(tmp_path: Path) -> None:
    path = write(DROPOUT, {"w": [6, 3]}, tmp_path)
    bnnopt.optimize(path, batch_size=4).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    found = on_onnxruntime(exporting.trained_model(tmp_path / "out", session), x)
    np.testing.assert_allclose(found, x @ session.parameters()["w"], rtol=1e-5)


def test_a_damaged_graph_is_one_line(tmp_path: Path) -> None:
    path = write(ZEROS, {"w": [6, 3]}, tmp_path)
    bnnopt.optimize(path, batch_size=4).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    (tmp_path / "out" / "source.onnx").write_bytes(b"no")
    with pytest.raises(ArtifactError, match=r"source\.onnx: is not as it was written"):
        exporting.trained_model(tmp_path / "out", session)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["mlp", "residual", "relu"])
def test_pytorch_loads_it_strictly_and_predicts_the_same(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load

    from tests.exports.torch_models import export, input_shape

    module = export(name, tmp_path / "m.onnx")
    folder, session, x = trained(tmp_path / "m.onnx", input_shape(name))
    module.load_state_dict(load(exporting.state_dict(session)), strict=True)
    module.eval()
    with torch.no_grad():
        theirs = module(torch.from_numpy(x)).numpy()
    assert_same_classes(session.predict(x), theirs)
    assert_same_classes(on_onnxruntime(exporting.trained_model(folder, session), x), theirs)
    assert module.state_dict()[first_count(module)].item() == 5


def first_count(module: Any) -> str:
    return next(name for name in module.state_dict() if name.endswith("num_batches_tracked"))


def test_weights_go_into_a_graph_without_onnx_as_onnx_writes_them() -> None:
    """Judge: onnx reads the result, and finds the tensors."""
    graph = onnx.helper.make_graph([], "g", [], [])
    model = onnx.helper.make_model(graph, producer_name="p" * 300)
    names = ["a", "ä" * 200, "none"]
    model.metadata_props.add(key="bnnopt.weights", value=json.dumps(names))
    weights = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        names[1]: np.array(1.5, np.float32),
        "none": np.empty((0, 4), np.float32),
    }
    written = onnx.load_model_from_string(with_weights(model.SerializeToString(), weights))
    found = {t.name: onnx.numpy_helper.to_array(t) for t in written.graph.initializer}
    assert list(found) == names
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape
    assert not written.metadata_props
    assert written.producer_name == model.producer_name


@pytest.mark.parametrize("content", [b"", b"\x72\x02ab", b"\x3a\xff", b"\x3a\x05a", b"\x0f\x00"])
def test_a_graph_that_is_none_is_one_line(content: bytes) -> None:
    with pytest.raises(ArtifactError, match="optimize again"):
        with_weights(content, {})


def test_a_weight_that_is_missing_is_named() -> None:
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    model.metadata_props.add(key="bnnopt.weights", value='["w"]')
    with pytest.raises(ArtifactError, match="no weight 'w'"):
        with_weights(model.SerializeToString(), {})


SCALED = f"""g (float[batch,2,6,6] x) => (float[batch,3] y) {{
    s1 = Sign (x)
    w1s = Sign (w1)
    size1 = Abs (w1)
    axes = Constant <value = int64[3] {{1, 2, 3}}> ()
    scale1 = ReduceMean <keepdims = 1> (size1, axes)
    w1b = Mul (w1s, scale1)
    c1 = Conv <kernel_shape = [3, 3]> (s1, w1b, q1)
    {batch_norm("c1", "n1", 1)}
    s2 = Sign (n1)
    f = Flatten (s2)
    w2s = Sign (w2)
    w2b = Mul (w2s, scale2)
    y = Gemm <transB = 1> (f, w2b, q2)
}}"""
SCALED_WEIGHTS = {
    **{"w1": [4, 2, 3, 3], "q1": [4], **batch_norm_weights(1, 4)},
    **{"w2": [3, 64], "scale2": [3, 1], "q2": [3]},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaled", "mlp"])
def test_bare_signs_predict_the_same(name: str, tmp_path: Path) -> None:
    """Scales of a weight go into the batch norm behind the layer, or behind the layer itself."""
    if name == "scaled":
        path = write(SCALED, SCALED_WEIGHTS, tmp_path)
    else:
        path = tmp_path / "mlp.onnx"
        ir.save(build(name, 0), path)
    bnnopt.optimize(path, batch_size=4).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    (given,) = session.inputs.values()
    x = np.random.default_rng(0).standard_normal(given.shape_at(4)).astype(np.float32)
    trained = exporting.trained_model(tmp_path / "out", session)
    bare = bare_signs(trained)
    found, expected = on_onnxruntime(bare, x), on_onnxruntime(trained, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert len(np.unique(expected)) > 3
    model = onnx.load_model_from_string(bare)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(products) > 1
    assert all((np.abs(tensors[node.input[1]]) == 1).all() for node in products)
    assert "w1" not in tensors
    onnx.checker.check_model(model, full_check=True)


def test_real_layers_stay_as_they_are(tmp_path: Path) -> None:
    path = write(DROPOUT, {"w": [6, 3]}, tmp_path)
    bnnopt.optimize(path, batch_size=4).save(tmp_path / "out")
    trained = exporting.trained_model(tmp_path / "out", bnnopt.TrainingSession(tmp_path / "out"))
    assert not with_bare_signs(onnx.load_model_from_string(trained))
