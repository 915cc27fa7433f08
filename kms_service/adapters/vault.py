"""Master keys in Vault transit: data keys made, wrapped and unwrapped; master keys never seen."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from kms_service.adapters.vault_http import Reply
from kms_service.adapters.vault_session import SessionStatus, VaultSession
from kms_service.adapters.vault_signing import VaultNoteSigner
from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import (
    KeyRecordCorrupt,
    MasterKeyMisconfigured,
    VaultBadReply,
    WrappingVersionUnusable,
)
from kms_service.domain.ports import MasterKeyState
from kms_service.domain.secret import SecretBytes

_DATA_KEY_BYTES = 32
_KEY_TYPE = "aes256-gcm96"
_WRAPPED = re.compile(r"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/]+={0,2}", re.ASCII)


class VaultMasterKeys:
    """Implements `domain.ports.MasterKeys`. Safe to use from many threads.

    Args:
        session: to Vault; closed by `close()`.
        mount: of the transit engine.
    """

    def __init__(self, session: VaultSession, mount: str) -> None:
        self._session = session
        self._mount = mount

    def generate_data_key(
        self, master_key: str, context: bytes
    ) -> tuple[SecretBytes, WrappedDataKey]:
        end = self._session.patience()
        # A key that is not derived ignores the context without a word, so what it wraps would be
        # bound to nothing: looked at before each new data key, not once.
        self._describe(master_key, end)
        reply = self._post("datakey/plaintext", master_key, {"context": _base64(context)}, end)
        if not reply.ok:
            self._describe(master_key, end)
            raise VaultBadReply
        return _data_key(reply.data), _wrapped(reply.data)

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        end = self._session.patience()
        if _version_of(wrapped.ciphertext) != wrapped.master_key_version:
            raise KeyRecordCorrupt
        body = {"ciphertext": wrapped.ciphertext, "context": _base64(context)}
        reply = self._post("decrypt", master_key, body, end)
        if not reply.ok:
            self._explain_refusal(master_key, wrapped, end)
        return _data_key(reply.data)

    def describe(self, master_key: str) -> MasterKeyState:
        return self._describe(master_key, self._session.patience())

    def probe(self) -> None:
        self._session.probe()

    def status(self) -> SessionStatus:
        """Token and breaker, for metrics."""
        return self._session.status()

    def note_signer(self, key: str, name: str) -> VaultNoteSigner:
        """A signer under the same login; see `VaultNoteSigner`."""
        return VaultNoteSigner(self._session, self._mount, key, name)

    def close(self) -> None:
        self._session.close()

    def _describe(self, master_key: str, end: float) -> MasterKeyState:
        reply = self._session.call("GET", f"{self._mount}/keys/{master_key}", end=end)
        if not reply.ok:
            raise MasterKeyMisconfigured
        return _state(master_key, reply.data)

    def _post(self, operation: str, master_key: str, body: Mapping[str, str], end: float) -> Reply:
        return self._session.call("POST", f"{self._mount}/{operation}/{master_key}", body, end=end)

    def _explain_refusal(self, master_key: str, wrapped: WrappedDataKey, end: float) -> NoReturn:
        """Why decrypt was a 400: told by the key's own state, never by the message's text.

        Raises:
            MasterKeyMisconfigured, WrappingVersionUnusable, KeyRecordCorrupt: always one.
        """
        state = self._describe(master_key, end)
        usable = range(state.min_decryption_version, state.latest_version + 1)
        if wrapped.master_key_version not in usable:
            raise WrappingVersionUnusable
        raise KeyRecordCorrupt


def _data_key(data: Mapping[str, Any]) -> SecretBytes:
    encoded = data.get("plaintext")
    try:
        key = base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else b""
    except binascii.Error as error:
        raise VaultBadReply from error
    if len(key) != _DATA_KEY_BYTES:
        raise VaultBadReply
    return SecretBytes(key)


def _wrapped(data: Mapping[str, Any]) -> WrappedDataKey:
    ciphertext = data.get("ciphertext")
    version = _version_of(ciphertext) if isinstance(ciphertext, str) else None
    if not isinstance(ciphertext, str) or version is None:
        raise VaultBadReply
    return WrappedDataKey(ciphertext, version)


def _version_of(ciphertext: str) -> int | None:
    match = _WRAPPED.fullmatch(ciphertext)
    return int(match[1]) if match is not None else None


def _state(master_key: str, data: Mapping[str, Any]) -> MasterKeyState:
    """
    Raises:
        MasterKeyMisconfigured: not a derived, unexportable aes256-gcm96 key.
        VaultBadReply: not the state of this key.
    """
    required = {
        "type": _KEY_TYPE,
        "derived": True,
        "exportable": False,
        "allow_plaintext_backup": False,
    }
    if any(data.get(name) != value for name, value in required.items()):
        raise MasterKeyMisconfigured
    # Equal contexts and data keys would show as equal ciphertexts; and OpenBao keeps a key that was
    # deleted softly visible, but uses it no more.
    if data.get("convergent_encryption") or data.get("soft_deleted"):
        raise MasterKeyMisconfigured
    try:
        latest = int(data["latest_version"])
        state = MasterKeyState(
            name=str(data["name"]),
            latest_version=latest,
            min_decryption_version=max(1, int(data["min_decryption_version"])),
            latest_version_create_time=datetime.fromtimestamp(data["keys"][str(latest)], UTC),
            auto_rotate_period=timedelta(seconds=int(data["auto_rotate_period"])) or None,
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise VaultBadReply from error
    if state.name != master_key or not 1 <= state.min_decryption_version <= latest:
        raise VaultBadReply
    return state


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
