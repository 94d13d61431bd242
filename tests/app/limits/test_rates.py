"""A rate holds, also across processes and while the broker is away."""

import logging
import threading
import time

import pytest

from app.limits import rates
from app.limits.rates import Rate, RateBuckets


def rate(amount: int, *, period: int = 60, counted: str = "key_1", name: str = "requests") -> Rate:
    return Rate(name, counted, amount, period)


@pytest.fixture(params=["broker", "none"])
def buckets(request: pytest.FixtureRequest) -> RateBuckets:
    return RateBuckets(request.getfixturevalue("valkey_url") if request.param == "broker" else None)


def allowed(buckets: RateBuckets, asked: list[Rate], calls: int, cost: int = 1) -> int:
    return sum(not any(taken.wait for taken in buckets.take(asked, cost)) for _ in range(calls))


@pytest.mark.parametrize("amount", [1, 3, 7, 60, 997])
def test_a_period_holds_its_amount_and_no_more(buckets: RateBuckets, amount: int) -> None:
    # A period so long that no call's time comes back during the test.
    assert allowed(buckets, [rate(amount, period=86_400, counted=f"key_{amount}")], amount + 5) == amount


def test_what_is_left_and_when_there_is_more_is_told(buckets: RateBuckets) -> None:
    first, second, third = (buckets.take([rate(2, counted="told")])[0] for _ in range(3))
    assert (first.remaining, first.wait, first.full_in) == (1, 0, 30)
    assert (second.remaining, second.wait, second.full_in) == (0, 0, 60)
    assert (third.remaining, third.full_in) == (0, 60)
    assert 29 < third.wait <= 30


def test_it_fills_up_evenly(buckets: RateBuckets) -> None:
    asked = [rate(20, period=1, counted="even")]
    begun = time.monotonic()
    assert allowed(buckets, asked, 20) == 20
    time.sleep(0.3)
    again = allowed(buckets, asked, 15)
    assert 5 <= again <= 20 * (time.monotonic() - begun) + 1


def test_a_cost_is_taken_whole_or_not_at_all(buckets: RateBuckets) -> None:
    asked = [rate(1000, period=86_400, counted="bytes")]
    assert allowed(buckets, asked, 1, cost=600) == 1
    assert allowed(buckets, asked, 1, cost=600) == 0
    assert allowed(buckets, asked, 1, cost=400) == 1


def test_where_one_of_two_has_not_enough_none_is_taken_from(buckets: RateBuckets) -> None:
    wide, narrow = rate(10, period=86_400, counted="wide"), rate(2, period=86_400, counted="narrow")
    assert allowed(buckets, [wide, narrow], 6) == 2
    assert allowed(buckets, [wide], 20) == 8


def test_each_who_is_counted_and_each_name_has_a_bucket_of_its_own(buckets: RateBuckets) -> None:
    for counted, name in (("a", "requests"), ("b", "requests"), ("a", "predictions")):
        assert allowed(buckets, [rate(2, period=86_400, counted=counted, name=name)], 5) == 2


def test_processes_share_a_bucket_through_the_broker(valkey_url: str) -> None:
    asked, several = [rate(50, period=86_400, counted="shared")], [RateBuckets(valkey_url) for _ in range(4)]
    found: list[int] = []
    threads = [threading.Thread(target=lambda one=one: found.append(allowed(one, asked, 25))) for one in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) == 50


def test_a_broker_that_is_away_does_not_open_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    buckets = RateBuckets("redis://127.0.0.1:1/0")
    with caplog.at_level(logging.WARNING):
        assert allowed(buckets, [rate(3, period=86_400)], 10) == 3
    assert [record.message for record in caplog.records] == [
        "the broker is away (ConnectionError): each process counts its own calls"
    ]


def test_a_broker_that_comes_back_is_asked_again(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_RETRY_SECONDS", 0.05)
    buckets, other = RateBuckets("redis://127.0.0.1:1/0"), RateBuckets(valkey_url)
    asked = [rate(3, period=86_400, counted="back")]
    assert allowed(buckets, asked, 3) == 3
    buckets._script = other._script  # it is there again
    time.sleep(0.1)
    assert allowed(buckets, asked, 5) == 3
    assert allowed(other, asked, 5) == 0


def test_what_is_full_again_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_MOST_LOCAL", 10)
    buckets = RateBuckets(None)
    for place in range(200):
        buckets.take([rate(1_000_000, period=1, counted=f"key_{place}")])
    assert len(buckets._full_at) < 50
