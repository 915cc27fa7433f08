"""The service's standing at Vault: logged in, renewed, patient for a while and no longer.

hvac gives requests and headers. What it leaves open is done here and in `vault_http`: a connection
pool, time-outs, token renewal, one new login when refused, retries with jitter, a circuit breaker.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random as random_module
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from kms_service.adapters.vault_breaker import CircuitBreaker
from kms_service.adapters.vault_http import Reply, VaultHttp
from kms_service.domain.errors import (
    ServiceError,
    VaultAccessRefused,
    VaultBadReply,
    VaultSealed,
    VaultThrottled,
    VaultUnavailable,
)
from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.tracing import Tracer

_log = get_logger(__name__)

_ATTEMPTS = 3
_FIRST_BACKOFF_S = 0.05
_PATIENCE = 2.5
"""How many request time-outs one call may last, everything in it: a lost reply is asked for again,
and the caller's own deadline (30 s in our SDK) is not spent on a Vault that is away (F34)."""
_TOKEN_MARGIN_S = 1.0
_RENEWAL_FRACTION = 2 / 3
_SHORTEST_RENEWAL_WAIT_S = 1.0
_RETRY_AFTER_FAILED_RENEWAL_S = 5.0
_USELESS_LOGIN_PAUSE_S = 5.0
"""After a login that was refused or did not help: each login leaves a token in Vault's storage
until its TTL ends, so a missing policy must not make one for every call."""


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """Where Vault is and how the service logs in: AppRole files, or a token file.

    Attributes:
        ca_file: PEM bundle; None: the system's. Verification cannot be turned off.
        request_timeout_s: of one request; a call, with all that it repeats, ends within 2.5 of it.
        connections: open at most.
    """

    address: str
    ca_file: Path | None
    namespace: str | None
    approle_mount: str
    role_id_file: Path | None
    secret_id_file: Path | None
    token_file: Path | None
    request_timeout_s: float
    connections: int


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """For status and metrics. `token_ttl_s` is None while there is no token."""

    token_ttl_s: float | None
    breaker_open: bool


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    end: float
    """By the monotonic clock; infinite: does not end."""
    renew_at: float


class VaultSession:
    """Sends requests to Vault; safe to use from many threads.

    Args:
        monotonic: seconds.
        sleep: between retries.
        random: uniform in [0, 1), for jitter.
        tracer: makes a span of each request; None: none.

    Raises:
        ConfigurationError: the CA file cannot be used.
    """

    def __init__(
        self,
        settings: VaultSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random_module.random,
        tracer: Tracer | None = None,
    ) -> None:
        # urllib3 logs each request's path and connection at debug level; ours are no secrets,
        # but nobody should have to prove it of the next version.
        logging.getLogger("urllib3").setLevel(logging.WARNING)
        self._settings = settings
        self._monotonic = monotonic
        self._sleep = sleep
        self._random = random
        self._breaker = CircuitBreaker(monotonic, random)
        self._http = VaultHttp(
            settings.address, settings.ca_file, settings.namespace, settings.connections, tracer
        )
        self._token: _Token | None = None
        self._login_lock = threading.Lock()
        self._next_login = float("-inf")
        self._closing = threading.Event()
        self._token_changed = threading.Event()
        self._renewer: threading.Thread | None = None

    def patience(self) -> float:
        """When what begins now must have ended, by the monotonic clock."""
        return self._monotonic() + _PATIENCE * self._settings.request_timeout_s

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, end: float
    ) -> Reply:
        """Send a request that may safely be repeated; repeat it if it gets lost.

        Args:
            method: `GET` or `POST`.
            path: below `/v1/`.
            body: becomes JSON.
            end: from `patience()`; several calls of one operation share it.

        Returns:
            The reply, also for 400 and 404, which the caller understands better.

        Raises:
            VaultUnavailable: no reply after 3 attempts or until `end`, or the breaker is open.
            VaultSealed, VaultThrottled, VaultAccessRefused, VaultBadReply.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._call_once(method, path, body, end)
            except VaultUnavailable:
                # Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").
                pause_s = self._random() * _FIRST_BACKOFF_S * 2**attempt
                over = self._monotonic() + pause_s >= end
                if attempt == _ATTEMPTS or self._breaker.open or over:
                    raise
            self._sleep(pause_s)

    def attempt(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """One request under the session's token, and whatever the answer is: to find out what the
        token may and may not. Nothing is repeated, and a 403 is an answer.

        Raises:
            VaultUnavailable, VaultSealed, VaultAccessRefused (of the login), VaultBadReply.
        """
        end = self.patience()
        return self._send(method, path, body, self._current_token(end).value, end)

    def probe(self) -> None:
        """Ask `sys/health`; no token is needed.

        Raises:
            VaultUnavailable, VaultSealed, VaultBadReply.
        """
        self._ask_health(self.patience())

    def status(self) -> SessionStatus:
        token = self._token
        left = token.end - self._monotonic() if token is not None else None
        return SessionStatus(left, self._breaker.open)

    def close(self) -> None:
        """Stop renewing; close connections. A token of our own login is revoked, if possible."""
        self._closing.set()
        self._token_changed.set()
        if self._renewer is not None:
            self._renewer.join()
        if self._token is not None and self._settings.token_file is None:
            with contextlib.suppress(VaultUnavailable, VaultBadReply):  # it ends by itself
                self._send("POST", "auth/token/revoke-self", {}, self._token.value, self.patience())
            self._token = None
        self._http.close()

    def _call_once(
        self, method: str, path: str, body: Mapping[str, Any] | None, end: float
    ) -> Reply:
        if not self._breaker.may_call():
            raise VaultUnavailable
        token = self._current_token(end)
        reply = self._send(method, path, body, token.value, end)
        if reply.status == 403:
            # The token may have ended early (revoked, Vault restored): one new login, one retry.
            token = self._login_instead_of(token, end)
            reply = self._send(method, path, body, token.value, end)
            if reply.status == 403:
                self._refused("policy")
        self._breaker.succeeded()
        return self._understood(reply, end)

    def _understood(self, reply: Reply, end: float) -> Reply:
        match reply.status:
            case 200 | 204 | 400 | 404:
                return reply
            case 429:
                raise VaultThrottled
            case 500 | 503:
                self._ask_health(end)  # sealed, or otherwise away?
                raise VaultUnavailable
            case 307 | 412 | 472 | 473 | 502 | 504:
                raise VaultUnavailable
        raise VaultBadReply

    def _ask_health(self, end: float) -> None:
        reply = self._send("GET", "sys/health", None, "", end, namespaced=False)
        self._breaker.succeeded()
        # By the body, not by the status alone: a load balancer without a Vault behind it says 503,
        # too, and "sealed" makes the service forget every key at once.
        if reply.body.get("sealed") is True or reply.body.get("initialized") is False:
            raise VaultSealed
        # 200 active; 429 unsealed standby, 472/473 replication secondaries: those forward
        # (Vault API, "/sys/health"). A rate limit's 429 tells no state: Vault lives.
        if reply.status in (200, 429, 472, 473):
            return
        raise VaultUnavailable if reply.status >= 500 else VaultBadReply

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        token: str,
        end: float,
        *,
        namespaced: bool = True,
    ) -> Reply:
        left_s = end - self._monotonic()
        if left_s <= 0:
            raise VaultUnavailable
        try:
            return self._http.send(
                method,
                path,
                body,
                token=token,
                timeout_s=min(self._settings.request_timeout_s, left_s),
                namespaced=namespaced,
            )
        except VaultUnavailable:
            self._breaker.failed()
            raise

    # --- the token -----------------------------------------------------------------------------

    def _current_token(self, end: float) -> _Token:
        token = self._token
        if token is not None and self._monotonic() < token.end - _TOKEN_MARGIN_S:
            return token
        return self._login_instead_of(token, end)

    def _login_instead_of(self, stale: _Token | None, end: float) -> _Token:
        """A token other than the stale one. Of many threads that need one, one logs in, and the
        others wait for it: until their own end, since it may be waiting for a Vault that is away.
        """
        waits = not self._login_lock.acquire(blocking=False)
        if waits and not self._login_lock.acquire(timeout=max(0.0, end - self._monotonic())):
            raise VaultUnavailable
        try:
            if self._token is not None and self._token is not stale:
                return self._token
            if waits and not self._breaker.may_call():  # the one before us found Vault away
                raise VaultUnavailable
            if self._monotonic() < self._next_login:
                raise VaultAccessRefused
            return self._login(end)
        finally:
            self._login_lock.release()

    def _login(self, end: float) -> _Token:
        settings = self._settings
        value: Any
        if settings.token_file is not None:
            value = self._read(settings.token_file)
            reply = self._send("GET", "auth/token/lookup-self", None, value, end)
            ttl_s = self._granted(reply, end).data.get("ttl")
        else:
            credentials = {
                "role_id": self._read(settings.role_id_file),
                "secret_id": self._read(settings.secret_id_file),
            }
            path = f"auth/{settings.approle_mount}/login"
            reply = self._send("POST", path, credentials, "", end)
            auth = _auth(self._granted(reply, end))
            value, ttl_s = auth.get("client_token"), auth.get("lease_duration")
        if not isinstance(value, str) or not value or not isinstance(ttl_s, int):
            raise VaultBadReply
        return self._take(value, ttl_s)

    def _granted(self, reply: Reply, end: float) -> Reply:
        # Vault answers a wrong role id or secret id with 400, a denied login with 403.
        if reply.status in (400, 401, 403, 404):
            self._refused("login")
        understood = self._understood(reply, end)
        self._breaker.succeeded()
        return understood

    def _refused(self, by: str, **details: str) -> NoReturn:
        """What somebody must mend: told in the log, as often as there are logins."""
        self._next_login = self._monotonic() + _USELESS_LOGIN_PAUSE_S
        _log.warning("vault_access_refused", by=by, **details)
        raise VaultAccessRefused

    def _read(self, file: Path | None) -> str:
        """One line of a credential's file.

        Raises:
            VaultAccessRefused: there is none that could be sent: the service cannot log in.
        """
        try:
            text = "" if file is None else file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            text = ""
        if not text or not text.isprintable():
            self._refused("credential_file", file=str(file))
        return text

    def _take(self, value: str, ttl_s: int) -> _Token:
        """A TTL of 0 means that the token does not end (a root token's)."""
        now = self._monotonic()
        if ttl_s > 0:
            wait_s = max(ttl_s * _RENEWAL_FRACTION, _SHORTEST_RENEWAL_WAIT_S)
            token = _Token(value, now + ttl_s, now + wait_s)
        else:
            token = _Token(value, math.inf, math.inf)
        self._token = token
        self._token_changed.set()
        if self._renewer is None and not self._closing.is_set():
            self._renewer = threading.Thread(
                target=self._keep_renewing, name="vault-token-renewal", daemon=True
            )
            self._renewer.start()
        return token

    def _keep_renewing(self) -> None:
        retry_at: float | None = None
        while not self._closing.is_set():
            token = self._token
            if token is None:  # pragma: no cover - close() alone takes it away
                return
            due = token.renew_at if retry_at is None else retry_at
            wait_s = min(max(due - self._monotonic(), 0.0), threading.TIMEOUT_MAX)
            changed = self._token_changed.wait(wait_s)
            self._token_changed.clear()
            if changed or self._token_renewed(token):
                retry_at = None
            else:
                retry_at = self._monotonic() + _RETRY_AFTER_FAILED_RENEWAL_S

    def _token_renewed(self, token: _Token) -> bool:
        """Renew, or log in anew where Vault grants no longer life any more (max TTL is near).

        The lock is not held while Vault is asked: the token is good, and nobody shall wait.
        """
        end = self.patience()
        try:
            before_s = token.end - self._monotonic()
            reply = self._send("POST", "auth/token/renew-self", {}, token.value, end)
            ttl_s = _auth(reply).get("lease_duration") if reply.ok else None
            if not isinstance(ttl_s, int) or ttl_s <= before_s:
                self._login_instead_of(token, end)
                return True
            with self._login_lock:
                if self._token is token:
                    self._take(token.value, ttl_s)
        except ServiceError as error:
            _log.warning("vault_token_not_renewed", reason=error.reason)
            return False
        return True


def _auth(reply: Reply) -> Mapping[str, Any]:
    auth = reply.body.get("auth")
    if not isinstance(auth, dict):
        raise VaultBadReply
    return auth
