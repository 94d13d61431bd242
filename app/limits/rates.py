"""How much of a rate is left: a bucket for each who is counted, shared by all processes through the broker.

A bucket holds one period's amount and fills evenly (the generic cell rate algorithm: all that is kept is the time at
which it would be full). Without a broker, or while it is away, each process has buckets of its own: the limits stay.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

# One look at all buckets: none is taken from unless all have enough. Times in microseconds, by the broker's clock.
_SCRIPT = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local fulls, waits = {}, {}
local is_enough = true
for i, key in ipairs(KEYS) do
  local period, cost = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local full = math.max(tonumber(redis.call('GET', key) or '0'), now) - now
  fulls[i] = full
  waits[i] = math.max(0, full + cost - period)
  if waits[i] >= 1 then is_enough = false end
end
for i, key in ipairs(KEYS) do
  if is_enough then
    fulls[i] = fulls[i] + tonumber(ARGV[2 * i])
    redis.call('SET', key, string.format('%.0f', now + fulls[i]), 'PX', math.ceil(fulls[i] / 1000) + 1)
  end
  fulls[i], waits[i] = string.format('%.0f', fulls[i]), string.format('%.0f', waits[i])
end
return {fulls, waits}
"""
_TIMEOUT_SECONDS = 0.5
_RETRY_SECONDS = 5.0
_MOST_LOCAL = 10_000
_PREFIX = "minimand:rate:"


@dataclass(frozen=True)
class Rate:
    """So much in a period, of one who is counted."""

    name: str  # of what is counted, as replies call it
    counted: str  # the id of who is: a key or a project
    amount: int
    period: int  # seconds


@dataclass(frozen=True)
class Taken:
    """What a bucket holds after a look."""

    rate: Rate
    remaining: int
    full_in: int  # seconds
    wait: float  # seconds until there is enough; 0 where there was


class RateBuckets:
    """Buckets of any rates. Any thread may take from them."""

    def __init__(self, broker_url: str | None) -> None:
        self._client = None
        if broker_url is not None and broker_url.startswith(("redis://", "rediss://", "unix://")):
            import redis  # loads what traces its calls, where that is installed

            self._away: type[Exception] = redis.RedisError
            self._client = redis.Redis.from_url(
                broker_url, socket_connect_timeout=_TIMEOUT_SECONDS, socket_timeout=_TIMEOUT_SECONDS
            )
            self._script = self._client.register_script(_SCRIPT)
        self._away_until = 0.0
        self._full_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, rates: Sequence[Rate], cost: int = 1) -> list[Taken]:
        """Take so much from the bucket of each rate, or where one has not enough, from none."""
        found = self._take_shared(rates, cost) or self._take_local(rates, cost)
        return [
            Taken(rate, max(0, int((rate.period - full) * rate.amount / rate.period)), math.ceil(full), wait)
            for rate, (full, wait) in zip(rates, found, strict=True)
        ]

    def close(self) -> None:
        """Let go of the broker."""
        if self._client is not None:
            self._client.close()

    def _take_shared(self, rates: Sequence[Rate], cost: int) -> list[tuple[float, float]] | None:
        """Seconds until each is full, and until it has enough; None without a broker."""
        if self._client is None or time.monotonic() < self._away_until:
            return None
        arguments = [value for rate in rates for value in (rate.period * 1_000_000, _seconds(rate, cost) * 1_000_000)]
        try:
            fulls, waits = self._script(keys=[_PREFIX + _bucket(rate) for rate in rates], args=arguments)
        except self._away as error:
            if not self._away_until:
                log.warning("the broker is away (%s): each process counts its own calls", type(error).__name__)
            self._away_until = time.monotonic() + _RETRY_SECONDS
            return None
        self._away_until = 0.0
        return [(int(full) / 1e6, int(wait) / 1e6) for full, wait in zip(fulls, waits, strict=True)]

    def _take_local(self, rates: Sequence[Rate], cost: int) -> list[tuple[float, float]]:
        with self._lock:
            now = time.monotonic()
            if len(self._full_at) > _MOST_LOCAL:
                self._full_at = {name: at for name, at in self._full_at.items() if at > now}
            fulls = [max(0.0, self._full_at.get(_bucket(rate), now) - now) for rate in rates]
            costs = [_seconds(rate, cost) for rate in rates]
            waits = [
                max(0.0, full + one - rate.period - 1e-6) for rate, full, one in zip(rates, fulls, costs, strict=True)
            ]
            if not any(waits):
                fulls = [full + one for full, one in zip(fulls, costs, strict=True)]
                self._full_at |= {_bucket(rate): now + full for rate, full in zip(rates, fulls, strict=True)}
        return list(zip(fulls, waits, strict=True))


def _bucket(rate: Rate) -> str:
    return f"{rate.name}:{rate.counted}"


def _seconds(rate: Rate, cost: int) -> float:
    """How long the bucket takes to fill up by so much."""
    return cost * rate.period / rate.amount
