"""Runs of SuperLink and SuperNodes over loopback end with the bits of runs in this process.

Needs the extra ``flower``, and OpenSSL's and OpenSSH's commands for the one over TLS.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr.app")
from benchmarks.fleet_grid import Devices, Reply, identity
from benchmarks.fleet_processes import Fleet, fleet
from bnnopt.fleet import RunOptions, write_app
from bnnopt.fleet.server import serve
from tests.fleet import misbehaving
from tests.fleet.setting import DEVICES, log_of, options, parameters, write_base

PAGE = Path(__file__).parents[2] / "docs" / "fleet.md"
pytestmark = [pytest.mark.fleet, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (path := tmp_path / "home").mkdir()
    return path


def app_of(running: Fleet, config: Mapping[str, Any]) -> Path:
    write_app(running.home / "app", RunOptions.of(config), "a test")
    return running.home / "app"


def in_process(
    config: Mapping[str, Any], scratch: Path, n: int, misbehave: Mapping[int, Reply] | None = None
) -> dict[str, bytes]:
    """The weights after a run with this configuration."""
    (scratch / "process").mkdir()
    changed = {**config, "checkpoints": str(scratch / "process" / "fleet")}
    with identity():
        serve(Devices(changed, n, misbehave), RunOptions.of(changed))
    return parameters(changed)


def wait_for_round(config: Mapping[str, Any], number: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not (Path(config["log"]).exists() and log_of(dict(config))[-1]["round"] >= number):
        assert time.monotonic() < end, f"round {number} did not end"
        time.sleep(0.2)


def test_a_device_dies_and_another_lies(base: Path, tmp_path: Path, home: Path) -> None:
    """One is killed while it trains in round 2, one sends another kind of lie each round."""
    config = options(base, tmp_path, rounds=3, devices=DEVICES - 1, timeout=20.0)
    with fleet(home, DEVICES) as running:
        running.wait(DEVICES)
        app = app_of(running, config)
        shutil.copy(misbehaving.__file__, app / "fleet_app" / "client.py")
        started = running.start(app)
        wait_for_round(config, 1)
        time.sleep(8)  # it has its message now
        running.kill(misbehaving.DYING)
        assert started.wait(180) == 0
    assert [line["refused"] for line in log_of(config)] == [0, 0, 1, 1]

    def dying(message: Any, context: Any) -> Any:
        is_first = message.content["config"]["round"] == 1
        return misbehaving.honest(message, context) if is_first else None

    others = {misbehaving.LIAR: misbehaving.app, misbehaving.DYING: dying}
    assert parameters(config) == in_process(config | {"log": ""}, tmp_path, DEVICES, others)


def commands(*programs: str) -> list[str]:
    """Those of docs/fleet.md that begin so, for this machine."""
    lines = PAGE.read_text(encoding="utf-8").replace("SERVER", "localhost").splitlines()
    return [line.strip() for line in lines if line.startswith(tuple(f"    {p} " for p in programs))]


def test_a_secure_server_is_killed_and_goes_on(base: Path, tmp_path: Path, home: Path) -> None:
    """Over TLS, with keys of nodes: the devices find the new SuperLink by themselves."""
    config = options(base, tmp_path, rounds=2, devices=2)
    (keys,) = commands("ssh-keygen")
    made = [*commands("openssl", "printf"), keys, keys.replace("pi-0", "pi-1")]
    subprocess.run(["sh", "-ec", "\n".join(made)], cwd=home, check=True, capture_output=True)
    (link,) = commands("flower-superlink --ssl-ca-certfile")
    running = Fleet(home, link.split()[1:-2], home / "ca.pem")
    try:
        for k in range(2):
            assert "registered" in running.flwr("supernode", "register", f"pi-{k}.pub", "here")
            key = ("--auth-supernode-private-key", f"pi-{k}")
            running.add(k, f"partition-id={k} num-partitions=2", *key)
        stranger = running.add(2, "partition-id=1 num-partitions=2")
        running.wait(2)
        app = app_of(running, config)
        running.start(app)
        wait_for_round(config, 1)
        running.kill_link()
        running.restart_link()
        running.wait(2)
        running.run(app, 180)
        assert stranger.poll() not in (None, 0)
    finally:
        running.stop()
    assert [line["round"] for line in log_of(config)] == [0, 1, 1, 2]
    assert parameters(config) == in_process(config, tmp_path, 2)
