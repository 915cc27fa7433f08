"""Signing with an Ed25519 key in Vault transit: the private key never leaves Vault."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from kms_service.adapters.signed_note import NoteInvalid, VerifierKey, sealed_note
from kms_service.adapters.vault_session import VaultSession
from kms_service.domain.errors import SigningKeyMisconfigured, VaultBadReply

_SIGNATURE = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/]+={0,2})", re.ASCII)


class VaultNoteSigner:
    """Implements `domain.ports.NoteSigner`. Safe to use from many threads.

    Args:
        mount: of the transit engine.
        key: name of the transit key, of type ed25519.
        name: whose signature it is, as notes have it.
    """

    def __init__(self, session: VaultSession, mount: str, key: str, name: str) -> None:
        self._session = session
        self._mount = mount
        self._key = key
        self._name = name
        self._verifiers: Mapping[int, VerifierKey] = {}

    def sign(self, text: str) -> bytes:
        end = self._session.patience()
        body = {"input": base64.b64encode(text.encode()).decode()}
        reply = self._session.call("POST", f"{self._mount}/sign/{self._key}", body, end=end)
        if not reply.ok:
            raise SigningKeyMisconfigured
        version, signature = _signature(reply.data)
        if version not in self._verifiers:
            self._verifiers = self.verifiers()
        if version not in self._verifiers:
            raise VaultBadReply
        try:
            return sealed_note(text, self._verifiers[version], signature)
        except NoteInvalid as error:
            raise VaultBadReply from error

    def verifiers(self) -> Mapping[int, VerifierKey]:
        """The public keys that verify, by version of the transit key.

        Raises: as `sign`.
        """
        path = f"{self._mount}/keys/{self._key}"
        reply = self._session.call("GET", path, end=self._session.patience())
        if not reply.ok or reply.data.get("type") != "ed25519" or reply.data.get("derived"):
            raise SigningKeyMisconfigured
        try:
            return {
                int(version): VerifierKey(
                    self._name, base64.b64decode(key["public_key"], validate=True)
                )
                for version, key in reply.data["keys"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise VaultBadReply from error


def _signature(data: Mapping[str, Any]) -> tuple[int, bytes]:
    match = _SIGNATURE.fullmatch(str(data.get("signature")))
    if match is None:
        raise VaultBadReply
    try:
        return int(match[1]), base64.b64decode(match[2], validate=True)
    except binascii.Error as error:
        raise VaultBadReply from error
