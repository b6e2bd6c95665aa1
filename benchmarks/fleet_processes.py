"""Flower's processes on this machine: a SuperLink, and SuperNodes over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
CONFIG = '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{}"\ninsecure = true\n'


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Fleet:
    """A SuperLink, to which SuperNodes are added; `run` starts an app on them.

    Parameters
    ----------
    home : Path
        A folder for Flower's files and logs.
    options : sequence of str
        Of the SuperLink.

    Attributes
    ----------
    nodes : dict of int to subprocess.Popen
    """

    def __init__(self, home: Path, options: Sequence[str] = ("--insecure",)) -> None:
        self.home, self._port = home, free_port()
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
        self._environment["PATH"] = f"{BIN}:{os.environ['PATH']}"
        (home / "config.toml").write_text(CONFIG.format(self._address))
        self._link = self._start(
            "superlink", "superlink", *options, "--host", "127.0.0.1", "--port", f"{self._port}"
        )
        self._wait()

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def add(self, number: int, config: str) -> None:
        """Start a device, or one that died."""
        self.nodes[number] = self._start(
            *(f"supernode-{number}", "supernode", "--insecure", "--superlink", self._address),
            *("--host", "127.0.0.1", "--port", str(free_port()), "--node-config", config),
        )

    def run(self, app: Path, seconds: float, *options: str) -> str:
        """Run an app to its end; what it said."""
        command = [str(BIN / "flwr"), "run", str(app), "here", "--stream", *options]
        ended = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=seconds
        )
        return ended.stdout + ended.stderr

    def stop(self) -> None:
        """End all processes that this started."""
        for process in (*self.nodes.values(), self._link):
            process.terminate()
        for process in (*self.nodes.values(), self._link):
            process.wait(30)

    def _start(self, name: str, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(BIN / f"flower-{kind}"), *arguments]
        with open(self.home / f"{name}.log", "ab") as log:
            return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def _wait(self) -> None:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"no SuperLink on port {self._port}: see {self.home}")


@contextmanager
def fleet(home: Path, devices: int) -> Iterator[Fleet]:
    """A SuperLink and so many SuperNodes, and their end."""
    running = Fleet(home)
    try:
        for number in range(devices):
            running.add(number, f"partition-id={number} num-partitions={devices}")
        yield running
    finally:
        running.stop()


def simulate(home: Path, app: Path, devices: int, seconds: float) -> str:
    """Run an app by the simulation engine; what it said."""
    running = Fleet(home, ("--insecure", "--simulation"))
    size = f"num_supernodes={devices} client_resources_num_cpus=1"
    try:
        return running.run(app, seconds, "--federation-config", size)
    finally:
        running.stop()
