"""A fleet on one machine: SuperLink and SuperNodes over loopback, a shard of the data each.

    python -m benchmarks.fleet FOLDER --data train --valid test --devices 10 --rounds 20
    python -m benchmarks.fleet FOLDER ... --split dirichlet --alpha 0.3 --strategy fedavg

Prints the server's JSON lines: accuracy, bytes each way, seconds. Needs ``bnnopt[flower]``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnnopt.fleet import RunOptions, write_app

BIN = Path(sys.executable).parent


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Fleet:
    """Processes of a SuperLink and its SuperNodes; `run` starts an app on them.

    Parameters
    ----------
    home : Path
        A folder for Flower's files and logs.
    devices : int
        How many SuperNodes, each with its ``partition-id``.
    """

    def __init__(self, home: Path, devices: int) -> None:
        self.home, self.devices, self._address = home, devices, f"127.0.0.1:{free_port()}"
        self._environment = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
        self._environment["PATH"] = f"{BIN}:{os.environ['PATH']}"
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{self._address}"\n'
            "insecure = true\n"
        )
        host, port = self._address.split(":")
        self._link = self._start("superlink", "--insecure", "--host", host, "--port", port)
        self._wait_for(int(port))
        for number in range(devices):
            self.add(number)

    def add(self, number: int) -> None:
        """Start a device, or one that died."""
        self.nodes[number] = self._start(
            *("supernode", "--insecure", "--superlink", self._address),
            *("--host", "127.0.0.1", "--port", str(free_port())),
            *("--node-config", f"partition-id={number} num-partitions={self.devices}"),
        )

    def run(self, app: Path, seconds: float) -> str:
        """Run an app to its end; what it said."""
        command = [str(BIN / "flwr"), "run", str(app), "here", "--stream"]
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

    def _start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = open(self.home / f"{kind}-{len(self.nodes)}.log", "ab")  # noqa: SIM115
        command = [str(BIN / f"flower-{kind}"), *arguments]
        return subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def _wait_for(self, port: int) -> None:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"no SuperLink on port {port}: see {self.home}")


@contextmanager
def fleet(devices: int) -> Iterator[Fleet]:
    """A fleet in a temporary folder, and its end."""
    home = Path(tempfile.mkdtemp(prefix="bnnopt-fleet-"))
    running = Fleet(home, devices)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(home, ignore_errors=True)


def measured(options: Mapping[str, Any], devices: int, seconds: float) -> str:
    """The server's lines of a run with these options."""
    with fleet(devices) as running:
        app, log = running.home / "app", running.home / "log.jsonl"
        places = {"log": str(log), "checkpoints": str(running.home / "state")}
        write_app(app, RunOptions.of(options, {"devices": devices, **places}), "a benchmark")
        said = running.run(app, seconds)
        return log.read_text() if log.exists() else said


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("folder", type=Path)
    for name in ("data", "valid"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--strategy", default="sign-majority")
    parser.add_argument("--split", default="iid")
    for name, default in (("alpha", 0.3), ("lr", 0.001), ("rate", 0.002), ("fraction", 1.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    for name, default in (("devices", 10), ("rounds", 10), ("epochs", 1), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--feedback", action="store_true")
    parser.add_argument("--seconds", type=float, default=7200.0)
    options = vars(parser.parse_args())
    devices, seconds = options.pop("devices"), options.pop("seconds")
    options["folder"] = str(options["folder"].resolve())
    for name in ("data", "valid"):
        options[name] = str(Path(options[name]).resolve())
    print(measured(options, devices, seconds), end="")


if __name__ == "__main__":
    main()
