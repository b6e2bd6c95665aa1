"""The keys of ONNX metadata under which a training step says what its nodes and values are.

Nothing else is kept beside the graph, so that a saved file can be read back. A test holds that no
other key is used.
"""

from __future__ import annotations

from typing import Final


class Key:
    """What is written on nodes and values, by whom, and who reads it."""

    # Nodes: forward, rebuild, backward or update. By `Emitter` and autodiff; for all rooms.
    PHASE: Final = "phase"
    # Graph inputs: a `Role`. By autodiff; for passes, plan, artifact.
    ROLE: Final = "role"
    # Graph outputs: the input of which it is the next value. By autodiff, and by passes that
    # rewrite optimiser steps; for analysis, plan, artifact.
    UPDATES: Final = "updates"
    # Optimiser steps: the parameter. By autodiff; for the passes about gradients and state, and
    # for `TrainingStep.gradients`.
    PARAMETER: Final = "parameter"
    # "loss" on the constant from which all gradients come: by autodiff, for float16-gradients.
    # "made" on an optimiser step that makes its gradient: by fuse-updates, for artifact and verify.
    GRADIENT: Final = "gradient"
    # The value of the loss that has a score for each class. By autodiff; for artifact.
    SCORES: Final = "scores"
    # Nodes that encode a value, "sign1": by sign-pack, for what rebuilds values from signs.
    CODEC: Final = "codec"
    # Nodes, "output:input": which result is written over which operand. By in-place and
    # stream-gradients; for analysis and plan.
    IN_PLACE: Final = "in_place"
    # Values: the share of elements that are not zero. By calibration; for bitmap.
    DENSITY: Final = "density"
    # Values: the pass that made them as they are. By the manager of the passes; for the page.
    MADE_BY: Final = "made_by"
