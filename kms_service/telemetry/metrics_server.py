"""`/metrics`, and pages for those who watch over the service, over HTTP, on a port or a Unix socket
of its own. No secrets, no identities."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from kms_service.telemetry.listening import cannot_listen

_READ_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Page:
    """An answer: HTTP status, and what it says."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]
"""Path (`/readyz`) to what makes the page."""


class MetricsServer:
    """Serves one registry from `start` to `stop`.

    Args:
        address: host and port; or the path of a Unix socket, for this user alone.
        pages: beside `/metrics`.
    """

    def __init__(
        self,
        address: tuple[str, int] | Path,
        registry: CollectorRegistry,
        pages: Pages | None = None,
    ) -> None:
        self._address = address
        self._handler = type("Handler", (_Handler,), {"registry": registry, "pages": pages or {}})
        self._server: _Server | _UnixServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port listened on; 0 before `start`, and on a Unix socket."""
        if not isinstance(self._server, _Server):
            return 0
        return int(self._server.server_address[1])

    def start(self) -> None:
        """
        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        try:
            self._server = self._listen()
        except (OSError, OverflowError) as error:
            raise cannot_listen("metrics.listen", _shown(self._address), error) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics"
        )
        self._thread.start()

    def stop(self) -> None:
        """Idempotent; harmless before `start`."""
        if self._server is not None and self._thread is not None and self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        if self._server is not None:
            self._server.server_close()

    def _listen(self) -> _Server | _UnixServer:
        if isinstance(self._address, Path):
            # Left behind by a worker that was killed; only its successor has this number.
            self._address.unlink(missing_ok=True)
            return _UnixServer(str(self._address), self._handler)
        return _Server(self._address, self._handler)


def _shown(address: tuple[str, int] | Path) -> str:
    return str(address) if isinstance(address, Path) else f"{address[0]}:{address[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16
    # Else two services could share a port, and each would answer half of the scrapes.
    allow_reuse_port = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes away is no event."""


class _UnixServer(ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def server_bind(self) -> None:
        super().server_bind()
        Path(str(self.server_address)).chmod(0o600)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As above."""


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    pages: Pages
    timeout = _READ_TIMEOUT_S
    server_version = "modelkms"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(Page(200, encode(self.registry), content_type))
        elif (page := self.pages.get(path)) is not None:
            self._answer(page())
        else:
            self.send_error(404)

    def _answer(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def log_message(self, *args: object) -> None:
        """Scrapes are not logged."""
