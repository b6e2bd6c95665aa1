"""QONNX's quantisers, and QuantizeLinear with DequantizeLinear, against PyTorch's gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnnopt.frontend import load_forward
from bnnopt.ops import QONNX_DOMAINS
from tests.autodiff.interpreter import run
from tests.autodiff.test_gradients import differentiated
from tests.frontend.models import parse, rejected, save

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle
RNG = np.random.default_rng(5)
X = (2 * RNG.standard_normal((4, 3))).astype(np.float32)
C = RNG.standard_normal((4, 3)).astype(np.float32)
W = RNG.uniform(0.5, 1.5, 3).astype(np.float32)
CHANNELS = np.array([0.3, 0.5, 1.1], np.float32)


def step_of(body: str, folder: Path, domain: str = "", opset: int = 17, **values: Any) -> Any:
    """Loss sum(y c) and the gradient of w, where y is the body's of h = x w."""
    text = f"""g (float[batch,3] x, float[batch,3] c) => (float loss) {{ h = Mul (x, w) {body}
        weighted = Mul (y, c) loss = ReduceSum <keepdims = 0> (weighted) }}"""
    arrays = {"w": W, **{name: np.asarray(a) for name, a in values.items()}}
    domains = f', "{domain}": 1' if domain else ""
    forward = load_forward(save(parse(text, arrays, opset, domains=domains), folder), 4)
    assert set(forward.weights) == {"w"}, "a scale is a setting, no weight"
    step = differentiated(forward)
    feeds = {"x": X, "c": C, "learning_rate": np.float32(0), **forward.weights}
    found = run(step.graph, feeds, np.float32)
    operators = {node.op_type for node in step.graph}
    return found[str(step.loss.name)], found[str(step.gradients()["w"].name)], operators


def assert_right(found: Any, quantize: Any) -> None:
    w = torch.tensor(W, requires_grad=True)
    loss = (quantize(torch.tensor(X) * w) * torch.tensor(C)).sum()
    loss.backward()
    np.testing.assert_allclose(found[0], loss.item(), rtol=1e-5)
    np.testing.assert_allclose(found[1], w.grad.numpy(), rtol=1e-5, atol=1e-6)


def rounded(x: Any, function: Any = torch.round) -> Any:
    return x + (function(x) - x).detach()


@pytest.mark.parametrize(
    ("attributes", "bits", "zero", "low", "high"),
    [
        ("signed = 1, narrow = 0", 3, 0, -4, 3),
        ("signed = 1, narrow = 1", 3, 0, -3, 3),
        ("signed = 0, narrow = 0", 2, 0, 0, 3),
        ("signed = 0, narrow = 1", 2, 0, 0, 2),
        ("signed = 0, narrow = 0", 4, 3, 0, 15),
        ('signed = 1, narrow = 0, rounding_mode = "FLOOR"', 4, 1, -8, 7),
        ('signed = 1, narrow = 0, rounding_mode = "CEIL"', 4, 1, -8, 7),
    ],
)
@pytest.mark.parametrize("scale", [np.float32(0.5), CHANNELS], ids=["tensor", "channel"])
def test_quant(
    attributes: str, bits: int, zero: int, low: int, high: int, scale: Any, tmp_path: Path
) -> None:
    domain = "qonnx.custom_op.general"
    body = f"y = {domain}.Quant <{attributes}> (h, s, z, b)"
    numbers = {"s": scale, "z": np.float32(zero), "b": np.float32(bits)}
    found = step_of(body, tmp_path, domain, **numbers)
    s = torch.tensor(scale)
    function = next((f for n, f in {"FLOOR": torch.floor, "CEIL": torch.ceil}.items()
                     if n in attributes), torch.round)  # fmt: skip
    assert_right(
        found, lambda h: (torch.clamp(rounded(h / s + zero, function), low, high) - zero) * s
    )


@pytest.mark.parametrize("domain", sorted(QONNX_DOMAINS))
@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_bipolar_quant_is_a_sign(domain: str, opset: int, tmp_path: Path) -> None:
    found = step_of(f"y = {domain}.BipolarQuant (h, s)", tmp_path, domain, opset, s=CHANNELS)
    assert "Binarize" in found[2]
    s = torch.tensor(CHANNELS)

    def quantize(h: Any) -> Any:
        inside = h.clamp(-1, 1)
        return (inside + (torch.where(h >= 0, 1.0, -1.0) - inside).detach()) * s

    assert_right(found, quantize)


@pytest.mark.parametrize(
    ("kind", "zero", "clip", "low", "high"),
    [
        ("int8", 0, None, -128, 127),
        ("uint8", 3, None, 0, 255),
        ("int8", 0, (-7, 7), -7, 7),
        ("uint8", 2, (0, 15), 0, 15),
    ],
)
def test_quantize_and_dequantize(
    kind: str, zero: int, clip: Any, low: int, high: int, tmp_path: Path
) -> None:
    bounds = {} if clip is None else dict(zip("lu", (np.array(c, kind) for c in clip), strict=True))
    between = "q" if clip is None else "k"
    body = "q = QuantizeLinear (h, s, z)" + (" k = Clip (q, l, u)" if clip else "")
    body += f" y = DequantizeLinear ({between}, s, z)"
    numbers = {"s": np.float32(0.25), "z": np.array(zero, kind), **bounds}
    found = step_of(body, tmp_path, **numbers)
    assert "QuantizeLinear" not in found[2]
    assert_right(found, lambda h: torch.fake_quantize_per_tensor_affine(h, 0.25, zero, low, high))


def test_quantize_by_channel(tmp_path: Path) -> None:
    body = "q = QuantizeLinear <axis = 1> (h, s, z) y = DequantizeLinear <axis = 1> (q, s, z)"
    s, zeros = CHANNELS / 64, np.zeros(3, np.int8)
    found = step_of(body, tmp_path, s=s, z=zeros)
    steps, origin = torch.tensor(s), torch.zeros(3, dtype=torch.int32)
    assert_right(
        found, lambda h: torch.fake_quantize_per_channel_affine(h, steps, origin, 1, -128, 127)
    )


def test_the_range_matters(tmp_path: Path) -> None:
    """The control: without the clip the gradient is another one."""
    body = "q = QuantizeLinear (h, s, z) y = DequantizeLinear (q, s, z)"
    found = step_of(body, tmp_path, s=np.float32(1 / 128), z=np.array(0, np.int8))
    with pytest.raises(AssertionError):
        assert_right(found, lambda h: rounded(h * 128) / 128)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, t, z)", "another one, expected"),
        ('y = finn.Quant <rounding_mode = "ROUND_TO_ZERO"> (x, s, t, t)', "rounding_mode"),
    ],
)
def test_what_is_no_quantizer_is_refused(body: str, message: str, tmp_path: Path) -> None:
    values = {"s": np.float32(0.5), "t": np.float32(1), "z": np.array(0, np.int8), "w": W}
    text = f"g (float[4,3] x) => (float[4,3] v) {{ {body} v = Mul (y, w) }}"
    model = parse(text, {n: np.asarray(a) for n, a in values.items()}, domains=', "finn": 1')
    rejected(save(model, tmp_path), "", message)
