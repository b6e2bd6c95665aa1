"""Folders of training artifacts that cannot be used as they are: one line each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bnnopt
from bnnopt.errors import BnnoptError, ModelError, UsageError
from bnnopt.training_step import name_gradients

FOLDERS = Path(__file__).parent / "artifacts"
TRAINING = "training_model.onnx"
OPTIMIZER = "optimizer_model.onnx"
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDERS / "small", tmp_path / "small"))


def change(path: Path, edit: Change) -> None:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def refused(source: Path, kind: type[BnnoptError] = ModelError, **options: object) -> str:
    with pytest.raises(kind) as caught:
        bnnopt.optimize(source, **{"batch_size": 4, **options})
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
    return message


def node(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def test_missing_checkpoint(folder: Path) -> None:
    (folder / "checkpoint").unlink()
    assert "checkpoint: no such file: it holds the parameters" in refused(folder)


def test_checkpoint_of_another_network(folder: Path) -> None:
    shutil.copy(FOLDERS / "binary" / "checkpoint", folder)
    assert "parameter 'bn.bias' is not in the checkpoint" in refused(folder)


def test_checkpoint_of_another_width(folder: Path) -> None:
    def widen(model: onnx.ModelProto) -> None:
        weight = next(v for v in model.graph.input if v.name == "fc.bias")
        weight.type.tensor_type.shape.dim[0].dim_value = 20

    change(folder / TRAINING, widen)
    assert "'fc.bias' has shape [20], but [10] in the checkpoint" in refused(folder)


def test_two_sets_in_one_folder(folder: Path) -> None:
    for name in (TRAINING, "checkpoint", OPTIMIZER):
        (folder / name).rename(folder / f"a_{name}")
    assert bnnopt.optimize(folder, batch_size=4).report.optimizer == "adamw"
    shutil.copy(folder / f"a_{TRAINING}", folder / f"b_{TRAINING}")
    assert f"holds a_{TRAINING} and b_{TRAINING}" in refused(folder)
    assert bnnopt.optimize(folder / f"a_{TRAINING}", batch_size=4).report.model == f"a_{TRAINING}"


def test_ort_format(folder: Path) -> None:
    (folder / TRAINING).rename(folder / "training_model.ort")
    assert "ORT format, expected training_model.onnx" in refused(folder)


def test_a_folder_without_artifacts(tmp_path: Path) -> None:
    message = refused(tmp_path)
    assert "is a folder; expected an .onnx file, or a folder of onnxruntime-training" in message


def test_no_gradients(folder: Path) -> None:
    shutil.copy(folder / "eval_model.onnx", folder / TRAINING)
    assert "accumulates no gradient" in refused(folder)


def test_options_that_the_graph_decides(folder: Path) -> None:
    assert refused(folder, UsageError, loss="cross-entropy").startswith("--loss")
    assert refused(folder, UsageError, ste="clipped").startswith("--ste")


def rename(old: str, new: str) -> Change:
    return lambda model: setattr(node(model, old), "op_type", new)


def cut_input(op_type: str) -> Change:
    return lambda model: node(model, op_type).input.pop()


def add_the_running_mean(model: onnx.ModelProto) -> None:
    """To a gradient: the backward pass reads what the forward pass has updated."""
    nodes = model.graph.node
    place, accumulator = next(
        (i, n)
        for i, n in enumerate(nodes)
        if n.op_type.startswith("InPlace") and "bn.bias" in n.input[0]
    )
    added = onnx.helper.make_node("Add", [accumulator.input[1], "bn.running_mean"], ["sum"])
    accumulator.input[1] = "sum"
    nodes.insert(place, added)


def loss_attribute(name: str, value: str | bytes | int) -> Change:
    def edit(model: onnx.ModelProto) -> None:
        loss = node(model, "SoftmaxCrossEntropyLoss")
        del loss.attribute[:]
        loss.attribute.append(onnx.helper.make_attribute(name, value))

    return edit


def predict(name: str) -> Change:
    return lambda model: setattr(model.graph.output[1], "name", name)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (predict("/bn/BatchNormalization_output_1"), "no forward node of a kind that is known"),
        (predict("/Flatten_Grad/input_shape"), "is the same for all inputs"),
        (rename("ReluGrad", "GeluGrad"), "(GeluGrad): no rule for it: com.microsoft.GeluGrad"),
        (rename("BatchNormInternal", "BiasGelu"), "forward operator com.microsoft.BiasGelu"),
        (rename("Relu", "Tanh"), "no forward Relu reads"),
        (cut_input("ReluGrad"), "(ReluGrad): no rule for it: its input 1 is missing"),
        (cut_input("MaxPoolGrad"), "(MaxPoolGrad): no rule for it: its input 1 is missing"),
        (loss_attribute("reduction", "sum"), "reduction 'sum', expected 'mean'"),
        (add_the_running_mean, "reads later; generate the artifacts again"),
        (loss_attribute("reduction", b"\xff\xfe"), "is no text"),
        (loss_attribute("ignore_index", 3), "ignore_index 3, expected none of the classes"),
    ],
)
def test_training_graphs(folder: Path, edit: Change, expected: str) -> None:
    change(folder / TRAINING, edit)
    assert expected in refused(folder)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (rename("AdamWOptimizer", "LambOptimizer"), "optimiser LambOptimizer, expected AdamW"),
        (lambda m: node(m, "AdamWOptimizer").attribute.pop(0), "adam_mode 0, expected 1"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "expected one optimiser node, found"),
    ],
)
def test_optimizer_models(folder: Path, edit: Change, expected: str) -> None:
    change(folder / OPTIMIZER, edit)
    assert expected in refused(folder)
    assert bnnopt.optimize(folder, batch_size=4, optimizer="sgd").report.optimizer == "sgd"


def test_without_an_optimizer_model(folder: Path) -> None:
    (folder / OPTIMIZER).unlink()
    assert bnnopt.optimize(folder, batch_size=4).report.optimizer == "adam"


def test_frozen_parameters(folder: Path) -> None:
    step = bnnopt.optimize(folder, batch_size=4, freeze=["conv.*", "bn.*"]).training
    assert set(name_gradients(step).gradients()) == {"fc.weight", "fc.bias"}
    assert not {"ConvWeightGrad", "ConvAdamWStep"} & {node.op_type for node in step.graph}
    assert "nothing to train" in refused(folder, freeze=["*"])


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_damaged_training_graph(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any node may lose its inputs, its outputs or its kind, or be gone: never a traceback."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    shutil.copytree(FOLDERS / "small", folder, dirs_exist_ok=True)
    model = onnx.load(folder / TRAINING)
    victim = data.draw(st.sampled_from(range(len(model.graph.node))))
    kinds = sorted({n.op_type for n in model.graph.node})
    harm = data.draw(st.sampled_from(["inputs", "outputs", "attributes", "gone", *kinds]))
    broken = model.graph.node[victim]
    if harm == "gone":
        del model.graph.node[victim]
    elif harm in ("inputs", "outputs", "attributes"):
        field = {"inputs": "input", "outputs": "output", "attributes": "attribute"}[harm]
        broken.ClearField(field)
    else:
        broken.op_type = harm
    onnx.save(model, folder / TRAINING)
    try:
        bnnopt.optimize(folder, batch_size=4)
    except BnnoptError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most of these are refused, some do no harm


def _damaged(edit: Callable[[onnx.TensorProto], None]) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        edit(next(t for t in model.graph.initializer if t.dims))

    return apply


def _huge(tensor: onnx.TensorProto) -> None:
    tensor.dims[0] = 1 << 40


def _of_no_type(tensor: onnx.TensorProto) -> None:
    tensor.data_type = 99


def _cut(tensor: onnx.TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:-1] or b"x"


@pytest.mark.parametrize("edit", [_huge, _of_no_type, _cut])
def test_damaged_constants(folder: Path, edit: Callable[[onnx.TensorProto], None]) -> None:
    change(folder / TRAINING, _damaged(edit))
    assert "is damaged" in refused(folder)


def test_a_name_that_is_no_text(folder: Path) -> None:
    path = folder / TRAINING
    name = onnx.load(path).graph.node[0].output[0].encode()
    path.write_bytes(path.read_bytes().replace(name, b"\xff" * len(name)))
    assert "is no text" in refused(folder)


def test_an_attribute_whose_name_is_no_text(folder: Path) -> None:
    path = folder / TRAINING
    assert node(onnx.load(path), "SoftmaxCrossEntropyLoss").attribute[0].name == "reduction"
    path.write_bytes(path.read_bytes().replace(b"reduction", b"\xff" * 9))
    assert "is no text" in refused(folder)


def to_sign(model: onnx.ModelProto) -> None:
    gate = node(model, "QuickGelu")
    gate.op_type, gate.domain = "Sign", ""
    del gate.attribute[:]


def to_another_loss(model: onnx.ModelProto) -> None:
    loss = node(model, "SoftmaxCrossEntropyLoss")
    loss.op_type = "NegativeLogLikelihoodLoss"
    del loss.output[1:]


@pytest.mark.parametrize(
    ("edit", "text"),
    [(to_sign, "is binarised, and the gradient of"), (to_another_loss, "takes a cross-entropy")],
)
def test_what_cannot_be_differentiated_anew(edit: Change, text: str, tmp_path: Path) -> None:
    """The recurrent layers are; the estimator of the file, or its loss, would be another."""
    folder = Path(shutil.copytree(FOLDERS / "sequence", tmp_path / "sequence"))
    change(folder / TRAINING, edit)
    message = refused(folder)
    assert text in message
    assert "pass the forward model" in message


def test_an_output_alone(tmp_path: Path) -> None:
    """Of the backward pass, where the loss was; and no prediction."""
    folder = Path(shutil.copytree(FOLDERS / "binary", tmp_path / "binary"))

    def measure_another(model: onnx.ModelProto) -> None:
        del model.graph.output[1]
        model.graph.output[0].name = "/fc/Sign_1_Grad/inside"  # of a weight

    change(folder / TRAINING, measure_another)
    assert "is the only output, expected a loss and a prediction" in refused(folder)
