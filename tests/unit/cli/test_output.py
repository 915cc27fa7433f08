"""Escaping, sizes, spans, tables."""

from __future__ import annotations

import sys
import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelkms.cli.output import escape, moment, size, span, write_fields, write_table


@given(st.text(st.characters(exclude_categories=[]), max_size=60))
def test_f24_escaped_text_is_one_harmless_line(text: str) -> None:
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_f24_every_letter_there_is() -> None:
    shown = {letter: escape(letter) for letter in map(chr, range(sys.maxunicode + 1))}
    changed = [text for letter, text in shown.items() if text != letter]
    assert all(text.isascii() and text.isprintable() and text[0] == "\\" for text in changed)
    kept = {unicodedata.category(letter) for letter, text in shown.items() if text == letter}
    assert not kept & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    "text", ["", "camera/fd@3", "größe", "模型", r"C:\x", "[red]x[/red]", "🦆"]
)
def test_what_is_harmless_stays(text: str) -> None:
    assert escape(text) == text


@pytest.mark.parametrize(
    ("length_bytes", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (3 << 20, "3.0 MiB"),
        (17 << 30, "17.0 GiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_sizes(length_bytes: int | None, shown: str) -> None:
    assert size(length_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (59, "59 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (90 * 86400, "90 d"),
        (-60, "-1 min"),
    ],
)
def test_spans(seconds: int, shown: str) -> None:
    assert span(timedelta(seconds=seconds)) == shown


def test_moments_are_utc() -> None:
    assert moment(None) == "-"
    east = timezone(timedelta(hours=2))
    assert moment(datetime(2026, 1, 1, 1, 0, 0, tzinfo=east)) == "2025-12-31 23:00:00Z"
    assert moment(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01 00:00:00Z"


def test_tables_align_by_columns_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("A", "B"), [("模型", "1"), ("e\u0301", "2"), ("long\n", "")])
    assert capsys.readouterr().out == "A       B\n模型    1\ne\u0301       2\nlong\\n\n"
    write_table(("A", "B"), [])
    assert capsys.readouterr().out == ""


def test_fields_align(capsys: pytest.CaptureFixture[str]) -> None:
    write_fields([("a", "1"), ("long", "2\x1b"), ("b", "")])
    assert capsys.readouterr().out == "a     1\nlong  2\\x1b\nb\n"
    write_fields([])
    assert capsys.readouterr().out == ""
