"""larq through tf2onnx: the nodes that it writes, put together by hand, as TensorFlow is too large.

A never-zero sign, a border of ones, images as (N, H, W, C), kernels that the converter has folded
to +1 and -1. Gradients of a border of ones against PyTorch's: the zoo's quicknet.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import bnnopt
from bnnopt.errors import ModelError
from bnnopt.frontend import load_forward
from bnnopt.verification import verify_folder
from tests.autodiff.interpreter import run
from tests.frontend.models import parse, save

CONV, DENSE = "quant_conv/Conv2D/ReadVariableOp:0", "quant_dense/MatMul/ReadVariableOp:0"
BATCH = 4
TEXT = f"""g (float[batch,6,6,3] x) => (float[batch,5] y) {{
    xt = Transpose <perm = [0, 3, 1, 2]> (x)
    c1 = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (xt, "conv/kernel:0")
    n1, m1o, v1o = BatchNormalization <training_mode = 1, epsilon = 0.001> (c1, g, b, m, v)
    s0 = Sign (n1) tenth = Constant <value_float = 0.1> () s1 = Add (s0, tenth) s = Sign (s1)
    pads = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> ()
    one = Constant <value_float = 1.0> () p = Pad (s, pads, one)
    c2 = Conv <kernel_shape = [3, 3]> (p, "{CONV}")
    n2, m2o, v2o = BatchNormalization <training_mode = 1, epsilon = 0.001> (c2, g2, b2, m2, v2)
    gp = GlobalAveragePool (n2) axes = Constant <value_ints = [2, 3]> () f = Squeeze (gp, axes)
    d0 = Sign (f) d1 = Add (d0, tenth) d = Sign (d1) y = MatMul (d, "{DENSE}") }}"""


def file_of(folder: Path, kernel: float = 1.0) -> Path:
    rng = np.random.default_rng(0)

    def signs(*shape: int) -> np.ndarray:
        return (np.sign(rng.standard_normal(shape)) * kernel).astype(np.float32)

    weights = {
        "conv/kernel:0": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        CONV: signs(8, 8, 3, 3),
        DENSE: signs(8, 5),
        **{
            f"{name}{i}": np.full(8, k, np.float32)
            for name, k in zip("gbmv", (1, 0.1, 0, 1), strict=True)
            for i in ("", 2)
        },
    }
    model = parse(TEXT, weights, opset=15)
    model.producer_name = "tf2onnx"
    return save(model, folder)


def test_the_value_is_that_of_the_file(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    x = np.random.default_rng(1).standard_normal((BATCH, 6, 6, 3)).astype(np.float32)
    x[0] = 0
    (want,) = ReferenceEvaluator(str(path)).run(["y"], {"x": x})
    forward = load_forward(path, BATCH, takes_signs=True)
    found = run(forward.graph, {"x": x, **forward.weights}, np.float32)
    np.testing.assert_allclose(found["y"], want, atol=1e-4)
    assert [b.zero for b in forward.binarized] == ["+1"] * 4


@pytest.mark.parametrize("optimizer", ["bop", "fixed-sign"])
def test_kernels_of_signs_train_without_latent_ones(optimizer: str, tmp_path: Path) -> None:
    path = file_of(tmp_path)
    before = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    optimized = bnnopt.optimize(path, batch_size=BATCH, optimizer=optimizer, tau=1e-9, gamma=1.0)
    optimized.save(tmp_path / "out")
    assert verify_folder(tmp_path / "out", "native").bit_equal
    assert "BinaryConv" in {node.op_type for node in optimized.training.graph}
    training = bnnopt.TrainingSession(tmp_path / "out", threads=1)
    x = np.random.default_rng(1).standard_normal((BATCH, 6, 6, 3)).astype(np.float32)
    training.step(x, np.arange(BATCH), lr=0.1)
    after = training.parameters()
    for name in (CONV, DENSE):
        assert set(np.unique(after[name])) == {-1, 1}
        assert np.array_equal(after[name], before[name]) == (optimizer == "fixed-sign")


def test_other_optimisers_say_which_do(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"not the latent weights; train without them \(--optimizer"
    ):
        load_forward(file_of(tmp_path), BATCH)
    with pytest.raises(ModelError, match=r"\+-0\.9995: .*latent weights; build the network"):
        load_forward(file_of(tmp_path, kernel=0.9995), BATCH, takes_signs=True)


@pytest.mark.parametrize("fill", [1.0, -1.0, 0.0])
def test_only_a_border_of_signs_is_one(fill: float, tmp_path: Path) -> None:
    path = file_of(tmp_path)
    model = onnx.load(path)
    (one,) = [n for n in model.graph.node if n.output[0] == "one"]
    one.attribute[0].f = fill
    onnx.save(model, path)
    found = load_forward(path, BATCH, takes_signs=True)
    (conv,) = [n for n in found.graph if n.name == "c2" or n.outputs[0].name == "c2"]
    before = conv.inputs[0].producer()
    assert before is not None
    assert before.op_type == ("Binarize" if fill else "Pad")
