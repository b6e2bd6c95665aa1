"""Strategies for Flower: devices send signs, and what comes back is their vote or their mean."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from bnnopt.errors import UsageError
from bnnopt.fleet.client import STALE
from bnnopt.fleet.layout import Bits, Layout, State, digest, pack_counts
from bnnopt.fleet.votes import (
    Update,
    by_samples,
    check,
    majority,
    mean_sign,
    moved,
    positives,
    trimmed_mean,
)

METRICS = ("loss", "accuracy")  # of a device's training; the median is told
HEADER = 256  # bytes around an array that is sent, at most
NOTHING = -math.inf  # the version of a device that holds none
MOST_VOTES = 16  # that are kept for devices that missed rounds; then 31 bits say more than floats


class Traffic:
    """What rounds cost the server.

    Attributes
    ----------
    down, up : int
        Bytes of the arrays in messages to devices and from them.
    seconds : float
        In which messages were made and replies counted.
    """

    def __init__(self) -> None:
        self.down = self.up = 0
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add what is done within to `seconds`."""
        begin = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begin

    def sent(self, messages: Iterable[Message]) -> Iterator[Message]:
        """The messages, counted."""
        for message in messages:
            self.down += n_bytes(message.content)
            yield message

    def received(self, replies: Iterable[Message]) -> list[Message]:
        """The replies, counted."""
        found = list(replies)
        self.up += sum(n_bytes(reply.content) for reply in found if not reply.has_error())
        return found


def n_bytes(content: RecordDict) -> int:
    """Of the arrays in a message, as they are sent."""
    return sum(len(a.data) for record in content.array_records.values() for a in record.values())


class SignStrategy(FedAvg):
    """What strategies have in common whose devices send `Update`s; sampling is Flower's.

    Parameters
    ----------
    layout : Layout
    first_round : int
        Rounds that were done before, where a server goes on.
    seed : int
        Of ties.
    **sampling
        ``fraction_train``, ``min_train_nodes``, ``min_available_nodes`` of `FedAvg`.

    Attributes
    ----------
    traffic : Traffic
        Of all rounds so far.
    refused : dict of int to str
        Why updates of the last round did not count, by device.
    """

    def __init__(
        self, layout: Layout, first_round: int = 0, seed: int = 0, **sampling: Any
    ) -> None:
        super().__init__(fraction_evaluate=0.0, **sampling)
        self.layout, self.traffic, self.refused = layout, Traffic(), dict[int, str]()
        self._first_round, self._seed = first_round, seed

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message for each device that takes part; see `FedAvg`."""
        plain = list(super().configure_train(server_round, arrays, config, grid))
        number = self._first_round + server_round
        with self.traffic.timed():
            made = [self._message(node.metadata.dst_node_id, arrays, number) for node in plain]
            return list(self.traffic.sent(made))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The state after a round, and means over the devices whose updates count."""
        with self.traffic.timed():
            return self._aggregated(server_round, replies)

    def _aggregated(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self.refused = {}
        number, updates, metrics = self._first_round + server_round, [], []
        for reply in self.traffic.received(replies):
            node = reply.metadata.src_node_id
            try:
                updates.append(self._checked(reply))
                metrics.append(_metrics(reply.content))
            except UsageError as error:
                self.refused[node] = str(error)
                log(INFO, "\t> device %d does not count: %s", node, error)
        if not updates:
            return None, None
        random = np.random.default_rng([self._seed, number])
        state = self._next(updates, number, random)
        told = MetricRecord({"devices": len(updates), "refused": len(self.refused)})
        for name in METRICS:
            values = [found[name] for found in metrics if name in found]
            if values:
                told[name] = float(np.median(values))
        return self.record(state), told

    def record(self, state: State) -> ArrayRecord:
        """A state as it is sent to a device that has none."""
        return ArrayRecord({"signed": Array(state.signed), "averaged": Array(state.averaged)})

    def state(self, record: ArrayRecord) -> State:
        """The reverse of `record`."""
        return State(record["signed"].numpy(), record["averaged"].numpy())

    def _checked(self, reply: Message) -> Update:
        """What a device sent, where it may count."""
        if reply.has_error():
            raise UsageError(reply.error.reason or "it replied with an error")
        update = _update(reply.content, self.layout)
        check(update, self.layout)
        return update

    def _message(self, node: int, arrays: ArrayRecord, number: int) -> Message:
        config = ConfigRecord({"round": number, "version": number - 1})
        content = RecordDict({"arrays": arrays, "config": config})
        return Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)

    def _next(self, updates: list[Update], number: int, random: np.random.Generator) -> State:
        raise NotImplementedError


class BinaryAverage(SignStrategy):
    """Devices send their binary weights; their mean is the latent weights of the next round.

    Yang et al., arXiv:2110.02226. One bit a weight goes up. Of n devices a mean is one of n + 1
    numbers: what comes down is how many have a positive sign, in as few bits as n takes.
    """

    _counts: ArrayRecord | None = None  # of the last round; the first sends all weights
    _devices = 0

    def _message(self, node: int, arrays: ArrayRecord, number: int) -> Message:
        if self._counts is None:
            return super()._message(node, arrays, number)
        config = ConfigRecord({"round": number, "devices": self._devices})
        content = RecordDict({"counts": self._counts, "config": config})
        return Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)

    def _next(self, updates: list[Update], number: int, random: np.random.Generator) -> State:
        positive = positives([update.signs for update in updates], self.layout.n_signed)
        averaged, self._devices = trimmed_mean(updates), len(updates)
        planes = pack_counts(positive, self._devices)
        self._counts = ArrayRecord({"planes": Array(planes), "averaged": Array(averaged)})
        return State(mean_sign(positive, self._devices), averaged)


class SignMajority(SignStrategy):
    """Devices send the signs of what they would add to each weight, and get the majority's back.

    Bernstein et al., arXiv:1810.05291. One bit a weight goes each way: a device that took part in
    the round before gets the vote alone, one that missed rounds their votes. A new one starts from
    its folder, where these are the server's first weights; else it is sent all.

    Parameters
    ----------
    layout : Layout
    state : State
        Before the first of these rounds.
    rate : callable
        Number of a round to the length of its step.
    weighted : bool
        Whether votes count by the samples of a device.
    **others
        See `SignStrategy`.
    """

    def __init__(
        self,
        layout: Layout,
        state: State,
        rate: Callable[[int], float],
        weighted: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(layout, **others)
        self._state, self._rate, self._weighted = state, rate, weighted
        self._votes: deque[tuple[Bits, float]] = deque(maxlen=MOST_VOTES)
        self._first = digest(state)
        self._folder = 0 if self._first_round == 0 else NOTHING  # the version of a folder's weights
        self._held: dict[int, float] = {}  # the version that a device has, by its number

    def _message(self, node: int, arrays: ArrayRecord, number: int) -> Message:
        missed = number - 1 - self._held.get(node, self._folder)
        if missed > len(self._votes):
            return super()._message(node, arrays, number)
        votes = list(self._votes)[len(self._votes) - int(missed) :]
        signs = np.empty((len(votes), self.layout.n_bytes_of_signs), np.uint8)
        for row, (bits, _) in zip(signs, votes, strict=True):
            row[:] = bits
        config = ConfigRecord(
            {
                "round": number,
                "version": number - 1,
                "from": number - 1 - int(missed),
                "first": self._first,
                "rates": [rate for _, rate in votes],
            }
        )
        record = ArrayRecord(
            {
                "signs": Array(signs),
                "averaged": Array(self._state.averaged),
            }
        )
        content = RecordDict({"votes": record, "config": config})
        return Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See `SignStrategy`; remembers who has which state."""
        found = list(replies)
        for reply in found:
            node = reply.metadata.src_node_id
            if not reply.has_error():
                self._held[node] = self._first_round + server_round - 1
            elif reply.error.code == STALE:
                self._held[node] = NOTHING
        arrays, metrics = super().aggregate_train(server_round, found)
        if arrays is None:  # a round without a vote moves nothing
            nothing = np.zeros(self.layout.n_bytes_of_signs, np.uint8)
            self._votes.append((nothing, 0.0))
        return arrays, metrics

    def _next(self, updates: list[Update], number: int, random: np.random.Generator) -> State:
        weights = by_samples(updates) if self._weighted else None
        signs = [update.signs for update in updates]
        vote = majority(signs, self.layout.n_signed, random, weights)
        rate = self._rate(number)
        self._votes.append((vote, rate))
        self._state = moved(self._state, vote, rate, trimmed_mean(updates))
        return self._state


class PlainAverage(FedAvg):
    """Flower's own averaging of all parameters in float32, with its bytes counted."""

    def __init__(self, layout: Layout, **sampling: Any) -> None:
        super().__init__(fraction_evaluate=0.0, **sampling)
        self.layout, self.traffic, self.refused = layout, Traffic(), dict[int, str]()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See `FedAvg`."""
        made = super().configure_train(server_round, arrays, config, grid)
        return list(self.traffic.sent(made))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See `FedAvg`."""
        with self.traffic.timed():
            arrays, metrics = super().aggregate_train(server_round, self.traffic.received(replies))
        return arrays, metrics

    def record(self, state: State) -> ArrayRecord:
        """A state by the names of the parameters."""
        return ArrayRecord({name: Array(a) for name, a in self.layout.named(state).items()})

    def state(self, record: ArrayRecord) -> State:
        """The reverse of `record`."""
        return self.layout.flat({name: array.numpy() for name, array in record.items()})


def _metrics(content: RecordDict) -> dict[str, float]:
    """What a device says of its training, where these are numbers."""
    record: Any = content.metric_records.get("metrics", {})
    found = {name: record[name] for name in METRICS if name in record}
    return {n: float(v) for n, v in found.items() if isinstance(v, int | float) and np.isfinite(v)}


def _update(content: RecordDict, layout: Layout) -> Update:
    """What a message holds; nothing of it is decoded that is longer than it may be."""
    try:
        record: Any = content["update"]
        metrics: Any = content["metrics"]
        arrays: dict[str, Any] = {}
        for name, size in (
            ("signs", layout.n_bytes_of_signs),
            ("averaged", 4 * layout.n_averaged),
        ):
            data = record[name].data
            if len(data) > size + HEADER:
                raise UsageError(f"{name} takes {len(data)} bytes, expected {size}")
            arrays[name] = record[name].numpy()
        return Update(arrays["signs"], arrays["averaged"], int(metrics["num-examples"]))
    except (KeyError, TypeError, ValueError, EOFError, OSError) as error:
        raise UsageError(f"it sent no update that can be read ({error!r})") from None
