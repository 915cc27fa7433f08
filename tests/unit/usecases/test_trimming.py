"""Old versions of a master key: given up by two officers, and only if nothing needs them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from kms_service.domain.audit import Outcome
from kms_service.domain.backups import Backup
from kms_service.domain.catalogue import Project
from kms_service.domain.errors import (
    AuditUnavailable,
    BackupsNeedOldVersion,
    InvalidField,
    KeysUnderOldVersion,
    MasterKeyNotRetired,
    ModelNotFoundOrDenied,
    SecondOfficerRequired,
    ServiceError,
    TrimNotRequested,
)
from kms_service.domain.names import ModelName, ProjectName
from kms_service.domain.trims import TRIM_REQUEST_LIFE, Trim
from tests.support.usecase_fakes import caller
from tests.unit.usecases.world import World

DEMO, SHARING = ProjectName("demo"), ProjectName("sharing")
FIRST, SECOND, THIRD = caller("security"), caller("witness"), caller("third")


@pytest.fixture
def world(world: World) -> World:
    """Everything is under version 3, and versions 1 and 2 are retired."""
    world.publisher()
    for officer in ("security", "witness", "third"):
        world.security(officer)
    with world.database.write() as tx:
        tx.projects.insert(Project(SHARING, "modelkms-demo", world.clock.now()))
    for _ in range(2):
        world.vault.rotate("modelkms-demo")
    world.publish(ModelName("demo", "a"))
    world.vault.set_min_decryption_version("modelkms-demo", 3)
    world.audit.take()
    return world


def stored(world: World) -> Trim | None:
    with world.database.read() as tx:
        return tx.trims.get("modelkms-demo")


def test_one_asks_and_another_confirms(world: World) -> None:
    asked = world.trim.request(FIRST, DEMO, 3)
    assert (asked.master_key, asked.oldest_version, asked.confirmed_by) == ("modelkms-demo", 3, "")
    assert asked.expire_time - asked.create_time == TRIM_REQUEST_LIFE
    confirmed = world.trim.confirm(SECOND, DEMO, 3)
    assert confirmed.confirmed_by == SECOND.principal.id
    assert stored(world) == confirmed
    assert world.trim.confirm(SECOND, DEMO, 3) == confirmed  # Vault was away in between
    details = world.audit.records[-1].details
    assert (details["master_key"], details["oldest_version"]) == ("modelkms-demo", "3")
    assert details["requested_by"] == FIRST.principal.id
    assert world.audit.outcomes() == [
        ("RequestTrim", Outcome.OK, ""),
        ("ConfirmTrim", Outcome.OK, ""),
        ("ConfirmTrim", Outcome.OK, ""),
    ]


def test_nobody_confirms_what_they_asked_for(world: World) -> None:
    world.trim.request(FIRST, DEMO, 3)
    with pytest.raises(SecondOfficerRequired, match="trim"):
        world.trim.confirm(FIRST, DEMO, 3)
    assert stored(world) is not None
    assert stored(world).confirmed_by == ""  # type: ignore[union-attr]


@pytest.mark.parametrize("oldest", [2, 3])
def test_what_nobody_asked_for_is_not_confirmed(world: World, oldest: int) -> None:
    with pytest.raises(TrimNotRequested):
        world.trim.confirm(SECOND, DEMO, oldest)
    world.trim.request(FIRST, DEMO, 5 - oldest)
    with pytest.raises(TrimNotRequested):
        world.trim.confirm(SECOND, DEMO, oldest)


def test_it_may_be_confirmed_for_seven_days(world: World) -> None:
    world.trim.request(FIRST, DEMO, 3)
    world.clock.advance(TRIM_REQUEST_LIFE - timedelta(microseconds=1))
    world.trim.confirm(SECOND, DEMO, 3)
    world.clock.advance(timedelta(microseconds=1))
    with pytest.raises(TrimNotRequested):
        world.trim.confirm(SECOND, DEMO, 3)


def test_asked_for_anew_it_needs_another_word(world: World) -> None:
    world.trim.request(FIRST, DEMO, 2)
    world.trim.confirm(SECOND, DEMO, 2)
    world.trim.request(SECOND, DEMO, 3)
    with pytest.raises(SecondOfficerRequired):
        world.trim.confirm(SECOND, DEMO, 3)
    assert world.trim.confirm(THIRD, DEMO, 3).requested_by == SECOND.principal.id


# --- what needs the old versions ------------------------------------------------------------------


def not_retired(world: World) -> None:
    world.vault.set_min_decryption_version("modelkms-demo", 2)


def a_data_key(world: World) -> None:
    world.execute("UPDATE versions SET master_key_version = 2")


def a_data_key_of_another_project(world: World) -> None:
    world.publish(ModelName("sharing", "b"))
    world.execute("UPDATE versions SET master_key_version = 1 WHERE project = 'sharing'")


def a_backup(world: World) -> None:
    with world.database.write() as tx:
        tx.backups.put(Backup("a" * 32, "db1:/1", world.clock.now(), {"modelkms-demo": 2}))


def a_backup_that_was_never_seen_to_end(world: World) -> None:
    with world.database.write() as tx:
        tx.backups.put(Backup("b" * 32, "db1:/2", world.clock.now()))


NEEDS: list[tuple[Callable[[World], None], type[ServiceError]]] = [
    (not_retired, MasterKeyNotRetired),
    (a_data_key, KeysUnderOldVersion),
    (a_data_key_of_another_project, KeysUnderOldVersion),
    (a_backup, BackupsNeedOldVersion),
    (a_backup_that_was_never_seen_to_end, BackupsNeedOldVersion),
]


@pytest.mark.parametrize(("need", "error"), NEEDS)
def test_not_asked_for_while_it_is_needed(
    world: World, need: Callable[[World], None], error: type[ServiceError]
) -> None:
    need(world)
    with pytest.raises(error):
        world.trim.request(FIRST, DEMO, 3)
    assert stored(world) is None


@pytest.mark.parametrize(("need", "error"), NEEDS)
def test_not_confirmed_once_it_is_needed(
    world: World, need: Callable[[World], None], error: type[ServiceError]
) -> None:
    world.trim.request(FIRST, DEMO, 3)
    need(world)
    with pytest.raises(error):
        world.trim.confirm(SECOND, DEMO, 3)
    assert stored(world).confirmed_by == ""  # type: ignore[union-attr]


def test_backups_that_do_not_need_it_are_no_bar(world: World) -> None:
    with world.database.write() as tx:
        now = world.clock.now()
        tx.backups.put(Backup("a" * 32, "db1:/1", now, {"modelkms-demo": 3, "modelkms-x": 1}))
        gone = Backup("b" * 32, "db1:/2", now).declare_destroyed("spiffe://x/y", "gone", now)
        tx.backups.put(gone)
    world.trim.request(FIRST, DEMO, 3)
    world.trim.confirm(SECOND, DEMO, 3)


def test_needing_backups_are_named(world: World) -> None:
    a_backup(world)
    a_backup_that_was_never_seen_to_end(world)
    with pytest.raises(BackupsNeedOldVersion, match="2 registered backups") as caught:
        world.trim.request(FIRST, DEMO, 3)
    assert caught.value.metadata == {"backups": f"{'a' * 32},{'b' * 32}"}


def test_retiring_counts_projects_that_share_the_key(world: World) -> None:
    a_data_key_of_another_project(world)
    with pytest.raises(KeysUnderOldVersion) as caught:
        world.get_master_key.check_retirement(FIRST, DEMO, 3)
    assert caught.value.metadata == {"v1": "1"}


# --- who, and what is recorded --------------------------------------------------------------------


@pytest.mark.parametrize("oldest", [0, 1, 4, 2**31])
def test_only_versions_there_are(world: World, oldest: int) -> None:
    for act in (world.trim.request, world.trim.confirm):
        with pytest.raises(InvalidField):
            act(FIRST, DEMO, oldest)


def test_only_officers(world: World) -> None:
    world.trim.request(FIRST, DEMO, 3)
    for act in (world.trim.request, world.trim.confirm):
        with pytest.raises(ModelNotFoundOrDenied):
            act(caller("publisher"), DEMO, 3)
        with pytest.raises(ModelNotFoundOrDenied):
            act(FIRST, ProjectName("none"), 3)


def test_nothing_is_confirmed_without_a_record(world: World) -> None:
    world.trim.request(FIRST, DEMO, 3)
    world.audit.broken = lambda record: record.event == "ConfirmTrim"
    with pytest.raises(AuditUnavailable):
        world.trim.confirm(SECOND, DEMO, 3)
    assert stored(world).confirmed_by == ""  # type: ignore[union-attr]
