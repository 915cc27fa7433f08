"""One request to Vault and its reply: pooled, verified, bounded in time and in size."""

from __future__ import annotations

import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

import requests
from hvac.adapters import RawAdapter
from requests.adapters import HTTPAdapter
from urllib3 import HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPSConnection

from kms_service.domain.errors import ConfigurationError, VaultBadReply, VaultUnavailable
from kms_service.telemetry.tracing import NoTracer, Tracer

MAX_REPLY_BYTES = 16 * 1024 * 1024
"""Of one reply with its headers; the largest that is wanted, a batch of 20,000, has about 3 MB."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and JSON body of a reply. The body may hold a data key or a token: not in `repr`."""

    status: int
    body: Mapping[str, Any] = field(repr=False)

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


class VaultHttp:
    """Sends requests; safe to use from many threads.

    Args:
        address: `https://host:port`.
        ca_file: PEM bundle; None: the system's. Verification cannot be turned off.
        namespace: sent with requests that are not for the root namespace only; None: none.
        connections: open at most.
        tracer: makes a span of each request.

    Raises:
        ConfigurationError: the CA file cannot be used.
    """

    def __init__(
        self,
        address: str,
        ca_file: Path | None,
        namespace: str | None,
        connections: int,
        tracer: Tracer | None = None,
    ) -> None:
        self._namespace = namespace
        self._tracer = tracer or NoTracer()
        # Not the pool's own blocking, which knows no time-out.
        self._slots = threading.BoundedSemaphore(connections)
        self._adapter = RawAdapter(
            base_uri=address,
            session=_pooled(ca_file, connections),
            # A redirect would take the token to another address: standbys forward by themselves.
            allow_redirects=False,
        )

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        token: str,
        timeout_s: float,
        namespaced: bool = True,
    ) -> Reply:
        """Send once.

        Args:
            path: below `/v1/`.
            token: empty: none.
            timeout_s: for everything, from waiting for a free connection to the reply's last byte.
            namespaced: False for what belongs to the root namespace (`sys/health`): OpenBao refuses
                that elsewhere.

        Raises:
            VaultUnavailable: no whole reply in time.
            VaultBadReply: the server is not who it must be, or its reply is too long or no JSON.
        """
        end = time.monotonic() + timeout_s
        headers = {"X-Vault-Token": token} if token else {}
        if self._namespace and namespaced:
            headers["X-Vault-Namespace"] = self._namespace
        if timeout_s <= 0 or not self._slots.acquire(timeout=timeout_s):
            raise VaultUnavailable
        try:
            # Of the path its first two parts: what follows names keys and projects.
            with self._tracer.request("vault " + "/".join(path.split("/")[:2])) as traced:
                response = self._adapter.request(
                    method,
                    f"/v1/{path}",
                    json=body,
                    headers={**headers, **traced},
                    raise_exception=False,
                    timeout=Timeout(total=max(end - time.monotonic(), 0.001)),
                )
        except OSError as error:  # every one of requests' is one
            if _certificate_refused(error):
                raise VaultBadReply from error
            raise VaultUnavailable from error
        finally:
            self._slots.release()
        return Reply(response.status_code, _json(response))

    def close(self) -> None:
        self._adapter.close()


def _pooled(ca_file: Path | None, connections: int) -> requests.Session:
    if ca_file is not None:
        try:
            ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(
                f"vault.ca_file: {ca_file} is not a readable PEM bundle of certificates"
            ) from error
    session = requests.Session()
    session.verify = str(ca_file) if ca_file is not None else True
    # Nothing from the environment: no proxies, no .netrc, no other CA bundle.
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    # A compressed reply could be larger than what was counted.
    session.headers["Accept-Encoding"] = "identity"
    session.mount("https://", _BoundedAdapter(1, connections, max_retries=0))
    return session


def _certificate_refused(error: BaseException) -> bool:
    """Whether our check of the server's certificate is behind this."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


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


# --- bounds of a reply ---------------------------------------------------------------------------
#
# A socket's time-out bounds each read, so a reply that drips would hold its caller for as long as
# it likes (F34). Here the time-out that urllib3 sets before a reply bounds the whole of it.


class _BoundedReads(io.RawIOBase):
    """What `http.client` reads one reply from."""

    def __init__(self, source: socket.SocketIO, of: _BoundedSocket) -> None:
        self._source = source
        self._of = of
        self._left_bytes = MAX_REPLY_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._of.limit_next_read()
        count = self._source.readinto(buffer)
        self._left_bytes -= count or 0
        if self._left_bytes < 0:
            raise VaultBadReply
        return count

    def close(self) -> None:
        self._source.close()
        super().close()


class _BoundedSocket:
    """A socket whose time-out means "until then", not "at each read"."""

    def __init__(self, connected: socket.socket) -> None:
        self._connected = connected
        self._end: float | None = None

    def settimeout(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s
        self._connected.settimeout(timeout_s)

    def limit_next_read(self) -> None:
        """
        Raises:
            TimeoutError: nothing may be read any more.
        """
        if self._end is not None:
            left_s = self._end - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the reply took too long")
            self._connected.settimeout(left_s)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(
            _BoundedReads(self._connected.makefile("rb", buffering=0), self), 64 * 1024
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connected, name)


class _BoundedConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock = _BoundedSocket(self.sock)  # all of a socket that is used


class _BoundedPool(HTTPSConnectionPool):
    ConnectionCls = _BoundedConnection


class _BoundedAdapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"https": _BoundedPool}
