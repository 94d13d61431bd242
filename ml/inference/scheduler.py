"""Which rows go through a network together, and the threads that send them. It knows no texts, heads or HTTP.

Idle, a row goes at once; busy, rows gather while passes run. A pass takes the row whose turn it is and those nearest
to it in length, as long as that costs less than passes of their own, within a budget (decision 0022).
"""

import logging
import threading
import time
from collections.abc import Iterable, Sequence, Sized
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ml.inference.cost import PassCost

log = logging.getLogger(__name__)

Outputs = NDArray[np.float32]

# A pass is no longer than this, so that the next caller need not wait longer for its turn; unless one row is.
BUDGET_SECONDS = 0.025
# Nor is it cut shorter than this many times its fixed cost: then a twentieth at most goes to what no row needs.
BUDGET_OVER_FIXED = 20
# A row that has waited longer than both goes before rows that are merely of a fitting length: ten full passes, and
# twice what it would have waited had all gone in their turn, where waits spread evenly up to twice their median. A line
# that is long itself makes nobody late: in their turn rows of any length meet, and 14% of the work went to padding.
LATE_SECONDS = 0.25
LATE_OVER_MEDIAN = 4


class Network(Protocol):
    """What rows go through."""

    @property
    def session(self) -> object:
        """Rows of networks with the same session may share a pass, through any of the networks."""

    @property
    def cost(self) -> PassCost:
        """Of a pass through the session."""

    def encode(self, rows: Sequence[Any], /, *, networks: Sequence[Any], alone: bool = False) -> Outputs:
        """(N, …), in the order given. networks: whose each row is, all of them with this session.

        alone: no other pass runs or waits, so that it may take the whole machine.
        """


class Observer(Protocol):
    """Is told of passes, by the threads that ran them."""

    def observe_pass(self, rows: int, tokens: int, padding: int, /) -> None:
        """Of a pass that gave outputs: its rows, the tokens they hold together, and how many filled them up to the
        longest.
        """


class FullError(Exception):
    """More rows wait than may. waited: how long the first of them has, in seconds."""

    def __init__(self, waiting: int, limit: int, waited: float) -> None:
        super().__init__(f"{waiting} rows wait, of at most {limit}")
        self.waiting, self.limit, self.waited = waiting, limit, waited


class ClosedError(Exception):
    """The scheduler takes no more rows, and has let go of those that waited."""


@dataclass(frozen=True)
class Answer:
    """A request's outputs, row by row, and where its time went: in passes that held rows of it, and waiting."""

    outputs: Outputs
    pass_seconds: float
    queue_seconds: float


@dataclass(eq=False)
class Request:
    """Rows that came together and are answered together."""

    rows: int
    arrived: float
    future: "Future[Answer]" = field(default_factory=Future)
    outputs: dict[int, Outputs] = field(default_factory=dict)  # by place
    passes: int = 0  # that hold rows of it just now
    since: float = 0.0  # when the first of those began
    pass_seconds: float = 0.0  # in which one or more did, before


@dataclass(eq=False)
class Row:
    """One row of a request, waiting.

    turn: when it would have started had its request the machine to itself, in seconds of the clock. So the later rows
    of a long list let others go first that came meanwhile.
    """

    network: Network
    item: Sized
    turn: float
    request: Request
    place: int

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.item)


_turn = attrgetter("turn")


def enqueue(network: Network, items: Sequence[Sized], now: float) -> list[Row]:
    """The rows of a new request."""
    request, turn, rows = Request(len(items), now), now, []
    for place, item in enumerate(items):
        rows.append(Row(network, item, turn, request, place))
        turn += network.cost.seconds(1, len(item))
    return rows


def next_batch(waiting: Sequence[Row], now: float, free: int = 1) -> list[Row]:
    """The rows of the next pass, the first of them the one whose turn it is.

    While a late row is left behind, only late rows ride along, in their turn; else the nearest in length do.
    free: how many threads could take a pass now; while others have nothing to do, one takes no more than its share.
    """
    first = min(waiting, key=_turn)
    cost = first.network.cost
    mates = sorted((row for row in waiting if row.network.session is first.network.session), key=_turn)
    budget = max(BUDGET_SECONDS, BUDGET_OVER_FIXED * cost.fixed)
    if free > 1:
        budget = min(budget, cost.share((row.length for row in mates), free) * (1 + 1e-9))
    patience = max(LATE_SECONDS, LATE_OVER_MEDIAN * (now - mates[len(mates) // 2].turn))
    late = [row for row in mates if row.turn < now - patience]
    batch = _fill([first], late, budget)
    if len(batch) >= len(late):
        length = first.length
        batch = _fill(batch, sorted(mates, key=lambda row: abs(row.length - length)), budget)
    return batch


def _fill(batch: list[Row], candidates: Iterable[Row], budget: float) -> list[Row]:
    """Those of the candidates that cost less here than alone, in their order, while the budget lasts."""
    cost = batch[0].network.cost
    batch, taken = list(batch), set(batch)
    longest = max(row.length for row in batch)
    seconds = cost.seconds(len(batch), longest)
    for row in candidates:
        if row in taken:
            continue
        if cost.seconds(len(batch) + 1, longest) > budget:
            break
        padded = max(longest, row.length)
        grown = cost.seconds(len(batch) + 1, padded)
        if grown <= min(budget, seconds + cost.seconds(1, row.length)):
            batch.append(row)
            longest, seconds = padded, grown
    return batch


class Scheduler:
    """Takes requests from any thread, and runs their passes on threads of its own, each by itself."""

    def __init__(self, max_rows: int, threads: int = 1, observer: Observer | None = None) -> None:
        """max_rows: that may wait. threads: passes that run at one time."""
        self._max_rows = max_rows
        self._observer = observer
        self._waiting: list[Row] = []
        self._running = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, name=f"model-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait for a pass."""
        return len(self._waiting)

    def check_room(self, rows: int) -> None:
        """Raise what `submit` would for so many rows now."""
        with self._changed:
            self._check_room(rows)

    def submit(self, network: Network, items: Sequence[Sized]) -> "Future[Answer]":
        """Queue a request, all of its rows or none. Who cancels the future before its end takes back what still waits.

        Raises FullError when they are too many with those that wait, ClosedError after `close`.
        """
        rows = enqueue(network, items, time.perf_counter())
        with self._changed:
            self._check_room(len(rows))
            self._waiting += rows
            self._changed.notify(len(rows))
        return rows[0].request.future

    def close(self) -> None:
        """Let the running passes end; requests that are not answered by then fail with ClosedError."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _check_room(self, rows: int) -> None:
        if self._is_closed:
            raise ClosedError
        if len(self._waiting) + rows > self._max_rows:
            now = time.perf_counter()
            waited = now - min(map(_turn, self._waiting), default=now)
            raise FullError(len(self._waiting), self._max_rows, waited)

    def _run(self) -> None:
        while taken := self._take():
            batch, is_alone = taken
            try:
                items, networks = zip(*((row.item, row.network) for row in batch), strict=True)
                outputs = batch[0].network.encode(items, networks=networks, alone=is_alone)
            except Exception as error:  # the thread outlives what a network does
                log.exception("a pass over %d rows failed", len(batch))
                self._release(batch)
                for request in {row.request for row in batch}:
                    _end(request.future, error)
            else:
                for request, answer in self._deliver(batch, outputs):
                    _end(request.future, answer)
                if self._observer is not None:
                    lengths = [row.length for row in batch]
                    padded = len(lengths) * max(lengths)
                    self._observer.observe_pass(len(lengths), sum(lengths), padded - sum(lengths))

    def _take(self) -> tuple[list[Row], bool] | None:
        """The next pass's rows, once there are some, and whether it is alone; None once the scheduler is closed."""
        with self._changed:
            while True:
                # A request that has ended while rows of it wait was cancelled, or failed in an earlier pass.
                self._waiting = [row for row in self._waiting if not row.request.future.done()]
                if self._is_closed:
                    for request in {row.request for row in self._waiting}:
                        _end(request.future, ClosedError())
                    self._waiting = []
                    return None
                if self._waiting:
                    now = time.perf_counter()
                    batch = next_batch(self._waiting, now, len(self._threads) - self._running)
                    taken = set(batch)
                    self._waiting = [row for row in self._waiting if row not in taken]
                    is_alone = not self._running and not self._waiting
                    self._running += 1
                    for request in {row.request for row in batch}:
                        request.since = request.since if request.passes else now
                        request.passes += 1
                    return batch, is_alone
                self._changed.wait()

    def _release(self, batch: Sequence[Row]) -> float:
        """A pass has ended: at the time that is returned."""
        with self._changed:
            ended = time.perf_counter()
            self._running -= 1
            for request in {row.request for row in batch}:
                request.passes -= 1
                if not request.passes:
                    request.pass_seconds += ended - request.since
        return ended

    def _deliver(self, batch: Sequence[Row], outputs: Outputs) -> list[tuple[Request, Answer]]:
        """Give each row its output; the requests that have all of theirs now."""
        with self._changed:
            ended = self._release(batch)
            for row, output in zip(batch, outputs, strict=True):
                row.request.outputs[row.place] = output
            return [
                (request, _answer(request, ended))
                for request in {row.request for row in batch}
                if len(request.outputs) == request.rows
            ]


def _answer(request: Request, ended: float) -> Answer:
    outputs = np.stack([request.outputs[place] for place in range(request.rows)])
    return Answer(outputs, request.pass_seconds, ended - request.arrived - request.pass_seconds)


def _end(future: "Future[Answer]", outcome: Answer | Exception) -> None:
    with suppress(InvalidStateError):  # whoever asked has left
        if isinstance(outcome, Answer):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
