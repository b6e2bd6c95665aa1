"""What no file says is said, with the names of the nodes; folded files are refused with advice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bnnopt.frontend import ForwardGraph
from bnnopt.frontend.read import EXPORT_COMMAND
from tests.autodiff.interpreter import run
from tests.frontend.models import load, parse, rejected, save

HEAD = "g (float[batch,4] x) => (float[batch,2] y)"
K = np.ones((4, 2), np.float32)


def loaded(text: str, folder: Path, keep_zero: bool | None = None, **more: object) -> ForwardGraph:
    values = {"k": K, **{name: np.asarray(value, np.float32) for name, value in more.items()}}
    return load(parse(f"{HEAD} {{ {text} }}", values), folder, keep_zero=keep_zero)


ZEROS = {
    "the input": "s = Sign (x) y = MatMul (s, k)",
    "a view of it": "f = Flatten (x) s = Sign (f) y = MatMul (s, k)",
    "a ReLU": "h = Mul (x, w) r = Relu (h) s = Sign (r) y = MatMul (s, k)",
    "a clip at 0": """h = Mul (x, w) a = Constant <value_float = 0.0> ()
        b = Constant <value_float = 6.0> () r = Clip (h, a, b) s = Sign (r) y = MatMul (s, k)""",
}


@pytest.mark.parametrize("name", ZEROS)
@pytest.mark.parametrize(("keep_zero", "zero"), [(None, "0"), (False, "+1"), (True, "0")])
def test_zeros_that_are_no_accident(
    name: str, keep_zero: bool | None, zero: str, tmp_path: Path
) -> None:
    """There PyTorch's sign(0) = 0 is meant, if nothing else is asked for."""
    forward = loaded(ZEROS[name], tmp_path, keep_zero, w=np.ones(4))
    (found,) = forward.binarized
    assert found.zero == zero
    values = run(forward.graph, {"x": np.zeros((1, 4)), **forward.weights})
    assert values["y"].tolist() == [[4 * float(zero)] * 2]
    noted = [note for note in forward.notes if "reads zeros" in note]
    assert len(noted) == (keep_zero is None)
    assert all("'s'" in note and "--sign-zero +1" in note for note in noted)


def test_elsewhere_a_zero_is_an_accident(tmp_path: Path) -> None:
    forward = loaded("h = Mul (x, w) s = Sign (h) y = MatMul (s, k)", tmp_path, w=np.ones(4))
    assert [b.zero for b in forward.binarized] == ["+1"]
    assert any("'s'" in note for note in forward.notes)
    assert not any("reads zeros" in note for note in forward.notes)


BUFFERS = {
    "by its name": ("h = Mul (x, w) c = Sub (h, mean) y = MatMul (c, k)", {"w": np.ones(4)}),
    "off the input": ("c = Sub (x, mean) y = MatMul (c, k)", {}),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_what_may_be_a_buffer(name: str, tmp_path: Path) -> None:
    text, more = BUFFERS[name]
    notes = loaded(text, tmp_path, mean=np.zeros(4), **more).notes
    assert [("'mean'" in note, "--freeze" in note) for note in notes] == [(True, True)]
    ordinary = loaded(text.replace("mean", "shift").replace("(x, shift)", "(x, x)"), tmp_path,
                      shift=np.zeros(4), **more).notes  # fmt: skip
    assert not any("buffers" in note for note in ordinary)


def test_two_factors_of_one_tensor(tmp_path: Path) -> None:
    gate = "h = MatMul (x, q) s = Sigmoid (h) g = Mul (h, s) y = MatMul (g, k)"
    (note,) = loaded(gate, tmp_path, q=np.eye(4)).notes
    assert "'g'" in note
    assert "detach()" in note
    other = "h = MatMul (x, q) p = MatMul (x, r) g = Mul (h, p) y = MatMul (g, k)"
    assert not loaded(other, tmp_path, q=np.eye(4), r=np.eye(4)).notes


def test_a_weight_less_its_mean(tmp_path: Path) -> None:
    centred = "m = ReduceMean <keepdims = 1> (q) c = Sub (q, m) s = Sign (c) h = MatMul (x, s)"
    notes = loaded(f"{centred} y = MatMul (h, k)", tmp_path, q=np.diag([1.0, 2, 3, 5])).notes
    assert [("'c'" in note, "detach()" in note) for note in notes if "mean" in note] == [
        (True, True)
    ]
    other = f"{centred} y = MatMul (h, k)".replace("(q) c", "(r) c")
    rows = np.diag([1.0, 2, 3, 5])
    assert not any("mean" in note for note in loaded(other, tmp_path, q=rows, r=rows).notes)


# Weights that are signs -------------------------------------------------------------------------

SIGNS = np.sign(np.random.default_rng(0).standard_normal((6, 4))).astype(np.float32)
TURNED = "t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)"


def of_producer(producer: str, name: str, folder: Path) -> Path:
    text = f"g (float[batch,4] x) => (float[batch,6] y) {{ {TURNED} }}"
    model = parse(text.replace("(w)", f'("{name}")'), {name: SIGNS})
    model.producer_name = producer
    return save(model, folder)


@pytest.mark.parametrize(
    ("producer", "name", "advice"),
    [
        ("pytorch", "fc.weight", "overwrites its weights with their signs (weight.data = ..)"),
        ("tf2onnx", "dense/kernel:0", "the converter wrote larq's binary kernels"),
        ("pytorch", "onnx::MatMul_12", f"export with {EXPORT_COMMAND}"),
        ("", "w", f"export with {EXPORT_COMMAND}"),
    ],
)
def test_signs_for_weights(producer: str, name: str, advice: str, tmp_path: Path) -> None:
    """Also behind a Transpose; nobody is told to run the command that wrote the file."""
    text = rejected(of_producer(producer, name, tmp_path), "net.onnx: node ", repr(name), advice)
    assert (EXPORT_COMMAND in text) == (EXPORT_COMMAND in advice)


def test_a_folded_batch_norm(tmp_path: Path) -> None:
    text = """g (float[batch,2,4,4] x) => (float[batch,3] y) {
        c = Conv (x, "conv/Conv2D_weights_fused_bn") y = Flatten (c) }"""
    weight = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype(np.float32)
    path = save(parse(text, {"conv/Conv2D_weights_fused_bn": weight}), tmp_path)
    rejected(path, "conv/Conv2D_weights_fused_bn", "batch norm folded into it", "training=True")
    model = onnx.load(path)
    renamed = model.SerializeToString().replace(b"_fused_bn", b"_unfolded")
    path.write_bytes(renamed)
    load(onnx.load(path), tmp_path)
