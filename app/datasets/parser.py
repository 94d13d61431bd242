"""Runs the parser over an upload, in a child process with limits: what it reads comes from strangers.

It knows no row and no request.
"""

import asyncio
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.errors import InvalidInputError, UnavailableError
from app.settings import Settings
from ml.data.report import IngestOptions, IngestReport
from ml.specs.errors import Problem, SpecError

log = logging.getLogger(__name__)

# Parsing takes a core and, at worst, `parse_memory_bytes`. More uploads than this wait their turn.
CONCURRENT_PARSERS = 2
WAIT_SECONDS = 30.0
LOOK_EVERY_SECONDS = 0.05
RETRY_SECONDS = 10

# Libraries that reserve address space by the gigabyte or by the core would meet the memory limit before the file does.
FRUGAL = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Parser:
    """Starts parsers, a few at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = threading.BoundedSemaphore(CONCURRENT_PARSERS)

    def parse(self, source: Path, destination: Path, options: IngestOptions) -> IngestReport:
        """Turn a file into Parquet, in a `place`. SpecError says what is wrong with it."""
        limited = options.model_copy(
            update={
                "max_bytes": self._settings.max_dataset_bytes,
                "max_rows": self._settings.max_dataset_rows,
                "memory_bytes": self._settings.parse_memory_bytes,
                "cpu_seconds": math.ceil(self._settings.parse_timeout_seconds),
            }
        )
        return _read_answer(self._run(source, destination, limited))

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One upload's turn. It is waited for without a thread: all routes share a few. Raises UnavailableError."""
        begun = time.monotonic()
        while not self._places.acquire(blocking=False):
            if time.monotonic() - begun > WAIT_SECONDS:
                raise UnavailableError(
                    "Too many uploads are being read. Nothing was stored; repeat the request.",
                    code="parsers_busy",
                    retry_after=RETRY_SECONDS,
                )
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        try:
            yield
        finally:
            self._places.release()

    def _run(self, source: Path, destination: Path, options: IngestOptions) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "ml.data.ingest", str(source), str(destination), options.model_dump_json()]
        timeout = self._settings.parse_timeout_seconds
        try:
            return subprocess.run(
                command, capture_output=True, timeout=timeout, env={**os.environ, **FRUGAL}, check=False
            )
        except subprocess.TimeoutExpired:
            raise InvalidInputError(
                f"reading the file took longer than {timeout:g} seconds, the most it may take. Split it.",
                code="parse_timeout",
                param="/file",
            ) from None


def _read_answer(child: subprocess.CompletedProcess[bytes]) -> IngestReport:
    if child.returncode < 0:
        raise InvalidInputError(
            f"reading the file was stopped by signal {-child.returncode}: it took more time or memory than it may, "
            "or is damaged. Split it, or write it again.",
            code="parser_stopped",
            param="/file",
        )
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        # Of what kind it was; its message may quote the file.
        log.error("the parser ended with %d and no answer: %s", child.returncode, last.partition(":")[0][:100])
        raise RuntimeError("the parser gave no answer") from None
    if "problems" in answer:
        raise SpecError([Problem(**problem) for problem in answer["problems"]])
    return IngestReport.model_validate(answer["report"])
