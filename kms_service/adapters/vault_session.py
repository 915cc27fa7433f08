"""One authenticated, pooled, patient connection to Vault. The only importer of hvac.

hvac gives requests, headers and namespaces. What it leaves open is done here: a connection pool,
time-outs, token renewal, one new login when refused, retries with jitter, a circuit breaker.
"""

from __future__ import annotations

import contextlib
import logging
import random as random_module
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

import requests
from hvac.adapters import RawAdapter
from requests.adapters import HTTPAdapter

from kms_service.adapters.vault_breaker import CircuitBreaker
from kms_service.domain.errors import (
    VaultAccessRefused,
    VaultBadReply,
    VaultSealed,
    VaultThrottled,
    VaultUnavailable,
)

_ATTEMPTS = 3
_FIRST_BACKOFF_S = 0.05
_TOKEN_MARGIN_S = 1.0
_RENEWAL_FRACTION = 2 / 3
_SHORTEST_RENEWAL_WAIT_S = 1.0
_RETRY_AFTER_FAILED_RENEWAL_S = 5.0


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """Where Vault is and how the service logs in: AppRole files, or a token file.

    Attributes:
        ca_file: PEM bundle; None: the system's. Verification cannot be turned off.
        request_timeout_s: to connect, and between bytes of a reply.
        connections: pooled at most.
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
class Reply:
    """Status and JSON body of a request that reached Vault and was not an outage."""

    status: int
    body: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        return self.status in (200, 204)

    @property
    def data(self) -> Mapping[str, Any]:
        """
        Raises:
            VaultBadReply: the body has no `data` object.
        """
        data = self.body.get("data")
        if not isinstance(data, dict):
            raise VaultBadReply
        return data


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """For status and metrics. `token_ttl_s` is None while there is no token."""

    token_ttl_s: float | None
    breaker_open: bool


class VaultSession:
    """Sends requests to Vault; safe to use from many threads.

    Args:
        monotonic: seconds.
        sleep: between retries.
        random: uniform in [0, 1), for jitter.
    """

    def __init__(
        self,
        settings: VaultSettings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        # urllib3 logs each request's path and connection at debug level; ours are no secrets,
        # but nobody should have to prove it of the next version.
        logging.getLogger("urllib3").setLevel(logging.WARNING)
        self._settings = settings
        self._monotonic = monotonic
        self._sleep = sleep
        self._random = random
        self._breaker = CircuitBreaker(monotonic, random)
        self._http = RawAdapter(
            base_uri=settings.address,
            session=_pooled(settings),
            timeout=settings.request_timeout_s,
            namespace=settings.namespace,
            # A redirect would take the token to another address: standbys forward by themselves.
            allow_redirects=False,
        )
        self._token = ""
        self._token_end = 0.0
        self._token_lock = threading.Lock()
        self._closing = threading.Event()
        self._renewer: threading.Thread | None = None

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Send a request that may safely be repeated; repeat it if it gets lost.

        Args:
            method: `GET` or `POST`.
            path: below `/v1/`.
            body: becomes JSON.

        Returns:
            The reply, also for 400 and 404, which the caller understands better.

        Raises:
            VaultUnavailable: no reply in time after 3 attempts, or the breaker is open.
            VaultSealed, VaultThrottled, VaultAccessRefused, VaultBadReply.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._call_once(method, path, body)
            except VaultUnavailable:
                if attempt == _ATTEMPTS or self._breaker.open:
                    raise
            # Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").
            self._sleep(self._random() * _FIRST_BACKOFF_S * 2**attempt)

    def probe(self) -> None:
        """Ask `sys/health`; no token is needed.

        Raises:
            VaultUnavailable, VaultSealed, VaultBadReply.
        """
        reply = self._send("GET", "sys/health", None, token="")
        self._breaker.succeeded()
        # 200 active; 429 unsealed standby, 472/473 replication secondaries: those forward.
        # 501 not initialised, 503 sealed (Vault API, "/sys/health").
        if reply.status in (501, 503):
            raise VaultSealed
        if reply.status not in (200, 429, 472, 473):
            raise VaultBadReply

    def status(self) -> SessionStatus:
        left = self._token_end - self._monotonic()
        return SessionStatus(left if self._token else None, self._breaker.open)

    def close(self) -> None:
        """Stop renewing; close connections. A token of our own login is revoked, if possible."""
        self._closing.set()
        if self._renewer is not None:
            self._renewer.join()
        if self._token and self._settings.token_file is None:
            with contextlib.suppress(VaultUnavailable, VaultBadReply):  # it ends by itself
                self._send("POST", "auth/token/revoke-self", {}, self._token)
        self._http.close()

    def _call_once(self, method: str, path: str, body: Mapping[str, Any] | None) -> Reply:
        if not self._breaker.may_call():
            raise VaultUnavailable
        token = self._current_token()
        reply = self._send(method, path, body, token)
        if reply.status == 403:
            # The token may have ended early (revoked, Vault restored): one new login, one retry.
            reply = self._send(method, path, body, self._login_after(token))
            if reply.status == 403:
                raise VaultAccessRefused
        self._breaker.succeeded()
        return self._understood(reply)

    def _understood(self, reply: Reply) -> Reply:
        match reply.status:
            case 200 | 204 | 400 | 404:
                return reply
            case 429:
                raise VaultThrottled
            case 500 | 503:
                self.probe()  # sealed, or otherwise away?
                raise VaultUnavailable
            case 307 | 412 | 472 | 473 | 502 | 504:
                raise VaultUnavailable
        raise VaultBadReply

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, token: str) -> Reply:
        try:
            response = self._http.request(
                method,
                f"/v1/{path}",
                json=body,
                headers={"X-Vault-Token": token} if token else None,
                raise_exception=False,
            )
        except requests.RequestException as error:
            self._breaker.failed()
            raise VaultUnavailable from error
        return Reply(response.status_code, _json(response))

    # --- the token -----------------------------------------------------------------------------

    def _current_token(self) -> str:
        with self._token_lock:
            if self._token and self._monotonic() < self._token_end - _TOKEN_MARGIN_S:
                return self._token
            return self._login()

    def _login_after(self, refused: str) -> str:
        """A token other than the refused one; of many threads that were refused, one logs in."""
        with self._token_lock:
            if self._token != refused:
                return self._token
            return self._login()

    def _login(self) -> str:
        settings = self._settings
        if settings.token_file is not None:
            given = _read(settings.token_file)
            looked_up = self._granted(self._send("GET", "auth/token/lookup-self", None, given))
            token, ttl = given, looked_up.data.get("ttl")
        else:
            reply = self._send(
                "POST",
                f"auth/{settings.approle_mount}/login",
                {
                    "role_id": _read(settings.role_id_file),
                    "secret_id": _read(settings.secret_id_file),
                },
                token="",
            )
            auth = self._granted(reply).body.get("auth")
            if not isinstance(auth, dict):
                raise VaultBadReply
            token, ttl = str(auth.get("client_token") or ""), auth.get("lease_duration")
        if not token or not isinstance(ttl, int):
            raise VaultBadReply
        self._take(token, ttl)
        self._start_renewing()
        return token

    def _granted(self, reply: Reply) -> Reply:
        # Vault answers a wrong role id or secret id with 400, a denied login with 403.
        if reply.status in (400, 401, 403, 404):
            raise VaultAccessRefused
        understood = self._understood(reply)
        self._breaker.succeeded()
        return understood

    def _take(self, token: str, ttl_s: int) -> None:
        """A TTL of 0 means that the token does not end (root tokens, periodic ones have one)."""
        self._token = token
        self._token_end = self._monotonic() + ttl_s if ttl_s else float("inf")

    def _start_renewing(self) -> None:
        if self._renewer is None and not self._closing.is_set():
            self._renewer = threading.Thread(
                target=self._keep_renewing, name="vault-token-renewal", daemon=True
            )
            self._renewer.start()

    def _keep_renewing(self) -> None:
        wait = self._renewal_wait()
        while not self._closing.wait(wait):
            wait = self._renewal_wait() if self._renew() else _RETRY_AFTER_FAILED_RENEWAL_S

    def _renewal_wait(self) -> float:
        left = self._token_end - self._monotonic()
        return min(max(left * _RENEWAL_FRACTION, _SHORTEST_RENEWAL_WAIT_S), threading.TIMEOUT_MAX)

    def _renew(self) -> bool:
        """Renew, or log in anew where Vault grants no full TTL any more (max TTL is near)."""
        with self._token_lock:
            before = self._token_end - self._monotonic()
            try:
                reply = self._send("POST", "auth/token/renew-self", {}, self._token)
                auth = reply.body.get("auth")
                ttl = auth.get("lease_duration") if reply.ok and isinstance(auth, dict) else None
                if isinstance(ttl, int) and ttl > before:
                    self._take(self._token, ttl)
                else:
                    self._login()
            except (VaultUnavailable, VaultSealed, VaultThrottled, VaultBadReply):
                return False
            except VaultAccessRefused:
                return False
            return True


def _pooled(settings: VaultSettings) -> requests.Session:
    session = requests.Session()
    session.verify = str(settings.ca_file) if settings.ca_file is not None else True
    # Nothing from the environment: no proxies, no .netrc, no other CA bundle.
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.mount(
        "https://",
        HTTPAdapter(
            pool_connections=1,
            pool_maxsize=settings.connections,
            pool_block=True,
            max_retries=0,
        ),
    )
    return session


def _json(response: requests.Response) -> Mapping[str, Any]:
    if response.status_code == 204 or not response.content:
        return {}
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return body
    if response.ok:
        raise VaultBadReply
    return {}  # an error page of something in between: the status says enough


def _read(file: Path | None) -> str:
    """
    Raises:
        VaultAccessRefused: the file cannot be read: the service cannot log in.
    """
    try:
        return "" if file is None else file.read_text().strip()
    except OSError as error:
        raise VaultAccessRefused from error
