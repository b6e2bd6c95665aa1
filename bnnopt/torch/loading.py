"""Trained weights, back in the module that they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bnnopt.errors import UsageError

if TYPE_CHECKING:
    from bnnopt.runtime import TrainingSession


def load(module: nn.Module, session: TrainingSession) -> None:
    """Put the weights and running statistics of a session into a module.

    ``num_batches_tracked`` of a batch norm becomes the steps that the session has done, where that
    is more than it was.

    Parameters
    ----------
    module : torch.nn.Module
        The module that was exported, or one with the same parameters.
    session : TrainingSession
        Of the compiled folder.

    Raises
    ------
    UsageError
        If a weight of the module has another shape, or none of its names is known; the module is
        unchanged then.
    """
    state: dict[str, Tensor] = module.state_dict(keep_vars=True)
    found = {name: v for name, v in session.parameters().items() if name in state}
    if not found:
        raise UsageError(
            f"{type(module).__name__}: the session has none of its parameters; expected the module "
            "that was exported"
        )
    for name, array in found.items():
        if tuple(state[name].shape) != array.shape:
            raise UsageError(
                f"{type(module).__name__}: {name!r} has shape {list(state[name].shape)}, expected "
                f"{list(array.shape)}; take the module that was exported"
            )
    with torch.no_grad():
        for name, array in found.items():
            state[name].copy_(torch.from_numpy(array.copy()))
        for name, value in state.items():
            owner, _, own = name.rpartition(".")
            is_loaded = f"{owner}.running_mean".lstrip(".") in found
            if own == "num_batches_tracked" and is_loaded and module.get_submodule(owner).training:
                value.clamp_(min=session.steps_done)
