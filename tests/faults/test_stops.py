"""Processes that hang instead of dying: their claim is lost, and what they do when they wake touches nothing."""

import os
import signal
import sqlite3
import time

import pytest

from tests.conftest import wait_until_gone
from tests.faults.site import Site
from tests.service import LEASE_SECONDS, PATIENCE_SECONDS, events_of, reasons_of, wait_until

pytestmark = pytest.mark.proof


def send(number: signal.Signals, *pids: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def is_writable(site: Site) -> bool:
    """Whether nobody holds SQLite's write lock. PostgreSQL locks rows, and has none like it."""
    file = site.service.home / "minimand.sqlite3"
    if not file.exists():
        return True
    connection = sqlite3.connect(file, timeout=0.2, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


@pytest.mark.row("SIGSTOP to worker and trainer for two leases, then SIGCONT", runs=4)
def test_a_worker_that_slept_through_its_lease_finds_itself_fenced_off(site: Site) -> None:
    first = site.service.start_worker()
    job = site.submit()
    pid, _ = site.wait_until_under_way(job)
    second = site.service.start_worker()

    site.strike(lambda: send(signal.SIGSTOP, first.pid, pid))
    while not is_writable(site):  # SQLite's lock belongs to a process, and one that sleeps while it writes keeps it
        send(signal.SIGCONT, first.pid, pid)
        time.sleep(0.05)
        send(signal.SIGSTOP, first.pid, pid)
    slept_at = time.monotonic()
    wait_until(lambda: reasons_of(events_of(site.client, job)).count("claimed") == 2, PATIENCE_SECONDS)
    time.sleep(max(0.0, 2 * LEASE_SECONDS - (time.monotonic() - slept_at)))
    send(signal.SIGCONT, first.pid, pid)
    wait_until_gone({pid}, 10)
    wait_until(lambda: "the claim was lost" in first.said(), PATIENCE_SECONDS, first.said)
    site.settle()
    claims = [event for event in events_of(site.client, job) if event["data"].get("reason") == "claimed"]
    assert f":{second.pid}:" in claims[1]["message"]
    # The first is well again: it takes the next job by itself.
    assert second.stop() == 0
    site.submit()
    site.settle()


@pytest.mark.row("a trainer hangs while its worker renews the lease", runs=3)
def test_a_trainer_that_makes_no_progress_is_replaced(site: Site) -> None:
    site.service.start_worker(progress_timeout_seconds=10)
    job = site.submit()
    pid, _ = site.wait_until_under_way(job)
    site.strike(lambda: os.kill(pid, signal.SIGSTOP))
    wait_until_gone({pid}, PATIENCE_SECONDS)
    site.settle()
    (requeued,) = [event for event in events_of(site.client, job) if event["data"].get("reason") == "requeued"]
    assert "made no progress for 10 s" in requeued["message"]
