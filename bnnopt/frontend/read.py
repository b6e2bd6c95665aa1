"""From a file to a checked model of the opset that the compiler works in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from numpy.typing import NDArray

from bnnopt.errors import ModelError
from bnnopt.frontend.size import check_size
from bnnopt.ops import MIN_OPSET
from bnnopt.runtime.files import check_regular, reason_of, shown_path

OLDEST_OPSET = 9

# What onnx raises for a file that breaks its rules; ValueError for a name that is no text.
INVALID = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
    RuntimeError,
    ValueError,
)

EXPORT_COMMAND = (
    "torch.onnx.export(model.train(), x, file, dynamo=False, opset_version=17, "
    "training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, "
    "input_names=['x'], dynamic_axes={'x': {0: 'batch'}})"
)

PYTORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def read_model(path: Path) -> onnx.ModelProto:
    """Read, check and upgrade an ONNX file.

    Returns
    -------
    onnx.ModelProto
        Without model-local functions, in opset 18 or later.

    Raises
    ------
    ModelError
        If the file is missing, is not ONNX, is cut short, breaks the ONNX rules, is of an opset
        that is not supported or of an exporter that loses what training needs.
    """
    model = parse(path)
    _check_exporter(model, path)
    _load_external_data(model, path)
    return checked(model, path)


def own_graph(path: Path) -> onnx.ModelProto:
    """The file's own content with all of its data, functions of its own inlined.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    model = parse(path)
    _load_external_data(model, path)
    check_size(model, path)
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def checked(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model without model-local functions, in opset 18 or later.

    Raises
    ------
    ModelError
        If it breaks the ONNX rules, or is of an opset that is not supported.
    """
    opset = _checked_opset(model, path)
    check_size(model, path)
    try:
        onnx.checker.check_model(model)
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
        return upgrade(model, opset)
    except INVALID as error:
        raise ModelError(
            f"{path}: not a valid ONNX model: {one_line(error)}; export or copy it again"
        ) from None


def one_line(error: Exception) -> str:
    """What an error says, without its line breaks, cut where it goes on and on."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} .."


def parse(path: Path) -> onnx.ModelProto:
    """The file's own content, not checked any further.

    Raises
    ------
    ModelError
        If the file is missing, is not ONNX or is cut short.
    """
    try:
        if os.path.isdir(path):
            raise ModelError(
                f"{path}: is a folder; expected an .onnx file, or a folder of onnxruntime-training "
                "artifacts, with training_model.onnx and checkpoint"
            )
        check_regular(path)
        model = onnx.load_model_from_string(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        where, reason = shown_path(path), reason_of(error)
        raise ModelError(f"{where}: cannot be read: {reason}; check the file") from None
    except DecodeError:
        if path.suffix in PYTORCH_SUFFIXES:
            raise ModelError(
                f"{path}: a file of PyTorch, expected ONNX; in Python build the module, load the "
                "file, and bnnopt.torch.export(module, x, 'model.onnx')"
            ) from None
        raise ModelError(
            f"{path}: not an ONNX file, or cut short; export or copy it again"
        ) from None
    if not model.ir_version or not model.graph.node:
        raise ModelError(f"{path}: not an ONNX file: it holds no graph; export or copy it again")
    _check_names(model.graph, path)
    return model


def array_of(tensor: onnx.TensorProto, path: Path) -> NDArray[Any]:
    """The elements of an initializer.

    Raises
    ------
    ModelError
        If its type, shape and bytes do not fit one another.
    """
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # it raises whatever numpy does with a wrong type, shape or length
        raise ModelError(
            f"{path}: initializer {tensor.name!r} is damaged: {one_line(error)}; "
            "export or copy the file again"
        ) from None


def _texts(node: onnx.NodeProto) -> tuple[str, ...]:
    named = (attribute.name for attribute in node.attribute)
    return node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output, *named


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_names(graph: onnx.GraphProto, path: Path) -> None:
    """Names that are no text come back as bytes, as all texts of attributes do."""
    names = [name for node in graph.node for name in _texts(node)]
    names += [entry.name for entry in (*graph.input, *graph.output, *graph.initializer)]
    texts = [a.s for node in graph.node for a in node.attribute if a.s]
    wrong = [name for name in names if not isinstance(name, str)]
    wrong += [text for text in texts if not _is_text(text)]
    if wrong:
        raise ModelError(f"{path}: {wrong[0]!r} is no text; export or copy it again")


def _checked_opset(model: onnx.ModelProto, path: Path) -> int:
    versions = {entry.domain or "ai.onnx": int(entry.version) for entry in model.opset_import}
    opset, newest = versions.get("ai.onnx"), onnx.defs.onnx_opset_version()
    if opset is None or not OLDEST_OPSET <= opset <= newest:
        found = "no standard opset" if opset is None else f"opset {opset}"
        raise ModelError(
            f"{path}: {found} found, expected {OLDEST_OPSET} to {newest}; "
            "export again with opset_version=17"
        )
    return opset


def _check_exporter(model: onnx.ModelProto, path: Path) -> None:
    """Torch's dynamo exporter folds batch norm and binary weights away, and drops zero biases."""
    keys = (entry.key for node in model.graph.node for entry in node.metadata_props)
    if any(key.startswith("pkg.torch") for key in keys):
        raise ModelError(
            f"{path}: written by PyTorch's dynamo exporter, which loses latent weights and batch "
            f"norm; export with {EXPORT_COMMAND}"
        )


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, *INVALID) as error:
        raise ModelError(
            f"{path}: its external data cannot be read: {one_line(error)}; copy the data file "
            "along with the model"
        ) from None


def upgrade(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same model in opset 18 or later; the weights are not copied."""
    if opset >= MIN_OPSET:
        return model
    if opset < 12:
        _check_dropout(model)
    if opset < 13:
        model = _converted(model, 13)
    if opset < 14:
        _batch_norm_to_14(model)
    return _converted(model, MIN_OPSET)


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """By onnx's converter, with a declaration in place of each weight."""
    weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    others = [t for t in model.graph.initializer if t.data_type != onnx.TensorProto.FLOAT]
    declared = {value.name for value in model.graph.input}
    stand_ins = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in weights
        if tensor.name not in declared
    ]
    _replace(model.graph.initializer, others)
    model.graph.input.extend(stand_ins)
    upgraded = onnx.version_converter.convert_version(model, opset)
    stood_in = {value.name for value in stand_ins}
    _replace(upgraded.graph.input, [v for v in upgraded.graph.input if v.name not in stood_in])
    upgraded.graph.initializer.extend(weights)
    return upgraded


def _check_dropout(model: onnx.ModelProto) -> None:
    """Before opset 12 a Dropout did not say whether it drops."""
    for node in model.graph.node:
        if node.op_type == "Dropout" and not node.domain:
            name = node.name or node.output[0]
            raise ValueError(f"node {name!r} (Dropout) has no mode before opset 12, expected 12 on")


def _replace(repeated: Any, items: Sequence[Message]) -> None:
    del repeated[:]
    repeated.extend(items)


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
