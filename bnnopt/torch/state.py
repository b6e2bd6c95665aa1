"""A module is lent to a run, and given back as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Run with copies of all parameters and buffers; afterwards everything is as it was.

    Values, attributes of modules and of parameters, modes, hooks, and the states of the random
    generators of torch, numpy and Python.
    """
    modules = [(m, _contents(m)) for m in module.modules()]
    tensors = [*module.parameters(), *module.buffers()]
    held = [(t, t.data, dict(t.__dict__), t.grad if t.is_leaf else None) for t in tensors]
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        for tensor in tensors:
            tensor.data = tensor.data.clone()
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for owner, contents in modules:
            _restore(owner, contents)
        for tensor, data, attributes, grad in held:
            tensor.data = data
            tensor.__dict__.clear()
            tensor.__dict__.update(attributes)
            if tensor.is_leaf:
                tensor.grad = grad
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])


def _contents(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module; dictionaries, such as that of its buffers, are copied."""
    copied = (dict, set)
    return {k: v.copy() if type(v) in copied else v for k, v in module.__dict__.items()}


def _restore(module: nn.Module, contents: dict[str, Any]) -> None:
    for name in module.__dict__.keys() - contents.keys():
        del module.__dict__[name]
    for name, value in contents.items():
        own = module.__dict__.get(name)
        if type(own) in (dict, set) and own is not None:
            own.clear()
            own.update(value)
        else:
            module.__dict__[name] = value


def trained_names(module: nn.Module) -> set[str]:
    """Names of the parameters that PyTorch trains; all of those that one parameter has."""
    return {n for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
