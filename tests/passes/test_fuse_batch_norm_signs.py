"""fuse-batch-norm-signs: batch norm writes bits where nothing else is read of its output."""

from __future__ import annotations

from bnnopt.passes import PASSES
from bnnopt.passes.fuse_batch_norm_signs import FuseBatchNormSigns
from bnnopt.training_step import TrainingStep
from tests.graphs import apply, node, ops
from tests.passes.networks import small

PASS = FuseBatchNormSigns()
NAMES = [p.name for p in PASSES if p.lossless]
EARLIER = NAMES[: NAMES.index(PASS.name)]


def packed(name: str, *without: str) -> TrainingStep:
    return small(name).with_passes(*[n for n in EARLIER if n not in without])


def test_signs_and_mask_come_from_one_kernel() -> None:
    step = packed("binary")
    signs = [str(n.outputs[0].name) for n in step.graph if n.op_type == "BinarizePack"]
    assert apply(PASS, step) == (2, [])
    assert "BatchNormalizationTraining" not in ops(step)
    assert "RangePack" not in ops(step)
    fused = node(step, "BatchNormalizationSigns")
    assert fused.outputs[0].name in signs
    assert fused.outputs[1].name == "n1.mask"
    assert {"zero": 1.0, "low": -1.0, "high": 1.0}.items() <= {
        name: attribute.value for name, attribute in fused.attributes.items()
    }.items()
    assert apply(PASS, step) == (0, [])


def test_what_is_not_read_is_left_out() -> None:
    step = packed("binary", "mask-pack")  # then the estimator reads the output itself
    count, skipped = apply(PASS, step)
    assert count == 0
    assert all(reason.startswith("'n1' is read by") for _, reason in skipped[:1])
    net = small("binary", ste=["identity"])
    step = net.with_passes(*EARLIER)
    assert apply(PASS, step) == (2, [])
    signs, mask, *_ = node(step, "BatchNormalizationSigns").outputs
    assert signs.name
    assert not mask.name


def test_a_shortcut_is_a_reason() -> None:
    step = packed("residual")
    count, skipped = apply(PASS, step)
    assert count == 0
    add = node(step, "Add")
    assert skipped == [("a", f"'a' is read by Add {add.name!r}")]
