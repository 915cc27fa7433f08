"""What commands of `modelkms-server` say, and how they end."""

from __future__ import annotations

import sys
from typing import Never

from kms_service.telemetry.logging import escape_controls

INTERNAL, USAGE, UNAVAILABLE, CORRUPT = 1, 2, 5, 6


def fail(message: str, hint: str | None, code: int) -> Never:
    """`error:` and `hint:`, and the end of the process."""
    tell("error", message)
    if hint is not None:
        tell("hint", hint)
    sys.exit(code)


def tell(kind: str, line: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"{kind}: {escape_controls(line)}\n")


def say(line: str) -> None:
    """One line on standard output."""
    sys.stdout.write(f"{escape_controls(line)}\n")
    sys.stdout.flush()
