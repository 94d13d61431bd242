"""A round that is run again and again, in a thread of its own, whatever befalls one of them."""

import logging
import threading

from app.errors import UnavailableError

log = logging.getLogger(__name__)


class Periodic:
    """Runs `run_once` every so many seconds, the first time after as many."""

    def __init__(self, name: str, every_seconds: float) -> None:
        """name: what a round does, as a word for the log."""
        self._name = name
        self._every_seconds = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present round."""
        self._stopping.set()
        self._thread.join(timeout=10)

    def run_once(self) -> None:
        """One round."""
        raise NotImplementedError

    def _run(self) -> None:
        while not self._stopping.wait(self._every_seconds):
            try:
                self.run_once()
            except UnavailableError as error:
                log.warning("%s failed, trying again: %s", self._name, error.__cause__)
            except Exception:  # the boundary of this thread: without it nobody here would run the round again
                log.exception("%s failed, trying again", self._name)
