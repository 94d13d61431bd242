"""Callers who ask without a pause, and hold each answer against the model that it says it comes from."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from tests.service import wait_until

TEXT = "where is my parcel"


class Callers:
    """Eight of them, at work while entered. Every answer must be a 200, wholly of one model, or a 404; and whoever asks
    after a 404 must get one.
    """

    def __init__(self, connect: Callable[[], httpx.Client], name: str, labels: Mapping[str, str]) -> None:
        """name: what they ask for. labels: the one that each model gives the text."""
        self.outcomes: list[str] = []  # the model that answered, or the code of a refusal
        self.wrong: list[str] = []
        self._connect, self._name, self._labels = connect, name, labels
        self._is_gone = False
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(8)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, outcome: str, times: int = 20) -> None:
        """Until so many more calls came out so."""
        have = self.outcomes.count(outcome)
        wait_until(
            lambda: self.outcomes.count(outcome) >= have + times, 30, lambda: f"{self.outcomes[-9:]} {self.wrong[:3]}"
        )

    def _ask(self) -> None:
        client = self._connect()
        try:
            while not self._over.is_set():
                was_gone = self._is_gone
                reply = client.post("/v1/predictions", json={"model": self._name, "input": [TEXT] * 3})
                self._judge(reply.status_code, reply.json(), was_gone=was_gone)
        except Exception as error:
            self.wrong.append(repr(error))
            raise
        finally:
            client.close()

    def _judge(self, status: int, body: dict[str, Any], *, was_gone: bool) -> None:
        if status == 404:
            self._is_gone = True
            self.outcomes.append(body["error"]["code"])
        elif was_gone:
            self.wrong.append(f"it came back: {status} {body}")
        elif status == 200 and {result["label"] for result in body["results"]} == {self._labels[body["model"]]}:
            self.outcomes.append(body["model"])
        else:
            self.wrong.append(f"{status} {body}")
