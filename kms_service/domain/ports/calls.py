"""What every use case wants to know of time and of the call it serves."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Logical time (DESIGN §6 "time"): never goes back."""

    def now(self) -> datetime:
        """Aware, UTC."""


class Liveness(Protocol):
    """Whether anybody still waits for this call's answer. A handler is not stopped when its
    caller goes away, so use cases ask before they call Vault and before they release a key."""

    def check(self) -> None:
        """
        Raises:
            DeadlineExceeded: the deadline is over, or the caller cancelled or went away.
        """
