"""The registry of backups: officers' side, and putting a lost one together again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kms_service.domain.audit import Outcome
from kms_service.domain.backups import Backup
from kms_service.domain.errors import AuditUnavailable, InvalidField, ModelNotFoundOrDenied
from kms_service.usecases.backup_registry import STARTED, WRITTEN, put_back, recorded_backups
from tests.support.usecase_fakes import ManualClock, caller
from tests.unit.usecases.world import World

NOW = ManualClock().now()
WHOLE = Backup("a" * 32, "db1:/backups/one", NOW, {"modelkms-demo": 3})
BEGUN = Backup("b" * 32, "db1:/backups/two", NOW + timedelta(days=1))
OFFICER = caller("security")


@pytest.fixture
def registered(world: World) -> World:
    world.security("security")
    with world.database.write() as tx:
        tx.backups.put(WHOLE)
        tx.backups.put(BEGUN)
    return world


def stored(world: World) -> list[Backup]:
    with world.database.read() as tx:
        return list(tx.backups.list(100, "").items)


@pytest.mark.parametrize(
    ("backup", "needing"),
    [
        (WHOLE, [("modelkms-demo", 4)]),
        (BEGUN, [(name, version) for name in ("modelkms-demo", "other") for version in (1, 4)]),
        (BEGUN.declare_destroyed("spiffe://x/y", "gone", NOW), []),
    ],
)
def test_what_a_backup_needs(backup: Backup, needing: list[tuple[str, int]]) -> None:
    asked = [("modelkms-demo", 1), ("modelkms-demo", 4), ("other", 1), ("other", 4)]
    found = [each for each in asked if backup.needs_below(*each)]
    assert found == needing


def test_listed_newest_first(registered: World) -> None:
    page = registered.backups.list(OFFICER, 1, "")
    assert list(page.items) == [BEGUN]
    assert list(registered.backups.list(OFFICER, 1, page.next_page_token).items) == [WHOLE]


def test_declared_destroyed_once(registered: World) -> None:
    first = registered.backups.declare_destroyed(OFFICER, f"backups/{WHOLE.id}", "shredded")
    assert first == replace(
        WHOLE, destroyed_by=OFFICER.principal.id, destroy_reason="shredded", destroy_time=NOW
    )
    again = registered.backups.declare_destroyed(OFFICER, f"backups/{WHOLE.id}", "again")
    assert again == first
    assert stored(registered) == [BEGUN, first]
    with registered.database.read() as tx:
        assert list(tx.backups.not_destroyed()) == [BEGUN]
    record = registered.audit.records[-2]
    assert (record.event, record.outcome) == ("DeclareBackupDestroyed", Outcome.OK)
    assert record.details["backup"] == WHOLE.id
    assert record.details["why"] == "shredded"


def test_no_declaration_without_a_record(registered: World) -> None:
    registered.audit.broken = lambda record: record.event == "DeclareBackupDestroyed"
    with pytest.raises(AuditUnavailable):
        registered.backups.declare_destroyed(OFFICER, f"backups/{WHOLE.id}", "shredded")
    assert stored(registered) == [BEGUN, WHOLE]


@pytest.mark.parametrize("name", ["", "backups/", WHOLE.id, f"backups/{WHOLE.id}x", "backups/A"])
def test_names_are_checked(registered: World, name: str) -> None:
    with pytest.raises(InvalidField):
        registered.backups.declare_destroyed(OFFICER, name, "shredded")


def test_a_reason_is_wanted(registered: World) -> None:
    with pytest.raises(InvalidField, match="reason"):
        registered.backups.declare_destroyed(OFFICER, f"backups/{WHOLE.id}", " ")


@pytest.mark.parametrize(
    "act",
    [
        lambda world: world.backups.list(caller("reader"), 0, ""),
        lambda world: world.backups.declare_destroyed(
            caller("reader"), f"backups/{WHOLE.id}", "mine"
        ),
        lambda world: world.backups.declare_destroyed(OFFICER, f"backups/{'c' * 32}", "no such"),
    ],
)
def test_only_for_officers_and_what_is_there(
    registered: World, act: Callable[[World], object]
) -> None:
    with pytest.raises(ModelNotFoundOrDenied):
        act(registered)
    assert stored(registered) == [BEGUN, WHOLE]


# --- from the audit log --------------------------------------------------------------------------


def _record(event: str, backup: Backup, outcome: str = "ok", **details: str) -> dict[str, Any]:
    return {
        "time": backup.create_time.isoformat(),
        "event": event,
        "outcome": outcome,
        "details": {"backup": backup.id, "location": backup.location, **details},
    }


def _records() -> list[dict[str, Any]]:
    oldest = json.dumps(WHOLE.oldest_versions)
    return [
        {"time": NOW.isoformat(), "event": "service_started", "outcome": "ok"},
        _record(STARTED, WHOLE),
        _record(WRITTEN, WHOLE, oldest_versions=oldest),
        _record("BackupWritten", Backup("", "before there was a registry", NOW), rows="7"),
        _record(STARTED, replace(BEGUN, id="c" * 32), outcome="failed"),
        _record(STARTED, BEGUN),
        _record("DeclareBackupDestroyed", BEGUN),
    ]


def test_recorded_backups() -> None:
    assert recorded_backups(_records()) == [WHOLE, BEGUN]


def test_a_lost_registry_is_put_together_again(world: World) -> None:
    with world.database.write() as tx:
        tx.backups.put(replace(WHOLE, oldest_versions=None))  # as it is in the backup itself
    assert put_back(world.database, recorded_backups(_records())) == 2
    assert stored(world) == [BEGUN, WHOLE]
    assert put_back(world.database, recorded_backups(_records())) == 0


def test_what_is_declared_destroyed_stays_so(world: World) -> None:
    gone = BEGUN.declare_destroyed("spiffe://x/y", "gone", NOW)
    with world.database.write() as tx:
        tx.backups.put(gone)
    assert put_back(world.database, recorded_backups(_records())) == 1
    assert stored(world) == [gone, WHOLE]
