"""Threads that run calls, and what happens when there are too many calls.

gRPC hands every call to a pool at once, and a plain pool queues without end: under a burst all
callers wait until their deadlines pass. Here each pool has a bounded queue, into which a call comes
once its request is whole (`reception`). A call beyond it is handed to a spare thread, which only
refuses it, with RetryInfo (F29); grpc's own `maximum_concurrent_rpcs` could not say when to retry.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from kms_service.domain.errors import Overloaded, QuotaExceeded
from kms_service.domain.identity import Principal
from kms_service.rpc.reception import Reception, end_overloaded

P = ParamSpec("P")
T = TypeVar("T")

_REFUSING_THREADS = 2
_MOST_REFUSALS = 1000
"""That wait to be told; calls beyond are ended without a thread, and without a time to retry."""
_refused = threading.local()


class CallPool(ThreadPoolExecutor):
    """A pool with a bounded queue. Handlers ask `refuse_if_overloaded()` first.

    Args:
        name: of the threads.
        threads: calls that run at once.
        queue: calls that may wait.
    """

    def __init__(self, name: str, threads: int, queue: int) -> None:
        super().__init__(max_workers=threads, thread_name_prefix=name)
        self._refusals = ThreadPoolExecutor(_REFUSING_THREADS, f"{name}-refuse")
        self._refusing = 0
        self._reception = Reception()
        self._capacity = threads + queue
        self._half_full = threads + queue // 2
        self._pending = 0
        self._pending_lock = threading.Lock()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        def start(request: Callable[[], object]) -> None:
            run: Callable[..., T] = fn
            self._enter(run, *args[:4], request, *args[5:])

        if self._reception.receive(args, start):
            return _over()  # for grpc, which counts calls by it: a call that waits costs no thread
        return self._enter(fn, *args, **kwargs)

    def _enter(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._pending_lock:
            taken = self._pending < self._capacity
            self._pending += taken
        if not taken:
            return self._refuse(fn, *args, **kwargs)
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:
            self._finished()
            raise
        future.add_done_callback(self._finished)
        return future

    def _refuse(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._pending_lock:
            too_many = self._refusing >= _MOST_REFUSALS
            self._refusing += 1
        if too_many and end_overloaded(args):
            self._has_refused()
            return _over()
        refusal = self._refusals.submit(_refusing, partial(fn, *args, **kwargs))
        refusal.add_done_callback(self._has_refused)
        return refusal

    def _has_refused(self, _future: Future[T] | None = None) -> None:
        with self._pending_lock:
            self._refusing -= 1

    @property
    def crowded(self) -> bool:
        """Half of the queue is taken."""
        return self._pending > self._half_full

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._refusals.shutdown(wait, cancel_futures=cancel_futures)

    def _finished(self, _future: Future[T] | None = None) -> None:
        with self._pending_lock:
            self._pending -= 1


def _over() -> Future[Any]:
    """A future that nobody reads, done."""
    future: Future[Any] = Future()
    future.set_result(None)
    return future


def refuse_if_overloaded() -> None:
    """To be asked first by every handler that runs in a `CallPool`.

    Raises:
        Overloaded: this call was beyond the pool's queue.
    """
    if getattr(_refused, "now", False):
        raise Overloaded


def _refusing(fn: Callable[[], T]) -> T:
    _refused.now = True
    try:
        return fn()
    finally:
        _refused.now = False


class FairShare:
    """How many calls of one identity run at once: never more than its limits, and while the pool
    is crowded no more than a principal's share of the threads. Safe to use from many threads.

    Args:
        pool: of unary calls.
        share: of a principal, while the pool is crowded.
        of_principal, of_instance: calls and streams at once, always; None: any number.
    """

    def __init__(
        self,
        pool: CallPool,
        share: int,
        of_principal: int | None = None,
        of_instance: int | None = None,
    ) -> None:
        self._pool = pool
        self._share = share
        self._of_principal = of_principal
        self._of_instance = of_instance
        self._running: Counter[str] = Counter()
        self._running_of_instance: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def turn(self, principal: Principal) -> Turn:
        """One call of `principal`, from the beginning of the block to its end.

        Raises:
            QuotaExceeded: as many run as may.
        """
        return Turn(self, principal)

    def take(self, principal: Principal) -> None:
        """
        Raises:
            QuotaExceeded.
        """
        who, instance = principal.id, (principal.id, principal.instance)
        with self._lock:
            running = self._running[who]
            if (
                (self._of_principal is not None and running >= self._of_principal)
                or (running >= self._share and self._pool.crowded)
                or (
                    self._of_instance is not None
                    and self._running_of_instance[instance] >= self._of_instance
                )
            ):
                raise QuotaExceeded
            self._running[who] = running + 1
            self._running_of_instance[instance] += 1

    def give_back(self, principal: Principal) -> None:
        who, instance = principal.id, (principal.id, principal.instance)
        with self._lock:
            self._running[who] -= 1
            self._running_of_instance[instance] -= 1
            if not self._running[who]:
                del self._running[who]
            if not self._running_of_instance[instance]:
                del self._running_of_instance[instance]


class Turn:
    """Taken at the beginning of a `with` block, given back at its end."""

    __slots__ = ("_principal", "_share")

    def __init__(self, share: FairShare, principal: Principal) -> None:
        self._share = share
        self._principal = principal

    def __enter__(self) -> None:
        self._share.take(self._principal)

    def __exit__(self, *_: object) -> None:
        self._share.give_back(self._principal)
