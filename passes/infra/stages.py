"""The list of passes, in stages, each with a reason to be where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnnopt.passes.binary_output_int16 import BinaryOutputInt16
from bnnopt.passes.binary_weight_gradients import BinaryWeightGradients
from bnnopt.passes.bitmap import Bitmap
from bnnopt.passes.block_filters import BlockFilters
from bnnopt.passes.bnn_batch_norm_backward import BnnBatchNormBackward
from bnnopt.passes.drop_adam_second_moment import DropAdamSecondMoment
from bnnopt.passes.float16_activations import Float16Activations
from bnnopt.passes.float16_gradients import Float16Gradients
from bnnopt.passes.float16_state import Float16State
from bnnopt.passes.fuse_batch_norm_signs import FuseBatchNormSigns
from bnnopt.passes.fuse_updates import FuseUpdates
from bnnopt.passes.immediate_update import ImmediateUpdate
from bnnopt.passes.in_place import InPlace
from bnnopt.passes.infra.base import Pass
from bnnopt.passes.input_gradient_sums import InputGradientSums
from bnnopt.passes.int4_gradients import Int4Gradients
from bnnopt.passes.int8_gradients import Int8Gradients
from bnnopt.passes.int8_latents import Int8Latents
from bnnopt.passes.l1_batch_norm import L1BatchNorm
from bnnopt.passes.mask_pack import MaskPack
from bnnopt.passes.normalize_on_read import NormalizeOnRead
from bnnopt.passes.packed_products import PackedProducts
from bnnopt.passes.pool_batch_norm_backward import PoolBatchNormBackward
from bnnopt.passes.pool_before_join import PoolBeforeJoin
from bnnopt.passes.pool_index import PoolIndex
from bnnopt.passes.pow2_gradients import Pow2Gradients
from bnnopt.passes.prune_stored import PruneStored
from bnnopt.passes.rebuild_activations import RebuildActivations
from bnnopt.passes.recompute_binary_products import RecomputeBinaryProducts
from bnnopt.passes.redirect_consumers import RedirectConsumers
from bnnopt.passes.schedule import Schedule
from bnnopt.passes.sign_pack import SignPack
from bnnopt.passes.state_8bit import State8bit
from bnnopt.passes.stream_gradients import StreamGradients
from bnnopt.passes.ternary_pack import TernaryPack

LEVELS = ("O0", "O1", "O2", "O3")


@dataclass(frozen=True)
class Stage:
    """Passes that do one kind of thing, and why it is done at this point."""

    title: str
    reason: str
    passes: tuple[Pass, ...]


# The order in which passes run, whatever the order in which they are named.
STAGES = (
    Stage(
        "Change the numbers",
        "What is computed comes first: all that follows keeps, packs and maps what is there then.",
        (BinaryWeightGradients(), DropAdamSecondMoment(), L1BatchNorm(), Float16Activations()),
    ),
    Stage(
        "Keep less",
        "Between the forward and the backward pass. What needs no copy at all is found before "
        "anything is encoded: values that come from weights, then products and activations that "
        "can be computed again. Of encodings those that free more come before those that free "
        "less: a ReLU of which only the mask is read needs no bitmap.",
        (
            PoolBeforeJoin(),
            RedirectConsumers(),
            SignPack(),
            RecomputeBinaryProducts(),
            RebuildActivations(),
            TernaryPack(),
            PruneStored(),
            MaskPack(),
            PoolIndex(),
            Bitmap(),
        ),
    ),
    Stage(
        "Choose kernels",
        "When it is known what is kept as bits, products are mapped to the kernels that read bits, "
        "and batch norms to those that write them.",
        (
            PackedProducts(),
            InputGradientSums(),
            FuseBatchNormSigns(),
            BnnBatchNormBackward(),
            PoolBatchNormBackward(),
        ),
    ),
    Stage(
        "Narrow types",
        "Types follow the kernels: an operator that reads bits or int16 is known by now, and so is "
        "the one that has no form in half precision.",
        (
            BinaryOutputInt16(),
            Float16Gradients(),
            Int4Gradients(),
            Int8Gradients(),
            Float16State(),
            State8bit(),
            Int8Latents(),
        ),
    ),
    Stage(
        "Order and place",
        "Which nodes there are is settled: updates move to their gradients and into the kernels "
        "that make them, results move over what they are made from, and at last the nodes are "
        "put in the order that needs the least memory.",
        (
            BlockFilters(),
            ImmediateUpdate(),
            FuseUpdates(),
            NormalizeOnRead(),
            StreamGradients(),
            InPlace(),
            Pow2Gradients(),
            Schedule(),
        ),
    ),
)
PASSES: tuple[Pass, ...] = tuple(p for stage in STAGES for p in stage.passes)


def misplaced(passes: Sequence[Pass]) -> list[str]:
    """What is wrong with an order: the passes that run before one that they declare `after`."""
    names = [p.name for p in passes]
    return [
        f"{p.name} runs before {earlier}, but {reason}"
        for position, p in enumerate(passes)
        for earlier, reason in p.after.items()
        if earlier in names[position:]
    ]
