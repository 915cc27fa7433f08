"""One scrape for many workers: each keeps a registry of its own, their parent adds the `worker`.

A worker serves its registry on a Unix socket, with the same handler as `/metrics`. The parent,
which serves no calls, asks every worker when it is scraped, and answers with all their series, each
labelled with its worker's number. So nothing is shared between workers while they count, gauges
mean what they mean in one process, and a worker that was restarted is a counter reset, which
Prometheus understands. Why not prometheus_client's multiprocess mode: docs/adr.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.metrics_server import Page, Pages

_log = get_logger(__name__)
_ANSWER_TIMEOUT_S = 2.0
_UP = "modelkms_worker_up"
_UP_HELP = "1 if the worker answered this scrape"


def merged_registry(sockets: Mapping[str, Path]) -> CollectorRegistry:
    """A registry that asks the workers' at each scrape.

    Args:
        sockets: worker number to where its registry is served.
    """
    registry = CollectorRegistry()
    registry.register(_Workers(sockets))
    return registry


def pages_of(
    sockets: Mapping[str, Path], together: Callable[[Mapping[str, bytes | None]], bytes]
) -> Pages:
    """The workers' other pages. Ready is who has one that is; status is that of all.

    Args:
        together: makes one status of what each worker told (None: it does not answer).
    """

    def status() -> Page:
        answers = {worker: _get(worker, path, "/status") for worker, path in sockets.items()}
        if not any(answers.values()):
            return Page(503, b"no worker answers\n")
        told = {worker: page.body if page else None for worker, page in answers.items()}
        return Page(200, together(told), "application/json")

    return {
        "/livez": lambda: Page(200, b"ok\n"),
        "/readyz": _first_good(sockets, "/readyz"),
        "/status": status,
    }


def _first_good(sockets: Mapping[str, Path], path: str) -> Callable[[], Page]:
    def page() -> Page:
        found = Page(503, b"no worker answers\n")
        for worker, socket_path in sockets.items():
            answer = _get(worker, socket_path, path)
            if answer is not None:
                found = answer
                if answer.status == 200:
                    break
        return found

    return page


class _Workers:
    def __init__(self, sockets: Mapping[str, Path]) -> None:
        self._sockets = sockets

    def collect(self) -> Iterator[Metric]:
        """A worker that does not answer is left out, and told by its `up`."""
        up = GaugeMetricFamily(_UP, _UP_HELP, labels=("worker",))
        merged: dict[str, Metric] = {}
        for worker, path in self._sockets.items():
            text = _ask(worker, path)
            up.add_metric((worker,), float(text is not None))
            for family in text_string_to_metric_families(text or ""):
                whole = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    whole.samples.append(
                        sample._replace(labels={**sample.labels, "worker": worker})
                    )
        yield up
        yield from merged.values()

    def describe(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(_UP, _UP_HELP)


def _ask(worker: str, path: Path) -> str | None:
    answer = _get(worker, path, "/metrics")
    return answer.body.decode() if answer is not None and answer.status == 200 else None


def _get(worker: str, path: Path, page: str) -> Page | None:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", page)
        answer = connection.getresponse()
        body = answer.read()
        kind = answer.getheader("Content-Type") or "text/plain"
    except (OSError, HTTPException) as error:
        _log.warning("worker_metrics_missing", worker=worker, error=type(error).__name__)
        return None
    finally:
        connection.close()
    return Page(answer.status, body, kind)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER_TIMEOUT_S)
        self.sock.connect(str(self._path))
