"""Small ONNX files for the tests of the frontend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
from bnnopt.errors import BnnoptError, ModelError
from bnnopt.frontend import ForwardGraph, load_forward

Array = NDArray[Any]
BATCH = 4
RNG = np.random.default_rng(0)
WEIGHTS: dict[str, Array] = {
    "conv.weight": RNG.standard_normal((4, 2, 3, 3)).astype(np.float32),
    "bn.weight": RNG.uniform(0.5, 1.5, 4).astype(np.float32),
    "bn.bias": RNG.standard_normal(4).astype(np.float32),
    "bn.running_mean": np.zeros(4, np.float32),
    "bn.running_var": np.ones(4, np.float32),
    "fc.weight": RNG.standard_normal((5, 64)).astype(np.float32),
}
X = RNG.standard_normal((BATCH, 2, 4, 4)).astype(np.float32)


def good(opset: int = 17, flatten: str = "f = Flatten (s)", batch: str = "batch") -> str:
    """A binary network as a good export has it; `flatten` makes f (batch, 64) of s."""
    names = '"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"'
    outputs, attributes = ("n, m, v", "training_mode = 1, epsilon = 0.001")
    if opset < 14:
        outputs, attributes = ("n, m, v, sm, sv", "epsilon = 0.001")
    return f"""g (float[{batch},2,4,4] x) => (float[{batch},5] y) {{
        ["conv.sign"] wb = Sign ("conv.weight")
        ["conv"] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wb)
        ["bn"] {outputs} = BatchNormalization <{attributes}> (c, {names})
        ["act.sign"] s = Sign (n)
        {flatten}
        ["fc.sign"] fb = Sign ("fc.weight")
        ["fc"] y = Gemm <transB = 1> (f, fb)
    }}"""


def parse(
    text: str,
    values: Mapping[str, Array] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    domains: str = "",
) -> onnx.ModelProto:
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}{domains}]>'
    model = onnx.parser.parse_model(f"{head} {text}")
    for name, array in (values or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def save(model: onnx.ModelProto, folder: Path, **options: Any) -> Path:
    path = folder / "net.onnx"
    onnx.save(model, path, **options)
    return path


def load(
    model: onnx.ModelProto,
    folder: Path,
    batch_size: int | None = BATCH,
    ste: Sequence[str] = (),
    keep_zero: bool = False,
) -> ForwardGraph:
    return load_forward(save(model, folder), batch_size, ste, keep_zero)


def rejected(
    path: Path,
    *parts: str,
    batch_size: int | None = BATCH,
    ste: Sequence[str] = (),
    kind: type[BnnoptError] = ModelError,
) -> str:
    """The one line that a file is rejected with; it has to contain all `parts`."""
    options = TrainingOptions("cross-entropy", make_optimizer("adam"))
    with pytest.raises(kind) as caught:
        build_training_step(load_forward(path, batch_size, ste), options, path)
    text = str(caught.value)
    assert "\n" not in text
    assert type(caught.value) is kind
    for part in parts:
        assert part in text
    return text
