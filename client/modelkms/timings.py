"""Where the time of opening a model goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from modelkms.types import Info

STEPS = ("resolve", "lease", "download", "decrypt", "load")


@dataclass(frozen=True, slots=True)
class Timings(Info):
    """Seconds by step, so far. What several threads did at once counts for each of them.

    Attributes:
        resolve_s: finding the version; 0 where leasing found it too, in the same round trip.
        lease_s: asking for the key and opening the answer.
        download_s: getting the ciphertext, checked against its pin; from the cache if it is there.
        decrypt_s: opening the artifact, reading and decrypting from it.
        load_s: what the library took besides, in `load`.
    """

    resolve_s: float = 0.0
    lease_s: float = 0.0
    download_s: float = 0.0
    decrypt_s: float = 0.0
    load_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All steps together."""
        return sum(float(getattr(self, f"{step}_s")) for step in STEPS)

    def __str__(self) -> str:
        """`lease 0.012 s, download 1.204 s, …`."""
        return ", ".join(f"{step} {getattr(self, f'{step}_s'):.3f} s" for step in STEPS)


class Stopwatch:
    """Adds up. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = dict.fromkeys(STEPS, 0.0)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count what the block takes; also if it fails."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    @contextmanager
    def rest(self, name: str, *, without: str) -> Iterator[None]:
        """Count what the block takes, less what is counted as `without` meanwhile."""
        began, other = time.perf_counter(), self._seconds[without]
        try:
            yield
        finally:
            taken = time.perf_counter() - began
            self.add(name, max(0.0, taken - (self._seconds[without] - other)))

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[name] += seconds

    def timings(self) -> Timings:
        with self._lock:
            return Timings(**{f"{name}_s": seconds for name, seconds in self._seconds.items()})
