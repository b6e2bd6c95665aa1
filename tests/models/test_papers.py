"""The zoo's networks of papers against the same modules in PyTorch; what is saved."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.models import build

torch = pytest.importorskip("torch")

import bnnopt.torch  # noqa: E402
from bnnopt.verification import verify_folder  # noqa: E402
from tests.torch.papers import make  # noqa: E402

pytestmark = pytest.mark.oracle

IMAGES = {"size": 16, "classes": 5, "width": 8}
TWINS: dict[str, tuple[str, dict[str, int]]] = {
    "reactnet": ("ReActNet", IMAGES),
    "ir-net": ("IR-Net", IMAGES),
    "meliusnet": ("MeliusNet", IMAGES),
    "boolnet": ("BoolNet", IMAGES),
    "lab": ("LAB", IMAGES),
    "mobinet": ("MoBiNet", IMAGES),
    "pokebnn": ("PokeConv", IMAGES),
    "quicknet": ("QuickNet", IMAGES),
    "twn": ("TWN", IMAGES),
    "bitnet-mlp": ("BitNet b1.58", {"classes": 5, "width": 16}),
    "pact-dorefa": ("PACT and DoReFa", IMAGES),
    "har": ("activity", {}),
    "unet": ("U-Net", {"size": 16}),
    "transformer": ("transformer", {}),
    "keyword-gru": ("keyword GRU", {}),
}
QUICK = {"boolnet", "twn"}
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in TWINS]


def twin(name: str, path: Path) -> tuple[torch.nn.Module, torch.Tensor]:
    """Write the network; the module of the same names, with its weights, and a batch."""
    paper, sizes = TWINS[name]
    model = build(name, **sizes)
    ir.save(model, path)
    module, x = make(paper)
    found = {
        k: torch.from_numpy(v.const_value.numpy()) for k, v in model.graph.initializers.items()
    }
    missing, unknown = module.load_state_dict(found, strict=False)
    assert not unknown
    assert {key.split(".")[-1] for key in missing} <= {"num_batches_tracked", "blur"}
    return module, x


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_module(name: str, tmp_path: Path) -> None:
    module, x = twin(name, tmp_path / "net.onnx")
    optimized = bnnopt.optimize(tmp_path / "net.onnx", batch_size=len(x), level="O1")
    optimized.save(tmp_path / "out")
    found = bnnopt.torch.check(module, x, tmp_path / "out")
    assert {row.name for row in found.rows} == dict(module.named_parameters()).keys()
    assert verify_folder(tmp_path / "out", "native").bit_equal
    assert optimized.report.optimized.saved_bytes < optimized.report.baseline.saved_bytes
    assert not any("assumed" in note for note in optimized.report.notes)


def test_another_estimator_is_told_apart(tmp_path: Path) -> None:
    module, x = twin("twn", tmp_path / "net.onnx")
    model = ir.load(tmp_path / "net.onnx")
    for node in model.graph:
        if node.metadata_props.get("bnnopt.gradient") == "of-third":
            node.metadata_props.clear()
    ir.save(model, tmp_path / "net.onnx")
    bnnopt.optimize(tmp_path / "net.onnx", batch_size=len(x)).save(tmp_path / "out")
    with pytest.raises(bnnopt.errors.VerificationError, match=r"conv\.weight"):
        bnnopt.torch.check(module, x, tmp_path / "out")
