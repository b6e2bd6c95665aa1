"""What an app's configuration says, for devices and server: `RunOptions` from Flower's mappings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bnnopt.errors import UsageError, did_you_mean

STRATEGIES = ("sign-majority", "binary-average", "fedavg")
SPLITS = ("none", "iid", "dirichlet")
Scalar = bool | float | int | str


@dataclass(frozen=True)
class RunOptions:
    """The keys of ``[tool.flwr.app.config]``; ``--node-config`` of a device goes before it.

    Attributes
    ----------
    folder : str
        What ``bnnopt optimize`` wrote; on each device and on the server.
    strategy : str
        ``sign-majority``, ``binary-average`` or ``fedavg``.
    rounds : int
    data : str
        Samples of a device; ``{partition}`` in it is the device's ``partition-id``.
    valid : str
        Samples that the server measures on after each round; none if empty.
    split : str
        ``none``, or how a data set that all devices share is divided among them: ``iid``, or
        ``dirichlet``, where each has other shares of the classes.
    alpha : float
        Of ``dirichlet``: the smaller, the more they differ.
    epochs : int
        Over a device's samples in a round.
    lr : float
        Of the devices.
    rate : float
        Of sign-majority: by how much a vote moves a weight; it falls to 0 as a cosine.
    weighted : bool
        Of sign-majority: votes count by the samples that a device trained on, up to twice the
        median; if not, each counts one.
    feedback : bool
        Of sign-majority: what a sign does not say is kept and added to the next update.
    fraction : float
        Share of the devices that take part in a round.
    devices : int
        The fewest that a round begins with.
    timeout : float
        Seconds that the server waits for a round's updates.
    seed : int
    checkpoints : str
        Folder to which the server writes its state after each round, ``state.safetensors``, from
        which it goes on, and ``network.safetensors``, for ``eval`` and ``export --checkpoint``.
    log : str
        File to which the server adds a JSON object each round; none if empty.
    """

    folder: str = "out"
    strategy: str = STRATEGIES[0]
    rounds: int = 10
    data: str = "train.npz"
    valid: str = ""
    split: str = SPLITS[0]
    alpha: float = 0.3
    epochs: int = 1
    lr: float = 0.001
    rate: float = 0.01
    weighted: bool = False
    feedback: bool = True
    fraction: float = 1.0
    devices: int = 2
    timeout: float = 600.0
    seed: int = 0
    checkpoints: str = "fleet"
    log: str = ""

    @classmethod
    def of(cls, *configs: Mapping[str, Scalar]) -> RunOptions:
        """From Flower's mappings, the last goes before the others; keys of others are left alone.

        Raises
        ------
        UsageError
            If a value is of another type, or is not one of those that there are.
        """
        given = {name: value for config in configs for name, value in config.items()}
        kinds = {f.name: type(f.default) for f in fields(cls)}
        taken = {n: _typed(n, given[n], kind) for n, kind in kinds.items() if n in given}
        options = cls(**taken)
        options._check()
        return options

    def _check(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("split", SPLITS)):
            value = getattr(self, name)
            if value not in known:
                hint = did_you_mean(value, known)
                raise UsageError(f"{name} {value!r}: expected {', '.join(known)}{hint}")
        for name in ("rounds", "epochs", "devices", "lr", "rate", "alpha", "timeout", "fraction"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.fraction > 1:
            raise UsageError(f"fraction is {self.fraction}, expected at most 1")


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UsageError(f"{name} is {value!r}, expected {kind.__name__}")
    return value
