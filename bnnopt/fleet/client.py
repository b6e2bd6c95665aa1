"""The device's side of a fleet: a Flower ``ClientApp`` that trains a compiled network."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from bnnopt.errors import BnnoptError, UsageError
from bnnopt.fleet.layout import Layout, State, digest, pack_signs, unpack_counts, unpack_signs
from bnnopt.fleet.options import RunOptions
from bnnopt.fleet.shards import PARTITION, open_shard
from bnnopt.fleet.votes import mean_sign, moved
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.data.normalization import choose

REFUSED, STALE = 1, 2  # codes of an error that a device replies with
KEPT, ABOUT = "bnnopt-state", "bnnopt-about"


def client_app() -> ClientApp:
    """The app of a device; each message is a round: receive, train, send."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        try:
            return Message(content=_trained(message, context), reply_to=message)
        except _StaleError as error:
            return Message(error=Error(STALE, str(error)), reply_to=message)
        except BnnoptError as error:
            return Message(error=Error(REFUSED, str(error)), reply_to=message)

    return app


class _StaleError(Exception):
    """The device does not hold the state that the votes start from."""


def _trained(message: Message, context: Context) -> RecordDict:
    options = RunOptions.of(context.run_config, context.node_config)
    config: Any = message.content["config"]
    session = TrainingSession(options.folder)
    if options.strategy == "fedavg":
        return _trained_plainly(message, session, options, context)
    layout = Layout.of(session, options.strategy == "binary-average")
    state = _received(message, context, layout, session)
    session.load_parameters(layout.named(state))
    before = layout.flat(session.parameters())  # as the step stores it: in float16, perhaps
    metrics = _fit(session, options, context, int(config["round"]))
    after = layout.flat(session.parameters())
    random = np.random.default_rng([options.seed, int(config["round"]), _number(context)])
    record = context.state.array_records.get(KEPT)
    if options.strategy == "binary-average":  # all weights come each round: none is kept
        signs = pack_signs(after.signed, random)
    else:
        moves = after.signed - before.signed
        if options.feedback and record is not None and "residual" in record:
            moves += record["residual"].numpy()
        signs = pack_signs(moves, random)
        _keep(context, state, int(config["version"]))
        if options.feedback:
            said = unpack_signs(signs, layout.n_signed) * np.float32(np.abs(moves).mean())
            context.state.array_records[KEPT]["residual"] = Array(moves - said)
    update = ArrayRecord({"signs": Array(signs), "averaged": Array(after.averaged)})
    return RecordDict({"update": update, "metrics": metrics})


def _trained_plainly(
    message: Message, session: TrainingSession, options: RunOptions, context: Context
) -> RecordDict:
    """As Flower's own strategies have it: all parameters in float32, both ways."""
    arrays: Any = message.content["arrays"]
    session.load_parameters({name: array.numpy() for name, array in arrays.items()})
    config: Any = message.content["config"]
    metrics = _fit(session, options, context, int(config["server-round"]))
    trained = session.parameters()
    return RecordDict(
        {
            "arrays": ArrayRecord({name: Array(trained[name]) for name in arrays}),
            "metrics": metrics,
        }
    )


def _received(
    message: Message, context: Context, layout: Layout, session: TrainingSession
) -> State:
    """The state that the server has: as it is, as counts, or as votes on what the device holds."""
    content = message.content
    config: Any = content["config"]
    if "arrays" in content:
        arrays: Any = content["arrays"]
        return State(arrays["signed"].numpy(), arrays["averaged"].numpy())
    if "counts" in content:
        counts: Any = content["counts"]
        positive = unpack_counts(counts["planes"].numpy(), layout.n_signed)
        return State(mean_sign(positive, config["devices"]), counts["averaged"].numpy())
    state = _held(context, config) or layout.flat(session.parameters())
    if config["from"] == 0 and digest(state) != config["first"]:
        raise _StaleError("the folder of this device holds other weights than the server's")
    votes: Any = content["votes"]
    rates: Any = config["rates"]
    for bits, rate in zip(votes["signs"].numpy(), rates, strict=True):
        state = moved(state, bits, rate, votes["averaged"].numpy())
    return state


def _held(context: Context, config: Any) -> State | None:
    """What the device kept of the version that votes start from; of the folder's it is None."""
    kept = context.state.array_records.get(KEPT)
    about = context.state.config_records.get(ABOUT)
    if kept is not None and about is not None and about["version"] == config["from"]:
        return State(kept["signed"].numpy(), kept["averaged"].numpy())
    if config["from"] == 0:
        return None
    raise _StaleError("this device has no state, or another one than the votes start from")


def _keep(context: Context, state: State, version: int) -> None:
    context.state.array_records[KEPT] = ArrayRecord(
        {"signed": Array(state.signed), "averaged": Array(state.averaged)}
    )
    context.state.config_records[ABOUT] = ConfigRecord({"version": version})


def _fit(
    session: TrainingSession, options: RunOptions, context: Context, number: int
) -> MetricRecord:
    """Train on this device's samples, and say how that went."""
    data = open_shard(session, options, context.node_config)
    if len(data) < session.least_training_batch:
        raise UsageError(
            f"{data.source}: {len(data)} samples, expected {session.least_training_batch} or more"
        )
    normalization, _ = choose(data)
    history = session.fit(
        data,
        options.epochs,
        schedule=lambda step: options.lr,
        seed=options.seed + number,
        normalization=normalization,
    )
    last = history.epochs[-1]
    told = {"num-examples": len(data), "loss": last.loss, "accuracy": last.accuracy}
    return MetricRecord({name: value for name, value in told.items() if value is not None})


def _number(context: Context) -> int:
    """That a run can be repeated with; what Flower numbers a node with is another one each time."""
    own = context.node_config.get(PARTITION)
    return own if isinstance(own, int) and own >= 0 else context.node_id % 2**32
