"""A TCP proxy that misbehaves on demand: swallows replies, goes silent, cuts connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards 127.0.0.1:`port` to the first of its targets that accepts, as a balancer would.

    Attributes:
        swallow_replies: what the target sends is read and thrown away.
        silent: connections are accepted and nothing is forwarded.
        connections: how many were accepted.
    """

    def __init__(self, *target_ports: int) -> None:
        self._targets = [("127.0.0.1", port) for port in target_ports]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.swallow_replies = False
        self.silent = False
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Close every open connection."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for connection in self._open:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = self._connected()
            if server is None:
                client.close()
                continue
            self._open += [client, server]
            for source, sink, is_reply in ((client, server, False), (server, client, True)):
                thread = threading.Thread(
                    target=self._forward, args=(source, sink, is_reply), daemon=True
                )
                self._threads.append(thread)
                thread.start()

    def _connected(self) -> socket.socket | None:
        for target in self._targets:
            with contextlib.suppress(OSError):
                return socket.create_connection(target)
        return None

    def _forward(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self.silent and not (is_reply and self.swallow_replies):
                    sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
