"""F29: a pool's queue ends somewhere, and one principal cannot fill it alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kms_service.domain.errors import Overloaded, QuotaExceeded
from kms_service.rpc.pool import CallPool, FairShare, refuse_if_overloaded

TIMEOUT_S = 10.0


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture
def pool(gate: threading.Event) -> Iterator[CallPool]:
    pool = CallPool("test", threads=2, queue=4)
    yield pool
    gate.set()
    pool.shutdown()


def work(gate: threading.Event) -> str:
    refuse_if_overloaded()
    gate.wait(TIMEOUT_S)
    return "done"


def test_f29_beyond_the_queue_calls_are_refused_at_once(
    pool: CallPool, gate: threading.Event
) -> None:
    accepted = [pool.submit(work, gate) for _ in range(6)]
    refused = [pool.submit(work, gate) for _ in range(20)]
    for future in refused:
        with pytest.raises(Overloaded):
            future.result(TIMEOUT_S)
    assert not any(future.done() for future in accepted)
    gate.set()
    assert [future.result(TIMEOUT_S) for future in accepted] == ["done"] * 6
    # Room again.
    assert pool.submit(work, gate).result(TIMEOUT_S) == "done"


def test_failed_calls_make_room_too(pool: CallPool) -> None:
    def fail() -> None:
        raise RuntimeError

    for _ in range(50):
        with pytest.raises(RuntimeError):
            pool.submit(fail).result(TIMEOUT_S)


def test_cancelled_calls_make_room_too(pool: CallPool, gate: threading.Event) -> None:
    accepted = [pool.submit(work, gate) for _ in range(6)]
    assert accepted[-1].cancel()
    last = pool.submit(work, gate)
    gate.set()
    assert last.result(TIMEOUT_S) == "done"


def test_f29_share_holds_only_while_others_wait(pool: CallPool, gate: threading.Event) -> None:
    fair = FairShare(pool, share=1)
    with fair.turn("a"), fair.turn("a"), fair.turn("a"):
        assert not pool.crowded
    for _ in range(6):
        pool.submit(work, gate)
    assert pool.crowded
    with fair.turn("a"):
        with pytest.raises(QuotaExceeded), fair.turn("a"):
            pass
        with fair.turn("b"):
            pass
    with fair.turn("a"):
        pass
