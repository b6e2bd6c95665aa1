"""A device's app that lies where it is device 1, and hangs where it is device 3.

Put in place of an app's client; the same code answers over a network and in one process.
"""

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from bnnopt.fleet.client import client_app

LIAR, DYING = 1, 3
honest = client_app()
app = ClientApp()


@app.train()
def train(message, context):  # type: ignore[no-untyped-def]
    """Honest in round 1, but for the liar: another lie each round."""
    number, device = message.content["config"]["round"], context.node_config["partition-id"]
    if device == DYING and number == 2:
        time.sleep(1000)
    return lie(message, number) if device == LIAR else honest(message, context)


def lie(message, number):  # type: ignore[no-untyped-def]
    """Random bits, wrong shapes, and numbers that are none."""
    bits, floats = np.random.default_rng(number).integers(0, 256, 57).astype(np.uint8), 120
    bits[-1] &= 3
    signs, averaged = {
        1: (bits, np.full(floats, 3.0, np.float32)),
        2: (bits[:20], np.zeros((3, 3), np.float32)),
        3: (bits, np.full(floats, np.nan, np.float32)),
    }[number]
    update = ArrayRecord({"signs": Array(signs), "averaged": Array(averaged)})
    metrics = MetricRecord({"num-examples": 64})
    return Message(content=RecordDict({"update": update, "metrics": metrics}), reply_to=message)
