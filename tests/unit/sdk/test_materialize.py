"""Plaintext in memory: where it lies, that it goes, and what happens when its owner is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modelkms import materialize
from modelkms.errors import CacheUnsafe, LocalDiskError, LocalDiskFull, MemoryStorageMissing
from modelkms.materialize import is_memory_backed, materialized, sweep

ROOT = Path("/dev/shm") / f"modelkms-{os.geteuid()}"
CANARY = b"plaintext canary 4f1c"


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(CANARY)
    (folder / "inner").mkdir()
    (folder / "inner" / "more").write_bytes(CANARY)


def sizes(*each: int) -> dict[str, int]:
    return {str(number): size for number, size in enumerate(each)}


def test_the_folder_is_private_in_memory_and_gone_afterwards() -> None:
    with materialized(sizes(21, 21), write) as folder:
        assert is_memory_backed(folder)
        assert (folder / "weights").read_bytes() == CANARY
        for path in (folder, folder.parent, folder.parent.parent):
            assert path.stat().st_mode & 0o777 == 0o700
        owner = json.loads((folder.parent / "owner").read_text())
        assert owner["pid"] == os.getpid()
    assert not folder.parent.exists()


def test_it_is_gone_after_an_exception_too() -> None:
    with pytest.raises(RuntimeError), materialized(sizes(21), write) as folder:
        raise RuntimeError
    assert not folder.parent.exists()


def test_a_folder_made_unreadable_by_its_user_is_gone_too() -> None:
    with materialized(sizes(21), write) as folder:
        (folder / "inner").chmod(0)
        (folder / "link").symlink_to("/etc")
    assert not folder.parent.exists()
    assert Path("/etc/passwd").exists()


def test_no_reaper_is_left_after_an_orderly_end() -> None:
    before = children()
    with materialized(sizes(21), write):
        assert len(children() - before) == 1
    assert children() == before


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_too_little_room_says_how_much_and_writes_nothing() -> None:
    before = set(ROOT.iterdir()) if ROOT.exists() else set()
    huge = 1 << 60
    with pytest.raises(LocalDiskFull) as caught, materialized(sizes(huge), write):
        pytest.fail("not entered")
    assert f"{huge:,}"[:6] in caught.value.message
    assert "free" in caught.value.message
    assert "remount,size=" in (caught.value.hint or "")
    assert "--shm-size" in (caught.value.hint or "")
    assert {path for path in ROOT.iterdir() if path.name != "lock"} == {
        path for path in before if path.name != "lock"
    }


def test_f52_a_failing_write_leaves_nothing() -> None:
    seen: list[Path] = []

    def fail(folder: Path) -> None:
        seen.append(folder)
        (folder / "half").write_bytes(CANARY)
        raise OSError(28, "No space left on device")

    with pytest.raises(LocalDiskFull), materialized(sizes(1), fail):
        pytest.fail("not entered")

    def break_off(folder: Path) -> None:
        seen.append(folder)
        raise OSError(5, "Input/output error")

    with pytest.raises(LocalDiskError), materialized(sizes(1), break_off):
        pytest.fail("not entered")
    assert not any(folder.parent.exists() for folder in seen)


def test_disk_is_never_taken_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_memory_backed(tmp_path):
        tmp_path = Path(__file__).parent  # /tmp may be in memory, a work tree hardly ever
    assert not is_memory_backed(tmp_path)
    assert not is_memory_backed(tmp_path / "absent")
    monkeypatch.setattr(materialize, "_SHARED_MEMORY", str(tmp_path))
    with (
        pytest.raises(MemoryStorageMissing),
        materialized(sizes(1), write, {"XDG_RUNTIME_DIR": str(tmp_path)}),
    ):
        pytest.fail("not entered")


def test_a_disk_is_used_where_it_is_allowed_and_there_is_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on macOS, with `insecure_plaintext_dir`."""
    allowed = tmp_path / "allowed"
    with materialized(sizes(21, 21), write, insecure_folder=allowed) as folder:
        assert is_memory_backed(folder)  # there is memory here
    assert not allowed.exists()

    monkeypatch.setattr(materialize, "is_memory_backed", lambda _: False)
    with materialized(sizes(21, 21), write, insecure_folder=allowed) as folder:
        assert folder.is_relative_to(allowed)
        assert (folder / "inner" / "more").read_bytes() == CANARY
        for path in (folder, folder.parent, folder.parent.parent, allowed):
            assert path.stat().st_mode & 0o777 == 0o700
    assert not folder.parent.exists()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(allowed) in caplog.text

    left = folder.parent.parent / "0123456789abcdef"  # by a killed owner and its reaper
    write_left = left / "model"
    write_left.mkdir(parents=True)
    write(write_left)
    (left / "owner").touch(0o600)
    assert sweep() == 0
    assert sweep(insecure_folder=allowed) == 1
    assert not left.exists()


def test_a_disk_that_others_can_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(materialize, "is_memory_backed", lambda _: False)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with (
        pytest.raises(CacheUnsafe),
        materialized(sizes(21), write, insecure_folder=open_to_all),
    ):
        pytest.fail("not entered")


@pytest.fixture
def own_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A memory-backed folder of this test alone, as the runtime folder."""
    base = Path("/dev/shm") / f"modelkms-test-{os.getpid()}"
    base.mkdir(mode=0o700)
    monkeypatch.setattr(materialize, "_SHARED_MEMORY", str(base))
    yield base
    subprocess.run(["rm", "-rf", str(base)], check=True)


def test_f53_a_planted_root_is_refused(own_root: Path, tmp_path: Path) -> None:
    planted = own_root / f"modelkms-{os.geteuid()}"
    planted.symlink_to(tmp_path)
    with pytest.raises(CacheUnsafe), materialized(sizes(21), write):
        pytest.fail("not entered")
    assert not list(tmp_path.iterdir())
    planted.unlink()
    planted.mkdir()
    planted.chmod(0o777)
    with pytest.raises(CacheUnsafe), materialized(sizes(21), write):
        pytest.fail("not entered")


OWNER = f"""
import os, sys, time
from pathlib import Path
from modelkms import materialize
materialize._SHARED_MEMORY = sys.argv[1]
if sys.argv[2] == "alone":
    materialize._start_reaper = lambda folder: None
def write(folder):
    (folder / "weights").write_bytes({CANARY!r})
with materialize.materialized({{"weights": 21}}, write) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def start_owner(base: Path, how: str) -> tuple[subprocess.Popen[str], Path]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(base), how], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    return owner, Path(owner.stdout.readline().strip())


def kill(owner: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    owner.send_signal(number)
    owner.communicate()


def gone(folder: Path, within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_f55_a_killed_owners_plaintext_goes(own_root: Path, number: int) -> None:
    owner, folder = start_owner(own_root, "reaped")
    assert (folder / "weights").read_bytes() == CANARY
    kill(owner, number)
    assert gone(folder.parent)


def test_f55_the_reaper_takes_no_signal_but_waits_for_its_owner(own_root: Path) -> None:
    owner, folder = start_owner(own_root, "reaped")
    (reaper,) = Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split()
    time.sleep(0.2)  # until it ignores them
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        os.kill(int(reaper), number)
    assert (folder / "weights").exists()
    command = Path(f"/proc/{reaper}/cmdline").read_bytes().split(b"\0")
    assert command[-2] == os.fsencode(folder.parent)
    assert Path(f"/proc/{reaper}/environ").read_bytes() == b""
    kill(owner)
    assert gone(folder.parent)


def test_f55_what_owner_and_reaper_leave_is_swept_at_next_start(own_root: Path) -> None:
    owner, folder = start_owner(own_root, "alone")
    kill(owner)
    assert (folder / "weights").exists()
    with materialized(sizes(21), write) as mine:
        assert not folder.parent.exists()
        assert (mine / "weights").exists()


def test_f55_a_sweep_never_takes_a_live_owners_folder(own_root: Path) -> None:
    owner, folder = start_owner(own_root, "alone")
    with materialized(sizes(21), write) as mine:
        assert sweep() == 0
        assert (folder / "weights").exists()
        assert (mine / "weights").exists()
    kill(owner)
    assert sweep() == 1
    assert not folder.parent.exists()


def test_f55_a_half_made_folder_is_swept(own_root: Path) -> None:
    with materialized(sizes(21), write) as mine:
        half = mine.parent.parent / "0123456789abcdef"
        half.mkdir()
        (half / "model").mkdir()
        assert sweep() == 1
        assert not half.exists()


def test_a_fork_that_leaves_the_block_takes_nothing_away(own_root: Path) -> None:
    with materialized(sizes(21), write) as folder:
        code = subprocess.run(
            [sys.executable, "-c", FORK, str(own_root)], check=False, timeout=30
        ).returncode
        assert (folder / "weights").exists()
    assert code == 0


FORK = """
import os, sys
from modelkms import materialize
materialize._SHARED_MEMORY = sys.argv[1]
def write(folder):
    (folder / "weights").write_bytes(b"x")
with materialize.materialized({"weights": 1}, write) as folder:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        if not (folder / "weights").exists():
            os._exit(1)
if child == 0:
    os._exit(0)
sys.exit(1 if folder.exists() else 0)
"""
