"""Small reads decrypt one segment, sequential ones are read ahead of, memory is bounded."""

from __future__ import annotations

import io
import random
import threading
from pathlib import Path

import pytest
from modelkms.artifact import ArtifactReader
from modelkms.errors import ArtifactCorrupt, ModelClosed
from modelkms_api.artifact import parse_clear_prefix

from tests.unit.artifact.helpers import CAPACITY, KEY, SEGMENT, written

_SEGMENTS = 1500


class CountingSource:
    """An artifact in memory that remembers what was read of it, and by which thread."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length_bytes = len(data)
        self.start = parse_clear_prefix(data[:5000]).segments_offset
        self.segments: list[int] = []
        self.readers: set[str] = set()
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self.gate.wait(30)
        part = self._data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        if offset >= self.start:
            first = (offset - self.start) // SEGMENT
            self.segments += range(first, first + -(-len(part) // SEGMENT))
            self.readers.add(threading.current_thread().name)
            self.calls += 1
        return len(part)


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(11).randbytes(_SEGMENTS * CAPACITY + 77)


@pytest.fixture(scope="module")
def artifact(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("random") / "model.bin"
    path.write_bytes(content)
    return written(path)[0]


@pytest.fixture
def source(artifact: bytes) -> CountingSource:
    return CountingSource(artifact)


def test_a_small_read_decrypts_one_segment(source: CountingSource, content: bytes) -> None:
    with ArtifactReader(source, KEY) as reader:
        file, chance = reader.open(), random.Random(1)
        source.segments.clear()
        for number in chance.sample(range(_SEGMENTS), 200):
            file.seek(number * CAPACITY + 100)
            assert file.read(900) == content[number * CAPACITY + 100 :][:900]
            assert source.segments == [number]
            source.segments.clear()


def test_a_read_across_a_bound_decrypts_two(source: CountingSource, content: bytes) -> None:
    with ArtifactReader(source, KEY) as reader:
        source.segments.clear()
        assert reader.open().pread(2, 5 * CAPACITY - 1) == content[5 * CAPACITY - 1 :][:2]
        assert source.segments == [4, 5]


def test_what_was_read_last_is_not_read_again(source: CountingSource) -> None:
    with ArtifactReader(source, KEY) as reader:
        file = reader.open()
        source.segments.clear()
        for _ in range(3):
            file.pread(10, 3 * CAPACITY)
            file.pread(10, 9 * CAPACITY)
        assert source.segments == [3, 9]


@pytest.mark.parametrize("size", [1000, 8192, 64 << 10])
def test_who_reads_on_is_read_ahead_of(size: int, source: CountingSource, content: bytes) -> None:
    with ArtifactReader(source, KEY) as reader:
        source.segments.clear()
        file, data = io.BufferedReader(reader.open(), size), bytearray()
        while part := file.read1():
            data += part
        assert data == content
    assert sorted(source.segments) == list(range(_SEGMENTS + 1))  # each once
    assert any(name.startswith("modelkms-read-ahead") for name in source.readers)
    assert source.calls < _SEGMENTS // 5  # many in one read


def test_a_cache_is_bounded(source: CountingSource) -> None:
    with ArtifactReader(source, KEY) as reader:
        cache = reader._payload._cache
        file = reader.open()
        for number in range(0, _SEGMENTS, 1):
            file.pread(1, number * CAPACITY)
        assert len(cache._segments) == cache._max_segments == (4 << 20) // SEGMENT
        assert len(cache._spare) <= 4


def test_threads_that_want_the_same_segment_wait_for_one(
    source: CountingSource, content: bytes
) -> None:
    with ArtifactReader(source, KEY) as reader:
        file, found = reader.open(), list[bytes]()
        source.segments.clear()
        source.gate.clear()
        threads = [
            threading.Thread(target=lambda: found.append(file.pread(10, 700 * CAPACITY)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        source.gate.set()
        for thread in threads:
            thread.join()
    assert found == [content[700 * CAPACITY :][:10]] * 8
    assert source.segments == [700]


def test_threads_read_sequentially_and_at_random_at_once(
    source: CountingSource, content: bytes
) -> None:
    failures: list[object] = []
    with ArtifactReader(source, KEY) as reader:

        def sequential() -> None:
            file = io.BufferedReader(reader.open(), 32 << 10)
            if b"".join(iter(lambda: file.read(50_000), b"")) != content:
                failures.append("sequential")

        def at_random() -> None:
            file, chance = reader.open(), random.Random(5)
            for _ in range(400):
                at, size = chance.randrange(len(content)), chance.randrange(20_000)
                file.seek(at)
                if file.read(size) != content[at : at + size]:
                    failures.append(at)

        threads = [threading.Thread(target=act) for act in (sequential, at_random) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def damaged(artifact: bytes, segment: int) -> bytes:
    changed = bytearray(artifact)
    changed[parse_clear_prefix(artifact[:5000]).segments_offset + segment * SEGMENT + 50] ^= 1
    return bytes(changed)


def test_f43_a_reader_meets_the_error_where_it_is_not_where_it_is_read_ahead(
    artifact: bytes, content: bytes
) -> None:
    with ArtifactReader(damaged(artifact, 1000), KEY) as reader:
        file = reader.open()
        data = b"".join(file.read(CAPACITY) for _ in range(1000))
        assert data == content[: 1000 * CAPACITY]
        with pytest.raises(ArtifactCorrupt, match="segment 1000 "):
            file.read(CAPACITY)
        file.seek(1001 * CAPACITY)
        assert file.read(5) == content[1001 * CAPACITY :][:5]


def test_f47_a_large_read_leaves_nothing_unverified_in_the_callers_buffer(
    artifact: bytes, content: bytes
) -> None:
    buffer = bytearray(b"\xaa") * len(content)
    with ArtifactReader(damaged(artifact, 700), KEY) as reader:
        with pytest.raises(ArtifactCorrupt, match="segment 700 "):
            reader.open().readinto(buffer)
        assert buffer[700 * CAPACITY : 701 * CAPACITY] == b"\xaa" * CAPACITY

    with ArtifactReader(artifact, KEY) as reader:
        assert reader.open().readinto(buffer) == len(content)
    assert buffer == content


def test_closing_waits_for_what_is_read_ahead(source: CountingSource, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    reader = ArtifactReader(source, KEY)
    file = reader.open()
    for _ in range(100):
        file.read(CAPACITY)
    reader.close()
    read = len(source.segments)
    with pytest.raises(ModelClosed):
        file.read(1)
    assert len(source.segments) == read
    assert not reader._payload._cache._segments
    assert set(threading.enumerate()) <= before
