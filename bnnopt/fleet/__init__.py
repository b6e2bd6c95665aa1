"""Training on many devices over Flower: one bit a weight each way.

Needs the extra ``flower``; nothing of the device side imports it. ``bnnopt fleet init`` writes an
app that ``flwr run`` starts. `bnnopt.fleet.layout` and `votes` are what travels and how it counts,
`strategies` puts that into Flower's strategies, `client` and `server` are the two apps.
"""

from bnnopt.fleet.app import write_app
from bnnopt.fleet.layout import Layout, State
from bnnopt.fleet.options import RunOptions
from bnnopt.fleet.votes import Update

__all__ = ["Layout", "RunOptions", "State", "Update", "write_app"]
