"""A folder of images by class: ``folder/cat/1.png``, ``folder/dog/2.jpg``; Pillow reads them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.data.dataset import Dataset

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


class ImageFiles:
    """Images that are read, and resized, when a batch asks for them.

    Parameters
    ----------
    paths : sequence of str
        The files.
    shape : (channels, height, width)
        What each becomes: 1 channel is grey, 3 are red, green and blue.
    """

    def __init__(self, paths: Sequence[str], shape: tuple[int, int, int]) -> None:
        self._paths, self._shape = paths, shape

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, channels, height, width)."""
        return (len(self._paths), *self._shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Uint8."""
        return np.dtype(np.uint8)

    def __getitem__(self, index: Any, /) -> NDArray[np.uint8]:
        chosen = np.arange(len(self._paths))[index]
        return np.stack([self._read(self._paths[i]) for i in chosen.reshape(-1)])

    def _read(self, path: str) -> NDArray[np.uint8]:
        channels, height, width = self._shape
        image = _pillow()
        try:
            with image.open(path) as file:
                pixels = np.asarray(
                    file.convert("L" if channels == 1 else "RGB").resize((width, height))
                )
        except (OSError, ValueError, SyntaxError) as error:
            raise UsageError(f"{path}: not an image that Pillow reads ({error})") from None
        return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def is_image_folder(path: str) -> bool:
    """Whether a folder holds folders with images in them."""
    return any(_files(os.path.join(path, name)) for name in _classes(path))


def read_image_folder(path: str, shape: Sequence[int]) -> Dataset:
    """Images (n, *shape) uint8; the label is the place of the folder's name in sorted order.

    Parameters
    ----------
    shape : (channels, height, width)
        As the model's input.

    Raises
    ------
    UsageError
        If the model does not take images of 1 or 3 channels, or Pillow is not installed.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(
            f"{path}: a folder of images is for an input of [n, 1 or 3, height, width]; this one "
            f"takes {['n', *shape]}"
        )
    _pillow()
    classes = [name for name in _classes(path) if _files(os.path.join(path, name))]
    files = [(f, i) for i, c in enumerate(classes) for f in _files(os.path.join(path, c))]
    channels, height, width = shape
    x = ImageFiles([file for file, _ in files], (channels, height, width))
    return Dataset({"x": x}, np.array([label for _, label in files]), path, classes)


def _classes(path: str) -> list[str]:
    return sorted(name for name in os.listdir(path) if os.path.isdir(os.path.join(path, name)))


def _files(path: str) -> list[str]:
    return [os.path.join(path, n) for n in sorted(os.listdir(path)) if n.lower().endswith(ENDINGS)]


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        raise UsageError("a folder of images needs Pillow: pip install 'bnnopt[images]'") from None
