"""Timed ports are the ports they wrap; what they do is counted, also when it fails."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kms_service.adapters.database.sql_database import SqlDatabase
from kms_service.adapters.measured import CountedAuditLog, TimedDatabase, timed
from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.errors import AuditUnavailable
from kms_service.telemetry.metrics import Metrics
from tests.unit.usecases.real_parts import migrated_database


class Lamp:
    def __init__(self) -> None:
        self.lit = 0

    @property
    def is_lit(self) -> bool:
        return self.lit > 0

    def light(self, times: int, *, fail: bool = False) -> int:
        """Light it."""
        if fail:
            raise KeyError
        self.lit += times
        return self.lit


def taken(metrics: Metrics, step: str) -> float | None:
    return metrics.registry.get_sample_value("modelkms_step_seconds_count", {"step": step})


def test_methods_are_timed_and_properties_stay_fresh() -> None:
    metrics = Metrics([], [], [])
    lamp = timed(Lamp(), metrics.steps.step("vault"))
    before = lamp.is_lit
    assert lamp.light(2) == 2
    assert (before, lamp.is_lit) == (False, True)
    with pytest.raises(KeyError):
        lamp.light(1, fail=True)
    assert lamp.light.__doc__ == "Light it."
    assert taken(metrics, "vault") == 2
    with pytest.raises(AttributeError):
        lamp.darken()  # type: ignore[attr-defined]


def test_a_transaction_is_timed_from_begin_to_commit_without_what_it_asks_of_others(
    tmp_path: Path,
) -> None:
    metrics = Metrics([], [], [])
    real = SqlDatabase(f"sqlite:///{migrated_database(tmp_path)}")
    database = TimedDatabase(real, metrics.steps.step("database"))
    database.probe()
    with database.write() as tx, metrics.steps.step("policy"):
        assert tx.projects.list(10, "").items == []
    with database.read():
        pass
    assert database.transact(lambda tx: tx.projects.list(10, "").next_page_token) == ""
    with pytest.raises(KeyError), database.write():
        raise KeyError
    woken = database.transact(lambda _tx: "done", lambda _done, wake: wake())
    real.close()
    assert woken == "done"
    assert taken(metrics, "database") == 5
    assert taken(metrics, "policy") == 1


class FullDisk:
    def append(self, record: AuditRecord) -> None:
        raise AuditUnavailable

    def append_soon(self, record: AuditRecord, done: Callable[[bool], object]) -> None:
        done(False)


def test_records_that_are_not_durable_are_counted_apart() -> None:
    metrics = Metrics([], [], [])
    record = AuditRecord(time=datetime.now(UTC), event="e", outcome=Outcome.OK)
    with pytest.raises(AuditUnavailable):
        CountedAuditLog(FullDisk(), metrics).append(record)
    told: list[bool] = []
    timed_log = CountedAuditLog(FullDisk(), metrics, metrics.steps.step("audit"))
    timed_log.append_soon(record, told.append)
    assert told == [False]
    assert taken(metrics, "audit") == 1
    value = metrics.registry.get_sample_value
    assert value("modelkms_audit_failures_total") == 2
    assert value("modelkms_audit_records_total") == 0
