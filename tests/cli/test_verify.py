"""``bnnopt verify``: bit-equal where it should be, and an error where it should and is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bnnopt.verification import Difference, Verification
from bnnopt.verification.compare import compare, difference
from bnnopt.verification.trajectory import Trajectory
from tests.cli.conftest import Mistake
from tests.cli.helpers import MODELS, Cli, Outcome, assert_contract

BACKENDS = ("native", "onnxruntime")


def read_verification(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    parameters = {key: {"max_abs": float, "cosine": float} for key in found["parameters"]}
    bound = type(found["min_cosine"])
    assert bound in (float, type(None))
    assert_contract(found, {"parameters": parameters, "bit_equal": bool, "min_cosine": bound})
    return found


@pytest.fixture
def folder(compiled: Path, workspace: Path) -> Path:
    """A folder to change."""
    return Path(shutil.copytree(compiled, workspace / "out"))


def change_attribute(model: onnx.ModelProto) -> None:
    """Narrow the mask of one straight-through estimator."""
    node = next(n for n in model.graph.node if n.op_type == "BatchNormalizationSigns")
    next(a for a in node.attribute if a.name == "high").f = 0.1


def change_initializer(model: onnx.ModelProto) -> None:
    """Scale some channels of one batch norm."""
    tensor = next(t for t in model.graph.initializer if t.dims)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[::2] *= 3
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


CHANGES = {"attribute": change_attribute, "initializer": change_initializer}


def tamper(folder: Path, change: str) -> None:
    model = onnx.load(folder / "training.onnx")
    CHANGES[change](model)
    onnx.save(model, folder / "training.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_bit_equal(bnnopt: Cli, small: Path, backend: str) -> None:
    found = bnnopt("verify", small, "--backend", backend)
    assert (found.exit_code, found.stderr) == (0, "")
    assert "bit-equal: yes" in found.stdout
    assert found.stdout.rstrip().endswith("PASS: bit-equal to the reference")
    assert f"2 steps on {backend}" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_json(bnnopt: Cli, compiled: Path, backend: str, workspace: Path) -> None:
    arguments = ("verify", compiled, "--backend", backend, "--steps", "1", "--seed", "7")
    text = bnnopt(*arguments, "--json", "-").stdout
    found = read_verification(text)
    assert found["bit_equal"] is True
    assert all(d == {"max_abs": 0.0, "cosine": 1.0} for d in found["parameters"].values())
    assert {"fc1.weight", "bn5.bias"} <= set(found["parameters"])
    assert len(found["parameters"]) == 10
    if backend == "native":
        bnnopt(*arguments, "--json", "v.json")
        assert (workspace / "v.json").read_text() == text


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_tampered_folder_is_found_out(
    bnnopt: Cli, folder: Path, change: str, backend: str
) -> None:
    tamper(folder, change)
    outcome = bnnopt("verify", folder, "--backend", backend, "--json", "-")
    found = read_verification(outcome.stdout)
    assert found["bit_equal"] is False
    assert min(d["cosine"] for d in found["parameters"].values()) < 0.99
    assert max(d["max_abs"] for d in found["parameters"].values()) > 0
    assert_defect(outcome)


def assert_defect(found: Outcome) -> None:
    assert found.exit_code == 1
    assert found.stderr.startswith("bnnopt: ")
    assert found.stderr.count("\n") == 1
    assert "not bit-equal to the reference" in found.stderr


def test_a_tampered_folder_on_the_terminal(bnnopt: Cli, folder: Path) -> None:
    tamper(folder, "attribute")
    found = bnnopt("verify", folder)
    assert "bit-equal: no (expected: all passes that ran are lossless)" in found.stdout
    assert_defect(found)


def test_a_step_whose_inputs_say_nothing_known(bnnopt: Cli, folder: Path) -> None:
    model = onnx.load(folder / "training.onnx")
    next(p for i in model.graph.input for p in i.metadata_props if p.key == "role").value = "guest"
    onnx.save(model, folder / "training.onnx")
    found = bnnopt("verify", folder)
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert "training.onnx: cannot be read ('guest' is not a valid Role)" in found.stderr


@pytest.mark.parametrize("how", ["cleared", "renamed"])
def test_a_step_with_a_value_that_has_no_shape(bnnopt: Cli, folder: Path, how: str) -> None:
    """An input without one, or a node that reads what is not there."""
    path = folder / "training.onnx"
    model = onnx.load(path)
    entry = model.graph.input[0]
    name = entry.name
    if how == "renamed":
        entry.name = "other"
    else:
        entry.type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    found = bnnopt("verify", folder)
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert f"training.onnx: cannot be read (value {name!r} has no shape)" in found.stderr


def test_after_a_lossy_pass_a_difference_within_its_bound_is_no_defect(
    bnnopt: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tamper(folder, "attribute")
    monkeypatch.setattr("bnnopt.passes.sign_pack.SignPack.lossless", False)
    monkeypatch.setattr("bnnopt.passes.sign_pack.SignPack.min_cosine", 0.1)
    found = bnnopt("verify", folder)
    assert (found.exit_code, found.stderr) == (0, "")
    assert "bit-equal: no (lossy passes ran, which allow a cosine of 0.1000)" in found.stdout
    monkeypatch.setattr("bnnopt.passes.sign_pack.SignPack.min_cosine", 0.9999)
    found = bnnopt("verify", folder)
    assert found.exit_code == 1
    assert "expected at least 0.9999; optimize again" in found.stderr


def test_defects() -> None:
    assert Verification({}, bit_equal=False).defect
    assert not Verification({}, bit_equal=True).defect
    assert not Verification({}, bit_equal=False, min_cosine=1).defect
    turned = {"w": Difference(0.1, 0.8), "b": Difference(0.1, -1, negligible=True)}
    assert not Verification(turned, bit_equal=False, min_cosine=0.8).defect
    assert "'w' has cosine 0.8000" in Verification(turned, False, min_cosine=0.81).defect


TINY = np.array([3e-12, -1e-12], np.float32)  # far below what float16 holds under any scale
FOUND = {
    "signs": (np.array([-0.1, -0.1], np.float32), ""),
    "nothing": (np.zeros(2, np.float32), ""),
    "noise as small": (np.array([-2e-12, 4e-12], np.float32), ""),
    "too large": (np.array([-2e-9, 4e-9], np.float32), "'w' has cosine -0.7"),
}


@pytest.mark.parametrize("what", FOUND)
def test_a_gradient_that_float16_rounds_away_has_no_direction(what: str) -> None:
    found, defect = FOUND[what]

    def run(w: NDArray[np.float32], later: NDArray[np.float32]) -> Trajectory:
        return Trajectory([np.zeros(())] * 2, [{"w": w}, {"w": later}], {"w": TINY})

    zero, kept = np.zeros(2, np.float32), TINY * 1e6
    reference, rounded = run(TINY, kept), run(zero, kept)
    assert defect in compare(reference, run(found, kept), 0.9, rounded).defect
    assert bool(defect) == bool(compare(reference, run(found, kept), 0.9, rounded).defect)
    assert "'w' has cosine" in compare(reference, run(found, kept), 0.9).defect
    assert "'w' has cosine -1" in compare(reference, run(found, -kept), 0.9, rounded).defect
    assert "'w' has cosine" in compare(reference, run(found, kept), 0.9, reference).defect


@pytest.mark.slow
def test_batch_norm_of_two_leaves_gradients_that_float16_rounds_away(
    bnnopt: Cli, workspace: Path
) -> None:
    """Two values are -1 and +1 after it: no gradient comes through but what epsilon leaves."""
    assert bnnopt("zoo", "mlp", "-o", "mlp.onnx").exit_code == 0
    assert bnnopt("optimize", "mlp.onnx", "-b", 2, "-O2", "-o", "out").exit_code == 0
    for seed in (2, 3):
        found = bnnopt("verify", "out", "--seed", seed)
        assert (found.exit_code, found.stderr) == (0, "")
    model = onnx.load("out/training.onnx")
    step = next(
        n for n in model.graph.node if "fc4.weight" in n.input and "FirstMoment" in n.op_type
    )
    assert step.input[1] == "sign3_out.signs"
    step.input[1] = "sign2_out.signs"  # wrong where it is 1e-5, which float16 holds
    onnx.save(model, "out/training.onnx")
    found = bnnopt("verify", "out", "--seed", 2)
    assert found.exit_code == 1
    assert "the gradient of 'fc4.weight' has cosine" in found.stderr


def test_signs_are_held_to_those_of_the_reference() -> None:
    """Of a gradient with one large element, its own signs have a cosine of 0.5."""
    gradient = np.array([1, 0.01, -0.01, 0.01], np.float32)
    signs = np.sign(gradient)
    own, turned, worse = (difference(gradient, signs * t) for t in (0.25, [1, 1, 1, -1], -1))
    assert own.reach == own.cosine < 0.53
    assert turned.cosine < own.cosine
    assert not Verification({"w": own, "v": turned}, False, min_cosine=0.58).defect
    assert "'w' has cosine -0.5" in Verification({"w": worse}, False, min_cosine=0.58).defect
    dense = Difference(0.1, own.cosine)
    assert "'w' has cosine 0.51" in Verification({"w": dense}, False, min_cosine=0.58).defect


def test_other_batches_give_other_numbers(bnnopt: Cli, folder: Path) -> None:
    tamper(folder, "attribute")
    texts = {
        bnnopt("verify", folder, "--json", "-", "--seed", s, "--steps", "1").stdout
        for s in ("0", "0", "1")
    }
    assert len(texts) == 2


NAN, MAX = np.nan, float(np.finfo(np.float64).max)
PAIRS = {
    "same": ([1, 2], [1, 2], Difference(0, 1)),
    "same-nan": ([NAN, 2], [NAN, 2], Difference(0, 1)),
    "one-nan": ([NAN, 2], [1, 2], Difference(MAX, 0)),
    "infinite": ([np.inf, 2], [1, 2], Difference(MAX, 0)),
    "opposite": ([1, 0], [-1, 0], Difference(2, -1)),
    "orthogonal": ([1, 0], [0, 3], Difference(3, 0)),
    "one-zero": ([0, 0], [0, 3], Difference(3, 0)),
    "two-zeros": ([0.0, 0], [-0.0, 0], Difference(0, 1)),
}


@pytest.mark.parametrize("pair", PAIRS)
def testdifference(pair: str) -> None:
    a, b, expected = PAIRS[pair]
    found = difference(np.array(a, np.float32), np.array(b, np.float32))
    assert found == expected
    json.dumps([found.max_abs, found.cosine], allow_nan=False)


# Folders that cannot be verified ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["reference.onnx", "training.onnx"])
@pytest.mark.parametrize("content", ["none", "empty", "half", "text", "model", "other"])
def test_a_damaged_step(mistake: Mistake, folder: Path, name: str, content: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    if content != "none":
        path.write_bytes(
            {
                "empty": b"",
                "half": whole[: len(whole) // 2],
                "text": b"hello",
                "model": (MODELS / "mlp.onnx").read_bytes(),
                "other": b"",
            }[content]
        )
    if content == "other":
        import bnnopt

        bnnopt.optimize(MODELS / "relu-mini.onnx", batch_size=20).save("relu")
        shutil.copy(Path("relu") / name, path)
    line = mistake("verify", folder)
    assert name in line
    assert "optimize again" in line


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_not_a_folder_of_ours(mistake: Mistake, command: str, workspace: Path) -> None:
    (workspace / "empty").mkdir()
    assert "not a bnnopt folder" in mistake(command, "empty")


@pytest.mark.slow
def test_a_batch_of_two_overflows_float16_gradients(
    bnnopt: Cli, mistake: Mistake, workspace: Path
) -> None:
    """Float32 holds them: without that pass the same batches run."""
    for name in ("float16-gradients", "sign-pack"):
        bnnopt("optimize", MODELS / "mlp.onnx", "-o", name, "-b", "2", "--passes", name)
    line = mistake("verify", "float16-gradients")
    assert "training.onnx: 'fc1.weight' would not be finite on random batches of 2" in line
    assert "another --seed" in line
    assert bnnopt("verify", "sign-pack").exit_code == 0


def test_not_a_folder(mistake: Mistake) -> None:
    assert "nope" in mistake("verify", "nope")
    assert "mlp.onnx" in mistake("verify", MODELS / "mlp.onnx")


def test_a_damaged_report(mistake: Mistake, folder: Path) -> None:
    (folder / "report.json").write_text("{")
    assert "report.json: is not as it was written" in mistake("inspect", folder)
    (folder / "artifact.json").write_text("{")
    assert "artifact.json: is damaged" in mistake("verify", folder)


def test_options(mistake: Mistake, compiled: Path) -> None:
    assert "expected native or onnxruntime" in mistake("verify", compiled, "--backend", "cuda")
    assert "--steps" in mistake("verify", compiled, "--steps", "0")
    assert "--seed" in mistake("verify", compiled, "--seed", "-1")


def test_backend_that_is_not_installed(
    mistake: Mistake, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnnopt.verification.verify.find_spec", lambda name: None)
    line = mistake("verify", compiled, "--backend", "onnxruntime")
    assert "pip install 'bnnopt[onnxruntime]'" in line
