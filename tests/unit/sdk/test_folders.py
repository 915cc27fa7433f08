"""Advice to the kernel about files of ours."""

from __future__ import annotations

import os
from pathlib import Path

from modelkms.folders import start_writing_back


def test_writing_back_begins_without_changing_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        file.write(b"12345")
        start_writing_back(file.fileno(), 0, 3)
        start_writing_back(file.fileno(), 1 << 40, 8 << 20)  # beyond its end, and beyond 32 bits
        file.write(b"6")
    assert path.read_bytes() == b"123456"


def test_advice_that_cannot_be_given_is_no_error() -> None:
    reading, writing = os.pipe()
    try:
        start_writing_back(writing, 0, 1)
    finally:
        os.close(reading)
        os.close(writing)
