"""From a file to a checked model of the opset that the compiler works in."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from bnnopt.errors import ModelError
from bnnopt.ops import MIN_OPSET

OLDEST_OPSET = 13

EXPORT_COMMAND = (
    "torch.onnx.export(model.train(), x, file, dynamo=False, opset_version=17, "
    "training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, "
    "input_names=['x'], dynamic_axes={'x': {0: 'batch'}})"
)


def read_model(path: Path) -> onnx.ModelProto:
    """Read, check and upgrade an ONNX file.

    Returns
    -------
    onnx.ModelProto
        Without model-local functions, in opset 18 or later.

    Raises
    ------
    ModelError
        If the file is missing, is not ONNX, is cut short, breaks the ONNX rules or is of an opset
        that is not supported.
    """
    model = _parse(path)
    opset = _checked_opset(model, path)
    try:
        onnx.checker.check_model(model)
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{path}: not a valid ONNX model: {reason}") from None
    return upgrade(model, opset)


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; expected an .onnx file")
    try:
        model = onnx.load(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except (DecodeError, onnx.checker.ValidationError):
        raise ModelError(
            f"{path}: not an ONNX file, or cut short; export or copy it again"
        ) from None
    if not model.ir_version or not model.graph.node:
        raise ModelError(f"{path}: not an ONNX file: it holds no graph; export or copy it again")
    return model


def _checked_opset(model: onnx.ModelProto, path: Path) -> int:
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    opset, newest = versions.get("ai.onnx"), onnx.defs.onnx_opset_version()
    if opset is None or not OLDEST_OPSET <= opset <= newest:
        found = "no standard opset" if opset is None else f"opset {opset}"
        raise ModelError(
            f"{path}: {found} found, expected {OLDEST_OPSET} to {newest}; "
            "export again with opset_version=17"
        )
    return opset


def upgrade(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same model in opset 18 or later; the weights are not copied."""
    if opset >= MIN_OPSET:
        return model
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    small = [tensor for tensor in weights if tensor.data_type != onnx.TensorProto.FLOAT]
    large = [tensor for tensor in weights if tensor.data_type == onnx.TensorProto.FLOAT]
    model.graph.initializer.extend(small)
    declared = {value.name for value in model.graph.input}
    stand_ins = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in large
        if tensor.name not in declared
    ]
    model.graph.input.extend(stand_ins)
    if opset < 14:
        _batch_norm_to_14(model)
    upgraded = onnx.version_converter.convert_version(model, MIN_OPSET)
    stood_in = {value.name for value in stand_ins}
    inputs = [value for value in upgraded.graph.input if value.name not in stood_in]
    del upgraded.graph.input[:]
    upgraded.graph.input.extend(inputs)
    upgraded.graph.initializer.extend(large)
    return upgraded


def _batch_norm_to_14(model: onnx.ModelProto) -> None:
    """Opset 13 told training mode by the number of outputs; opset 14 by an attribute.

    Nothing else that the compiler reads changed its meaning between the two.
    """
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and len(node.output) > 1:
            del node.output[3:]
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = 14
