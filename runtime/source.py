"""The user's own graph, to which the trained weights go back, without onnx.

A folder keeps the graph without its weights: these are in ``weights.safetensors`` and in the
checkpoints, under the file's own names. An ONNX file is a message of protocol buffers, and of that
this reads no more than it has to change.

Source: protobuf.dev/programming-guides/encoding and onnx.proto, whose field numbers these are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ArtifactError

SOURCE_FILE = "source.onnx"
LACKING = "bnnopt.weights"  # metadata: names that the graph has no values for

_VARINT, _LENGTH = 0, 2  # how a field is written: a number, or a length and so many bytes
_FIXED = {1: 8, 5: 4}  # bytes of the other ways
_GRAPH, _METADATA, _INITIALIZER = 7, 14, 5
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9
_FLOAT = 1  # TensorProto.DataType


def with_weights(model: bytes, weights: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The graph that `bnnopt.artifact.without_weights` gave, with values.

    Parameters
    ----------
    model : bytes
        The content of ``source.onnx``.
    weights : mapping of str to ndarray
        By name; they become float32.

    Raises
    ------
    ArtifactError
        If a value is missing, or the content is not that of such a file.
    """
    try:
        fields = [(number, way, bytes(value)) for number, way, value in _fields(model)]
        lacking = _lacking(fields)
    except (IndexError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise ArtifactError(f"{SOURCE_FILE}: cannot be read ({error!r}); optimize again") from None
    missing = [name for name in lacking if name not in weights]
    if missing:
        raise ArtifactError(f"{SOURCE_FILE}: there is no weight {missing[0]!r}; optimize again")
    values = b"".join(
        _field(_INITIALIZER, _LENGTH, _tensor(name, weights[name])) for name in lacking
    )
    return b"".join(
        _field(number, way, value + values if number == _GRAPH else value)
        for number, way, value in fields
        if number != _METADATA
    )


def _lacking(fields: list[tuple[int, int, bytes]]) -> list[str]:
    """The names of the weights that the graph lacks."""
    for number, _, entry in fields:
        if number == _METADATA:
            key, value = (bytes(part).decode() for _, _, part in _fields(entry))
            if key == LACKING:
                return [str(name) for name in json.loads(value)]
    raise KeyError(LACKING)


def _tensor(name: str, array: NDArray[np.generic]) -> bytes:
    """A TensorProto of float32."""
    return b"".join(
        [
            *(_field(_DIMS, _VARINT, _varint(size)) for size in array.shape),
            _field(_TYPE, _VARINT, _varint(_FLOAT)),
            _field(_NAME, _LENGTH, name.encode()),
            _field(_RAW, _LENGTH, np.ascontiguousarray(array, "<f4").tobytes()),
        ]
    )


def _fields(message: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Number, way and content of each field of a message."""
    view, place = memoryview(message), 0
    while place < len(view):
        tag, place = _read_varint(view, place)
        number, way = tag >> 3, tag & 7
        if way == _VARINT:
            _, end = _read_varint(view, place)
        elif way == _LENGTH:
            length, place = _read_varint(view, place)
            end = place + length
        else:
            end = place + _FIXED[way]
        if end > len(view):
            raise ValueError(f"field {number} is cut short")
        yield number, way, view[place:end]
        place = end


def _field(number: int, way: int, content: bytes) -> bytes:
    length = _varint(len(content)) if way == _LENGTH else b""
    return _varint(number << 3 | way) + length + content


def _read_varint(view: memoryview, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    number = shift = 0
    while True:
        byte = view[place]
        number, shift, place = number | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return number, place


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])
