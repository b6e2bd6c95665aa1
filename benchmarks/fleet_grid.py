"""A grid whose devices are contexts of one process: `bnnopt.fleet` without Flower's processes.

What the apps see is what they see over the network: the same messages in the same order, so that a
run ends with the same weights, to the last bit, as one of SuperLink and SuperNodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flwr.app as flwr
from flwr.supercore.task_identity import TaskIdentity

from bnnopt.fleet.client import client_app

Reply = Callable[[Any, Any], Any]  # message and context to a reply, or None


@contextmanager
def identity() -> Iterator[None]:
    """What Flower tells a process that it starts, and messages cannot be made without."""
    names = ("_run_id", "_node_id", "_task_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name in names:
        setattr(TaskIdentity, name, 1)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


class Devices:
    """A grid of `n` devices.

    Parameters
    ----------
    config : mapping
        The app's.
    n : int
    misbehave : mapping of int to callable, optional
        Devices by number, and what answers in their place.

    Attributes
    ----------
    contexts : dict of int to flwr.app.Context
        What each device keeps.
    received : list of (int, bool)
        For each message the device, and whether it got all weights.
    """

    def __init__(
        self, config: Mapping[str, Any], n: int, misbehave: Mapping[int, Reply] | None = None
    ) -> None:
        self.app, self.misbehave = client_app(), misbehave or {}
        self.contexts = {
            k: flwr.Context(
                1, k, {"partition-id": k, "num-partitions": n}, flwr.RecordDict(), dict(config)
            )
            for k in range(n)
        }
        self.received: list[tuple[int, bool]] = []

    def get_node_ids(self) -> Iterable[int]:
        """All devices."""
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> Any:
        """Replies of one device after the other."""
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.received.append((node, "arrays" in message.content))
            reply = self.misbehave.get(node, self.app)(message, self.contexts[node])
            if reply is not None:
                replies.append(reply)
        return replies
