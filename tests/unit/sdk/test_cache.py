"""The cache: whole entries or none, verified at each use, in a folder nobody else can write."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from modelkms.cache import ArtifactCache
from modelkms.errors import ArtifactMismatch, CacheUnsafe, LocalDiskError, LocalDiskFull
from modelkms.folders import try_lock

from tests.support.sdk_artifacts import NoiseArtifact, noise_artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "artifacts"


@pytest.fixture
def cache(folder: Path) -> ArtifactCache:
    return ArtifactCache(folder, 1 << 30)


class Filler:
    """Writes an artifact, and counts how often."""

    def __init__(self, artifact: NoiseArtifact) -> None:
        self.artifact = artifact
        self.calls = 0

    def __call__(self, file: BinaryIO) -> None:
        self.calls += 1
        file.seek(0)
        file.truncate()
        file.write(self.artifact.content)


def read(cache: ArtifactCache, artifact: NoiseArtifact, fill: Callable[[BinaryIO], None]) -> bytes:
    with cache.get_or_fill(artifact.artifact_id, artifact.pin, fill) as file:
        return file.read()


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def never(_: BinaryIO) -> None:
    pytest.fail("filled although it was there")


def test_an_entry_is_filled_once_and_found_again(cache: ArtifactCache, folder: Path) -> None:
    artifact = noise_artifact()
    fill = Filler(artifact)
    assert cache.get(artifact.artifact_id, artifact.pin) is None
    assert read(cache, artifact, fill) == artifact.content
    assert read(cache, artifact, never) == artifact.content
    assert fill.calls == 1
    assert entries(folder) == {artifact.artifact_id}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / artifact.artifact_id).stat().st_mode & 0o777 == 0o600


def test_a_failed_fill_leaves_no_entry(cache: ArtifactCache, folder: Path) -> None:
    artifact = noise_artifact()

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise ArtifactMismatch("no")

    with pytest.raises(ArtifactMismatch):
        read(cache, artifact, fail)
    assert cache.get(artifact.artifact_id, artifact.pin) is None
    assert read(cache, artifact, Filler(artifact)) == artifact.content


@pytest.mark.parametrize("change", ["shorter", "longer", "tag", "header", "magic", "empty"])
def test_f53_an_entry_that_does_not_verify_is_dropped_and_fetched_anew(
    cache: ArtifactCache, folder: Path, change: str
) -> None:
    artifact = noise_artifact()
    read(cache, artifact, Filler(artifact))
    path = folder / artifact.artifact_id
    content = bytearray(artifact.content)
    at = content.index(artifact.pin.floe_header_tag)
    match change:
        case "shorter":
            del content[-1]
        case "longer":
            content.append(0)
        case "tag":
            content[at] ^= 1
        case "header":
            content[20] ^= 1
        case "magic":
            content[0] ^= 1
        case "empty":
            content.clear()
    path.write_bytes(content)
    assert cache.get(artifact.artifact_id, artifact.pin) is None
    assert not path.exists()
    fill = Filler(artifact)
    assert read(cache, artifact, fill) == artifact.content
    assert fill.calls == 1


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder-writable", "hard link", "dangling"])
def test_f53_a_planted_entry_is_not_followed(
    cache: ArtifactCache, folder: Path, tmp_path: Path, kind: str
) -> None:
    artifact = noise_artifact()
    folder.mkdir(parents=True, mode=0o700)
    path, other = folder / artifact.artifact_id, tmp_path / "other"
    other.write_bytes(artifact.content)
    match kind:
        case "symlink":
            path.symlink_to(other)
        case "dangling":
            path.symlink_to(tmp_path / "absent")
        case "fifo":
            os.mkfifo(path)
        case "hard link":
            os.link(other, path)
        case "folder-writable":
            path.write_bytes(artifact.content)
            path.chmod(0o666)
    fill = Filler(artifact)
    assert read(cache, artifact, fill) == artifact.content
    assert fill.calls == 1
    assert other.read_bytes() == artifact.content
    assert not path.is_symlink()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_f53_a_folder_that_others_can_write_is_unsafe(
    cache: ArtifactCache, folder: Path, mode: int
) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    artifact = noise_artifact()
    with pytest.raises(CacheUnsafe, match="written by others"):
        cache.get(artifact.artifact_id, artifact.pin)
    with pytest.raises(CacheUnsafe):
        read(cache, artifact, never)


def test_f53_a_folder_below_one_that_everyone_can_write_is_unsafe(
    cache: ArtifactCache, folder: Path
) -> None:
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o777)
    artifact = noise_artifact()
    with pytest.raises(CacheUnsafe, match="written by everyone"):
        cache.get(artifact.artifact_id, artifact.pin)
    folder.parent.chmod(0o1777)  # as /tmp: only owners rename
    assert cache.get(artifact.artifact_id, artifact.pin) is None


def test_f53_a_folder_that_is_a_link_is_unsafe(
    cache: ArtifactCache, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    artifact = noise_artifact()
    with pytest.raises(CacheUnsafe, match="symbolic link"):
        cache.get(artifact.artifact_id, artifact.pin)
    folder.unlink()
    folder.write_text("")
    with pytest.raises(CacheUnsafe):
        cache.get(artifact.artifact_id, artifact.pin)


def test_f53_a_folder_of_another_user_is_unsafe(
    cache: ArtifactCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True, mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, 12345, 12345)
    else:
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    artifact = noise_artifact()
    with pytest.raises(CacheUnsafe, match="another user"):
        cache.get(artifact.artifact_id, artifact.pin)


def test_f54_threads_fill_an_entry_once(cache: ArtifactCache) -> None:
    artifact = noise_artifact(3_000_000)
    calls: list[int] = []

    def slowly(file: BinaryIO) -> None:
        calls.append(1)
        for start in range(0, len(artifact.content), 500_000):
            file.write(artifact.content[start : start + 500_000])
            time.sleep(0.02)

    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(read(cache, artifact, slowly)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [artifact.content] * 6
    assert len(calls) == 1


FILLER = """
import sys, time
from pathlib import Path
from modelkms.cache import ArtifactCache
from modelkms.types import PinInfo
folder, artifact_id, length, tag, digest, source = sys.argv[1:]
def fill(file):
    content = Path(source).read_bytes()
    file.write(content[:1000])
    print("filling", flush=True)
    sys.stdin.readline()
    file.write(content[1000:])
pin = PinInfo(int(length), bytes.fromhex(tag), bytes.fromhex(digest))
ArtifactCache(Path(folder), 1 << 30).get_or_fill(artifact_id, pin, fill)
"""


@pytest.fixture
def start_filler(folder: Path, tmp_path: Path) -> Iterator[Callable[[NoiseArtifact], Started]]:
    started: list[Started] = []

    def start(artifact: NoiseArtifact) -> Started:
        source = tmp_path / "source"
        source.write_bytes(artifact.content)
        pin = artifact.pin
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", FILLER, str(folder), artifact.artifact_id),
                *(str(pin.length_bytes), pin.floe_header_tag.hex(), pin.digest.hex()),
                str(source),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "filling\n"
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


Started = subprocess.Popen[str]


def test_f54_another_process_that_fills_is_waited_for(
    cache: ArtifactCache, start_filler: Callable[[NoiseArtifact], Started]
) -> None:
    artifact = noise_artifact()
    filler = start_filler(artifact)
    assert filler.stdin is not None
    filler.stdin.write("\n")
    timer = threading.Timer(0.2, filler.stdin.flush)
    timer.start()
    assert read(cache, artifact, never) == artifact.content
    timer.join()


def test_f54_a_killed_fillers_lock_dies_with_it_and_nothing_half_is_seen(
    cache: ArtifactCache, folder: Path, start_filler: Callable[[NoiseArtifact], Started]
) -> None:
    artifact = noise_artifact()
    filler = start_filler(artifact)
    assert cache.get(artifact.artifact_id, artifact.pin) is None
    threading.Timer(0.2, filler.kill).start()
    fill = Filler(artifact)
    assert read(cache, artifact, fill) == artifact.content
    assert fill.calls == 1
    assert entries(folder) == {artifact.artifact_id}


RACER = """
import json, random, sys
from pathlib import Path
from modelkms.cache import ArtifactCache
from modelkms.types import PinInfo
folder, max_bytes, seed = sys.argv[1:]
artifacts = [
    (name, PinInfo(length, bytes.fromhex(tag), bytes.fromhex(digest)), Path(source).read_bytes())
    for name, length, tag, digest, source in json.loads(sys.stdin.readline())
]
cache, chance = ArtifactCache(Path(folder), int(max_bytes)), random.Random(int(seed))
print("racing", flush=True)
for _ in range(150):
    name, pin, content = chance.choice(artifacts)
    def fill(file):
        file.seek(0)
        file.truncate()
        for at in range(0, len(content), 5000):
            file.write(content[at : at + 5000])
    with cache.get_or_fill(name, pin, fill) as file:
        assert file.read() == content
"""


@pytest.mark.faults
def test_f54_processes_race_over_more_than_the_cache_holds(folder: Path, tmp_path: Path) -> None:
    """Each always gets what it asked for, whole, while others fill, evict and are killed."""
    artifacts = [noise_artifact() for _ in range(6)]
    told = []
    for artifact in artifacts:
        source, pin = tmp_path / artifact.artifact_id, artifact.pin
        source.write_bytes(artifact.content)
        numbers = (pin.length_bytes, pin.floe_header_tag.hex(), pin.digest.hex())
        told.append((artifact.artifact_id, *numbers, str(source)))
    max_bytes = 3 * max(artifact.pin.length_bytes for artifact in artifacts)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(folder), str(max_bytes), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(5)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(json.dumps(told) + "\n")
        racer.stdin.flush()
    for racer in racers[:2]:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "racing\n"
        racer.kill()
    for racer in racers:
        _, errors = racer.communicate(timeout=120)
        assert racer.returncode == (-9 if racer in racers[:2] else 0), errors

    whole = [path for path in folder.iterdir() if not path.suffix]
    contents = {artifact.artifact_id: artifact.content for artifact in artifacts}
    assert {path.name: path.read_bytes() for path in whole} == {
        path.name: contents[path.name] for path in whole
    }
    last = ArtifactCache(folder, max_bytes)
    assert read(last, artifacts[0], Filler(artifacts[0])) == artifacts[0].content
    another = noise_artifact()
    read(last, another, Filler(another))  # with nobody else about, the bound holds again
    assert sum(path.stat().st_size for path in folder.iterdir()) <= max_bytes


def test_f54_a_filler_that_stands_still_is_not_waited_for_for_ever(
    folder: Path, start_filler: Callable[[NoiseArtifact], Started]
) -> None:
    artifact = noise_artifact()
    start_filler(artifact)
    impatient = ArtifactCache(folder, 1 << 30, stall_s=0.2)
    with pytest.raises(LocalDiskError, match="another process"):
        read(impatient, artifact, never)


def test_f52_what_does_not_fit_is_refused_before_it_is_fetched(folder: Path) -> None:
    artifact = noise_artifact(20_000)
    with pytest.raises(LocalDiskFull, match="20,000"):
        read(ArtifactCache(folder, 10_000), artifact, never)


def test_f52_a_full_disk_is_local_disk_full_and_leaves_nothing(
    cache: ArtifactCache, folder: Path
) -> None:
    artifact = noise_artifact()

    def full(file: BinaryIO) -> None:
        file.write(artifact.content[:1000])
        raise OSError(28, "No space left on device")

    with pytest.raises(LocalDiskFull, match="No space left"):
        read(cache, artifact, full)
    assert entries(folder) == set()


def test_f52_a_real_file_size_limit_is_local_disk_full(cache: ArtifactCache, folder: Path) -> None:
    artifact = noise_artifact(300_000)

    def fill(file: BinaryIO) -> None:
        view = memoryview(artifact.content)
        while view:
            view = view[file.write(view) :]

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(LocalDiskFull):
            read(cache, artifact, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert entries(folder) == set()
    assert read(cache, artifact, fill) == artifact.content


@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_f52_a_failing_fsync_or_rename_leaves_no_entry(
    cache: ArtifactCache, folder: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    artifact = noise_artifact()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os if function == "fsync" else Path, function, fail)
        with pytest.raises(LocalDiskError, match="Input/output"):
            read(cache, artifact, Filler(artifact))
    assert entries(folder) == set()


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """`fsync` waits for the event; every entry is large enough not to be waited for."""
    written, fsync = threading.Event(), os.fsync

    def late(descriptor: int) -> None:
        assert written.wait(60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", late)
    monkeypatch.setattr("modelkms.cache._BEHIND_BYTES", 1000)
    yield written
    written.set()


def test_an_artifact_is_given_before_its_entry_is_durable(
    cache: ArtifactCache, folder: Path, slow_disk: threading.Event
) -> None:
    artifact = noise_artifact()
    with cache.get_or_fill(
        artifact.artifact_id, artifact.pin, Filler(artifact), durable=False
    ) as file:
        assert file.read() == artifact.content
        assert entries(folder) == {f"{artifact.artifact_id}.partial"}
        elsewhere = ArtifactCache(folder, 1 << 30)
        assert elsewhere.get(artifact.artifact_id, artifact.pin) is None
        with try_lock(folder / f"{artifact.artifact_id}.lock") as held:
            assert not held  # nobody else fills it meanwhile
        slow_disk.set()
        cache.settle()
        assert entries(folder) == {artifact.artifact_id}
        with try_lock(folder / f"{artifact.artifact_id}.lock") as held:
            assert held
    assert read(cache, artifact, never) == artifact.content


def test_f54_what_comes_behind_is_whole_or_nothing(
    cache: ArtifactCache, folder: Path, slow_disk: threading.Event
) -> None:
    """An artifact that is dropped as damaged while it becomes an entry does not come back."""
    artifact = noise_artifact()
    cache.get_or_fill(artifact.artifact_id, artifact.pin, Filler(artifact), durable=False).close()
    dropping = threading.Thread(target=cache.drop, args=[artifact.artifact_id])
    dropping.start()
    slow_disk.set()
    dropping.join()
    cache.settle()
    assert entries(folder) == set()


@pytest.mark.parametrize("function", ["fsync", "rename"])
def test_f52_what_cannot_become_an_entry_behind_is_read_all_the_same(
    cache: ArtifactCache,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    function: str,
) -> None:
    artifact = noise_artifact()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("modelkms.cache._BEHIND_BYTES", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(os if function == "fsync" else Path, function, fail)
        file = cache.get_or_fill(
            artifact.artifact_id, artifact.pin, Filler(artifact), durable=False
        )
        cache.settle()
    with file:
        assert file.read() == artifact.content
    assert entries(folder) == set()
    assert ["Input/output" in record.message for record in caplog.records] == [True]
    assert read(cache, artifact, Filler(artifact)) == artifact.content


def test_small_entries_are_durable_at_once(
    cache: ArtifactCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, synced = noise_artifact(), list[int]()
    monkeypatch.setattr(os, "fsync", synced.append)
    cache.get_or_fill(artifact.artifact_id, artifact.pin, Filler(artifact), durable=False).close()
    assert synced
    assert entries(folder) == {artifact.artifact_id}


def test_the_longest_unused_entries_go_first(folder: Path) -> None:
    cache = ArtifactCache(folder, 50_000)
    old, used, new = (noise_artifact(20_000) for _ in range(3))
    for artifact in (old, used):
        read(cache, artifact, Filler(artifact))
    os.utime(folder / old.artifact_id, (1, 1))
    read(cache, new, Filler(new))
    assert entries(folder) == {used.artifact_id, new.artifact_id}


def test_an_entry_in_use_is_readable_after_it_was_evicted(folder: Path) -> None:
    cache = ArtifactCache(folder, 25_000)
    one, two = noise_artifact(20_000), noise_artifact(20_000)
    with cache.get_or_fill(one.artifact_id, one.pin, Filler(one)) as file:
        read(cache, two, Filler(two))
        assert entries(folder) == {two.artifact_id}
        assert file.read() == one.content


def test_what_somebody_fills_is_not_evicted(
    folder: Path, start_filler: Callable[[NoiseArtifact], Started]
) -> None:
    being_filled, other = noise_artifact(20_000), noise_artifact(20_000)
    start_filler(being_filled)
    read(ArtifactCache(folder, 20_500), other, Filler(other))
    assert f"{being_filled.artifact_id}.partial" in entries(folder)


def test_a_removed_cache_folder_is_made_again(cache: ArtifactCache, folder: Path) -> None:
    artifact = noise_artifact()
    read(cache, artifact, Filler(artifact))
    shutil.rmtree(folder)
    assert read(cache, artifact, Filler(artifact)) == artifact.content
