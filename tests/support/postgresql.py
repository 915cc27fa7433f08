"""A real PostgreSQL of the tests' own, from the system's binaries; on a Unix socket only.

PostgreSQL refuses to run as root, so there it runs as an unprivileged user, who owns its folder.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from kms_service.adapters.database.schema import STORED
from tests.support.planted_secrets import written
from tests.support.tools import postgres_folder

_START_TIMEOUT_S = 60.0
_PORT = 5432  # names the socket's file; nothing listens on TCP
_OWNER, SERVICE = "owner", "service"
_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    # SIGKILL loses nothing that the kernel has; only a machine's crash would.
    "fsync": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_prepared_transactions": "0",
}


class PostgresServer:
    """One cluster in a folder of its own. Roles: `owner` (superuser), `service`."""

    def __init__(self, folder: Path, user: str | None) -> None:
        self.folder = folder
        self.settings = dict(_SETTINGS)
        """Of the next start."""
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._lock = threading.Lock()

    @classmethod
    def start(cls) -> Self:
        """A fresh cluster, running."""
        server = cls._in_new_folder()
        options = ["--auth=trust", f"--username={_OWNER}", "--encoding=UTF8", "--no-sync"]
        # Not the locale of sorted bytes, which hides what sorts by it.
        server._run("initdb", "--locale=C.UTF-8", *options, "-D", str(server.data))
        server.start_again()
        with server.connect() as connection:
            connection.execute(f"CREATE ROLE {SERVICE} LOGIN")
        return server

    @classmethod
    def _in_new_folder(cls) -> Self:
        """Short, since a socket's path has 107 bytes at most."""
        server = cls(Path(tempfile.mkdtemp(prefix="mkms-pg-", dir="/tmp")), _unprivileged())
        if server._user is not None:
            shutil.chown(server.folder, server._user)
        return server

    def standby(self) -> PostgresServer:
        """Another server that follows this one, running. Commits wait for it from then on."""
        follower = self._in_new_folder()
        source = f"host={self.folder} user={_OWNER} application_name=follower"
        follower._run(
            *("pg_basebackup", "--write-recovery-conf", "--wal-method=stream", "--no-sync"),
            *("--checkpoint=fast", "-d", source, "-D", str(follower.data)),
        )
        follower.start_again()
        with self.connect() as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'follower'")
            connection.execute("SELECT pg_reload_conf()")
        self._until_followed()
        return follower

    def promote(self) -> None:
        """Make the standby take writes."""
        with self.connect() as connection:
            connection.execute("SELECT pg_promote(true, 60)")

    def _until_followed(self) -> None:
        end = time.monotonic() + _START_TIMEOUT_S
        state: object = None
        while state != ("sync",):
            assert time.monotonic() < end, state
            time.sleep(0.02)
            with self.connect() as connection:
                state = connection.execute("SELECT sync_state FROM pg_stat_replication").fetchone()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start_again(self) -> None:
        """After `stop` or `kill`."""
        end = time.monotonic() + _START_TIMEOUT_S
        while not self._started():
            # A child of the one that was killed is not gone yet, and its shared memory in use.
            assert time.monotonic() < end, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def _started(self) -> bool:
        """False: it ended at once."""
        settings = [item for pair in self.settings.items() for item in ("-c", "=".join(pair))]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(postgres_folder() / "postgres", "-D", self.data),
                    *("-c", f"unix_socket_directories={self.folder}", *settings),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user,
                extra_groups=[] if self._user else None,
                cwd=self.folder,
            )
        end = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                self.connect().close()
                return True
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    return False
                assert time.monotonic() < end, (self.folder / "server.log").read_text()
                time.sleep(0.02)

    def stop(self) -> None:
        """Fast shutdown: sessions are cut, transactions rolled back."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a crash would: every process of it at once."""
        if self._process is not None:
            number = self._process.pid
            self._process.send_signal(signal.SIGSTOP)  # so that it starts no more of them
            children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
            for each in (number, *map(int, children)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            self._process.wait(_START_TIMEOUT_S)
            self._process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def new_database(self, template: str = "template1") -> str:
        """A database of its own; its URL for the role `service`."""
        with self._lock:
            self._databases += 1
            name = f"test{self._databases}"
            with self.connect() as connection:
                connection.execute(f"CREATE DATABASE {name} OWNER {SERVICE} TEMPLATE {template}")
        return self.url(name)

    def empty(self, url: str) -> None:
        """Remove every row of our tables: a thousand times faster than a new database."""
        tables = ", ".join(table.name for table in STORED)
        with self.connect(name_of(url)) as connection:
            connection.execute(f"TRUNCATE {tables}")

    def url(self, database: str, socket_folder: Path | None = None) -> str:
        return f"postgresql://{SERVICE}@/{database}?host={socket_folder or self.folder}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """As the superuser."""
        return psycopg.connect(
            f"postgresql://{_OWNER}@/{database}?host={self.folder}", autocommit=True
        )

    def cut_sessions(self) -> None:
        """End every session of the service."""
        with self.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
                [SERVICE],
            )

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_START_TIMEOUT_S)
            self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [postgres_folder() / program, *arguments],
            user=self._user,
            extra_groups=[] if self._user else None,
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def name_of(url: str) -> str:
    """The database's name in a URL of ours."""
    return url.rpartition("@/")[2].partition("?")[0]


def _unprivileged() -> str | None:
    """Who runs it: None (ourselves), unless we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("no unprivileged user to run PostgreSQL as")


class CommitProxy:
    """Between the service and the server, on a Unix socket of its own.

    Attributes:
        lose_replies: how many of the next COMMITs reach the server while their reply does not
            come back: the connection is cut instead.
        lose_commits: how many of the next COMMITs do not even reach the server.
        silent: nothing is forwarded any more, in either direction.
        refuse: new connections are closed at once.
        lost: how many COMMITs or replies were lost so far.
        on_lost: called when a reply is, before its connection is cut.
    """

    def __init__(self, server: PostgresServer) -> None:
        self._target = str(server.folder / f".s.PGSQL.{_PORT}")
        self.folder = Path(tempfile.mkdtemp(prefix="mkms-px-", dir="/tmp"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / f".s.PGSQL.{_PORT}"))
        self._listener.listen(64)
        self.lose_replies = 0
        self.lose_commits = 0
        self.silent = False
        self.refuse = False
        self.lost = 0
        self.on_lost: Callable[[], object] = lambda: None
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        shutil.rmtree(self.folder)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                if self.refuse:
                    raise ConnectionRefusedError
                server.connect(self._target)
            except OSError:
                client.close()
                server.close()
                continue
            self._open += [client, server]
            state = {"swallow": False}
            for source, sink, asks in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._forward, args=(source, sink, asks, state), daemon=True
                ).start()

    def _forward(
        self, source: socket.socket, sink: socket.socket, asks: bool, state: dict[str, bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.silent:
                    continue
                if asks and b"COMMIT\0" in data:
                    if self.lose_commits > 0:
                        self.lose_commits -= 1
                        self.lost += 1
                        break
                    if self.lose_replies > 0:
                        self.lose_replies -= 1
                        self.lost += 1
                        state["swallow"] = True
                if not asks and state["swallow"]:
                    self.on_lost()
                    break
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def running() -> Iterator[PostgresServer]:
    server = PostgresServer.start()
    try:
        yield server
    finally:
        written("log of PostgreSQL", (server.folder / "server.log").read_bytes())
        server.remove()
