"""Data sets of every kind that is known: the numbers in the file, and what is refused."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnnopt.errors import UsageError
from bnnopt.runtime.data import Dataset, open_data

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 1, 4, 5), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2])
EVERY_OTHER = np.array([6, 0, 4])


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    shape = array.shape
    return struct.pack(f">BBBB{len(shape)}i", 0, 0, kind, len(shape), *shape) + array.tobytes()


def npz(path: Path) -> Path:
    np.savez(path / "d.npz", x=IMAGES, y=LABELS)
    return path / "d.npz"


def packed_npz(path: Path) -> Path:
    np.savez_compressed(path / "d.npz", x=IMAGES, y=LABELS)
    return path / "d.npz"


def fortran_npz(path: Path) -> Path:
    np.savez(path / "d.npz", x=np.asfortranarray(IMAGES), y=LABELS)
    return path / "d.npz"


def npy_folder(path: Path) -> Path:
    np.save(path / "x.npy", IMAGES)
    np.save(path / "y.npy", LABELS)
    return path


def mnist(path: Path) -> Path:
    (path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES[:, 0]))
    (path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS.astype(np.uint8)))
    return path


def packed_mnist(path: Path) -> Path:
    for name, array in (("images-idx3", IMAGES[:, 0]), ("labels-idx1", LABELS.astype(np.uint8))):
        (path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return path


def one_idx_file(path: Path) -> Path:
    return packed_mnist(path) / "train-images-idx3-ubyte.gz"


def table(path: Path) -> Path:
    rows = [",".join(map(str, (*x.ravel(), y))) for x, y in zip(IMAGES, LABELS, strict=True)]
    (path / "d.csv").write_text("\n".join([*rows, ""]))
    return path / "d.csv"


def named_table(path: Path) -> Path:
    head = "label\t" + "\t".join(f"p{i}" for i in range(20))
    rows = ["\t".join(map(str, (y, *x.ravel()))) for x, y in zip(IMAGES, LABELS, strict=True)]
    (path / "d.tsv").write_text("\n".join([head, *rows]))
    return path / "d.tsv"


KINDS = [
    *(npz, packed_npz, fortran_npz, npy_folder, mnist, packed_mnist, one_idx_file),
    *(table, named_table),
]


@pytest.mark.parametrize("write", KINDS, ids=lambda f: f.__name__)
def test_a_batch_has_the_samples_in_the_order_asked_for(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = open_data(write(tmp_path), (1, 4, 5))
    assert len(data) == 7
    np.testing.assert_array_equal(data.inputs(EVERY_OTHER), IMAGES[EVERY_OTHER])
    np.testing.assert_array_equal(data.targets(EVERY_OTHER), LABELS[EVERY_OTHER])


@pytest.mark.parametrize("write", [npz, npy_folder, fortran_npz], ids=lambda f: f.__name__)
def test_what_is_stored_as_it_is_is_mapped(write: Callable[[Path], Path], tmp_path: Path) -> None:
    x = open_data(write(tmp_path), (1, 4, 5)).x["x"]
    assert isinstance(x, np.memmap)
    assert x.dtype == np.uint8


def test_images_flatten_for_a_dense_layer(tmp_path: Path) -> None:
    data = open_data(mnist(tmp_path), (20,))
    np.testing.assert_array_equal(data.inputs(np.arange(7)), IMAGES.reshape(7, 20))


def test_words_as_labels_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("a,b,class\n1,2,walk\n3,4,run\n5,6,walk\n")
    data = open_data(tmp_path / "d.csv", (2,))
    assert data.classes == ["run", "walk"]
    np.testing.assert_array_equal(data.targets(np.arange(3)), [1, 0, 1])


def test_token_ids_stay_integers(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("16777217 2 1\n3 4 0\n")
    x = open_data(tmp_path / "d.txt", (2,), "int64").inputs(np.arange(2))
    assert x.dtype == np.int64
    np.testing.assert_array_equal(x, [[16777217, 2], [3, 4]])


@pytest.mark.parametrize(("layout", "n_labels"), [("train.bin", 2), ("data_batch_1.bin", 1)])
def test_cifar(tmp_path: Path, layout: str, n_labels: int) -> None:
    x = np.random.default_rng(1).integers(0, 256, (5, 3, 32, 32), np.uint8)
    labels = np.arange(10, 10 + 5 * n_labels, dtype=np.uint8).reshape(5, n_labels)
    (tmp_path / layout).write_bytes(np.concatenate([labels, x.reshape(5, -1)], 1).tobytes())
    data = open_data(tmp_path, (3, 32, 32))
    np.testing.assert_array_equal(data.inputs(np.arange(5)), x)
    np.testing.assert_array_equal(data.targets(np.arange(5)), labels[:, -1])  # the fine label


def test_folders_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = np.full((8, 6, 3), value + i, np.uint8)
            image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    data = open_data(tmp_path, (3, 4, 4))
    assert data.classes == ["cat", "dog"]
    np.testing.assert_array_equal(data.targets(np.arange(4)), [0, 0, 1, 1])
    x = data.inputs(np.array([3, 0]))
    assert x.shape == (2, 3, 4, 4)
    assert x.dtype == np.uint8
    assert (x[0] == 201).all()
    assert (x[1] == 10).all()


def test_arrays_for_several_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=np.ones((3, 2)), b=np.zeros((3, 4)), y=np.arange(3))
    x = open_data(tmp_path / "d.npz", (2,)).inputs(np.array([1, 2]))
    assert isinstance(x, dict)
    assert {name: array.shape for name, array in x.items()} == {"a": (2, 2), "b": (2, 4)}


def broken(write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        write(path)
        return path / "d.npz"

    return make


def damaged(path: Path, start: int) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)


def npy_with(header: str) -> Callable[[Path], Path]:
    """An ``.npy`` file that says this of itself."""

    def make(path: Path) -> Path:
        text = header.encode() + b"\n"
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text))
        (path / "d.npy").write_bytes(start + text + bytes(64))
        return path / "d.npy"

    return make


MISTAKES = {
    "not there": (lambda p: p / "no.npz", "no.npz: cannot be read"),
    "empty folder": (lambda p: p, "expected .npz"),
    "unknown kind": (broken(lambda p: (p / "d.npz").write_text("hello")), "not an .npz file"),
    "no x": (broken(lambda p: np.savez(p / "d.npz", y=LABELS)), "holds y; expected arrays x and y"),
    "too few labels": (
        broken(lambda p: np.savez(p / "d.npz", x=IMAGES, y=LABELS[:-1])),
        "y has 6 samples, x has 7",
    ),
    "objects": (
        broken(lambda p: np.savez(p / "d.npz", x=np.array([None, 1], object))),
        "holds arrays of Python objects",
    ),
    "channels last": (
        broken(lambda p: np.savez(p / "d.npz", x=np.zeros((2, 4, 5, 3)))),
        "x.transpose(0, 3, 1, 2)",
    ),
    "another size": (
        broken(lambda p: np.savez(p / "d.npz", x=np.zeros((2, 1, 5, 5)))),
        "samples are [1, 5, 5], the model takes [1, 4, 5]",
    ),
    "damaged compression": (
        broken(lambda p: damaged(packed_npz(p), 60)),
        "not an .npz file, or cut short",
    ),
    "damaged header": (npy_with("{'descr': (["), "not an .npy file, or cut short"),
    "absurd size": (
        npy_with(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({1 << 50},)}}"),
        "not an .npy file, or cut short",
    ),
    "no samples": (
        broken(lambda p: np.savez(p / "d.npz", x=IMAGES[:0], y=LABELS[:0])),
        "holds no samples",
    ),
}


@pytest.mark.parametrize(("make", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(make: Callable[[Path], Path], expected: str, tmp_path: Path) -> None:
    shape = (3, 4, 5) if "transpose" in expected else (1, 4, 5)
    with pytest.raises(UsageError) as caught:
        open_data(make(tmp_path), shape)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 3, 9, 30, 150])
@pytest.mark.parametrize("write", [mnist, packed_mnist], ids=lambda f: f.__name__)
def test_a_file_cut_short_is_refused(
    write: Callable[[Path], Path], cut: int, tmp_path: Path
) -> None:
    (file,) = write(tmp_path).glob("train-images*")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UsageError, match=r"IDX|bytes|cannot be read"):
        open_data(tmp_path, (1, 4, 5))


def test_the_order_of_batches_follows_from_seed_and_epoch() -> None:
    data = Dataset({"x": np.arange(10)}, np.arange(10), "here")

    def seen(seed: int, epoch: int) -> list[int]:
        return [int(i) for x, _ in data.batches(4, seed, epoch) for i in x]

    assert seen(1, 0) == seen(1, 0)
    assert len({tuple(seen(s, e)) for s in (0, 1) for e in (0, 1)}) == 4
    assert sorted(seen(0, 3)) == list(range(10))
    assert [len(x) for x, _ in data.batches(4)] == [4, 4, 2]
