"""Bearer tokens: from a file that somebody else keeps fresh, or from a helper that is run.

A token is read by nobody here but for its end and its subject; the service verifies it.
"""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from modelkms.errors import CredentialInvalid, CredentialMissing
from modelkms.profile import Profile

_EXEC_TIMEOUT_S = 30.0
_RENEWED_AT = 0.8
"""A helper is run again when so much of its token's life is over."""
_WITHOUT_END_S = 60.0
_FILE_EVERY_S = 1.0
_MAX_TOKEN_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A token; `repr` does not show it.

    Attributes:
        value: goes into `authorization: Bearer …`.
        expires: by its own word; None if it does not say.
        subject, issuer: by its own word; empty if it is no JWT.
    """

    value: str
    expires: datetime | None = None
    subject: str = ""
    issuer: str = ""

    def __repr__(self) -> str:
        return f"BearerToken(subject={self.subject!r}, expires={self.expires})"

    @classmethod
    def read(cls, text: str, expires: datetime | None = None) -> BearerToken:
        """
        Raises:
            CredentialInvalid: it cannot be sent.
        """
        value = text.strip()
        if not value or len(value) > _MAX_TOKEN_BYTES or not value.isascii() or " " in value:
            raise CredentialInvalid("the bearer token is empty or is no token")
        if not value.isprintable():
            raise CredentialInvalid("the bearer token holds more than one line")
        claims = _claims(value)
        end = claims.get("exp")
        if isinstance(end, int | float) and not isinstance(end, bool) and 0 < end < 1 << 40:
            expires = datetime.fromtimestamp(end, UTC)
        return cls(value, expires, _text(claims.get("sub")), _text(claims.get("iss")))


class BearerTokens:
    """The newest token. Safe to use from several threads; also a plugin for grpc."""

    def __init__(self, fetch: Callable[[], BearerToken], lasts_s: Callable[[BearerToken], float]):
        self._fetch = fetch
        self._lasts_s = lasts_s
        self._lock = threading.Lock()
        self._token: BearerToken | None = None
        self._until_s = 0.0

    @classmethod
    def of(cls, profile: Profile) -> BearerTokens | None:
        """As the profile says; None if it names no token."""
        if profile.token_exec is not None:
            command = profile.token_exec
            return cls(lambda: run_helper(command), _most_of_its_life)
        if profile.token_file is not None:
            file = profile.token_file
            # Kubernetes replaces the file long before the token ends: it is read anew each second.
            return cls(lambda: read_file(file), lambda _token: _FILE_EVERY_S)
        return None

    def current(self) -> BearerToken:
        """
        Raises:
            CredentialMissing: file or helper is not there.
            CredentialInvalid: they give no token.
        """
        with self._lock:
            if self._token is None or time.monotonic() >= self._until_s:
                self._token = self._fetch()
                self._until_s = time.monotonic() + self._lasts_s(self._token)
            return self._token

    def forget(self) -> None:
        """Fetch another one at the next use: this one was refused."""
        with self._lock:
            self._token = None


class BearerPlugin(grpc.AuthMetadataPlugin):
    """Adds the token, and which instance this is, to each call.

    Args:
        instance: 64 hexadecimal digits; the service takes it for what it is: our own word.
    """

    def __init__(self, tokens: BearerTokens, instance: str) -> None:
        self._tokens = tokens
        self._instance = instance

    def __call__(
        self, _context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback
    ) -> None:
        try:
            token = self._tokens.current()
        except Exception as error:  # told to whoever calls by Session.call, which looks first
            callback((), error)
            return
        metadata = (
            ("authorization", f"Bearer {token.value}"),
            ("x-modelkms-instance", self._instance),
        )
        callback(metadata, None)


def read_file(file: Path) -> BearerToken:
    """
    Raises:
        CredentialMissing, CredentialInvalid.
    """
    try:
        return BearerToken.read(file.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise CredentialMissing(f"the token file {file} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialInvalid(f"the token file {file} cannot be read") from error


def run_helper(command: Sequence[str]) -> BearerToken:
    """Run it without a shell; it prints a token, or a Kubernetes ExecCredential.

    Raises:
        CredentialMissing: it cannot be run.
        CredentialInvalid: it fails, takes too long, or prints something else. What it prints is
            not repeated: it may be a secret.
    """
    name = command[0] if command else "(empty)"
    try:
        done = subprocess.run(  # noqa: S603 - the user's own profile names it; no shell
            list(command), capture_output=True, timeout=_EXEC_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CredentialInvalid(f"the token helper {name} takes too long") from error
    except (OSError, ValueError, IndexError) as error:
        raise CredentialMissing(f"the token helper {name} cannot be run") from error
    if done.returncode != 0:
        raise CredentialInvalid(f"the token helper {name} ended with code {done.returncode}")
    try:
        return _printed(done.stdout.decode("ascii"))
    except UnicodeDecodeError as error:
        raise CredentialInvalid(f"the token helper {name} printed no token") from error


def _printed(text: str) -> BearerToken:
    if not text.lstrip().startswith("{"):
        return BearerToken.read(text)
    try:
        status = json.loads(text)["status"]
        token, until = status["token"], status.get("expirationTimestamp")
        expires = datetime.fromisoformat(until).astimezone(UTC) if until else None
        return BearerToken.read(token, expires)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CredentialInvalid("the token helper printed no ExecCredential") from error


def _most_of_its_life(token: BearerToken) -> float:
    if token.expires is None:
        return _WITHOUT_END_S
    return max(0.0, _RENEWED_AT * (token.expires - datetime.now(UTC)).total_seconds())


def _claims(token: str) -> dict[str, Any]:
    """Of a JWT, unverified; empty if it is none."""
    try:
        _, payload, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
