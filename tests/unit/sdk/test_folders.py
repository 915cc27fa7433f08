"""Advice to the kernel about files of ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from modelkms.errors import LocalDiskFull
from modelkms.folders import local_error, reserve, start_writing_back


def test_writing_back_begins_without_changing_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        file.write(b"12345")
        start_writing_back(file.fileno(), 0, 3)
        start_writing_back(file.fileno(), 1 << 40, 8 << 20)  # beyond its end, and beyond 32 bits
        file.write(b"6")
    assert path.read_bytes() == b"123456"


def test_blocks_are_set_aside_and_the_file_keeps_its_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        file.write(b"12345")
        reserve(file.fileno(), 5, 8 << 20)
        assert path.stat().st_size == 5
        assert path.stat().st_blocks * 512 >= 8 << 20
        reserve(file.fileno(), 5, 0)
        reserve(file.fileno(), 5, -1)
    assert path.read_bytes() == b"12345"


def test_f52_what_no_disk_has_room_for_is_told_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file, pytest.raises(OSError) as caught:
        reserve(file.fileno(), 0, 1 << 60)
    assert isinstance(local_error(caught.value, "it cannot be written"), LocalDiskFull)
    assert path.stat().st_size == 0


def test_advice_that_cannot_be_given_is_no_error() -> None:
    reading, writing = os.pipe()
    try:
        start_writing_back(writing, 0, 1)
        reserve(writing, 0, 1)
    finally:
        os.close(reading)
        os.close(writing)
