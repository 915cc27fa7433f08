"""What each shipped role may do on a real server, and what it is refused."""

from __future__ import annotations

import base64
import contextlib
import secrets
from collections.abc import Callable
from typing import Any

import hvac.exceptions
import pytest

from tests.support.vault_servers import VaultRig

pytestmark = pytest.mark.xdist_group("vault")

CONTEXT = base64.b64encode(b"context").decode()


@pytest.fixture(params=["openbao", pytest.param("hashicorp", marks=pytest.mark.vault)])
def vault(request: pytest.FixtureRequest, vault_of: Callable[[str], VaultRig]) -> VaultRig:
    return vault_of(request.param)


@pytest.fixture
def key(vault: VaultRig) -> str:
    return vault.make_key(f"modelkms-{secrets.token_hex(4)}")


@pytest.fixture
def service(vault: VaultRig) -> Any:
    return vault.login(vault.roles.service)


@pytest.fixture
def officer(vault: VaultRig) -> Any:
    return vault.login(vault.roles.officer)


@pytest.fixture
def auditor(vault: VaultRig) -> Any:
    return vault.login(vault.roles.auditor)


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(hvac.exceptions.Forbidden):
        act()


# --- the service -------------------------------------------------------------------------------


def test_service_makes_unwraps_and_rewraps_data_keys(service: Any, key: str) -> None:
    made = service.write_data(f"transit/datakey/plaintext/{key}", data={"context": CONTEXT})["data"]
    wrapped = {"ciphertext": made["ciphertext"], "context": CONTEXT}
    unwrapped = service.write_data(f"transit/decrypt/{key}", data=wrapped)["data"]
    assert unwrapped["plaintext"] == made["plaintext"]
    assert service.write_data(f"transit/rewrap/{key}", data=wrapped)["data"]["ciphertext"]
    assert service.read(f"transit/keys/{key}")["data"]["derived"] is True


@pytest.mark.parametrize("kind", ["encryption-key", "hmac-key"])
def test_service_cannot_export(service: Any, key: str, kind: str) -> None:
    refused(lambda: service.read(f"transit/export/{kind}/{key}"))


def test_service_cannot_back_up(service: Any, key: str) -> None:
    refused(lambda: service.read(f"transit/backup/{key}"))


def test_service_cannot_rotate(service: Any, key: str) -> None:
    refused(lambda: service.secrets.transit.rotate_key(key))


def test_service_cannot_configure(service: Any, key: str) -> None:
    refused(lambda: service.secrets.transit.update_key_configuration(key, min_decryption_version=1))
    refused(lambda: service.write_data(f"transit/keys/{key}/trim", data={}))


def test_service_cannot_delete(service: Any, key: str) -> None:
    refused(lambda: service.delete(f"transit/keys/{key}"))


def test_service_cannot_create_keys(service: Any, vault: VaultRig) -> None:
    refused(lambda: service.secrets.transit.create_key("modelkms-new", derived=True))


@pytest.mark.parametrize("operation", ["encrypt", "datakey/plaintext", "decrypt", "rewrap"])
def test_service_makes_no_key_by_using_one(service: Any, vault: VaultRig, operation: str) -> None:
    """`encrypt` makes missing keys for who has `create`; nobody of ours does."""
    name = f"modelkms-{secrets.token_hex(4)}"
    body = {"context": CONTEXT, "plaintext": "aGk=", "ciphertext": "vault:v1:aGk="}
    with pytest.raises((hvac.exceptions.Forbidden, hvac.exceptions.InvalidRequest)):
        service.write_data(f"transit/{operation}/{name}", data=body)
    assert name not in vault.root.secrets.transit.list_keys()["data"]["keys"]


def test_service_cannot_encrypt_data_of_its_own(service: Any, key: str) -> None:
    body = {"context": CONTEXT, "plaintext": "aGk="}
    refused(lambda: service.write_data(f"transit/encrypt/{key}", data=body))


def test_service_sees_no_other_keys(service: Any, vault: VaultRig) -> None:
    vault.make_key("payments")
    refused(lambda: service.read("transit/keys/payments"))
    refused(
        lambda: service.write_data("transit/datakey/plaintext/payments", data={"context": CONTEXT})
    )
    refused(lambda: service.list("transit/keys"))


@pytest.mark.parametrize(
    "path",
    ["sys/policies/acl/modelkms-service", "sys/mounts", "auth/approle/role/modelkms-service"],
)
def test_service_sees_nothing_of_the_system(service: Any, path: str) -> None:
    refused(lambda: service.read(path))


def test_service_makes_no_tokens(service: Any) -> None:
    refused(lambda: service.auth.token.create())


def test_service_signs_checkpoints_and_nothing_else(service: Any, key: str) -> None:
    signed = service.write_data("transit/sign/audit-modelkms", data={"input": "aGk="})["data"]
    assert signed["signature"].startswith("vault:v")
    assert service.read("transit/keys/audit-modelkms")["data"]["type"] == "ed25519"
    refused(lambda: service.write_data(f"transit/sign/{key}", data={"input": "aGk="}))
    refused(lambda: service.secrets.transit.rotate_key("audit-modelkms"))
    refused(lambda: service.read("transit/export/signing-key/audit-modelkms"))
    refused(lambda: service.delete("transit/keys/audit-modelkms"))
    refused(
        lambda: service.write_data("transit/keys/audit-modelkms/config", data={"exportable": True})
    )


# --- the officer -------------------------------------------------------------------------------


def test_officer_makes_rotates_and_schedules(officer: Any) -> None:
    name = f"modelkms-{secrets.token_hex(4)}"
    transit = officer.secrets.transit
    transit.create_key(name, derived=True, key_type="aes256-gcm96")
    transit.rotate_key(name)
    officer.write_data(f"transit/keys/{name}/config", data={"auto_rotate_period": "8760h"})
    state = transit.read_key(name)["data"]
    assert (state["latest_version"], state["auto_rotate_period"]) == (2, 8760 * 3600)


@pytest.mark.parametrize("operation", ["datakey/plaintext", "encrypt", "decrypt", "rewrap"])
def test_officer_uses_no_key(officer: Any, key: str, operation: str) -> None:
    body = {"context": CONTEXT, "plaintext": "aGk=", "ciphertext": "vault:v1:aGk="}
    refused(lambda: officer.write_data(f"transit/{operation}/{key}", data=body))


def test_officer_exports_and_deletes_nothing(officer: Any, key: str) -> None:
    refused(lambda: officer.read(f"transit/export/encryption-key/{key}"))
    refused(lambda: officer.read(f"transit/backup/{key}"))
    refused(lambda: officer.delete(f"transit/keys/{key}"))


@pytest.mark.parametrize("option", ["exportable", "deletion_allowed", "allow_plaintext_backup"])
def test_officer_makes_no_key_exportable_or_deletable(officer: Any, key: str, option: str) -> None:
    refused(lambda: officer.write_data(f"transit/keys/{key}/config", data={option: True}))


@pytest.mark.parametrize("options", [{"exportable": True}, {"derived": False}])
def test_officer_makes_no_weak_key(officer: Any, options: dict[str, bool]) -> None:
    refused(lambda: officer.secrets.transit.create_key("modelkms-weak", **options))


@pytest.mark.parametrize("value", ["t", "T", "TRUE", "True", "on", "yes", 2])
@pytest.mark.parametrize("option", ["exportable", "deletion_allowed"])
def test_officer_finds_no_other_spelling_of_true(
    officer: Any, key: str, option: str, value: str | int
) -> None:
    """Refused, or not taken for true."""
    with contextlib.suppress(hvac.exceptions.VaultError):
        officer.write_data(f"transit/keys/{key}/config", data={option: value})
    assert officer.secrets.transit.read_key(key)["data"][option] is False


def test_officer_trims_nothing(officer: Any, key: str) -> None:
    officer.secrets.transit.rotate_key(key)
    config = {"min_decryption_version": 2, "min_encryption_version": 2}
    officer.write_data(f"transit/keys/{key}/config", data=config)
    refused(
        lambda: officer.write_data(f"transit/keys/{key}/trim", data={"min_available_version": 2})
    )


def test_officer_touches_no_other_keys(officer: Any, vault: VaultRig) -> None:
    vault.make_key("payroll")
    refused(lambda: officer.secrets.transit.rotate_key("payroll"))
    refused(lambda: officer.secrets.transit.read_key("payroll"))
    refused(lambda: officer.write_data("transit/keys/payroll/config", data={"derived": True}))


def test_officer_rotates_the_key_of_checkpoints_and_signs_none(officer: Any) -> None:
    officer.secrets.transit.rotate_key("audit-modelkms")
    refused(lambda: officer.write_data("transit/sign/audit-modelkms", data={"input": "aGk="}))
    refused(
        lambda: officer.write_data("transit/keys/audit-modelkms/config", data={"exportable": True})
    )


# --- the auditor -------------------------------------------------------------------------------


def test_auditor_sees_state_and_nothing_else(auditor: Any, key: str) -> None:
    assert auditor.read(f"transit/keys/{key}")["data"]["latest_version"] == 1
    assert key in auditor.list("transit/keys")["data"]["keys"]
    refused(lambda: auditor.secrets.transit.rotate_key(key))
    body = {"context": CONTEXT}
    refused(lambda: auditor.write_data(f"transit/datakey/plaintext/{key}", data=body))


def test_auditor_sees_who_signs_checkpoints_and_signs_none(auditor: Any) -> None:
    keys = auditor.read("transit/keys/audit-modelkms")["data"]["keys"]
    assert all(len(base64.b64decode(key["public_key"])) == 32 for key in keys.values())
    refused(lambda: auditor.write_data("transit/sign/audit-modelkms", data={"input": "aGk="}))
    refused(lambda: auditor.secrets.transit.rotate_key("audit-modelkms"))


def test_the_first_root_token_is_revoked(vault: VaultRig) -> None:
    assert vault.server.root_token() is None


# --- tombstones --------------------------------------------------------------------------------


def _tombstone(client: Any, uid: str, version: str = "first") -> None:
    body = {"options": {"cas": 0}, "data": {"version": version}}
    client.write_data(f"modelkms/data/tombstones/{uid}", data=body)


def test_service_makes_and_reads_tombstones_and_never_changes_one(service: Any) -> None:
    uid = secrets.token_hex(16)
    _tombstone(service, uid)
    path = f"modelkms/data/tombstones/{uid}"
    assert service.read(path)["data"]["data"] == {"version": "first"}
    assert uid in service.list("modelkms/metadata/tombstones")["data"]["keys"]
    refused(lambda: _tombstone(service, uid, "second"))
    for cas in (1, 2):
        body = {"options": {"cas": cas}, "data": {"version": "second"}}
        refused(lambda body=body: service.write_data(path, data=body))  # type: ignore[misc]
    refused(lambda: service.write_data(f"modelkms/metadata/tombstones/{uid}", data={}))
    assert service.read(path)["data"]["data"] == {"version": "first"}


@pytest.mark.parametrize("role", ["service", "officer", "auditor"])
def test_nobody_deletes_a_tombstone(vault: VaultRig, role: str) -> None:
    uid = secrets.token_hex(16)
    _tombstone(vault.login(vault.roles.service), uid)
    client = vault.login(getattr(vault.roles, role))
    for part in ("data", "metadata"):
        refused(lambda part=part: client.delete(f"modelkms/{part}/tombstones/{uid}"))  # type: ignore[misc]
    for part in ("delete", "destroy", "undelete"):
        refused(
            lambda part=part: client.write_data(  # type: ignore[misc]
                f"modelkms/{part}/tombstones/{uid}", data={"versions": [1]}
            )
        )


def test_service_writes_nothing_else_there(service: Any) -> None:
    refused(lambda: service.write_data("modelkms/data/other/x", data={"data": {}}))
    refused(lambda: service.write_data("modelkms/config", data={"cas_required": False}))


def test_auditor_reads_tombstones(vault: VaultRig, auditor: Any) -> None:
    uid = secrets.token_hex(16)
    _tombstone(vault.login(vault.roles.service), uid)
    assert auditor.read(f"modelkms/data/tombstones/{uid}")["data"]["data"] == {"version": "first"}
    refused(lambda: _tombstone(auditor, secrets.token_hex(16)))
