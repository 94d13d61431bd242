"""The embedded broker, with a real Valkey."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from app.broker import EmbeddedBroker
from app.supervisor import HomeInUseError, hold_home
from tests.conftest import wait_for_valkey, wait_until_gone

# Starts the broker of a home, tied to itself, prints its pid and waits to be killed.
_PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from app.broker import EmbeddedBroker
broker = EmbeddedBroker(Path(sys.argv[1]))
broker.prepare()
environment = {**os.environ, "MINIMAND_PARENT_PID": str(os.getpid())}
print(subprocess.Popen(broker.command(), env=environment).pid, flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def _running(broker: EmbeddedBroker) -> Iterator[subprocess.Popen[bytes]]:
    broker.prepare()
    process = subprocess.Popen(broker.command())
    try:
        wait_for_valkey(broker.url)
        yield process
    finally:
        process.terminate()
        process.wait(10)


def test_password_is_required(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    with _running(broker):
        without = redis.Redis.from_url("redis://" + broker.url.partition("@")[2])
        with pytest.raises(redis.exceptions.AuthenticationError):
            without.ping()
        without.close()


def test_data_password_and_port_survive_a_restart(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    with _running(broker), redis.Redis.from_url(broker.url) as client:
        client.lpush("queue", "wake up")
    url = broker.url
    again = EmbeddedBroker(tmp_path)
    with _running(again), redis.Redis.from_url(again.url) as client:
        assert again.url == url
        assert client.lrange("queue", 0, -1) == [b"wake up"]


def test_a_home_with_spaces_and_quotes_works(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / 'my "own" \\ home')
    with _running(broker), redis.Redis.from_url(broker.url) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_nobody_else_can_read_the_password(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.prepare()
    assert stat.S_IMODE((tmp_path / "broker").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "broker").iterdir()} == {0o600}
    password = broker.url.split(":")[2].split("@")[0]
    assert password not in " ".join(broker.command())


def test_a_port_taken_by_somebody_else_is_replaced(tmp_path: Path) -> None:
    first, second = EmbeddedBroker(tmp_path / "a"), EmbeddedBroker(tmp_path / "b")
    with _running(first):
        (tmp_path / "b" / "broker").mkdir(parents=True)
        (tmp_path / "b" / "broker" / "url").write_text(first.url)
        with _running(second):
            assert second.url != first.url


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_is_gone_when_its_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server_pid = int(parent.stdout.readline())
        wait_for_valkey(EmbeddedBroker(tmp_path).url)
        parent.kill()
        wait_until_gone({server_pid}, timeout_seconds=10)


def test_an_orphan_is_stopped_before_the_next_start(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.prepare()
    environment = {name: value for name, value in os.environ.items() if name != "MINIMAND_PARENT_PID"}
    orphan = subprocess.Popen(broker.command(), env=environment)
    wait_for_valkey(broker.url)
    with redis.Redis.from_url(broker.url) as client:
        client.set("kept", "yes")
    url = broker.url
    with _running(broker), redis.Redis.from_url(broker.url) as client:
        assert orphan.wait(5) == 0
        assert broker.url == url
        assert client.get("kept") == b"yes"


def test_a_stale_pid_file_harms_nobody(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    broker.prepare()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / "broker" / "valkey.pid").write_text(f"{bystander.pid}\n")
    broker.prepare()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_second_holder_of_a_home_is_refused(tmp_path: Path) -> None:
    with (
        hold_home(tmp_path),
        pytest.raises(HomeInUseError, match=rf"in use by another `minimand up` \(process {os.getpid()}\).*--home"),
        hold_home(tmp_path),
    ):
        pass


def test_a_killed_holder_lets_go_of_its_home(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from app.supervisor import hold_home\n"
    code += "with hold_home(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(HomeInUseError), hold_home(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    time.sleep(0.05)
    with hold_home(tmp_path):
        pass
