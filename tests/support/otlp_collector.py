"""A collector on loopback: takes OTLP over HTTP, and keeps what it took."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.support.planted_secrets import written


class Collector(ThreadingHTTPServer):
    """Answers nothing while `open` is not set, and keeps nothing unless `status` is 200.

    Attributes:
        spans, records: of traces and of logs, decoded.
        raw: every body, one behind the other.
        headers: of each request that was taken.
        asked: set once a request has come.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.spans: list[Any] = []
        self.records: list[Any] = []
        self.raw = b""
        self.headers: list[Message] = []
        self.asked, self.open = threading.Event(), threading.Event()
        self.open.set()
        self.status = 200

    def endpoint(self, signal: str) -> str:
        """Of `traces` or `logs`."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1/{signal}"

    def take(self, path: str, data: bytes) -> None:
        self.raw += data
        if path == "/v1/traces":
            traces = trace_service_pb2.ExportTraceServiceRequest.FromString(data)
            for spans in traces.resource_spans:
                self.spans += [span for scope in spans.scope_spans for span in scope.spans]
        elif path == "/v1/logs":
            logs = logs_service_pb2.ExportLogsServiceRequest.FromString(data)
            for records in logs.resource_logs:
                self.records += [each for scope in records.scope_logs for each in scope.log_records]


@contextmanager
def running_collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.open.set()
        server.shutdown()
        thread.join()
        server.server_close()
        written("what an OTLP collector was sent", server.raw)


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        self.server.asked.set()
        self.server.open.wait(60)
        if self.server.status == 200:
            self.server.headers.append(self.headers)
            self.server.take(self.path, data)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None: ...
