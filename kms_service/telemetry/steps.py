"""How long each step of a call takes: identity, policy, Vault, database, key transport, audit.

Every call passes most steps, and leases are issued some thousand times a second, so this histogram
has no lock: each thread counts in cells of its own, and a scrape adds them up. (prometheus_client's
takes two locks for each observation.)
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from types import TracebackType

from prometheus_client.core import HistogramMetricFamily

STEPS = ("identity", "policy", "vault", "database", "key_transport", "audit")
BUCKETS_S = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 1.0, 2.5),
)
_NAME = "modelkms_step_seconds"
_HELP = "Duration of one step of a call, without the steps within it"


class _Cell:
    """What one thread saw of one step. Written by that thread alone."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def add(self, other: _Cell) -> None:
        self.counts = [mine + more for mine, more in zip(self.counts, other.counts, strict=True)]
        self.sum_s += other.sum_s


def _cells() -> dict[str, _Cell]:
    return {step: _Cell() for step in STEPS}


class StepTimes:
    """A collector for a prometheus_client registry; safe to use from many threads."""

    def __init__(self) -> None:
        self._threads: list[tuple[threading.Thread, dict[str, _Cell]]] = []
        self._of_ended_threads = _cells()
        self._lock = threading.Lock()
        self._local = _Local(self._join)

    def step(self, name: str) -> Step:
        """The context manager that times one of `STEPS`; to be kept and used again and again, by
        any number of threads, also within another step."""
        return Step(name, self._local)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Called at each scrape."""
        family = HistogramMetricFamily(_NAME, _HELP, labels=("step",))
        for step, cell in self._totals().items():
            bounds = [*map(str, BUCKETS_S), "+Inf"]
            running, buckets = 0, []
            for bound, count in zip(bounds, cell.counts, strict=True):
                running += count
                buckets.append((bound, float(running)))
            family.add_metric((step,), buckets, cell.sum_s)
        yield family

    def describe(self) -> Iterator[HistogramMetricFamily]:
        yield HistogramMetricFamily(_NAME, _HELP, labels=("step",))

    def _join(self) -> dict[str, _Cell]:
        """Cells for a thread that begins to count."""
        cells = _cells()
        with self._lock:
            self._threads.append((threading.current_thread(), cells))
        return cells

    def _totals(self) -> dict[str, _Cell]:
        totals = _cells()
        with self._lock:
            ended = [cells for thread, cells in self._threads if not thread.is_alive()]
            self._threads = [pair for pair in self._threads if pair[0].is_alive()]
            for cells in ended:
                _add(self._of_ended_threads, cells)
            _add(totals, self._of_ended_threads)
            for _, cells in self._threads:
                _add(totals, cells)
        return totals


def _add(totals: dict[str, _Cell], cells: dict[str, _Cell]) -> None:
    for step, cell in cells.items():
        totals[step].add(cell)


class _Local(threading.local):
    """Of each thread: its cells, and the steps it is in (begin, seconds spent in inner ones)."""

    def __init__(self, join: Callable[[], dict[str, _Cell]]) -> None:
        self.cells = join()
        self.open: list[list[float]] = []


class Step:
    """Times a `with` block. Only time that no inner step counts is this step's: the policy that is
    asked within a transaction is policy, not database."""

    __slots__ = ("_local", "_name")

    def __init__(self, name: str, local: _Local) -> None:
        if name not in STEPS:
            raise ValueError(f"no such step: {name}")
        self._name = name
        self._local = local

    def took(self, seconds: float) -> None:
        """Count one that began in another thread."""
        self._local.cells[self._name].observe(seconds)

    def __enter__(self) -> None:
        self._local.open.append([time.perf_counter(), 0.0])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        local = self._local
        began, inner_s = local.open.pop()
        whole_s = time.perf_counter() - began
        if local.open:
            local.open[-1][1] += whole_s
        local.cells[self._name].observe(whole_s - inner_s)
