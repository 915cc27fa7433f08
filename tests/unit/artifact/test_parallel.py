"""What several threads do at once must come out as if one had done it in order."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelkms.artifact import ArtifactPin, ArtifactReader, pin_of, write_artifact
from modelkms.artifact.buffers import HUGE_PAGE_BYTES, FreshBytes, FreshMemory
from modelkms.artifact.checksum import crc32_joined
from modelkms.artifact.parallel import Work
from modelkms.artifact.pin import ParallelDigest
from modelkms.errors import ArtifactCorrupt, SourceChanged
from modelkms_api.artifact import PIN_PIECE_BYTES, PinDigest

from tests.unit.artifact.helpers import (
    ARTIFACT_ID,
    KEY,
    UID,
    VERSION,
    expected,
    folder_of,
    payload_of,
    written,
)

MIB = 1 << 20


def written_to_file(source: Path, path: Path, segment_length: int) -> tuple[bytes, ArtifactPin]:
    """As `written`, into a regular file: by two threads."""
    with path.open("wb", buffering=0) as sink:
        pin = write_artifact(
            source,
            sink,
            KEY,
            version=VERSION,
            version_uid=UID,
            artifact_id=ARTIFACT_ID,
            segment_length_bytes=segment_length,
        )
        assert sink.tell() == pin.length_bytes
    return path.read_bytes(), pin


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of five pieces: members within a piece, across pieces, and directly beside."""
    chance = random.Random(4)
    files = {
        "a/large": chance.randbytes(21 * MIB + 7),
        "b/empty": b"",
        "b/exact": chance.randbytes(8 * MIB),
        "c/last": chance.randbytes(5 * MIB + 1),
        **{f"b/small/{number:03}": chance.randbytes(number * 37) for number in range(300)},
    }
    return folder_of(tmp_path_factory.mktemp("large"), files)


@pytest.mark.parametrize("segment_length", [4096, 256 << 10, 16 << 20])
def test_two_threads_write_the_same_archive_as_one(
    large_folder: Path, segment_length: int, tmp_path: Path
) -> None:
    artifact, pin = written_to_file(large_folder, tmp_path / "artifact", segment_length)
    in_order, _ = written(large_folder, segment_length_bytes=segment_length)

    assert payload_of(artifact) == payload_of(in_order)
    assert pin == pin_of(artifact)
    with ArtifactReader(artifact, KEY, expected(pin)) as reader:
        reader.verify()
        for name in ("a/large", "b/empty", "b/small/299", "c/last"):
            assert reader.read(name) == (large_folder / name).read_bytes()


def test_a_file_that_is_written_begins_where_it_stands(tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(random.Random(1).randbytes(9 * MIB))

    for mode in ("r+b", "ab"):  # what is opened for appending is written in order, at its end
        stored = tmp_path / "stored"
        stored.write_bytes(b"before")
        with stored.open(mode, buffering=0) as sink:
            sink.seek(6)
            write_artifact(
                source, sink, KEY, version=VERSION, version_uid=UID, artifact_id=ARTIFACT_ID
            )
            sink.write(b"behind")
        data = stored.read_bytes()
        assert (data[:6], data[-6:]) == (b"before", b"behind")
        with ArtifactReader(data[6:-6], KEY) as reader:
            assert reader.read() == source.read_bytes()


def test_a_failure_in_one_thread_ends_the_other(large_folder: Path, tmp_path: Path) -> None:
    """The directory waits for checksums that will never come."""
    copy = folder_of(tmp_path / "copy", {"a": bytes(12 * MIB), "b": bytes(20 * MIB)})

    class Shrinking(io.FileIO):
        def write(self, data: object, /) -> int:
            raise AssertionError("a regular file is written at offsets")

    def shrink(done: int, _total: int) -> None:
        if done < 3 * MIB:
            (copy / "b").write_bytes(b"")

    before = set(threading.enumerate())
    with Shrinking(tmp_path / "artifact", "w") as sink, pytest.raises(SourceChanged):
        write_artifact(
            copy,
            sink,
            KEY,
            version=VERSION,
            version_uid=UID,
            artifact_id=ARTIFACT_ID,
            progress=shrink,
        )
    assert set(threading.enumerate()) <= before


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 1 << 16))
def test_checksums_of_parts_are_joined(first: bytes, second: bytes, zeros: int) -> None:
    second += bytes(zeros)

    joined = crc32_joined(zlib.crc32(first), zlib.crc32(second), len(second))

    assert joined == zlib.crc32(first + second)


@settings(max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(0, 2))
def test_a_digest_does_not_depend_on_the_order(chance: random.Random, extra: int) -> None:
    data = bytes(2 * PIN_PIECE_BYTES) + b"x" * extra
    cuts = sorted({0, len(data), *(chance.randrange(len(data)) for _ in range(6))})
    parts = list(itertools.pairwise(cuts))
    chance.shuffle(parts)
    in_order, digest = PinDigest(), ParallelDigest()
    in_order.update(data)

    for start, stop in parts:
        digest.add(start, memoryview(data)[start:stop])

    assert digest.digest() == in_order.digest()
    assert digest.length_bytes == len(data)


def test_a_digest_of_nothing() -> None:
    assert ParallelDigest().digest() == PinDigest().digest() == hashlib.sha256().digest()


def test_threads_hash_one_digest() -> None:
    data = random.Random(2).randbytes(3 * PIN_PIECE_BYTES + 5)
    digest, work, in_order = ParallelDigest(), Work(range(0, len(data), 70_000)), PinDigest()
    in_order.update(data)

    def add() -> None:
        while (taken := work.take()) is not None:
            digest.add(taken[0], memoryview(data)[taken[0] : taken[0] + 70_000])

    work.run(add, 4, "digest")

    assert digest.digest() == in_order.digest()


def test_work_ends_with_its_first_failure() -> None:
    work, taken = Work(range(100)), list[int]()

    def task() -> None:
        while (numbers := work.take()) is not None:
            taken.extend(numbers)
            if numbers[0] == 3:
                raise KeyError(3)

    with pytest.raises(KeyError):
        work.run(task, 1, "work")
    assert taken == [0, 1, 2, 3]
    assert work.failed


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 3 * MIB, 4 * MIB + 1, 40 * MIB])
def test_fresh_memory_is_zero_writable_and_kept(size: int) -> None:
    for kind in (FreshBytes, FreshMemory):
        fresh = kind(size)
        assert len(fresh.view) == size
        assert not any(fresh.view[:: 4096 - 1])
        if size:
            fresh.view[size - 1] = 7
        assert bytes(fresh.take()[-1:]) == (b"\7" if size else b"")


def test_a_file_can_be_had_as_memory(tmp_path: Path) -> None:
    source = tmp_path / "model.bin"
    content = random.Random(3).randbytes(6 * MIB + 3)
    source.write_bytes(content)
    artifact, _ = written(source, segment_length_bytes=64 << 10)

    with ArtifactReader(artifact, KEY) as reader:
        memory = reader.memory()
        part = reader.memory("model.bin", 5 * MIB, 9 * MIB)
        assert not memory.readonly
        assert memory == content
        assert part == content[5 * MIB :]
        with pytest.raises(ValueError, match="negative"):
            reader.memory("model.bin", -1)
    memory[:1] = b"x"  # it outlives the reader, and is its owner's alone

    changed = bytearray(artifact)
    changed[-3_000_000] ^= 1
    with ArtifactReader(bytes(changed), KEY) as reader, pytest.raises(ArtifactCorrupt):
        reader.memory()


def test_large_memory_begins_at_a_huge_page() -> None:
    import ctypes

    view = FreshMemory(5 * MIB).take()

    assert ctypes.addressof(ctypes.c_char.from_buffer(view)) % HUGE_PAGE_BYTES == 0
