"""Progress on stderr, for what takes longer than a moment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelkms.cli.output import escape, span

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from modelkms.types import Progress, ProgressCallback, RewrapInfo

_QUIET_S = 0.5  # what is done sooner shows no bar


@contextmanager
def progress_bar(*, enabled: bool) -> Iterator[ProgressCallback | None]:
    """A callback that draws a bar for each step; None where there is no terminal to draw on.

    The bar is gone when the block ends, so that the result stands alone.
    """
    if not enabled or not sys.stderr.isatty():
        yield None
        return
    bar = _Bar()
    try:
        yield bar.update
    finally:
        bar.close()


@contextmanager
def rewrap_bar(*, enabled: bool) -> Iterator[Callable[[RewrapInfo], None]]:
    """A callback that draws how a rewrap goes: done, left, rate, time remaining. Draws nothing
    where there is no terminal."""
    if not enabled or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        console=Console(stderr=True, markup=False, highlight=False),
        transient=True,
    ) as bar:
        task = bar.add_task("rewrap", total=None, rate="")

        def draw(rewrap: RewrapInfo) -> None:
            rate = f"{rewrap.keys_per_second:,.0f} keys/s"
            left = "" if rewrap.remaining is None else f", {span(rewrap.remaining)} left"
            bar.update(
                task,
                description="paused" if rewrap.state == "PAUSED" else "rewrap",
                completed=rewrap.rewrapped_keys + rewrap.failed_keys,
                total=rewrap.total_keys,
                rate=rate + left if rewrap.keys_per_second else "",
            )

        yield draw


class _Bar:
    """Draws nothing until the work has taken `_QUIET_S`: rich is not even imported before."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._drawn: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}

    def update(self, progress: Progress) -> None:
        if self._drawn is None:
            if time.monotonic() - self._started < _QUIET_S:
                return
            self._drawn = _start()
        if progress.step not in self._tasks:
            self._tasks[progress.step] = self._drawn.add_task(
                escape(progress.step), total=progress.total_bytes
            )
        self._drawn.update(
            self._tasks[progress.step],
            completed=progress.done_bytes,
            total=progress.total_bytes,
        )

    def close(self) -> None:
        if self._drawn is not None:
            self._drawn.stop()


def _start() -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False, highlight=False),
        transient=True,
    )
    progress.start()
    return progress
