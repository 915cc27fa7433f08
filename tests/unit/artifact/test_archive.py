"""The archive of a folder has one form, and nothing else is read (F48)."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelkms.artifact import ArtifactReader, archive, write_artifact
from modelkms.artifact.archive import Member, Names, lay_out, read_members
from modelkms.errors import ArchiveRejected

from tests.unit.artifact.helpers import (
    ARTIFACT_ID,
    KEY,
    UID,
    VERSION,
    folder_of,
    payload_of,
    sealed,
    written,
    zip_of,
)

FILES = {
    "config.json": b"{}",
    "empty": b"",
    "weights/a.bin": bytes(range(256)) * 70,
    "weights/b.bin": b"b" * 64,
    "weights/日本語.bin": "é".encode() * 100,
}


def built(files: dict[str, bytes], *, crc32: int | None = None) -> bytes:
    """An archive in the one form, whatever the names are."""
    members = list(lay_out((name, len(content)) for name, content in files.items()))
    return assembled(members, list(files.values()), crc32=crc32)


def assembled(members: list[Member], contents: list[bytes], *, crc32: int | None = None) -> bytes:
    out, directory = bytearray(), b""
    for member, content in zip(members, contents, strict=True):
        checksum = zlib.crc32(content) if crc32 is None else crc32
        out += archive.local_header(member) + content + archive.descriptor(member, checksum)
        directory += archive.directory_entry(member, checksum)
    at = len(out)
    return bytes(out) + directory + archive.tail(len(members), at, len(directory))


def read(data: bytes) -> list[Member]:
    return read_members(lambda at, length: data[at : at + length], len(data))


def refusal(data: bytes) -> str:
    with pytest.raises(ArchiveRejected) as caught:
        read(data)
    assert caught.value.reason == "ARCHIVE_REJECTED"
    return caught.value.message


# --- one form ------------------------------------------------------------------------------------


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one", FILES)
    other = folder_of(tmp_path / "other", dict(reversed(FILES.items())))
    (other / "weights" / "a.bin").chmod(0o755)
    (other / "nothing here").mkdir()

    first, second = (payload_of(written(folder)[0]) for folder in (one, other))

    assert first == second == built(FILES)


def test_members_are_sorted_stored_and_aligned(tmp_path: Path) -> None:
    data = payload_of(written(folder_of(tmp_path / "m", FILES))[0])

    members = read(data)

    assert [member.name for member in members] == sorted(FILES, key=str.encode)
    for member in members:
        assert member.offset % 64 == 0
        assert data[member.offset : member.end] == FILES[member.name]
    assert archive.archive_bytes(members) == len(data)


def test_other_programs_read_it(tmp_path: Path) -> None:
    data = payload_of(written(folder_of(tmp_path / "m", FILES))[0])
    (tmp_path / "model.zip").write_bytes(data)

    with zipfile.ZipFile(io.BytesIO(data)) as other:
        assert other.testzip() is None
        assert {name: other.read(name) for name in other.namelist()} == FILES
        assert {info.date_time for info in other.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.external_attr >> 16 for info in other.infolist()} == {0o100644}
        assert {info.compress_type for info in other.infolist()} == {zipfile.ZIP_STORED}
    extracted = subprocess.run(
        [sys.executable, "-m", "zipfile", "-t", tmp_path / "model.zip"],
        check=True,
        capture_output=True,
    )
    assert b"Done testing" in extracted.stdout


def test_members_beyond_4_gib_have_their_place() -> None:
    large, small = lay_out([("large", 5 << 30), ("small", 3)])

    assert large.offset == 64
    assert small.header_offset == 64 + (5 << 30) + 24
    entries = [archive.directory_entry(member, 0) for member in (large, small)]
    assert struct.unpack_from("<QQQ", entries[0], 46 + 5 + 4) == (5 << 30, 5 << 30, 0)
    assert struct.unpack_from("<QQQ", entries[1], 46 + 5 + 4) == (3, 3, small.header_offset)
    tail = archive.tail(2, archive.directory_offset(small), len(b"".join(entries)))
    size = archive.archive_bytes([large, small])

    def read_sparse(at: int, length: int) -> bytes:
        directory_at = archive.directory_offset(small)
        return (b"".join(entries) + tail)[at - directory_at :][:length]

    assert read_members(read_sparse, size) == [large, small]


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_member_of_5_gib_is_written_and_read(tmp_path: Path) -> None:
    """Sizes and offsets beyond 2^32, at full length; sparse, but for its last bytes."""
    folder, stored = tmp_path / "model", tmp_path / "artifact"
    folder.mkdir()
    with (folder / "large.bin").open("wb") as file:
        file.truncate(5 << 30)
        file.seek(-4, os.SEEK_END)
        file.write(b"tail")
    (folder / "small.json").write_bytes(b"{}")
    try:
        with stored.open("wb", buffering=0) as sink:
            write_artifact(
                folder,
                sink,
                KEY,
                version=VERSION,
                version_uid=UID,
                artifact_id=ARTIFACT_ID,
            )
        with ArtifactReader(stored, KEY) as reader:
            assert reader.sizes() == {"large.bin": 5 << 30, "small.json": 2}
            assert reader.read("small.json") == b"{}"
            large = reader.open("large.bin")
            assert large.pread(100, (5 << 30) - 4) == b"tail"
            assert large.pread(4, 1 << 32) == bytes(4)
            reader.verify()
    finally:
        stored.unlink(missing_ok=True)  # pytest would keep it


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=8),
        st.binary(max_size=200),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_built_is_read(files: dict[str, bytes]) -> None:
    names = Names()
    good = {name: files[name] for name in sorted(files, key=str.encode) if not names.fault(name)}
    if not good:
        return

    data = built(good)

    assert [data[member.offset : member.end] for member in read(data)] == list(good.values())


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../a", "way out"),
        ("a/../b", "way out"),
        ("./a", "way out"),
        ("..", "way out"),
        ("/etc/passwd", "is empty"),
        ("a//b", "is empty"),
        ("a/", "is empty"),
        ("", "is empty"),
        ("a\\b", "backslash"),
        ("a\nb", "control"),
        ("a\0", "control"),
        ("C:a", "drive"),
        ("a/d:", "drive"),
        ("x" * 256, "longer than 255"),
        ("/".join(["x" * 200] * 6), "longer than 1024"),
        ("\ud800", "UTF-8"),
    ],
)
def test_f48_names_that_lead_out_are_refused(name: str, fault: str) -> None:
    found = Names().fault(name)

    assert found is not None
    assert fault in found
    if name.isprintable() and len(name) <= 1024:
        assert fault in refusal(built({name: b"x"}))


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["Model.bin", "model.bin"], "collide"),
        (["STRASSE", "straße"], "collide"),
        (["e\u0301", "é"], "collide"),
        (["É", "e\u0301"], "collide"),
        (["a", "a/b"], "collide"),
        (["A", "a/b"], "collide"),
        (["Dir/x", "dir/y"], "collide"),
        (["ÅNG/x", "ång/y"], "collide"),
        (["a", "a"], "twice"),
    ],
)
def test_f48_colliding_names_are_refused(names: list[str], fault: str) -> None:
    together = Names()

    assert together.fault(names[0]) is None
    assert fault in str(together.fault(names[1]))
    in_order = sorted(names, key=str.encode)
    members = list(lay_out((name, 1) for name in in_order))
    expected = "out of order" if fault == "twice" else "collide"
    assert expected in refusal(assembled(members, [b"x"] * 2))


def test_names_that_only_look_dangerous_are_taken() -> None:
    together = Names()

    for name in ("...", "..a", "kernel:0", "a b", "~", "a*?", "日本", "é", "CON", "x" * 255):
        assert together.fault(name) is None


# --- refused -------------------------------------------------------------------------------------


def symlink(name: str) -> zipfile.ZipInfo:
    return with_mode(name, stat.S_IFLNK)


def with_mode(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o644) << 16
    return info


FOREIGN = {
    "a plain zip": zip_of("a"),
    "no members": zip_of(),
    "way out": zip_of("../a"),
    "absolute": zip_of("/a"),
    "symlink": zip_of(symlink("a"), content=b"/etc/passwd"),
    "device": zip_of(with_mode("a", stat.S_IFCHR)),
    "fifo": zip_of(with_mode("a", stat.S_IFIFO)),
    "folder": zip_of(with_mode("a/", stat.S_IFDIR), content=b""),
    "case": zip_of("a", "A"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_f48_zips_of_other_making_are_rejected_and_nothing_extracted(
    what: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveRejected):
        ArtifactReader(sealed(FOREIGN[what]), KEY)
    assert list(tmp_path.iterdir()) == []


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def test_f48_every_byte_of_directory_and_end_counts() -> None:
    """A CRC-32 is the only thing that can differ without being refused: it is in the directory
    what the writer says it is, and FLOE authenticates the content."""
    data = built({"a": b"x", "b/c": b"yy"})
    members = read(data)
    directory_at = archive.directory_offset(members[-1])
    crcs = {directory_at + 16 + at for at in range(4)}
    crcs |= {directory_at + 46 + 1 + 28 + 16 + at for at in range(4)}

    for at in range(directory_at, len(data)):
        for flip in (1, 0x80):
            changed = patched(data, at, bytes([data[at] ^ flip]))
            try:
                same = read(changed) == members
            except ArchiveRejected:
                continue
            assert at in crcs or not same, at
            if at not in crcs:  # another name in its place
                assert {len(member.name) for member in read(changed)} == {1, 3}


def test_f48_sizes_and_offsets_that_overlap_or_lead_out_are_refused() -> None:
    files = {"a": b"x" * 100, "b": b"y" * 100}
    data, members = built(files), list(lay_out((name, len(text)) for name, text in files.items()))
    directory_at = archive.directory_offset(members[-1])
    second = directory_at + 46 + 1 + 28

    for at, value in (
        (second + 47 + 20, 0),  # the second header's offset: that of the first
        (second + 47 + 20, 1 << 63),
        (second + 47 + 4, 1 << 40),  # the second's size
        (second + 47 + 4, 1 << 64 - 1),
        (second + 47 + 4, 1),
        (directory_at + 47 + 4, 1),  # the first's size
    ):
        changed = patched(data, at, struct.pack("<Q", value))
        assert "in its place" in refusal(changed) or "belong to no member" in refusal(changed)


def test_f48_a_local_header_that_says_something_else_is_refused(tmp_path: Path) -> None:
    data = built({"a": b"x" * 10, "b": b"y"})
    for at, new in ((0, b"PK\3\5"), (30, b"c"), (8, b"\x08"), (26, b"\2"), (31 + 20 + 6, b"\1")):
        with ArtifactReader(sealed(patched(data, at, new)), KEY) as reader:
            assert reader.read("b") == b"y"
            with pytest.raises(ArchiveRejected):
                reader.read("a")
            with pytest.raises(ArchiveRejected):
                reader.open("a")
            with pytest.raises(ArchiveRejected):
                reader.verify()
            with pytest.raises(ArchiveRejected):
                reader.extract_to(tmp_path / "out")
            assert not (tmp_path / "out").exists()


def test_f48_bytes_between_and_around_are_refused() -> None:
    data = built({"a": b"x"})

    assert "end records" in refusal(data + b"\0")
    assert "end records" in refusal(b"\0" + data)
    assert "too short" in refusal(b"")
    assert "too short" in refusal(data[-97:])
    assert "end records" in refusal(bytes(98))
    assert "1 to 100,000" in refusal(archive.tail(0, 0, 0))
    (member,) = read(data)
    entry = archive.directory_entry(member, 0)
    start = data[: archive.directory_offset(member)]
    gap = start + b"\0" + entry + archive.tail(1, len(start) + 1, len(entry))
    assert "belong to no member" in refusal(gap)
    behind = start + entry + b"\0" + archive.tail(1, len(start), len(entry) + 1)
    assert "behind its members" in refusal(behind)
    cut = start + entry[:-1] + archive.tail(1, len(start), len(entry) - 1)
    assert "ends within member 0" in refusal(cut)
    none = start + archive.tail(1, len(start), 0)
    assert "ends within member 0" in refusal(none)


def test_f48_too_many_members_are_refused_before_they_are_read() -> None:
    count = archive.MAX_MEMBERS + 1
    data = b"\0" * 200 + archive.tail(count, 0, 200)

    assert "100,001 members" in refusal(data)
    with_long_directory = bytes(2000) + archive.tail(1, 0, 2000)
    assert "too long" in refusal(with_long_directory)


def test_f48_100000_members_are_taken() -> None:
    names = [f"{number:06}" for number in range(archive.MAX_MEMBERS)]
    members = list(lay_out((name, 0) for name in names))
    directory = b"".join(archive.directory_entry(member, 0) for member in members)
    at = archive.directory_offset(members[-1])
    end = directory + archive.tail(len(members), at, len(directory))

    found = read_members(lambda start, length: end[start - at :][:length], at + len(end))

    assert len(found) == archive.MAX_MEMBERS


def test_f48_names_that_are_not_utf8_are_refused() -> None:
    data = built({"é": b"x"})

    assert "not UTF-8" in refusal(data.replace("é".encode(), b"\xff\xfe"))
    assert "not UTF-8" in refusal(data.replace("é".encode(), b"\xc0\xaf"))  # an over-long slash
