"""When policies are read: at start, at SIGHUP, and when their files change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from kms_service.adapters.cedar import CedarPolicyEngine
from kms_service.adapters.cedar_policy_set import PolicySetRefused
from kms_service.domain.errors import AuditUnavailable, ConfigurationError
from kms_service.telemetry.logging import get_logger
from kms_service.telemetry.metrics import Metrics

_log = get_logger(__name__)

BREAK_GLASS = "break-glass"
"""Beginning of the ids of policies that `modelkms-server break-glass` writes."""

_Signature = tuple[tuple[str, int, int, int], ...]
"""Name, inode, time of change (ns) and size of each file of the folder."""

Recorder = Callable[[str, Mapping[str, str]], None]
"""Given a set's epoch and its files, text by name."""


class PolicyReloader:
    """Keeps the engine's policies those of the folder. A set that is refused changes nothing:
    the last good one stays in force, and a metric tells (F18, F68).

    What is in force is recorded right after it is, not before: a set that takes rights away must
    not wait for a log that fails, and while that fails no key leaves anyway.

    Args:
        engine: with no policies yet.
        folder: what it reads.
    """

    def __init__(self, engine: CedarPolicyEngine, folder: Path, metrics: Metrics) -> None:
        self._engine = engine
        self._folder = folder
        self._metrics = metrics
        self._lock = threading.Lock()
        self._seen: _Signature | None = None
        self._record: Recorder | None = None
        self._recorded = ""

    def record_with(self, record: Recorder) -> None:
        """Record the set in force, and from now on every other that comes.

        Raises:
            AuditUnavailable.
        """
        with self._lock:
            self._record = record
            self._record_anew(record)

    def load(self) -> None:
        """Read the folder now.

        Raises:
            ConfigurationError: the set is refused; what was in force stays.
        """
        with self._lock:
            # Before the read: a change during it is then seen as one.
            self._seen = self._signature()
            self._load()
            self._keep_record()

    def load_if_changed(self) -> None:
        """As `load`, if any file is another than at the last time. Does not raise."""
        with self._lock:
            signature = self._signature()
            if signature != self._seen:
                self._seen = signature
                try:
                    self._load()
                except ConfigurationError as error:
                    _log.error("policies_refused", error=error.message)
                else:
                    _log.info("policies_loaded", folder=str(self._folder))
            self._keep_record()

    def _keep_record(self) -> None:
        """A record that fails is tried again at the next look."""
        if self._record is None:
            return
        try:
            self._record_anew(self._record)
        except AuditUnavailable as error:
            _log.error("policies_not_recorded", reason=error.reason)

    def _record_anew(self, record: Recorder) -> None:
        files = self._engine.current.files
        if files.epoch != self._recorded:
            record(files.epoch, files.named)
            self._recorded = files.epoch

    def _load(self) -> None:
        try:
            self._engine.reload()
        except PolicySetRefused as error:
            self._metrics.policy_loads.labels(result="refused").inc()
            self._metrics.policies_current.set(0)
            raise ConfigurationError(f"policy.folder: {self._folder}: {error}") from error
        self._metrics.policy_loads.labels(result="loaded").inc()
        self._metrics.policies_current.set(1)
        self._metrics.policy_epoch.inc()
        glass = [each for each in self._engine.current.source if each.startswith(BREAK_GLASS)]
        self._metrics.break_glass.set(len(glass))
        self._metrics.policy_fingerprint.set(_fingerprint(self._engine.current.files.epoch))

    def _signature(self) -> _Signature | None:
        try:
            stats = [(path.name, path.stat()) for path in sorted(self._folder.iterdir())]
        except OSError:
            return None  # gone, or a file went while we looked: looked at again the next time
        return tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def _fingerprint(epoch: str) -> int:
    """48 bits of it: a metric is a double, which holds 53 exactly."""
    return int(epoch[:12], 16)
