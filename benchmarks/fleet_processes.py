"""Flower's processes on this machine: a SuperLink, and SuperNodes over loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

BIN = Path(sys.executable).parent
CONFIG = '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{}"\n{}\n'
Process = subprocess.Popen[bytes]


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
    trust : Path, optional
        The certificate by which devices know the SuperLink; without, nothing is encrypted.

    Attributes
    ----------
    nodes : dict of int to subprocess.Popen
        Each with the processes that it starts in a group of its own.
    """

    def __init__(
        self, home: Path, options: Sequence[str] = ("--insecure",), trust: Path | None = None
    ) -> None:
        self.home, self._port, self._options = home, free_port(), options
        self._trust = ("--insecure",) if trust is None else ("--root-certificates", str(trust))
        self._environment = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
        self._environment["PATH"] = f"{BIN}:{os.environ['PATH']}"
        known = "insecure = true" if trust is None else f'root-certificates = "{trust}"'
        (home / "config.toml").write_text(CONFIG.format(self._address, known))
        self.nodes: dict[int, Process] = {}
        self._link = self._start_link()

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def add(self, number: int, config: str, *options: str) -> Process:
        """Start a device, or one that died."""
        self.nodes[number] = self._start(
            *(f"supernode-{number}", "flower-supernode", "--superlink", self._address),
            *("--host", "127.0.0.1", "--port", str(free_port()), "--node-config", config),
            *(*self._trust, *options),
        )
        return self.nodes[number]

    def run(self, app: Path, seconds: float, *options: str) -> str:
        """Run an app to its end; what it said."""
        return self.flwr("run", str(app), "here", "--stream", *options, seconds=seconds)

    def start(self, app: Path) -> Process:
        """Run an app, and go on at once."""
        return self._start("run", "flwr", "run", str(app), "here", "--stream")

    def flwr(self, *arguments: str, seconds: float = 60) -> str:
        """Give a command of Flower's; what it said."""
        command = [str(BIN / "flwr"), *arguments]
        ended = subprocess.run(
            command,
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        return ended.stdout + ended.stderr

    def wait(self, devices: int, seconds: float = 60) -> None:
        """Until so many devices are there."""
        end = time.monotonic() + seconds
        while (
            self.flwr("supernode", "list", "here", "--format", "json").count('"online"') < devices
        ):
            if time.monotonic() > end:
                raise TimeoutError(f"{devices} devices are not there: see {self.home}")

    def kill(self, number: int) -> None:
        """A device dies, with all that it runs."""
        _signal(self.nodes.pop(number), signal.SIGKILL)

    def kill_link(self) -> None:
        """The SuperLink and the server's app die."""
        _signal(self._link, signal.SIGKILL)

    def restart_link(self) -> None:
        """Start it where it was; it knows nothing of before."""
        self._link = self._start_link()

    def stop(self) -> None:
        """End all processes that this started."""
        for process in (*self.nodes.values(), self._link):
            process.terminate()
        for process in (*self.nodes.values(), self._link):
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            _signal(process, signal.SIGKILL)

    def _start_link(self) -> Process:
        place = ("--host", "127.0.0.1", "--port", str(self._port))
        started = self._start("superlink", "flower-superlink", *self._options, *place)
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self._port)) == 0:
                    return started
            time.sleep(0.1)
        raise TimeoutError(f"no SuperLink on port {self._port}: see {self.home}")

    def _start(self, name: str, program: str, *arguments: str) -> Process:
        command = [str(BIN / program), *arguments]
        with open(self.home / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.home,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _signal(process: Process, number: int) -> None:
    """To a process and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


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
