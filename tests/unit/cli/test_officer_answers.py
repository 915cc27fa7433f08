"""Whatever Vault answers, an officer gets one of our errors, and no word of the answer (F38)."""

from __future__ import annotations

import io
import json
import traceback
from pathlib import Path
from typing import Any

import pytest
import requests
from modelkms.errors import (
    MasterKeyMisconfigured,
    ModelKmsError,
    ServerNotTrusted,
    VaultBadReply,
    VaultSealed,
    VaultThrottled,
    VaultUnavailable,
)
from modelkms.officer import MasterKeyNotFound, Officer, RotationUnknown
from modelkms.officer_vault import VaultDenied, VaultLoginRefused, VaultRequestRefused
from modelkms.profile import VaultProfile
from requests.adapters import BaseAdapter

_CANARY = "c4n4ry-of-the-answer"
_TOKEN = "s.t0ken-of-the-officer"
_KEY: dict[str, object] = {
    "type": "aes256-gcm96",
    "derived": True,
    "exportable": False,
    "allow_plaintext_backup": False,
    "deletion_allowed": False,
    "latest_version": 3,
    "min_decryption_version": 1,
}


class _Vault(BaseAdapter):
    """Answers every request alike, or fails at it; remembers what it was asked."""

    def __init__(self, status: int, body: bytes, failure: Exception | None = None) -> None:
        super().__init__()
        self.status, self.body, self.failure = status, body, failure
        self.asked: list[str] = []

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(f"{request.method} {request.path_url}")
        assert request.headers["X-Vault-Token"] == _TOKEN
        if self.failure is not None:
            raise self.failure
        response = requests.Response()
        response.status_code = self.status
        response.raw = io.BytesIO(self.body)
        response.url = str(request.url)
        response.request = request
        return response

    def close(self) -> None:
        return


def _officer(tmp_path: Path, vault: BaseAdapter) -> Officer:
    token_file = tmp_path / "token"
    token_file.write_text(_TOKEN)
    session = requests.Session()
    session.mount("https://", vault)
    return Officer(VaultProfile(address="https://vault.example", token_file=token_file), session)


def _error(text: str = _CANARY) -> bytes:
    return json.dumps({"errors": [text]}).encode()


def _key(**changed: object) -> bytes:
    return json.dumps({"data": {**_KEY, **changed}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, _error(), VaultRequestRefused),
        (401, _error(), VaultDenied),
        (403, _error(), VaultDenied),
        (404, b'{"errors": []}', MasterKeyNotFound),
        (405, _error(), VaultUnavailable),
        (412, _error(), VaultUnavailable),
        (429, _error(), VaultThrottled),
        (472, _error(), VaultUnavailable),
        (473, _error(), VaultUnavailable),
        (500, _error(), VaultUnavailable),
        (501, _error(), VaultSealed),
        (502, b"<html>" + _CANARY.encode(), VaultUnavailable),
        (503, _error("Vault is sealed"), VaultSealed),
        (200, b"<html>" + _CANARY.encode(), VaultBadReply),
        (200, _key()[:-9], VaultBadReply),
        (200, b"[]", VaultBadReply),
        (200, b'{"data": null}', VaultBadReply),
        (204, b"", VaultBadReply),
        (307, b"", VaultBadReply),
        (200, _key(latest_version="3"), VaultBadReply),
        (200, _key(latest_version=True), VaultBadReply),
        (200, _key(min_decryption_version=-1), VaultBadReply),
        (200, _key(auto_rotate_period="90d"), VaultBadReply),
        (200, b'{"data": {}}', MasterKeyMisconfigured),
        (200, _key(derived="true"), MasterKeyMisconfigured),
        (200, _key(exportable=True), MasterKeyMisconfigured),
        (200, _key(convergent_encryption=True), MasterKeyMisconfigured),
    ],
)
def test_f38_answers(
    tmp_path: Path, status: int, body: bytes, expected: type[ModelKmsError]
) -> None:
    vault = _Vault(status, body)
    with _officer(tmp_path, vault) as officer, pytest.raises(expected) as caught:
        officer.read_master_key("demo")
    assert type(caught.value) is expected
    _tells_nothing(caught.value)
    # Reads are repeated once, and only over an outage.
    assert len(vault.asked) == (2 if expected is VaultUnavailable else 1)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (requests.ConnectionError(_CANARY), VaultUnavailable),
        (requests.ConnectTimeout(_CANARY), VaultUnavailable),
        (requests.ReadTimeout(_CANARY), VaultUnavailable),
        (requests.exceptions.ChunkedEncodingError(_CANARY), VaultUnavailable),
        (requests.exceptions.SSLError(_CANARY), ServerNotTrusted),
    ],
)
def test_f38_failures_of_the_way(
    tmp_path: Path, failure: Exception, expected: type[ModelKmsError]
) -> None:
    with _officer(tmp_path, _Vault(0, b"", failure)) as officer:
        with pytest.raises(expected) as caught:
            officer.read_master_key("demo")
        _tells_nothing(caught.value)


def test_a_good_key_is_read(tmp_path: Path) -> None:
    vault = _Vault(200, _key(auto_rotate_period=3600))
    with _officer(tmp_path, vault) as officer:
        key = officer.read_master_key("demo")
    assert (key.latest_version, key.min_decryption_version) == (3, 1)
    assert key.auto_rotate_period is not None
    assert vault.asked == ["GET /v1/transit/keys/modelkms-demo"]


def test_f37_a_rotation_that_changes_nothing_is_no_success(tmp_path: Path) -> None:
    vault = _Vault(200, _key())  # also for the rotation, as a proxy that swallows it might
    with _officer(tmp_path, vault) as officer, pytest.raises(VaultBadReply, match="version 3"):
        officer.rotate_master_key("demo")
    assert sum(asked.startswith("POST") for asked in vault.asked) == 1


def test_f37_vault_gone_after_the_rotation(tmp_path: Path) -> None:
    class DiesAtRotation(_Vault):
        def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
            if request.method == "POST":
                self.failure = requests.ConnectionError("gone")
            return super().send(request, *args, **kwargs)

    vault = DiesAtRotation(200, _key())
    with _officer(tmp_path, vault) as officer, pytest.raises(RotationUnknown) as caught:
        officer.rotate_master_key("demo")
    assert sum(asked.startswith("POST") for asked in vault.asked) == 1
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("body", [b"{}", b"<html>", b'{"auth": null}', b"[]"])
def test_a_login_without_a_token(tmp_path: Path, body: bytes) -> None:
    class Login(_Vault):
        def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
            request.headers["X-Vault-Token"] = _TOKEN  # there is none yet
            return super().send(request, *args, **kwargs)

    with _approle(tmp_path, Login(200, body)) as officer, pytest.raises(VaultBadReply) as caught:
        officer.check_login()
    _tells_nothing(caught.value)
    with (
        _approle(tmp_path, Login(400, _error())) as officer,
        pytest.raises(VaultLoginRefused) as caught_refusal,
    ):
        officer.check_login()
    _tells_nothing(caught_refusal.value)


def _approle(tmp_path: Path, vault: BaseAdapter) -> Officer:
    for name in ("role-id", "secret-id"):
        (tmp_path / name).write_text(_CANARY)
    session = requests.Session()
    session.mount("https://", vault)
    profile = VaultProfile(
        address="https://vault.example",
        role_id_file=tmp_path / "role-id",
        secret_id_file=tmp_path / "secret-id",
    )
    return Officer(profile, session)


def _tells_nothing(error: ModelKmsError) -> None:
    """Neither the error nor a traceback of it, causes included, has token or answer."""
    told = "".join(traceback.format_exception(error)) + str(error.as_dict())
    cause: BaseException | None = error
    while cause is not None:
        told += repr(cause.args)
        cause = cause.__cause__
    for secret in (_CANARY, _TOKEN):
        assert secret not in told
