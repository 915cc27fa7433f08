"""Ports, each of whose calls is timed as one step of the call it serves (`telemetry.steps`).

Wrapped once, at construction; what a use case sees is the same port.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from kms_service.domain.audit import AuditRecord
from kms_service.domain.errors import AuditUnavailable
from kms_service.domain.ports import AuditLog, Database, Transaction, Wake
from kms_service.telemetry.metrics import Metrics
from kms_service.telemetry.steps import Step

Port = TypeVar("Port")
P = ParamSpec("P")
Answer = TypeVar("Answer")


def timed(port: Port, step: Step, *, but: Collection[str] = ()) -> Port:
    """`port`, each of whose methods is one `step`.

    Not for methods that answer with a context manager or an iterator: only the call itself is
    timed.

    Args:
        but: methods that serve no call, such as probes.
    """
    return cast("Port", _Timed(port, step, frozenset(but)))


class _Timed:
    """Looks a method up once, wraps it, and keeps it."""

    def __init__(self, port: object, step: Step, untimed: frozenset[str]) -> None:
        self._port = port
        self._step = step
        self._untimed = untimed

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if name in self._untimed or not callable(found):
            return found  # asked for anew each time: it may be a property
        method = _in_step(found, self._step)
        setattr(self, name, method)
        return method


def _in_step(method: Callable[P, Answer], step: Step) -> Callable[P, Answer]:
    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Answer:
        with step:
            return method(*args, **kwargs)

    return call


class TimedDatabase:
    """A database whose transactions are steps, from begin to commit; what else is timed within
    one (policy, asked before the commit) is not counted to it."""

    def __init__(self, database: Database, step: Step) -> None:
        self._database = database
        self._step = step

    def read(self) -> AbstractContextManager[Transaction]:
        return self._timed(self._database.read())

    def write(self) -> AbstractContextManager[Transaction]:
        return self._timed(self._database.write())

    def transact(
        self,
        work: Callable[[Transaction], Answer],
        then: Callable[[Answer, Wake], object] | None = None,
    ) -> Answer:
        if then is None:
            with self._step:
                return self._database.transact(work)
        began, step = time.perf_counter(), self._step

        def committed(answer: Answer, wake: Wake) -> None:
            step.took(time.perf_counter() - began)
            then(answer, wake)

        return self._database.transact(work, committed)

    def look(self, work: Callable[[Transaction], Answer]) -> Answer:
        with self._step:
            return self._database.look(work)

    def served_time(self) -> timedelta:
        with self._step:
            return self._database.served_time()

    def scrub(self, *, again: bool = False) -> bool:
        return self._database.scrub(again=again)

    def probe(self) -> None:
        self._database.probe()

    @contextmanager
    def _timed(self, transaction: AbstractContextManager[Transaction]) -> Iterator[Transaction]:
        with self._step, transaction as tx:
            yield tx


class CountedAuditLog:
    """Counts what becomes durable and what does not; times each record, from when it is handed
    over until it is durable.

    Args:
        step: None: not timed, for what serves no call.
    """

    def __init__(self, log: AuditLog, metrics: Metrics, step: Step | None = None) -> None:
        self._log = log
        self._step = step
        self._durable, self._failed = metrics.audit_records.inc, metrics.audit_failures.inc

    def append(self, record: AuditRecord) -> None:
        began = time.perf_counter()
        try:
            self._log.append(record)
        except AuditUnavailable:
            self._count(began, False)
            raise
        self._count(began, True)

    def append_soon(self, record: AuditRecord, done: Callable[[bool], object]) -> None:
        began = time.perf_counter()

        def known(durable: bool) -> None:
            self._count(began, durable)
            done(durable)

        self._log.append_soon(record, known)

    def _count(self, began: float, durable: bool) -> None:
        (self._durable if durable else self._failed)()
        if self._step is not None:
            self._step.took(time.perf_counter() - began)
