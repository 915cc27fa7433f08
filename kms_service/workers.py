"""Several serving processes behind one port, one a core: started, watched, scraped, stopped.

Python runs one thread at a time, so one process serves as fast as one core does. The kernel
shares out connections among all that listen on a port with SO_REUSEPORT. Each worker is pinned to
its core (unpinned they slow each other down), has an audit chain of its own, and serves its
metrics on a socket that this process, which serves no calls, merges (docs/adr/0008).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from kms_service.config import ENVIRONMENT_PREFIX, Config
from kms_service.domain.errors import ConfigurationError
from kms_service.serving import received_signals
from kms_service.status import together
from kms_service.telemetry.listening import cannot_listen
from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.metrics_server import MetricsServer
from kms_service.telemetry.workers import merged_registry, pages_of

_log = get_logger(__name__)

_LOOK_EVERY_S = 0.2
_START_TIMEOUT_S = 60.0
_RESTART_AFTER_S = 1.0
_STOP_MARGIN_S = 5.0
_PR_SET_PDEATHSIG = 1


class WorkersFailed(Exception):
    """A worker did not start; it has told why on standard error.

    Attributes:
        code: its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__("a worker did not start")
        self.code = code


# --- the parent ----------------------------------------------------------------------------------


def serve_by_workers(config: Config, config_file: Path, count: int) -> None:
    """Serve by `count` workers until SIGTERM or SIGINT; SIGHUP is passed on to each. A worker that
    ends by itself is started again.

    Raises:
        ConfigurationError: the database is SQLite, or a port cannot be listened on.
        WorkersFailed: a worker did not start.
    """
    if not config.database.shared:
        raise ConfigurationError(
            "server.workers: SQLite serves one process; set it to 1, or let database.url name "
            "a PostgreSQL"
        )
    with (
        received_signals() as signals,
        tempfile.TemporaryDirectory(prefix="modelkms-workers-") as run_folder,
        _reserved("server.listen", config.server.listen) as listen,
        _reserved("server.token_listen", config.server.token_listen) as token_listen,
        _reserved("watch.listen", config.watch.listen) as watch_listen,
        _reserved("watch.token_listen", config.watch.token_listen) as watch_token_listen,
    ):
        addresses = {
            "SERVER__LISTEN": listen,
            "SERVER__TOKEN_LISTEN": token_listen,
            "WATCH__LISTEN": watch_listen,
            "WATCH__TOKEN_LISTEN": watch_token_listen,
        }
        workers = [
            _Worker(number, Path(run_folder), config_file, addresses) for number in range(count)
        ]
        sockets = {str(worker.number): worker.metrics_socket for worker in workers}
        host, _, port = config.metrics.listen.rpartition(":")
        metrics = MetricsServer(
            (host.strip("[]"), int(port)), merged_registry(sockets), pages_of(sockets, together)
        )
        metrics.start()
        try:
            for worker in workers:
                worker.start()
            _until_ready(workers, signals)
            _write_ports(config, workers[0], metrics.port)
            _log.info("workers_started", workers=count, metrics_port=metrics.port)
            _watch(workers, signals)
        finally:
            if config.server.port_file is not None:
                config.server.port_file.unlink(missing_ok=True)
            _stop(workers, config.server.shutdown_grace_s + _STOP_MARGIN_S)
            metrics.stop()


class _Worker:
    """One serving process; started again under the same number."""

    def __init__(
        self, number: int, folder: Path, config_file: Path, addresses: Mapping[str, str]
    ) -> None:
        """`addresses`: setting to what all workers listen on; empty: on nothing."""
        self.number = number
        self.metrics_socket = folder / f"{number}.metrics"
        self.port_file = folder / f"{number}.ports"
        self._command = [
            *(sys.executable, "-m", "kms_service", "serve", "--config", str(config_file)),
            *("--worker", str(number), "--run-folder", str(folder)),
        ]
        self._environment = {
            **os.environ,
            **{f"{ENVIRONMENT_PREFIX}{name}": value for name, value in addresses.items() if value},
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._ended_at: float | None = None

    def start(self) -> None:
        self.port_file.unlink(missing_ok=True)
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            self._command, stdin=subprocess.DEVNULL, env=self._environment, start_new_session=True
        )
        self._ended_at = None

    @property
    def ready(self) -> bool:
        return self.port_file.exists()

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process is not None else None

    def send(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def start_again_if_ended(self) -> None:
        code = self.exit_code()
        if code is None:
            return
        if self._ended_at is None:
            self._ended_at = time.monotonic()
            _log.error("worker_ended", worker=self.number, exit_code=code)
        elif time.monotonic() - self._ended_at > _RESTART_AFTER_S:
            self.start()

    def wait(self, until: float) -> None:
        """Wait for its end; SIGKILL at `until`, by the monotonic clock."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("worker_killed", worker=self.number)
            self._process.kill()
            self._process.wait()


def _until_ready(workers: list[_Worker], signals: SimpleQueue[int]) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while not all(worker.ready for worker in workers):
        for worker in workers:
            code = worker.exit_code()
            if code is not None:
                raise WorkersFailed(code if code > 0 else 1)
        if time.monotonic() > end:
            raise WorkersFailed(1)
        time.sleep(_LOOK_EVERY_S)
    _ = signals  # what came meanwhile is looked at by `_watch`


def _watch(workers: list[_Worker], signals: SimpleQueue[int]) -> None:
    while True:
        with suppress(Empty):
            number = signals.get(timeout=_LOOK_EVERY_S)
            if number != signal.SIGHUP:
                _log.info("stopping", signal=signal.Signals(number).name)
                return
            for worker in workers:
                worker.send(number)
        for worker in workers:
            worker.start_again_if_ended()


def _stop(workers: list[_Worker], patience_s: float) -> None:
    for worker in workers:
        worker.send(signal.SIGTERM)
    until = time.monotonic() + patience_s
    for worker in workers:
        worker.wait(until)


def _write_ports(config: Config, worker: _Worker, metrics_port: int) -> None:
    """As `Service` does: atomically, when everything listens."""
    path = config.server.port_file
    if path is None:
        return
    ports = {**json.loads(worker.port_file.read_text()), "metrics": metrics_port}
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(json.dumps(ports) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"server.port_file: cannot write {path}: {error.strerror}"
        ) from error


@contextmanager
def _reserved(setting: str, listen: str | None) -> Iterator[str]:
    """The address with its port, which is kept for our workers: bound, and never listened on, so
    that no connection comes here. Empty if there is none."""
    if listen is None:
        yield ""
        return
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as held:
        try:
            with socket.socket(family) as probe:  # held by nobody, not even by others like us
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host.strip("[]"), int(port)))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((host.strip("[]"), int(port)))
        except (OSError, OverflowError) as error:
            raise cannot_listen(setting, listen, error) from error
        yield f"{host}:{held.getsockname()[1]}"


# --- a worker ------------------------------------------------------------------------------------


def become_worker(config: Config, number: int, run_folder: Path) -> tuple[Config, Path]:
    """Pin this process to its core, and let it end with its parent.

    Returns:
        The configuration of this worker, and where it serves its metrics.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    # Without the parent nobody would start it again, nor scrape it: it stops in order.
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)
    return (
        config.model_copy(
            update={
                "server": config.server.model_copy(
                    update={"port_file": run_folder / f"{number}.ports"}
                ),
                "audit": config.audit.model_copy(
                    update={"chain": f"{config.audit.chain}-{number}"}
                ),
            }
        ),
        run_folder / f"{number}.metrics",
    )
