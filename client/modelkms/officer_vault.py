"""The officer's connection to Vault: their login, calls under it, and what its errors mean.

This module alone imports hvac in the client. What crosses its border is `ModelKmsError`; a Vault
message never does, for it may quote what was sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hvac
import requests
from hvac import exceptions as vault_errors

from modelkms.errors import (
    IdentityError,
    NotFoundError,
    ProfileInvalid,
    ServerNotTrusted,
    VaultBadReply,
    VaultSealed,
    VaultThrottled,
    VaultUnavailable,
    WrongStateError,
)
from modelkms.profile import VaultProfile
from modelkms.secret import SecretBytes

_TIMEOUT_S = (5.0, 15.0)  # to connect, to answer
_READ_ATTEMPTS = 2

Answer = TypeVar("Answer")


class VaultLoginRefused(IdentityError):
    """Vault does not take the officer's login."""

    default_reason = "VAULT_LOGIN_REFUSED"
    default_hint = (
        "check role_id_file and secret_id_file, jwt_file, or token_file, in [vault] of the "
        "profile; a secret id may have expired"
    )


class VaultDenied(NotFoundError):
    """Vault's policies do not let this login do it, or what is asked for is not there."""

    default_reason = "VAULT_DENIED"
    default_hint = (
        "the login needs the officer's policy (deploy/vault/policies/officer.hcl); check "
        "transit_mount and master_key_template in [vault] of the profile"
    )


class VaultRequestRefused(WrongStateError):
    """Vault does not take the request for this key."""

    default_reason = "VAULT_REQUEST_REFUSED"
    default_hint = "check transit_mount and master_key_template in [vault] of the profile"


class OfficerVault:
    """Vault as the officer may use it. Logs in when first needed; the login ends with `close`.

    Args:
        vault: where Vault is, and the login.
        session: to speak HTTP with; None: a new one. Closed by `close`.
    """

    def __init__(self, vault: VaultProfile, session: requests.Session | None = None) -> None:
        self._vault = vault
        self._session = session or requests.Session()
        # hvac takes the session's, not its own argument.
        self._session.verify = str(vault.ca_file) if vault.ca_file else True
        self._client: hvac.Client | None = None
        self._own_token = False

    def call(self, call: Callable[[hvac.Client], Answer]) -> Answer:
        """The answer of `call`, sent once.

        Raises:
            VaultLoginRefused, VaultDenied, VaultRequestRefused, ServerNotTrusted, ProfileInvalid.
            VaultUnavailable, VaultSealed, VaultThrottled, VaultBadReply: it may have been done.
        """
        client = self._logged_in()
        return _translated(self._vault.address, lambda: call(client))

    def read(self, call: Callable[[hvac.Client], Any]) -> Any | None:
        """The answer to a read, repeated once over an outage; None if nothing is there.

        Raises: as `call`.
        """
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                return self.call(call)
            except _NothingThere:
                return None
            except VaultUnavailable:
                if attempt == _READ_ATTEMPTS:
                    raise
        raise AssertionError("the loop returns or raises")

    def check_login(self) -> None:
        """Log in, and nothing else.

        Raises:
            VaultLoginRefused: the login is not taken.
        """
        self.call(lambda client: client.auth.token.lookup_self())

    def close(self) -> None:
        """End the login that was made here; a token from a file is left as it is. Idempotent."""
        client, self._client = self._client, None
        if client is not None and self._own_token:
            # Where this fails, the token ends by itself, after its short life.
            with contextlib.suppress(vault_errors.VaultError, requests.RequestException):
                client.auth.token.revoke_self()
        self._session.close()

    def _logged_in(self) -> hvac.Client:
        if self._client is None:
            self._client = self._login()
        return self._client

    def _login(self) -> hvac.Client:
        vault = self._vault
        client = hvac.Client(
            url=vault.address,
            token="",  # not None: hvac would take VAULT_TOKEN or ~/.vault-token
            timeout=_TIMEOUT_S,
            namespace=vault.namespace,
            session=self._session,
            allow_redirects=False,  # a redirect would carry the token elsewhere
        )
        if vault.token_file is not None:
            client.token = _read_secret(vault.token_file, "token_file").reveal().decode()
            return client
        if vault.jwt_file is not None:
            jwt = _read_secret(vault.jwt_file, "jwt_file")
            self._log_in(
                lambda: client.auth.jwt.jwt_login(
                    role=vault.jwt_role, jwt=jwt.reveal().decode(), path=vault.jwt_mount
                ),
                "JWT",
            )
            return client
        if vault.role_id_file is None or vault.secret_id_file is None:
            raise ProfileInvalid(
                "[vault] of the profile has no login",
                hint="set role_id_file and secret_id_file, or jwt_file, or token_file",
            )
        role_id = _read_secret(vault.role_id_file, "role_id_file")
        secret_id = _read_secret(vault.secret_id_file, "secret_id_file")
        try:
            self._log_in(
                lambda: client.auth.approle.login(
                    role_id=role_id.reveal().decode(),
                    secret_id=secret_id.reveal().decode(),
                    mount_point=vault.approle_mount,
                ),
                "AppRole",
            )
        finally:
            secret_id.wipe()
        return client

    def _log_in(self, login: Callable[[], object], kind: str) -> None:
        address = self._vault.address
        try:
            _translated(address, login)
        except (VaultDenied, VaultRequestRefused) as error:
            # A wrong secret id or token is a 400, a wrong mount a 403 or 404.
            raise VaultLoginRefused(
                f"Vault at {address} refuses the {kind} login of the profile"
            ) from error
        except (KeyError, TypeError) as error:  # hvac, on an answer without a token
            raise VaultBadReply(
                f"what answers at {address} does not answer as Vault does"
            ) from _without_text(error)
        self._own_token = True


class _NothingThere(VaultDenied):
    """Vault has nothing at that path: a key that does not exist, or an engine."""


def _translated(address: str, call: Callable[[], Answer]) -> Answer:
    """The answer of `call`, or one of our errors: by class and status, never by Vault's words."""
    try:
        return call()
    except requests.exceptions.SSLError as error:
        raise ServerNotTrusted(
            f"the TLS handshake with Vault at {address} failed: its certificate does not verify",
            hint="check address and ca_file in [vault] of the profile",
        ) from _without_text(error)
    except requests.exceptions.JSONDecodeError as error:
        raise VaultBadReply(
            f"what answers at {address} does not answer as Vault does"
        ) from _without_text(error)
    except requests.RequestException as error:
        raise VaultUnavailable(
            f"Vault at {address} cannot be reached",
            hint="check address in [vault] of the profile, and whether Vault runs",
        ) from _without_text(error)
    except OSError as error:  # requests' own, for a CA file that is not there
        raise ProfileInvalid(
            "ca_file in [vault] of the profile cannot be read", hint="it is a PEM bundle"
        ) from _without_text(error)
    except vault_errors.VaultError as error:
        raise _meaning(address, error) from _without_text(error)


def _meaning(address: str, error: vault_errors.VaultError) -> Exception:
    match error:
        case vault_errors.Unauthorized() | vault_errors.Forbidden():
            return VaultDenied(f"Vault at {address} does not let this login do that")
        case vault_errors.InvalidPath():
            return _NothingThere(f"Vault at {address} has nothing there")
        case vault_errors.InvalidRequest() | vault_errors.UnsupportedOperation():
            return VaultRequestRefused(f"Vault at {address} does not take the request")
        case vault_errors.RateLimitExceeded():
            return VaultThrottled(f"Vault at {address} limits its callers")
        case vault_errors.VaultDown():
            return VaultSealed(
                f"Vault at {address} is sealed or not ready", hint="unseal it, then try again"
            )
        case vault_errors.VaultNotInitialized():
            return VaultSealed(f"Vault at {address} is not initialised")
        case _:
            return VaultUnavailable(f"Vault at {address} failed to answer")


def _without_text(error: Exception) -> Exception:
    """For the chain of causes: the kind only. Texts and requests of hvac may carry the token."""
    bare = RuntimeError(f"{type(error).__module__}.{type(error).__name__}")
    bare.__suppress_context__ = True
    return bare


def _read_secret(path: Path, field: str) -> SecretBytes:
    try:
        content = path.read_bytes().strip()
    except OSError as error:
        raise ProfileInvalid(
            f"{field} in [vault] of the profile cannot be read: {path}: {error.strerror}"
        ) from error
    if not content or not content.isascii():
        raise ProfileInvalid(f"{field} in [vault] of the profile is empty or no text: {path}")
    return SecretBytes(content)
