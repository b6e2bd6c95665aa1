"""The command line; `main` is the entry point ``bnnopt``."""

from bnnopt.cli.commands import cli, main

__all__ = ["cli", "main"]
