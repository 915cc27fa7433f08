"""Writing and reading whole artifacts: round trips, damage, mismatch, bounds."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelkms.artifact import (
    ArtifactPin,
    ArtifactReader,
    Expected,
    MemberFile,
    pin_of,
    read_header,
    write_artifact,
)
from modelkms.artifact.buffers import FreshBytes
from modelkms.artifact.extraction import write_at
from modelkms.errors import (
    ArtifactCorrupt,
    ArtifactMismatch,
    CorruptError,
    MemberNotFound,
    ModelClosed,
    ModelKmsError,
)
from modelkms_api.artifact import PIN_PIECE_BYTES, parse_clear_prefix
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE

from tests.unit.artifact.helpers import (
    ARTIFACT_ID,
    CAPACITY,
    KEY,
    OTHER_KEY,
    SEGMENT,
    UID,
    VERSION,
    expected,
    folder_of,
    sealed,
    written,
)

FOLDER = {
    "config.json": b'{"layers": 2}',
    "empty": b"",
    "weights/0.bin": random.Random(0).randbytes(3 * CAPACITY),
    "weights/1.bin": random.Random(1).randbytes(100),
}


def file_of(tmp_path: Path, size: int) -> tuple[Path, bytes]:
    content = random.Random(size).randbytes(size)
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    return path, content


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [0, 1, CAPACITY - 1, CAPACITY, CAPACITY + 1, 2 * CAPACITY, 5 * CAPACITY - 1, 1_300_000],
)
def test_a_file_of_any_size(size: int, tmp_path: Path) -> None:
    path, content = file_of(tmp_path, size)

    artifact, pin = written(path)

    with ArtifactReader(artifact, KEY, expected(pin)) as reader:
        assert reader.header.payload_kind == PAYLOAD_KIND_FILE
        assert reader.files() == ["model.bin"]
        assert reader.sizes() == {"model.bin": size}
        assert reader.payload_bytes == reader.size() == size
        assert reader.length_bytes == len(artifact)
        assert reader.read() == reader.read("model.bin") == content
        assert reader.open().read() == content
        reader.verify()
        reader.extract_to(tmp_path / "out")
    assert (tmp_path / "out" / "model.bin").read_bytes() == content


def test_a_folder(tmp_path: Path) -> None:
    artifact, pin = written(folder_of(tmp_path / "model", FOLDER))

    with ArtifactReader(artifact, KEY, expected(pin)) as reader:
        assert reader.files() == sorted(FOLDER)
        assert {name: reader.read(name) for name in reader.files()} == FOLDER
        reader.extract_to(tmp_path / "out")

    made = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    found = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in made}
    assert found == FOLDER
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600)


def test_a_large_file_goes_through_both_threads(tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 11_000_003)

    artifact, pin = written(path, segment_length_bytes=256 << 10)

    assert artifact[: len(artifact) // 2] not in (b"", content)
    with ArtifactReader(artifact, KEY, expected(pin)) as reader:
        assert reader.read() == content
        assert reader.open().pread(9_000_000, 1_000_001) == content[1_000_001:10_000_001]
        reader.verify()
        reader.extract_to(tmp_path / "out")
    assert (tmp_path / "out" / "model.bin").read_bytes() == content


@given(
    size=st.integers(0, 3 * CAPACITY),
    reads=st.lists(st.tuples(st.integers(0, 3 * CAPACITY + 9), st.integers(0, 2 * CAPACITY))),
)
def test_any_range_is_that_of_the_plaintext(size: int, reads: list[tuple[int, int]]) -> None:
    content = random.Random(size).randbytes(size)

    with ArtifactReader(sealed(content, is_file=True), KEY) as reader:
        file = reader.open()
        for offset, length in reads:
            assert file.pread(length, offset) == content[offset : offset + length]
            file.seek(offset)
            assert file.read(length) == content[offset : offset + length]


def test_sources_may_be_paths_open_files_and_bytes(tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 10_000)
    artifact, pin = written(path)
    stored = tmp_path / "artifact"
    stored.write_bytes(artifact)

    with stored.open("rb") as file:
        file.seek(7)
        for source in (stored, str(stored), file, artifact):
            with ArtifactReader(source, KEY) as reader:
                assert reader.read() == content
            assert pin_of(source) == pin
            assert read_header(source).version == VERSION
        assert not file.closed
        assert file.tell() == 7


def test_the_pin_is_that_of_the_bytes(tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, PIN_PIECE_BYTES + 100_000)

    artifact, pin = written(path, segment_length_bytes=64 << 10)

    pieces = [artifact[at:][:PIN_PIECE_BYTES] for at in range(0, len(artifact), PIN_PIECE_BYTES)]
    digest = hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).digest()
    clear = parse_clear_prefix(artifact[:5000])
    assert len(pieces) == 2
    assert pin == ArtifactPin(len(artifact), clear.floe_header_tag(artifact[:5000]), digest)
    assert pin_of(artifact) == pin


def test_progress_tells_of_plaintext(tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, 3_000_000)
    told: list[tuple[int, int]] = []

    write_artifact(
        path,
        io.BytesIO(),
        KEY,
        version=VERSION,
        version_uid=UID,
        artifact_id=ARTIFACT_ID,
        progress=lambda done, total: told.append((done, total)),
    )

    assert told == sorted(told)
    assert told[-1] == (3_000_000, 3_000_000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": bytes(16)},
        {"version": "model"},
        {"version_uid": "1"},
        {"artifact_id": "F" * 32},
        {"segment_length_bytes": 4095},
        {"segment_length_bytes": 1 << 30},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, 10)

    with pytest.raises(ValueError, match=r"bytes|malformed|out of bounds"):
        written(path, **wrong)  # type: ignore[arg-type]  # wrong on purpose


class SlowSink(io.RawIOBase):
    """Takes a little at a time, as a pipe may."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()

    def write(self, data: object, /) -> int:
        part = memoryview(data)[:70_001]  # type: ignore[arg-type]  # any buffer
        self.data += part
        return len(part)


def test_short_writes_are_gone_on_with(tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 3_000_000)
    sink = SlowSink()

    write_artifact(path, sink, KEY, version=VERSION, version_uid=UID, artifact_id=ARTIFACT_ID)

    assert ArtifactReader(bytes(sink.data), KEY).read() == content


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_a_failing_sink_ends_all_threads(
    after: int, kind: type[BaseException], tmp_path: Path
) -> None:
    path, _ = file_of(tmp_path, 4_000_000)
    writes = 0

    class Failing(io.BytesIO):
        def write(self, data: object, /) -> int:
            nonlocal writes
            writes += 1
            if writes > after:
                raise kind("full")
            return super().write(data)  # type: ignore[arg-type]  # any buffer

    before = set(threading.enumerate())
    with pytest.raises(kind, match="full"):
        write_artifact(
            path, Failing(), KEY, version=VERSION, version_uid=UID, artifact_id=ARTIFACT_ID
        )
    assert writes == after + 1
    assert set(threading.enumerate()) <= before


# --- members as files ----------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> MemberFile:
    artifact, _ = written(folder_of(tmp_path / "model", FOLDER))
    return ArtifactReader(artifact, KEY).open("weights/0.bin")


def test_a_member_behaves_as_a_file(weights: MemberFile) -> None:
    content = FOLDER["weights/0.bin"]
    plain = io.BytesIO(content)

    for act in (
        lambda file: file.read(10),
        lambda file: file.seek(-5, os.SEEK_END),
        lambda file: file.read(),
        lambda file: file.read(),
        lambda file: file.seek(CAPACITY - 3),
        lambda file: file.read(6),
        lambda file: file.seek(2, os.SEEK_CUR),
        lambda file: file.tell(),
        lambda file: file.readinto(bytearray(9)),
        lambda file: file.seek(len(content) + 5),
        lambda file: file.read(1),
        lambda file: (file.readable(), file.seekable()),
        lambda file: file.seek(0),
        lambda file: file.read(),
    ):
        assert act(weights) == act(plain)
    assert not weights.writable()
    with pytest.raises(io.UnsupportedOperation):
        weights.write(b"x")
    with pytest.raises(ValueError, match="negative"):
        weights.seek(-1)
    with pytest.raises(ValueError, match="whence"):
        weights.seek(0, 9)
    with pytest.raises(ValueError, match="not negative"):
        weights.pread(-1, 0)


def test_a_member_ends_where_it_ends(weights: MemberFile) -> None:
    size = len(FOLDER["weights/0.bin"])

    assert weights.pread(100, size - 1) == FOLDER["weights/0.bin"][-1:]
    assert weights.pread(100, size) == weights.pread(100, size + 1000) == b""


def test_a_closed_member_is_closed(weights: MemberFile) -> None:
    weights.close()

    for act in (weights.read, weights.tell, lambda: weights.seek(0), lambda: weights.pread(1, 0)):
        with pytest.raises(ValueError, match="closed"):
            act()


def test_threads_share_a_reader(tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 40 * CAPACITY)
    failures: list[object] = []
    with ArtifactReader(written(path)[0], KEY) as reader:
        file = reader.open()

        def read_about(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(300):
                offset, length = chance.randrange(len(content)), chance.randrange(3 * CAPACITY)
                if file.pread(length, offset) != content[offset : offset + length]:
                    failures.append((offset, length))

        threads = [threading.Thread(target=read_about, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_closed_reader_gives_nothing(tmp_path: Path) -> None:
    artifact, _ = written(folder_of(tmp_path / "model", FOLDER))
    reader = ArtifactReader(artifact, KEY)
    file = reader.open("weights/0.bin")
    reader.close()
    reader.close()

    for act in (
        lambda: reader.read("empty"),
        lambda: reader.open("empty"),
        lambda: reader.extract_to(tmp_path / "out"),
        reader.verify,
        file.read,
    ):
        with pytest.raises(ModelClosed):
            act()
    assert not (tmp_path / "out").exists()


def test_a_missing_member_is_told(tmp_path: Path) -> None:
    with ArtifactReader(written(folder_of(tmp_path / "model", FOLDER))[0], KEY) as reader:
        for name in ("nothing", "weights", "weights/", "/config.json", "../config.json"):
            with pytest.raises(MemberNotFound):
                reader.open(name)
        with pytest.raises(MemberNotFound, match="4 files"):
            reader.read()


def test_of_one_file_no_name_is_needed(tmp_path: Path) -> None:
    with ArtifactReader(written(folder_of(tmp_path / "m", {"a/b": b"x"}))[0], KEY) as reader:
        assert reader.read() == b"x"


# --- damage --------------------------------------------------------------------------------------


def outcome(artifact: bytes, pin: ArtifactPin | None = None) -> type[ModelKmsError] | None:
    """What opening and verifying ends with."""
    try:
        with ArtifactReader(artifact, KEY, expected(pin)) as reader:
            reader.verify()
    except ModelKmsError as error:
        return type(error)
    return None


def test_f43_one_flipped_byte_anywhere(tmp_path: Path) -> None:
    artifact, pin = written(folder_of(tmp_path / "m", {"a": b"x" * 100, "b": b"y"}))
    clear = parse_clear_prefix(artifact[:5000])
    tag = range(clear.segments_offset - 32, clear.segments_offset)
    assert outcome(artifact, pin) is None

    for at in range(len(artifact)):
        changed = artifact[:at] + bytes([artifact[at] ^ 1]) + artifact[at + 1 :]
        found = outcome(changed, pin)
        if at in tag:
            assert found is ArtifactMismatch, at  # not the pinned one
        elif at < clear.payload_offset:
            assert found in (ArtifactCorrupt, ArtifactMismatch), at
        else:
            assert found is ArtifactCorrupt, at
        assert outcome(changed) in (ArtifactCorrupt, ArtifactMismatch)


def test_f43_truncated_or_extended_anywhere(tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, 2 * CAPACITY + 40)
    artifact, pin = written(path)

    lengths = {*range(400), *range(len(artifact) - 200, len(artifact))}
    lengths |= {len(artifact) - 72 - SEGMENT * n for n in range(3)}
    for length in sorted(lengths):
        assert outcome(artifact[:length], pin) is ArtifactCorrupt, length
        assert outcome(artifact[:length]) is ArtifactCorrupt, length
    for extra in (1, 31, 32, 33, SEGMENT):
        assert outcome(artifact + bytes(extra), pin) is ArtifactCorrupt, extra
        assert outcome(artifact + bytes(extra)) is ArtifactCorrupt, extra


def test_f43_no_byte_of_a_bad_segment_is_released(tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 4 * CAPACITY)
    artifact, _ = written(path)
    start = parse_clear_prefix(artifact[:5000]).segments_offset
    changed = bytearray(artifact)
    changed[start + SEGMENT + 100] ^= 1

    with ArtifactReader(bytes(changed), KEY) as reader:
        file, buffer = reader.open(), bytearray(b"\xaa" * CAPACITY)
        assert file.pread(CAPACITY, 0) == content[:CAPACITY]
        assert file.pread(CAPACITY, 2 * CAPACITY) == content[2 * CAPACITY : 3 * CAPACITY]
        file.seek(CAPACITY)
        with pytest.raises(ArtifactCorrupt, match="segment 1 "):
            file.readinto(buffer)
        assert buffer == b"\xaa" * CAPACITY
        for act in (
            reader.read,
            reader.verify,
            lambda: file.pread(1, 2 * CAPACITY - 1),
            lambda: reader.extract_to(tmp_path / "out"),
        ):
            with pytest.raises(ArtifactCorrupt, match="segment 1 "):
                act()
    assert not (tmp_path / "out").exists()


def test_f44_segments_moved_about(tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, 3 * CAPACITY + 5)
    artifact, pin = written(path)
    start = parse_clear_prefix(artifact[:5000]).segments_offset
    head, (a, b, c, last) = (
        artifact[:start],
        [artifact[at : at + SEGMENT] for at in range(start, len(artifact), SEGMENT)],
    )
    other = written(path)[0][start:]

    for segments in (
        (b, a, c, last),
        (a, a, c, last),
        (a, c, last),
        (a, b, last, c),
        (a, b, c),
        (a, b, c, c),
        (a, other[SEGMENT : 2 * SEGMENT], c, last),
        (a, b, c, other[3 * SEGMENT :]),
        (other,),
    ):
        changed = head + b"".join(segments)
        assert outcome(changed) is outcome(changed, pin) is ArtifactCorrupt


def test_f44_the_last_segment_is_authenticated_before_any_other(tmp_path: Path) -> None:
    """Else a cut artifact could be read up to where it was cut."""
    path, _ = file_of(tmp_path, 3 * CAPACITY)
    artifact, _ = written(path)

    for cut in (artifact[:-SEGMENT], artifact[:-1], artifact[:-16] + bytes(16)):
        with pytest.raises(ArtifactCorrupt):
            ArtifactReader(cut, KEY)


def test_f44_a_second_key_does_not_fit(tmp_path: Path) -> None:
    artifact, pin = written(file_of(tmp_path, 10)[0])

    with pytest.raises(ArtifactCorrupt, match="another key"):
        ArtifactReader(artifact, OTHER_KEY, expected(pin))


def of_another(**changes: str) -> Callable[[Path], bytes]:
    return lambda path: written(path, **changes)[0]  # type: ignore[arg-type]  # names only


@pytest.mark.parametrize(
    "served",
    [
        of_another(version="projects/camera/models/other/versions/3"),
        of_another(version="projects/camera/models/face-detector/versions/2"),
        of_another(version_uid="00" * 16),
        of_another(artifact_id="00" * 16),
        of_another(),  # the same version under the same key, encrypted at another time
    ],
)
def test_f45_another_artifact_is_served(served: Callable[[Path], bytes], tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, 10_000)
    _, pin = written(path)

    with pytest.raises(ArtifactMismatch) as caught:
        ArtifactReader(served(path), OTHER_KEY, expected(pin))  # found before any key is used
    assert caught.value.reason == "ARTIFACT_MISMATCH"


def test_f45_a_renamed_artifact_does_not_authenticate(tmp_path: Path) -> None:
    """The clear header is FLOE's associated data: editing it breaks the header tag."""
    artifact, _ = written(file_of(tmp_path, 10)[0])
    renamed = artifact.replace(b"versions/3", b"versions/4")
    assert renamed != artifact

    wanted = Expected(version="projects/camera/models/face-detector/versions/4")
    with pytest.raises(ArtifactCorrupt, match="does not authenticate"):
        ArtifactReader(renamed, KEY, wanted)


def test_f47_private_memory_is_wiped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large reads decrypt where the result will be; a bad segment leaves only zeros there."""
    path, _ = file_of(tmp_path, 6 << 20)
    artifact, _ = written(path, segment_length_bytes=64 << 10)
    changed = bytearray(artifact)
    changed[len(changed) // 2] ^= 1
    wiped: list[bytes] = []

    class Watched(FreshBytes):
        def wipe(self) -> None:
            super().wipe()
            wiped.append(bytes(self.view))

    monkeypatch.setattr("modelkms.artifact.payload.FreshBytes", Watched)
    with ArtifactReader(bytes(changed), KEY) as reader, pytest.raises(ArtifactCorrupt):
        reader.read()

    assert wiped == [bytes(6 << 20)]


def test_f47_close_wipes_cached_plaintext(tmp_path: Path) -> None:
    path, content = file_of(tmp_path, 3 * CAPACITY)
    reader = ArtifactReader(written(path)[0], KEY)
    reader.open().pread(10, CAPACITY)
    cached = list(reader._payload._cache._segments.values())
    assert content[CAPACITY : 2 * CAPACITY] in [bytes(view) for view in cached]

    reader.close()

    assert cached
    assert not any(any(view) for view in cached)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path, _ = file_of(tmp_path, 20 * CAPACITY)
    stored = tmp_path / "artifact"
    stored.write_bytes(written(path)[0])
    with ArtifactReader(stored, KEY) as reader:
        os.truncate(stored, 5000)

        with pytest.raises(ArtifactCorrupt, match="shorter"):
            reader.read()


@given(st.binary(max_size=500))
def test_any_bytes_end_in_a_declared_error(data: bytes) -> None:
    for artifact in (data, sealed(data), sealed(b"")[:130] + data):
        with pytest.raises(CorruptError):
            ArtifactReader(artifact, KEY)


# --- extracting ----------------------------------------------------------------------------------


def test_extraction_takes_nothing_that_is_in_the_way(tmp_path: Path) -> None:
    artifact, _ = written(folder_of(tmp_path / "model", FOLDER))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = tmp_path / "out"

    def refused() -> None:
        with ArtifactReader(artifact, KEY) as reader, pytest.raises(FileExistsError):
            reader.extract_to(target)

    target.mkdir()
    (target / "weights").symlink_to(elsewhere)  # a way out
    refused()
    assert [path.name for path in target.iterdir()] == ["weights"]
    assert list(elsewhere.iterdir()) == []

    (target / "weights").unlink()
    (target / "config.json").write_bytes(b"mine")
    refused()
    assert (target / "config.json").read_bytes() == b"mine"

    (target / "config.json").unlink()
    target.rmdir()
    target.symlink_to(elsewhere)
    refused()
    assert list(elsewhere.iterdir()) == []


def test_a_failing_extraction_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = written(folder_of(tmp_path / "model", FOLDER))
    (tmp_path / "there").mkdir()

    def failing(descriptor: int, offset: int, data: memoryview) -> None:
        write_at(descriptor, offset, data)
        if len(data) == 100:  # weights/1.bin, the last
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("modelkms.artifact.reader.write_at", failing)
    for target in (tmp_path / "new", tmp_path / "there"):
        with ArtifactReader(artifact, KEY) as reader, pytest.raises(OSError, match="No space"):
            reader.extract_to(target)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "there").iterdir()) == []
