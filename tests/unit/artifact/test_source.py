"""What can be published, and what happens to it while it is read (F49)."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from modelkms.artifact import look_at, write_artifact
from modelkms.artifact.source_reader import SourceReader
from modelkms.errors import LocalError, PathUnusable, SourceChanged, SourceRejected

from tests.unit.artifact.helpers import ARTIFACT_ID, KEY, SEGMENT, UID, VERSION, folder_of


def attempt(source: Path, sink: io.BytesIO | None = None) -> LocalError:
    """The error of writing an artifact of `source`."""
    with pytest.raises(LocalError) as caught:
        write_artifact(
            source,
            sink or io.BytesIO(),
            KEY,
            version=VERSION,
            version_uid=UID,
            artifact_id=ARTIFACT_ID,
            segment_length_bytes=SEGMENT,
        )
    return caught.value


def test_a_missing_path_is_told(tmp_path: Path) -> None:
    error = attempt(tmp_path / "nothing")

    assert type(error) is PathUnusable
    assert "there is nothing at" in error.message


def outward_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def inward_link(path: Path) -> None:
    (path.parent / "target").write_bytes(b"x")
    path.symlink_to("target")


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def linked_folder(path: Path) -> None:
    path.symlink_to("/etc", target_is_directory=True)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        here = Path.cwd()
        os.chdir(path.parent)  # the whole path may be longer than a socket's may be
        try:
            bound.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize(
    "make", [outward_link, inward_link, dangling_link, linked_folder, os.mkfifo, unix_socket]
)
@pytest.mark.parametrize("where", ["folder", "folder/sub", "itself"])
def test_f49_links_and_special_files_are_refused(
    make: Callable[[Path], None], where: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "folder", {"model.bin": b"x", "sub/y": b"y"})
    at = folder / "odd" if where == "itself" else tmp_path / where / "odd"
    make(at)
    sink = io.BytesIO()

    error = attempt(at if where == "itself" else folder, sink)

    assert type(error) is SourceRejected
    assert "odd" in error.message
    assert sink.getvalue() == b""
    if at.is_symlink():
        assert "cp -rL" in str(error.hint)


def test_f49_a_device_is_refused() -> None:
    assert "neither a file nor a folder" in attempt(Path("/dev/null")).message


@pytest.mark.parametrize("empty", [[], ["sub"], ["sub/deeper", "other"]])
def test_f49_a_folder_without_files_is_refused(empty: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in (".", *empty):
        (folder / name).mkdir(parents=True, exist_ok=True)

    assert type(attempt(folder)) is SourceRejected


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"a\\b", b"C:x"])
def test_f49_names_that_an_archive_cannot_hold_are_refused(name: bytes, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", {"model.bin": b"x"})
    (folder / os.fsdecode(name)).write_bytes(b"x")

    error = attempt(folder)
    assert type(error) is SourceRejected
    error.message.encode()  # can be shown whatever the name is
    assert type(attempt(folder / os.fsdecode(name))) is SourceRejected


def test_f49_names_that_collide_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", {"Model.bin": b"x", "model.bin": b"y"})
    if len(list(folder.iterdir())) == 2:  # a file system that tells them apart
        assert "collide" in attempt(folder).message


def test_f49_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelkms.artifact.source.MAX_MEMBERS", 2)
    folder = folder_of(tmp_path / "folder", {"a": b"", "b": b""})
    assert len(look_at(folder).files) == 2

    (folder / "c").touch()

    assert "more than 2 files" in attempt(folder).message


# --- changes while it is read --------------------------------------------------------------------


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, 5)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def overwrite_and_set_the_time_back(path: Path) -> None:
    status = path.stat()
    overwrite(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def become_a_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = [
    grow,
    shrink,
    overwrite,
    overwrite_and_set_the_time_back,
    replace,
    become_a_link,
    become_a_fifo,
    Path.unlink,
]


class ChangingSink(io.BytesIO):
    """Changes the source as soon as the first bytes have been written."""

    def __init__(self, change: Callable[[], None]) -> None:
        super().__init__()
        self._change: Callable[[], None] | None = change

    def write(self, data: object, /) -> int:
        if self._change is not None:
            self._change()
            self._change = None
        return super().write(data)  # type: ignore[arg-type]  # any buffer


@pytest.mark.parametrize("change", CHANGES)
def test_f49_a_file_that_changes_while_it_is_read(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x" * 10_000)

    error = attempt(path, ChangingSink(lambda: change(path)))

    assert type(error) is SourceChanged
    assert error.reason == "SOURCE_CHANGED"


@pytest.mark.parametrize("change", [*CHANGES, "add", "remove folder", "folder becomes link"])
@pytest.mark.parametrize("changed", ["a", "m/n", "z"])
def test_f49_a_folder_that_changes_while_it_is_read(
    change: Callable[[Path], None] | str, changed: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "folder", dict.fromkeys(("a", "m/n", "z"), b"x" * 5000))

    def act() -> None:
        if callable(change):
            change(folder / changed)
        elif change == "add":
            (folder / changed).with_name("new").touch()
        elif change == "remove folder":
            (folder / "m").rename(tmp_path / "gone")
        else:
            (folder / "m").rename(tmp_path / "elsewhere")
            (folder / "m").symlink_to(tmp_path / "elsewhere")

    assert type(attempt(folder, ChangingSink(act))) is SourceChanged


def test_f49_a_file_written_again_in_the_same_tick_of_the_clock(tmp_path: Path) -> None:
    """Size and times can stay the same within one tick: a fresh file is looked at twice."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"x" * 100)
    looked_at = look_at(path)
    path.write_bytes(b"y" * 100)

    assert look_at(path) != looked_at


def test_reading_stays_in_bounds_of_any_buffer(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", {"a": b"1" * 100, "b/c": b"", "d": b"2"})
    whole = SourceReader(look_at(folder))
    at_once = bytearray(whole.total_bytes)
    whole.read_into(0, memoryview(at_once))
    whole.finish()
    whole.close()

    for size in (1, 7, 64, 1000):
        reader, data = SourceReader(look_at(folder)), bytearray(len(at_once))
        for offset in range(0, len(data), size):
            reader.read_into(offset, memoryview(data)[offset : offset + size])
        reader.finish()
        reader.close()
        assert data == at_once


def test_files_are_closed_whatever_happens(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x" * 100_000)

    class Full(io.BytesIO):
        def write(self, data: object, /) -> int:
            if self.tell():
                raise OSError(28, "No space left on device")
            return super().write(data)  # type: ignore[arg-type]  # any buffer

    with pytest.raises(OSError, match="No space"):
        write_artifact(path, Full(), KEY, version=VERSION, version_uid=UID, artifact_id=ARTIFACT_ID)
    links = Path("/proc/self/fd").iterdir()
    assert path not in [link.readlink() for link in links if link.is_symlink()]
