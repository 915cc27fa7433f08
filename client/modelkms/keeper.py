"""The thread that tends leases in the background."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from modelkms.key_transport import boottime_s

_LONGEST_WAIT_S = 15.0
"""A thread's waiting stands still while the machine sleeps; leases do not."""


class Kept(Protocol):
    """What a keeper keeps: an opened model."""

    def lease_due_s(self) -> float | None:
        """When `tend_lease` is to be called, in seconds of `boottime_s`; None: never again."""

    def tend_lease(self) -> None: ...

    def lease_revoked(self, lease: str) -> None:
        """The service says that the lease of this name was ended."""

    def lease_name(self) -> str | None:
        """Of the lease it is under; None once it needs none."""


@dataclass(slots=True)
class _Item:
    kept: weakref.ref[Kept]
    due_s: float


class LeaseKeeper:
    """One thread that tends the leases of one client's opened models. Holds no model alive."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change`: called when the set of leases has changed."""
        self._on_change = on_change
        self._items: dict[int, _Item] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._closed = False

    def keep(self, kept: Kept) -> None:
        """From now on, until it is closed or nobody holds it any more."""
        with self._changed:
            due_s = kept.lease_due_s()
            if self._closed or due_s is None:
                return
            if self._process != os.getpid():  # forked: the parent keeps its own, we keep ours
                self._items, self._thread, self._process = {}, None, os.getpid()
            self._items[id(kept)] = _Item(weakref.ref(kept), due_s)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="modelkms-leases", daemon=True
                )
                self._thread.start()
            self._changed.notify()
        self._on_change()

    def leases(self) -> dict[str, Kept]:
        """Those that are kept now, by name."""
        with self._changed:
            alive = [kept for item in self._items.values() if (kept := item.kept()) is not None]
        return {name: kept for kept in alive if (name := kept.lease_name()) is not None}

    def close(self) -> None:
        """Keep nothing any more. Does not wait for a renewal that is on its way."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            due = self._next_due()
            if due is None:
                return
            before = due.lease_name()
            due.tend_lease()
            due_s, after = due.lease_due_s(), due.lease_name()
            with self._changed:
                if due_s is None:
                    self._items.pop(id(due), None)
                elif id(due) in self._items:
                    self._items[id(due)].due_s = due_s
            del due
            if before != after:
                self._on_change()

    def _next_due(self) -> Kept | None:
        with self._changed:
            while not self._closed:
                self._items = {
                    key: item for key, item in self._items.items() if item.kept() is not None
                }
                if not self._items:
                    self._changed.wait(_LONGEST_WAIT_S)
                    continue
                first = min(self._items.values(), key=lambda item: item.due_s)
                wait_s = first.due_s - boottime_s()
                kept = first.kept()
                if wait_s <= 0 and kept is not None:
                    return kept
                del kept
                self._changed.wait(min(max(wait_s, 0.01), _LONGEST_WAIT_S))
        return None
