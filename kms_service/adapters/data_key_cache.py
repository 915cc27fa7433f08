"""Unwrapped data keys, kept in memory for a minute: what makes a lease cost no call to Vault.

Three things must stay true of it:

- It asks Vault once for a key, however many wait for it (single-flight, F42).
- Sealing Vault, taking the service's access away, or deleting a master key stops issuing: the first
  such answer, to a call or to the probe, flushes what it concerns (F35).
- An *unreachable* Vault stretches a key's life by `outage_grace` and no further; an answer of Vault
  never does, whatever it says.

Who may have a key is decided before this is asked, each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import (
    KeyRecordCorrupt,
    MasterKeyMisconfigured,
    VaultAccessRefused,
    VaultSealed,
    VaultUnavailable,
    WrappingVersionUnusable,
)
from kms_service.domain.ports import MasterKeys
from kms_service.domain.secret import SecretBytes
from kms_service.telemetry.logging import get_logger

_log = get_logger(__name__)

_SPREAD = 0.1
"""Of the time to live, taken off at random: keys fetched together are not asked for together."""
_OUTAGE_PAUSE_S = 1.0
"""While Vault is unreachable, it is tried this often for each key (up to twice as long apart)."""


class CacheResult(StrEnum):
    HIT = "hit"
    MISS = "miss"
    """Vault was asked."""
    SHARED = "shared"
    """Vault had been asked by another call, and its answer was waited for."""
    OUTAGE = "outage"
    """Older than its time to live, and given because Vault is unreachable."""


@dataclass(frozen=True, slots=True)
class _Name:
    """What a data key is cached under: all that decides what unwrapping gives."""

    master_key: str
    ciphertext: str
    context: bytes


@dataclass(slots=True)
class _Entry:
    data_key: SecretBytes
    fresh_until_s: float
    usable_until_s: float
    stretched: bool = False
    """Given past its time to live, for Vault is unreachable."""


@dataclass(slots=True)
class _Flight:
    """One call to Vault, and those who wait for what it brings."""

    epoch: int
    done: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0
    data_key: SecretBytes | None = None
    error: BaseException | None = None


class DataKeyCache:
    """Implements `domain.ports.Unwrapping`. Safe to use from many threads.

    Args:
        inner: asked for what is not here.
        ttl: how long an unwrapped key is used without asking again; zero: always ask.
        outage_grace: how much longer while Vault cannot be reached.
        max_keys: the one not used for longest goes first.
        monotonic: seconds, going on while the machine sleeps.
        random: uniform in [0, 1).
        count: told of each key that was given.
    """

    def __init__(
        self,
        inner: MasterKeys,
        *,
        ttl: timedelta,
        outage_grace: timedelta,
        max_keys: int,
        monotonic: Callable[[], float],
        random: Callable[[], float],
        count: Callable[[CacheResult], None] = lambda _result: None,
    ) -> None:
        self._inner = inner
        self._ttl_s = ttl.total_seconds()
        self._grace_s = outage_grace.total_seconds()
        self._max_keys = max_keys
        self._monotonic = monotonic
        self._random = random
        self._count = count
        self._lock = threading.Lock()
        self._entries: OrderedDict[_Name, _Entry] = OrderedDict()
        self._flights: dict[_Name, _Flight] = {}
        self._epoch = 0
        self._outage = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def outage(self) -> bool:
        """Whether the last key came from here only because Vault is unreachable."""
        return self._outage

    @property
    def usable_for_s(self) -> float:
        """How long the last of the keys here would be used if Vault stayed unreachable."""
        with self._lock:
            last_s = max((entry.usable_until_s for entry in self._entries.values()), default=0.0)
            return max(0.0, last_s - self._monotonic())

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        """The 32-byte data key, as a copy of the caller's own.

        Raises: as `domain.ports.MasterKeys.unwrap`.
        """
        name = _Name(master_key, wrapped.ciphertext, context)
        with self._lock:
            if (kept := self._fresh(name)) is not None:
                return kept
            flight = self._flights.get(name)
            leads = flight is None
            if flight is None:
                flight = self._flights[name] = _Flight(self._epoch)
            else:
                flight.waiting += 1
        if leads:
            return self._lead(name, flight, wrapped)
        return self._follow(flight)

    def in_memory(
        self, master_key: str, wrapped: WrappedDataKey, context: bytes
    ) -> SecretBytes | None:
        """See `domain.ports.Unwrapping`. What is over its time to live is not given here, so that
        an outage is always found by asking Vault."""
        with self._lock:
            return self._fresh(_Name(master_key, wrapped.ciphertext, context))

    def _fresh(self, name: _Name) -> SecretBytes | None:
        entry = self._entries.get(name)
        if entry is None or self._monotonic() >= entry.fresh_until_s:
            return None
        self._entries.move_to_end(name)
        self._count(CacheResult.OUTAGE if entry.stretched else CacheResult.HIT)
        return _copy(entry.data_key)

    def probe(self) -> None:
        """Probe Vault; one that is sealed flushes all keys.

        Raises: as `domain.ports.MasterKeys.probe`.
        """
        try:
            self._inner.probe()
        except VaultSealed:
            self.flush("sealed")
            raise

    def flush(self, why: str) -> None:
        """Forget all keys; also those that are on their way now."""
        with self._lock:
            self._epoch += 1
            flushed = len(self._entries)
            for name in list(self._entries):
                self._drop(name)
        if flushed:
            _log.warning("data_keys_flushed", why=why, keys=flushed)

    def _lead(self, name: _Name, flight: _Flight, wrapped: WrappedDataKey) -> SecretBytes:
        result = CacheResult.MISS
        try:
            try:
                data_key = self._inner.unwrap(name.master_key, wrapped, name.context)
            except VaultUnavailable:
                data_key, result = self._through_outage(name), CacheResult.OUTAGE
            else:
                self._keep(name, flight, data_key)
        except BaseException as error:
            self._lost(name, error)
            self._land(name, flight, None, error)
            raise
        self._tell_outage(result is CacheResult.OUTAGE)
        self._count(result)
        self._land(name, flight, data_key, None)
        return data_key

    def _follow(self, flight: _Flight) -> SecretBytes:
        # Not for ever: who leads is bounded by the patience of the calls to Vault.
        flight.done.wait()
        with self._lock:
            flight.waiting -= 1
            if flight.error is not None:
                raise flight.error
            assert flight.data_key is not None
            data_key = _copy(flight.data_key)
            if not flight.waiting:
                flight.data_key.wipe()
        self._count(CacheResult.SHARED)
        return data_key

    def _land(
        self,
        name: _Name,
        flight: _Flight,
        data_key: SecretBytes | None,
        error: BaseException | None,
    ) -> None:
        with self._lock:
            del self._flights[name]
            flight.error = error
            if data_key is not None and flight.waiting:
                flight.data_key = _copy(data_key)
        flight.done.set()

    def _through_outage(self, name: _Name) -> SecretBytes:
        """
        Raises:
            VaultUnavailable: nothing is here that may still be used.
        """
        with self._lock:
            entry, now = self._entries.get(name), self._monotonic()
            if entry is None or now >= entry.usable_until_s:
                self._drop(name)
                raise VaultUnavailable
            # The next ones need not wait for a call that fails.
            pause_s = _OUTAGE_PAUSE_S * (1 + self._random())
            entry.fresh_until_s = min(now + pause_s, entry.usable_until_s)
            entry.stretched = True
            return _copy(entry.data_key)

    def _keep(self, name: _Name, flight: _Flight, data_key: SecretBytes) -> None:
        ttl_s = self._ttl_s * (1 - _SPREAD * self._random())
        if not ttl_s:
            return
        with self._lock:
            if flight.epoch != self._epoch:
                return  # flushed meanwhile: what Vault said before that counts no more
            self._drop(name)
            while len(self._entries) >= self._max_keys:
                self._drop(next(iter(self._entries)))
            fresh_until_s = self._monotonic() + ttl_s
            self._entries[name] = _Entry(
                _copy(data_key), fresh_until_s, fresh_until_s + self._grace_s
            )

    def _lost(self, name: _Name, error: BaseException) -> None:
        """What an answer of Vault, or none, means for the keys that are here."""
        match error:
            case VaultSealed() | VaultAccessRefused():
                self.flush(error.reason)
            case MasterKeyMisconfigured():
                with self._lock:
                    self._epoch += 1
                    for other in list(self._entries):
                        if other.master_key == name.master_key:
                            self._drop(other)
            case KeyRecordCorrupt() | WrappingVersionUnusable():
                with self._lock:
                    self._drop(name)

    def _tell_outage(self, now: bool) -> None:
        if now != self._outage:
            self._outage = now
            if now:
                _log.warning("vault_unreachable_keys_from_cache", grace_s=self._grace_s)
            else:
                _log.info("vault_reachable_again")

    def _drop(self, name: _Name) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.data_key.wipe()


def _copy(secret: SecretBytes) -> SecretBytes:
    return SecretBytes(secret.reveal())
