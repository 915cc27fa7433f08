"""One suite for the port `Tombstones`: the fake, OpenBao, HashiCorp Vault."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from kms_service.adapters.vault_session import VaultSession
from kms_service.adapters.vault_tombstones import VaultTombstones
from kms_service.domain.destruction import Tombstone
from kms_service.domain.errors import VaultAccessRefused
from kms_service.domain.ports import Tombstones
from tests.support.usecase_fakes import MemoryTombstones
from tests.support.vault_servers import VaultRig

pytestmark = pytest.mark.xdist_group("vault")

VAULTS = ["openbao", pytest.param("hashicorp", marks=pytest.mark.vault)]


@pytest.fixture(params=["fake", *VAULTS])
def tombstones(
    request: pytest.FixtureRequest, vault_of: Callable[[str], VaultRig]
) -> Iterator[Tombstones]:
    if request.param == "fake":
        yield MemoryTombstones()
        return
    session = VaultSession(vault_of(request.param).settings())
    try:
        yield VaultTombstones(session, "modelkms")
    finally:
        session.close()


@pytest.fixture(params=VAULTS)
def vault(request: pytest.FixtureRequest, vault_of: Callable[[str], VaultRig]) -> VaultRig:
    return vault_of(request.param)


def tombstone() -> Tombstone:
    uid = secrets.token_hex(16)
    return Tombstone("projects/p/models/m/versions/1", uid, datetime.now(UTC))


def test_written_ones_are_held_and_listed(tombstones: Tombstones) -> None:
    first, second = tombstone(), tombstone()
    assert not tombstones.holds(first.uid)
    tombstones.write(first)
    assert tombstones.holds(first.uid)
    assert not tombstones.holds(second.uid)
    tombstones.write(second)
    assert tombstones.uids() >= {first.uid, second.uid}


def test_writing_again_changes_nothing(tombstones: Tombstones) -> None:
    made = tombstone()
    tombstones.write(made)
    tombstones.write(replace(made, version="projects/p/models/m/versions/2"))
    assert tombstones.holds(made.uid)


def test_a_first_version_stays_whatever_is_written_later(vault: VaultRig) -> None:
    session = VaultSession(vault.settings())
    made = tombstone()
    try:
        for each in (made, replace(made, version="another")):
            VaultTombstones(session, "modelkms").write(each)
    finally:
        session.close()
    kept = vault.root.secrets.kv.v2.read_secret_version(
        f"tombstones/{made.uid}", mount_point="modelkms", raise_on_deleted_version=True
    )["data"]
    assert kept["metadata"]["version"] == 1
    assert kept["data"]["version"] == made.version


def test_another_replica_sees_them(vault: VaultRig) -> None:
    made = tombstone()
    sessions = [VaultSession(vault.settings()) for _ in range(2)]
    try:
        here, there = (VaultTombstones(session, "modelkms") for session in sessions)
        assert not there.holds(made.uid)
        here.write(made)
        assert made.uid in there.uids()
        assert there.holds(made.uid)
    finally:
        for session in sessions:
            session.close()


def test_an_engine_that_is_not_there_is_not_an_empty_one(vault: VaultRig) -> None:
    """Nothing may be unwrapped because tombstones cannot be read."""
    session = VaultSession(vault.settings())
    try:
        with pytest.raises(VaultAccessRefused):
            VaultTombstones(session, "elsewhere").holds("0" * 32)
    finally:
        session.close()
