"""The binary MLP's training step under jax's jit, as a contestant of `benchmarks.steps`.

The file stands alone, so that an interpreter with jax and numpy runs it; `contestant.py` calls it.
The weights are those of the exported file, so that the first loss can be held to ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-5
RATE, BETA_1, BETA_2, ADAM_EPSILON = 1e-3, 0.9, 0.999, 1e-8


@jax.custom_vjp
def sign(x: Any) -> Any:
    """-1 or +1, +1 for 0; backward that of a clipped identity."""
    return jnp.where(x >= 0, 1.0, -1.0)


sign.defvjp(lambda x: (sign(x), x), lambda x, dy: (dy * (jnp.abs(x) <= 1),))


def loss_of(parameters: dict[str, Any], x: Any, labels: Any) -> Any:
    """Mean cross-entropy of five binary layers, each with a batch norm."""
    for i in range(1, 6):
        if i > 1:
            x = sign(x)
        y = x @ sign(parameters[f"fc{i}.weight"]).T
        y = (y - y.mean(0)) / jnp.sqrt(y.var(0) + EPSILON)
        x = y * parameters[f"bn{i}.weight"] + parameters[f"bn{i}.bias"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], axis=1)
    return -chosen.mean()


@jax.jit
def train_step(state: tuple[Any, Any, Any, Any], x: Any, labels: Any) -> tuple[Any, Any]:
    """One step of Adam, of parameters, both moments and the number of steps."""
    parameters, m, v, t = state
    loss, gradients = jax.value_and_grad(loss_of)(parameters, x, labels)
    t = t + 1
    m = jax.tree.map(lambda m, g: BETA_1 * m + (1 - BETA_1) * g, m, gradients)
    v = jax.tree.map(lambda v, g: BETA_2 * v + (1 - BETA_2) * g * g, v, gradients)
    rate = RATE * jnp.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
    step = lambda p, m, v: p - rate * m / (jnp.sqrt(v) + ADAM_EPSILON)  # noqa: E731
    return (jax.tree.map(step, parameters, m, v), m, v, t), loss


def contestant(folder: Path, x: Any, labels: Any, memory: Any) -> Callable[[], float]:
    """The step, compiled, whose buffers are given back to it."""
    memory.start()
    weights = np.load(folder / "weights.npz")
    parameters = {name: jnp.asarray(weights[name]) for name in weights.files}
    m, v = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
    state = [(parameters, m, v, jnp.zeros(()))]
    data, target = jnp.asarray(x), jnp.asarray(labels)
    compiled = jax.jit(train_step, donate_argnums=0).lower(state[0], data, target).compile()

    def step() -> float:
        state[0], loss = compiled(state[0], data, target)
        return float(loss)

    return step
