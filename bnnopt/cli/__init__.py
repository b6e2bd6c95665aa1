"""The command line; `main` is the entry point ``bnnopt``."""

from bnnopt.cli.commands import cli, main
from bnnopt.cli.comparing import compare
from bnnopt.cli.demo import demo
from bnnopt.cli.emitting import emit
from bnnopt.cli.exporting import export
from bnnopt.cli.fleet import fleet
from bnnopt.cli.looking import inspect, summary
from bnnopt.cli.training import evaluate, predict, train

for command in (inspect, summary, compare, train, evaluate, predict, export, emit, demo, fleet):
    cli.add_command(command)

__all__ = ["cli", "main"]
