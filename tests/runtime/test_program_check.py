"""Programs that would leave their memory: refused when opened, whatever the checksums say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import ArtifactError
from bnnopt.runtime.format import fields_checksum, file_checksum
from tests.graphs import write
from tests.passes.networks import NETWORKS

PLAN = "training.plan.json"
NETWORK = """g (float[batch,3,8,8] x) => (float[batch,3] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, v)
}"""
WEIGHTS = {"w": [4, 3, 3, 3], "b": [4], "v": [3, 4]}
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("net")
    bnnopt.optimize(write(NETWORK, WEIGHTS, scratch), batch_size=4).save(scratch / "out")
    return scratch / "out"


def crafted(whole: Path, folder: Path, edit: Edit) -> Path:
    """A copy with another program, and the checksums that belong to it."""
    shutil.copytree(whole, folder)
    program = json.loads((folder / PLAN).read_text())
    edit(program)
    (folder / PLAN).write_text(json.dumps(program))
    about = json.loads((folder / "artifact.json").read_text())
    version = about.pop("format")
    del about["checksum"]
    about["files"][PLAN] = file_checksum(folder / PLAN)
    about |= {"checksum": fields_checksum(about), "format": version}
    (folder / "artifact.json").write_text(json.dumps(about))
    return folder


def value(program: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in program["values"] if entry["name"] == name)


def step(program: dict[str, Any], operator: str) -> dict[str, Any]:
    return next(entry for entry in program["steps"] if entry["operator"].startswith(operator))


EDITS: dict[str, tuple[Edit, str]] = {
    "offset behind the arena": (lambda p: value(p, "c").update(offset=1 << 30), "leaves the arena"),
    "negative offset": (lambda p: value(p, "c").update(offset=-64), "leaves the arena"),
    "odd offset": (lambda p: value(p, "c").update(offset=1), "leaves the arena"),
    "longer value": (lambda p: value(p, "c")["shape"].__setitem__(2, 1 << 20), "leaves the arena"),
    "no bytes at all": (lambda p: value(p, "c")["shape"].__setitem__(2, 0), "has shape"),
    "smaller arena": (lambda p: p.update(arena_bytes=64), "leaves the arena"),
    "other dtype": (lambda p: value(p, "c").update(dtype="object"), "is of type 'object'"),
    "longer weight": (lambda p: value(p, "w")["shape"].__setitem__(0, 5), "its buffer"),
    "weight of a batch": (lambda p: value(p, "w")["shape"].__setitem__(0, -1), "grows with"),
    "no such buffer": (lambda p: value(p, "w").update(buffer="z"), "has no buffer 'z'"),
    "no such place": (lambda p: value(p, "w").update(place="heap"), "lies in 'heap'"),
    "no such value": (lambda p: step(p, "Conv")["inputs"].__setitem__(0, 9999), "uses none of"),
    "no outputs": (lambda p: step(p, "Conv").update(outputs=[]), "gives nothing"),
    "no inputs": (lambda p: step(p, "Conv").update(inputs=[]), "cannot run"),
    "negative index": (lambda p: step(p, "Conv")["inputs"].__setitem__(0, -2), "uses none of"),
    "scratch": (lambda p: step(p, "Conv").update(workspace_bytes=1 << 40), "scratch memory"),
    "group": (lambda p: step(p, "Conv")["attributes"].update(group=3), "are no product"),
    "pads": (lambda p: step(p, "Conv")["attributes"].update(pads=[3, 3, 3, 3]), "are no product"),
    "strides": (lambda p: step(p, "Conv")["attributes"].update(strides=[0, 1]), "a window of"),
    "text for a number": (lambda p: p.update(batch_size="4"), "the batch size is '4'"),
    "one label": (lambda p: value(p, "labels").update(shape=[]), "is one number"),
    "only a full batch": (lambda p: value(p, "r")["shape"].__setitem__(0, 4), "cannot run"),
    "no output": (lambda p: p.update(outputs=[]), "has no output"),
    "no roles": (lambda p: p.update(roles={}), "inputs have roles"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_leaves_its_memory_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    edit, expected = EDITS[name]
    folder = crafted(whole, tmp_path / "out", edit)
    with pytest.raises(ArtifactError, match=expected) as caught:
        TrainingSession(folder)
    assert "\n" not in str(caught.value)
    assert PLAN in str(caught.value)


def test_the_loss_is_no_tensor_that_is_freed_behind_its_reader(tmp_path: Path) -> None:
    """One of the bitmap codec grows with what it holds, and lies outside of the arena."""
    path = write(*NETWORKS["relu"], tmp_path)
    bnnopt.optimize(path, batch_size=4).save(tmp_path / "whole")

    def edit(program: dict[str, Any]) -> None:
        program["outputs"][0] = step(program, "BitmapPack")["outputs"][-1]

    with pytest.raises(ArtifactError, match="its loss is a tensor of the bitmap codec"):
        TrainingSession(crafted(tmp_path / "whole", tmp_path / "out", edit))


def test_the_control_opens(whole: Path, tmp_path: Path) -> None:
    TrainingSession(crafted(whole, tmp_path / "out", lambda program: None))


def test_a_step_that_no_kernel_runs(whole: Path, tmp_path: Path) -> None:
    """Known when it is to run: the numpy kernels are not loaded before."""
    session = TrainingSession(
        crafted(whole, tmp_path / "out", lambda p: step(p, "Relu").update(operator="Unheard"))
    )
    with pytest.raises(ArtifactError, match=r"\(Unheard\): cannot run"):
        session.step([[[[0.0] * 8] * 8] * 3] * 4, [0, 1, 2, 0])


# Packed operands: a network, the level, and an edit of a value that a kernel reads or writes whose
# geometry is another operand's.
def shorter(name: str, which: int = -1) -> Edit:
    """An operand of the first step of this operator is half as long along its last axis."""

    def edit(program: dict[str, Any]) -> None:
        entry = step(program, name)
        indices = [i for i in (*entry["inputs"], *entry["outputs"]) if i >= 0]
        spec = program["values"][indices[which]]
        spec["shape"] = [*spec["shape"][:-1], spec["shape"][-1] // 2 or 1]

    return edit


def attribute(name: str, **numbers: Any) -> Edit:
    return lambda program: step(program, name)["attributes"].update(numbers)


PACKED: dict[str, list[Edit]] = {
    "binary-O2": [
        *(shorter("BinaryConvInputGrad", i) for i in (0, 1, 2)),
        *(shorter("BinaryConvSign", i) for i in (0, 1, 2)),
        *(shorter("BinaryConv", i) for i in (0, 1, 2)),
        *(shorter("BinaryGemm", i) for i in (0, 1, 2)),
        *(shorter("L1BatchNormalizationSigns", i) for i in (0, 1, -1)),
        *(shorter("BatchNormalizationSignsGrad", i) for i in (0, 1, 2, 3, 5)),
        *(shorter("PackedMaxPoolGrad", i) for i in (0, 1, 2)),
        shorter("PackedMaxPool"),
        attribute("PackedMaxPoolGrad", kernel_width=0),
        attribute("PackedMaxPoolGrad", row_dilation=1 << 40),
        attribute("BinaryConv", x_shape=[64, 6, 6]),
        attribute("BinaryConv", w_shape=[4, 5, 5]),
        attribute("BinaryConv", pads=[4, 4, 4, 4]),
        attribute("BinaryConv", strides=[0, 0]),
        attribute("BinaryConv", dilations=[1 << 40, 1]),
        attribute("BinaryConv", group=2),
        attribute("BinaryGemm", x_shape=[1 << 20]),
        attribute("BinaryConvSign", kernel_shape=[9, 9]),
    ],
    "relu-O1": [
        *(shorter("BitmapPack", i) for i in (0, 1)),
        *(shorter("BitmapReluGrad", i) for i in (0, 1, 3)),
        *(shorter("BitmapConvWeightGrad", i) for i in (0, 2)),
        attribute("BitmapConvWeightGrad", shape=[40, 7, 7]),
    ],
    "binary-O1-bop": [
        *(shorter("BinaryGemmBopStep", i) for i in (1, 2, -1)),
        *(shorter("BinaryConvBopStep", i) for i in (1, 2, -1)),
        attribute("BinaryGemmBopStep", x_shape=[37]),  # as many bytes of bits as 36, more momenta
    ],
}


def onto(name: str, output: int, other: int) -> Edit:
    """What the first step of this operator counts by lies where it writes."""

    def edit(program: dict[str, Any]) -> None:
        entry = step(program, name)
        indices = [i for i in (*entry["inputs"], *entry["outputs"]) if i >= 0]
        written, counted = (program["values"][indices[i]] for i in (output, other))
        counted["offset"] = written["offset"]

    return edit


def scratch_onto(name: str, operand: int) -> Edit:
    def edit(program: dict[str, Any]) -> None:
        entry = step(program, name)
        indices = [i for i in (*entry["inputs"], *entry["outputs"]) if i >= 0]
        entry["workspace_offset"] = program["values"][indices[operand]]["offset"]

    return edit


OVERLAPPING = {
    "binary-O2": [
        onto("SoftmaxCrossEntropyGrad", -1, 2),  # labels
        onto("PackedMaxPoolGrad", -1, 1),
    ],
    "relu-O1": [
        scratch_onto("BitmapUnpack", -1),
        *(onto("BitmapUnpack", -1, i) for i in (0,)),
        onto("BitmapPack", 1, 2),
    ],
}
"""What a kernel counts by would change while it runs."""


@pytest.mark.slow
@pytest.mark.parametrize("network", PACKED)
def test_operands_that_are_too_small_or_overlap(network: str, tmp_path: Path) -> None:
    name, level, optimizer, *_ = [*network.split("-"), "adam"]
    path = write(*NETWORKS[name], tmp_path)
    bnnopt.optimize(path, batch_size=4, level=level, optimizer=optimizer).save(tmp_path / "whole")
    for number, edit in enumerate(PACKED[network]):
        folder = crafted(tmp_path / "whole", tmp_path / f"{number}", edit)
        with pytest.raises(ArtifactError, match=r"cannot run|its buffer|leaves the arena"):
            TrainingSession(folder)
    for number, edit in enumerate(OVERLAPPING.get(network, [])):
        folder = crafted(tmp_path / "whole", tmp_path / f"over{number}", edit)
        with pytest.raises(ArtifactError, match=r" meets | over "):
            TrainingSession(folder)
