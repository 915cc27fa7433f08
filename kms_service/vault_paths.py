"""What the service's Vault policy must allow and refuse, found out by asking for each path.

Asking changes nothing, whatever the answer is: what would act is asked about keys and tombstones
that do not exist, or with a parameter that cannot be taken. Vault looks at the policy (403) before
it looks at either.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kms_service.adapters.vault_session import VaultSession
from kms_service.config import Config

NO_PROJECT = "no-such-project-live-check"
_FORBIDDEN = 403
_ALLOWED_PROBLEM = "is allowed, and must not be"
_REFUSED_PROBLEM = "is refused, and needed"
_NOT_A_NUMBER = "not a number"
"""For a parameter that is one: Vault refuses it, but only to whom the path is allowed."""
_TOO_LONG = 513
"""For a value of custom metadata."""


@dataclass(frozen=True, slots=True)
class VaultRequest:
    """One request; as text: method and path."""

    method: str
    path: str
    body: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def needed(config: Config) -> Iterator[VaultRequest]:
    """What the service asks for while it works."""
    mount, key = config.vault.transit_mount, _absent_key(config)
    wrapped = {"ciphertext": "vault:v1:aGk=", "context": "aGk="}
    yield VaultRequest("GET", f"{mount}/keys/{key}")
    yield VaultRequest("POST", f"{mount}/datakey/plaintext/{key}", {"context": "aGk="})
    yield VaultRequest("POST", f"{mount}/decrypt/{key}", wrapped)
    yield VaultRequest("POST", f"{mount}/rewrap/{key}", wrapped)
    if config.audit.checkpoints is not None:
        signing = config.audit.checkpoints.key
        yield VaultRequest("GET", f"{mount}/keys/{signing}")
        yield VaultRequest("POST", f"{mount}/sign/{signing}", {"input": "aGk="})
    store, uid = config.vault.kv_mount, _absent_uid()
    yield VaultRequest("GET", f"{store}/metadata/tombstones?list=true")
    yield VaultRequest("GET", f"{store}/data/tombstones/{uid}")
    # After a version that is not there: whoever may create one is told so (400).
    after_none = {"options": {"cas": 1}, "data": {"version": "live check"}}
    yield VaultRequest("POST", f"{store}/data/tombstones/{uid}", after_none)
    yield VaultRequest("GET", "auth/token/lookup-self")
    yield VaultRequest("POST", "auth/token/renew-self", {"increment": _NOT_A_NUMBER})


def forbidden(config: Config, tombstone: str | None = None) -> Iterator[VaultRequest]:
    """What would let the service administer keys, bring back what was destroyed, or see more.

    Args:
        tombstone: uid of one that is there; only such a one can be asked to be changed.
    """
    mount, key = config.vault.transit_mount, _absent_key(config)
    # Without a plaintext Vault makes no key, but tells whether it would be let to ("create").
    yield VaultRequest("POST", f"{mount}/encrypt/{key}", {})
    yield VaultRequest("POST", f"{mount}/keys/{key}", {"derived": _NOT_A_NUMBER})
    yield VaultRequest("POST", f"{mount}/keys/{key}/rotate", {})
    yield VaultRequest("POST", f"{mount}/keys/{key}/config", {})
    yield VaultRequest("POST", f"{mount}/keys/{key}/trim", {})
    yield VaultRequest("DELETE", f"{mount}/keys/{key}")
    yield VaultRequest("GET", f"{mount}/export/encryption-key/{key}")
    yield VaultRequest("GET", f"{mount}/backup/{key}")
    yield VaultRequest("GET", f"{mount}/keys?list=true")
    yield VaultRequest("GET", f"{mount}/keys/{NO_PROJECT}")
    if config.audit.checkpoints is not None:
        signing = config.audit.checkpoints.key
        bound = {"min_decryption_version": _NOT_A_NUMBER}
        yield VaultRequest("POST", f"{mount}/keys/{signing}/config", bound)
        yield VaultRequest("GET", f"{mount}/export/signing-key/{signing}")
        yield VaultRequest("GET", f"{mount}/backup/{signing}")
    store, uid = config.vault.kv_mount, _absent_uid()
    if tombstone is not None:
        # As if there were none: whoever may change it is told that there is one (400).
        first = {"options": {"cas": 0}, "data": {"version": "live check"}}
        yield VaultRequest("POST", f"{store}/data/tombstones/{tombstone}", first)
    yield VaultRequest("DELETE", f"{store}/data/tombstones/{uid}")
    for operation in ("delete", "undelete", "destroy"):
        yield VaultRequest("POST", f"{store}/{operation}/tombstones/{uid}", {"versions": [1]})
    yield VaultRequest("DELETE", f"{store}/metadata/tombstones/{uid}")
    # Here a type would be looked at before the policy is; a length is not.
    note = {"custom_metadata": {"live check": "x" * _TOO_LONG}}
    yield VaultRequest("POST", f"{store}/metadata/tombstones/{uid}", note)
    yield VaultRequest("POST", f"{store}/config", {"max_versions": _NOT_A_NUMBER})
    yield VaultRequest("GET", "sys/mounts")
    yield VaultRequest("GET", "sys/policies/acl/modelkms-service")
    yield VaultRequest("POST", "auth/token/create", {"num_uses": _NOT_A_NUMBER})


def problems(config: Config, session: VaultSession, tombstones: Iterable[str]) -> Iterator[str]:
    """Every path that is not as it must be, in words.

    Args:
        tombstones: uids of those that there are.

    Raises:
        VaultUnavailable, VaultSealed, VaultAccessRefused (of the login), VaultBadReply.
    """
    for request in needed(config):
        if not _allowed(session, request):
            yield f"{request} {_REFUSED_PROBLEM}"
    for request in forbidden(config, next(iter(tombstones), None)):
        if _allowed(session, request):
            yield f"{request} {_ALLOWED_PROBLEM}"


def _allowed(session: VaultSession, request: VaultRequest) -> bool:
    return session.attempt(request.method, request.path, request.body).status != _FORBIDDEN


def _absent_key(config: Config) -> str:
    return config.vault.master_key_template.replace("{project}", NO_PROJECT)


def _absent_uid() -> str:
    return secrets.token_hex(16)
