"""F29: a pool's queue ends somewhere, and one principal cannot fill it alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kms_service.domain.errors import Overloaded, QuotaExceeded
from kms_service.domain.identity import principal_of
from kms_service.rpc.pool import CallPool, FairShare, refuse_if_overloaded

TIMEOUT_S = 10.0
A, A2, A3, A4 = (principal_of("spiffe://test.example/a", digit * 64) for digit in "1234")
B = principal_of("spiffe://test.example/b")


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
    with fair.turn(A), fair.turn(A), fair.turn(A):
        assert not pool.crowded
    for _ in range(6):
        pool.submit(work, gate)
    assert pool.crowded
    with fair.turn(A):
        with pytest.raises(QuotaExceeded), fair.turn(A):
            pass
        with fair.turn(B):
            pass
    with fair.turn(A):
        pass


def test_f29_a_principal_runs_no_more_than_its_limit_though_nobody_waits(pool: CallPool) -> None:
    fair = FairShare(pool, share=2, of_principal=2)
    with fair.turn(A), fair.turn(A2):
        for again in (A, A2):
            with pytest.raises(QuotaExceeded) as caught, fair.turn(again):
                pass
        assert caught.value.retry_after_s > 0
        with fair.turn(B), fair.turn(B):
            pass
    with fair.turn(A2):
        pass


def test_f29_an_instance_runs_no_more_than_its_limit(pool: CallPool) -> None:
    fair = FairShare(pool, share=2, of_principal=3, of_instance=1)
    with fair.turn(A):
        with pytest.raises(QuotaExceeded), fair.turn(A):
            pass
        # Four of its instances would be more than the principal may.
        with fair.turn(A2), fair.turn(A3), pytest.raises(QuotaExceeded), fair.turn(A4):
            pass
        with fair.turn(A4):
            pass


def test_f29_failed_calls_end_their_turn_and_leave_nothing(pool: CallPool) -> None:
    fair = FairShare(pool, share=2, of_principal=1, of_instance=1)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), fair.turn(A):
            raise ZeroDivisionError
    with fair.turn(A), pytest.raises(QuotaExceeded), fair.turn(A):
        pass
    assert not fair._running
    assert not fair._running_of_instance
