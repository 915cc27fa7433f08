"""The thread that hears of leases that end: how it ends itself."""

from __future__ import annotations

import threading
from typing import cast

from modelkms.keeper import LeaseKeeper
from modelkms.watching import LeaseWatcher


class NoLeases:
    def leases(self) -> dict[str, object]:
        return {}


def test_closing_ends_the_thread_even_while_it_turns_round() -> None:
    """The word to end comes between the thread's wake-up and its forgetting why it woke."""
    before = set(threading.enumerate())
    watcher = LeaseWatcher(lambda: None, lambda _names: [])

    class ClosedMeanwhile(threading.Event):
        def clear(self) -> None:
            watcher.close()
            super().clear()

    watcher._changed = ClosedMeanwhile()
    watcher.watch(cast(LeaseKeeper, NoLeases()))
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
