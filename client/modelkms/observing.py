"""What a program may watch of the SDK: how long models take to be ready, and why they are not."""

from __future__ import annotations

from typing import Protocol

from modelkms.timings import Timings


class Observer(Protocol):
    """Given to `modelkms.connect`. Called from any thread; must neither wait nor raise."""

    def opened(self, timings: Timings) -> None:
        """A model is open: what each step took."""

    def loaded(self, load_s: float, ready_s: float) -> None:
        """A model is loaded: what came after opening it, and all of it, in seconds."""

    def not_opened(self, reason: str) -> None:
        """Opening failed; the error's reason."""

    def looked_up(self, hit: bool) -> None:
        """Whether the artifact was in the cache."""


class NoObserver:
    """Watches nothing."""

    def opened(self, timings: Timings) -> None: ...

    def loaded(self, load_s: float, ready_s: float) -> None: ...

    def not_opened(self, reason: str) -> None: ...

    def looked_up(self, hit: bool) -> None: ...
