"""Progress on stderr, for what takes longer than a moment."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelkms.cli.output import escape

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from modelkms.types import Progress, ProgressCallback

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
