"""Progress bars: on a terminal, for what takes long, and nowhere else."""

from __future__ import annotations

import sys
import time

import pytest
from modelkms.cli.progress import progress_bar
from modelkms.types import Progress

from tests.unit.cli.terminal import on_terminal

_TOTAL = 3 << 20


def test_none_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar(enabled=True) as progress:
        assert progress is None
    assert capfd.readouterr() == ("", "")


def test_a_bar_for_what_takes_long() -> None:
    told = _shown(step_s=0.3, enabled=True)
    assert "encrypt\\x1b[2J" in told  # escaped
    assert "upload" in told
    assert "MiB" in told
    assert told.endswith("|after")
    assert "\x1b[2K" in told  # the bar is wiped away before anything else is said


def test_no_bar_for_what_is_done_at_once() -> None:
    assert _shown(step_s=0, enabled=True) == "|after"


def test_no_bar_under_json() -> None:
    assert _shown(step_s=0, enabled=False) == "no bar"


def _shown(*, step_s: float, enabled: bool) -> str:
    script = f"from {__name__} import work; work({step_s}, {enabled})"
    with on_terminal([sys.executable, "-c", script]) as terminal:
        assert terminal.finish() == 0
        return terminal.told


def work(step_s: float, enabled: bool) -> None:
    """In a process of its own, on a terminal."""
    with progress_bar(enabled=enabled) as progress:
        if progress is None:
            sys.stderr.write("no bar")
            return
        for done in range(0, _TOTAL + 1, 1 << 20):
            progress(Progress("encrypt\x1b[2J", done, _TOTAL))
            time.sleep(step_s)
        progress(Progress("upload", 0, None))
    sys.stderr.write("|after")
