"""Advice to the kernel about files of ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from modelkms.errors import LocalDiskFull
from modelkms.folders import local_error, reserve, start_writing_back, try_lock


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


def test_a_lock_ends_with_its_block_though_a_fork_has_the_file_open(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with try_lock(path) as held:
        assert held
        inherited = os.dup(_descriptor_of(path))  # what a forked process has
    try:
        with try_lock(path) as held:
            assert held
            with try_lock(path) as twice:
                assert not twice
            with try_lock(path) as twice:  # the one that did not have it did not end it
                assert not twice
    finally:
        os.close(inherited)


def test_a_fork_that_leaves_the_block_does_not_end_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, process = tmp_path / "lock", os.getpid()
    block = try_lock(path)
    assert block.__enter__()
    inherited = os.dup(_descriptor_of(path))
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    block.__exit__(None, None, None)
    monkeypatch.undo()
    try:
        with try_lock(path) as held:
            assert not held  # the owner, which `inherited` stands for, has it still
    finally:
        os.close(inherited)


def _descriptor_of(path: Path) -> int:
    (descriptor,) = (
        int(each.name)
        for each in Path("/proc/self/fd").iterdir()
        if each.exists() and each.samefile(path)
    )
    return descriptor


def test_advice_that_cannot_be_given_is_no_error() -> None:
    reading, writing = os.pipe()
    try:
        start_writing_back(writing, 0, 1)
        reserve(writing, 0, 1)
    finally:
        os.close(reading)
        os.close(writing)
