"""What people and programs read: escaped text, aligned tables, one JSON document."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelkms.errors import ModelKmsError

_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHOWN_METADATA = ("decision_id", "incident_id")


def escape(text: str) -> str:
    r"""`text` with everything that could steer a terminal or fake a line written as `\x1b`.

    Names, reasons and messages come from a service, a file header or an archive: none of them may
    move the cursor, recolour, reverse (bidi) or add lines (F24). A backslash stays one: this is
    for eyes; programs read `--json`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(letter) if unicodedata.category(letter) in _UNSAFE_CATEGORIES else letter
        for letter in text
    )


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")


def write_line(text: str = "") -> None:
    """One escaped line on stdout."""
    sys.stdout.write(escape(text) + "\n")


def note(text: str) -> None:
    """One escaped line on stderr: what is said beside the result."""
    sys.stderr.write(escape(text) + "\n")
    sys.stderr.flush()


def write_json(document: Mapping[str, object]) -> None:
    """The one document of `--json`: ASCII only, indented on a terminal."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(document, indent=indent) + "\n")


def write_error(error: ModelKmsError, *, as_json: bool, exit_code: int | None = None) -> None:
    """`error:` and `hint:` lines, or `{"error": {…}}`; on stderr, so that stdout stays the result.

    Args:
        exit_code: what the command ends with, where it is not the error's own (`run`).
    """
    if as_json:
        told = {**error.as_dict()}
        if exit_code is not None:
            told["exit_code"] = exit_code
        sys.stderr.write(json.dumps({"error": told}) + "\n")
        sys.stderr.flush()
        return
    message = error.message
    for name in _SHOWN_METADATA:
        value = error.metadata.get(name)
        if value and value not in message:
            message += f" ({name.replace('_', ' ')} {value})"
    note(f"error: {message}")
    if error.hint:
        note(f"hint: {error.hint}")


def write_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns with two spaces between them, never cut: they are read by eyes and by awk.

    Nothing is written if there are no rows.
    """
    table = [[escape(cell) for cell in row] for row in rows]
    if not table:
        return
    table.insert(0, list(header))
    widths = [max(_width(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        padded = (
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)
        )
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


def write_fields(fields: Iterable[tuple[str, str]]) -> None:
    """`name  value` lines with the values aligned."""
    pairs = list(fields)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        write_line(f"{name:<{width}}  {value}".rstrip())


def size(length_bytes: int | None) -> str:
    """`17.3 MiB`; bytes under 1 KiB are exact; `-` if not known."""
    if length_bytes is None:
        return "-"
    if length_bytes < 1024:
        return f"{length_bytes} B"
    amount = float(length_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        amount /= 1024
        if amount < 1023.95 or unit == "PiB":
            break
    return f"{amount:.1f} {unit}"


def moment(time: datetime | None) -> str:
    """`2026-11-23 08:47:55Z`; `-` if there is none."""
    return "-" if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(duration: timedelta) -> str:
    """`3 d 4 h`, `59 min 8 s`: the two largest units."""
    seconds = round(duration.total_seconds())
    if seconds < 0:
        return "-" + span(-duration)
    parts = []
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, seconds = divmod(seconds, length_s)
        if amount:
            parts.append(f"{amount} {unit}")
    return " ".join(parts[:2]) or "0 s"


def _width(text: str) -> int:
    """Columns that `text` takes: wide East Asian letters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if _is_wide(letter) else 1 for letter in text
    )


def _is_wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF"
