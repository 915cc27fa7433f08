"""Plaintext is kept out of unencrypted swap as far as the process may, and the user is told where
it cannot be (F55)."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from modelkms import swap
from modelkms.artifact.buffers import FreshBytes, FreshMemory
from modelkms.errors import LocalDiskError
from modelkms.folders import write_all
from modelkms.materialize import materialized
from modelkms.memory_file import MemoryFile

_HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
_MIB = 1 << 20


def test_which_swap_is_unsafe(tmp_path: Path) -> None:
    swaps, devices = tmp_path / "swaps", tmp_path / "block"
    for name, uuid in (("dm-0", "CRYPT-PLAIN-swap"), ("dm-1", "LVM-abc")):
        (devices / name / "dm").mkdir(parents=True)
        (devices / name / "dm" / "uuid").write_text(uuid)
    names = ("/dev/dm-0", "/dev/dm-1", "/dev/zram0", "/dev/sda2", "/swapfile")
    lines = [f"{name}  partition  1000  0  -2\n" for name in names]

    swaps.write_text(_HEADER + "".join(lines))
    assert swap.unsafe_swaps(swaps, devices) == ["/dev/dm-1", "/dev/sda2", "/swapfile"]
    swaps.write_text(_HEADER)
    assert swap.unsafe_swaps(swaps, devices) == []
    assert swap.unsafe_swaps(tmp_path / "none", devices) == []


@pytest.fixture
def unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "unsafe_swaps", lambda: ["/dev/sda2"])
    monkeypatch.setattr(swap, "_warned", False)


def locked_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmLck")).split()[1])


def may_lock(length_bytes: int) -> bool:
    """Root may always; others up to a limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    capable = int(
        next(
            line.split()[1]
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("CapEff")
        ),
        16,
    )
    return bool(capable >> 14 & 1) or soft == resource.RLIM_INFINITY or soft >= length_bytes


@pytest.mark.usefixtures("unsafe")
@pytest.mark.parametrize("kind", [FreshBytes, FreshMemory])
def test_f55_large_plaintext_is_locked_or_a_warning_says_so(
    kind: type[FreshBytes] | type[FreshMemory], caplog: pytest.LogCaptureFixture
) -> None:
    before = locked_kib()
    with caplog.at_level(logging.WARNING, "modelkms"):
        buffer = kind(64 * _MIB)
        kind(64 * _MIB)
    buffer.view[:] = bytes(64 * _MIB)

    if may_lock(128 * _MIB):
        assert locked_kib() - before >= 64 * 1024
        assert caplog.records == []
    else:
        assert [record.levelname for record in caplog.records] == ["WARNING"]  # once
    del buffer
    assert locked_kib() <= before + 4


@pytest.mark.usefixtures("unsafe")
def test_f55_materialized_files_are_locked_while_they_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"x" * _MIB)
        (folder / "empty").write_bytes(b"")

    before = locked_kib()
    with materialized({"inner/weights": _MIB, "empty": 0}, write):
        assert locked_kib() - before == 1024 or caplog.records
    assert locked_kib() == before


@pytest.mark.usefixtures("unsafe")
def test_f55_a_file_behind_a_path_is_locked_while_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = locked_kib()
    file = MemoryFile(_MIB, lambda descriptor: write_all(descriptor, b"x" * _MIB))
    assert locked_kib() - before == 1024 or caplog.records
    assert Path(file.path).read_bytes() == b"x" * _MIB
    file.close()
    assert locked_kib() == before


@pytest.mark.usefixtures("unsafe")
def test_f55_a_file_that_could_not_be_written_locks_nothing() -> None:
    def fail(descriptor: int) -> None:
        write_all(descriptor, b"x" * _MIB)
        raise OSError(5, "Input/output error")

    before = locked_kib()
    with pytest.raises(LocalDiskError):
        MemoryFile(_MIB, fail)
    assert locked_kib() == before


def test_f55_without_the_right_to_lock_a_warning_is_given_once() -> None:
    """As a user without CAP_IPC_LOCK and with no limit to speak of."""
    script = """
import ctypes, logging, os, resource
from modelkms import swap
from modelkms.artifact.buffers import FreshMemory
logging.basicConfig(format="%(levelname)s %(message)s")
swap.unsafe_swaps = lambda: ["/dev/sda2"]
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
for _ in range(3):
    FreshMemory(64 << 20)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("WARNING plaintext may reach /dev/sda2")


def test_without_swap_nothing_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "unsafe_swaps", list)
    before = locked_kib()
    buffer = FreshMemory(64 * _MIB)
    assert locked_kib() == before
    del buffer
