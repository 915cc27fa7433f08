"""Master keys in Vault transit: data keys made, wrapped and unwrapped; master keys never seen."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from kms_service.adapters.vault_http import Reply
from kms_service.adapters.vault_session import SessionStatus, VaultSession
from kms_service.adapters.vault_signing import VaultNoteSigner
from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import (
    KeyRecordCorrupt,
    MasterKeyMisconfigured,
    ServiceError,
    Throttled,
    Unavailable,
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
        self._batches = _BatchSize()

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

    @property
    def rewrap_batch_size(self) -> int:
        return self._batches.size

    def rewrap(
        self, master_key: str, keys: Sequence[tuple[WrappedDataKey, bytes]]
    ) -> Sequence[WrappedDataKey | ServiceError]:
        done: list[WrappedDataKey | ServiceError] = []
        while len(done) < len(keys):
            size = min(self._batches.size, len(keys) - len(done))
            part = keys[len(done) : len(done) + size]
            try:
                answers = self._rewrap_batch(master_key, part)
            except (Unavailable, Throttled) as error:
                if not done:
                    raise
                # What was rewrapped is worth keeping; the rest is told apart and tried again.
                return [*done, *([error] * (len(keys) - len(done)))]
            if answers is None:  # too much for one request
                self._batches.refused(size)
                continue
            self._batches.passed(size)
            done += answers
        return done

    def _rewrap_batch(
        self, master_key: str, keys: Sequence[tuple[WrappedDataKey, bytes]]
    ) -> Sequence[WrappedDataKey | ServiceError] | None:
        """None: this many are refused; fewer may not be (F40)."""
        end = self._session.patience()
        items = [
            {"ciphertext": wrapped.ciphertext, "context": _base64(context)}
            for wrapped, context in keys
        ]
        reply = self._post("rewrap", master_key, {"batch_input": items}, end)
        data = reply.body.get("data")
        results = data.get("batch_results") if isinstance(data, dict) else None
        if isinstance(results, list):
            if len(results) != len(keys):
                raise VaultBadReply
            state: MasterKeyState | None = None
            answers: list[WrappedDataKey | ServiceError] = []
            for (wrapped, _), result in zip(keys, results, strict=True):
                if not isinstance(result, dict) or (not reply.ok and not result.get("error")):
                    raise VaultBadReply
                if result.get("error"):
                    state = state or self._describe(master_key, end)
                    answers.append(_refusal(wrapped, state))
                else:
                    answers.append(_newer(wrapped, result))
            return answers
        if reply.ok:
            raise VaultBadReply
        # A refusal of the whole: of its size, or (of one key alone) of that key.
        state = self._describe(master_key, end)
        return None if len(keys) > 1 else [_refusal(keys[0][0], state)]

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

    def _post(self, operation: str, master_key: str, body: Mapping[str, Any], end: float) -> Reply:
        return self._session.call("POST", f"{self._mount}/{operation}/{master_key}", body, end=end)

    def _explain_refusal(self, master_key: str, wrapped: WrappedDataKey, end: float) -> NoReturn:
        """Why decrypt was a 400: told by the key's own state, never by the message's text.

        Raises:
            MasterKeyMisconfigured, WrappingVersionUnusable, KeyRecordCorrupt: always one.
        """
        raise _refusal(wrapped, self._describe(master_key, end))


class _BatchSize:
    """How many items one request may have: found out, remembered (F40).

    OpenBao limits the strings of a body, Vault its bytes, both by configuration. A refused size
    is halved; then the room between what passed and what was refused is searched, until what is
    to be gained is little. Many threads may tell it what they found: it is a guess either way.
    """

    _FIRST = 1000

    def __init__(self) -> None:
        self.size = self._FIRST
        self._passed = 0
        self._refused: int | None = None

    def passed(self, size: int) -> None:
        if size < self.size or self._refused is None:  # a last, smaller one tells nothing new
            return
        self._passed = max(self._passed, size)
        self._search()

    def refused(self, size: int) -> None:
        self._refused = size if self._refused is None else min(size, self._refused)
        self._passed = min(self._passed, self._refused // 2)
        self._search()

    def _search(self) -> None:
        assert self._refused is not None
        if not self._passed:
            self.size = max(1, self._refused // 2)
        elif self._refused - self._passed > self._passed // 16 + 1:
            self.size = (self._passed + self._refused) // 2
        else:
            self.size = self._passed


def _newer(old: WrappedDataKey, result: Mapping[str, Any]) -> WrappedDataKey | ServiceError:
    new = _wrapped(result)
    # Vault never goes back, and never gives the same ciphertext twice: nonces are random.
    if new.master_key_version < old.master_key_version or new.ciphertext == old.ciphertext:
        return VaultBadReply()
    return new


def _refusal(wrapped: WrappedDataKey, state: MasterKeyState) -> ServiceError:
    usable = range(state.min_decryption_version, state.latest_version + 1)
    if wrapped.master_key_version not in usable:
        return WrappingVersionUnusable()
    return KeyRecordCorrupt()


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
