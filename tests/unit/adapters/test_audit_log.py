"""The audit log on a real folder: F61 to F63."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import queue
import resource
import threading
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kms_service.adapters.audit_chain import Link, check_line, render, segments
from kms_service.adapters.audit_log import FileAuditLog
from kms_service.adapters.audit_reading import ChainReport, read_records
from kms_service.adapters.audit_reading import verify as verify_folder
from kms_service.domain.audit import AuditRecord, Outcome
from kms_service.domain.errors import AuditUnavailable, ConfigurationError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
RECORDS = 7


def record(number: int) -> AuditRecord:
    return AuditRecord(
        time=NOON,
        event="LeaseDataKey",
        outcome=Outcome.OK,
        request_id=f"{number:032x}",
        resource=f"projects/p/models/m/versions/{number}",
        policies=("readers",),
        details={"lease": f"projects/p/leases/{number}"},
    )


def open_log(folder: Path, **options: Any) -> FileAuditLog:
    return FileAuditLog(folder, lambda: NOON, **options)


def verify(folder: Path) -> ChainReport:
    """Of the one chain in `folder`."""
    (report,) = verify_folder(folder).chains
    return report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a log of seven records, closed."""
    log = open_log(tmp_path / "audit")
    for number in range(1, RECORDS + 1):
        log.append(record(number))
    log.close()
    return tmp_path / "audit"


def the_segment(folder: Path) -> Path:
    (path,) = (path for path in segments(folder) if path.stat().st_size)
    return path


def test_what_is_appended_is_read_back_and_whole(folder: Path) -> None:
    found = list(read_records(folder))
    assert [entry["sequence"] for entry in found] == list(range(1, RECORDS + 1))
    assert found[2]["details"] == {"lease": "projects/p/leases/3"}
    assert verify(folder).summary == f"audit: whole to record {RECORDS}, end unproven"
    assert {path.stat().st_mode & 0o777 for path in segments(folder)} == {0o600}


def test_who_does_not_wait_is_told(tmp_path: Path) -> None:
    told: queue.Queue[bool] = queue.Queue()
    log = open_log(tmp_path / "audit")
    log.append_soon(record(1), told.put)
    assert told.get(timeout=30)
    assert log.last_sequence == 1
    log.close()
    log.append_soon(record(2), told.put)
    assert not told.get(timeout=30)


def edit(line: bytes) -> bytes:
    return line.replace(b'"outcome":"ok"', b'"outcome":"denied"')


def rewrite(line: bytes) -> bytes:
    """An edit that mends its own hash's neighbour fields, but cannot mend the next record."""
    fields = json.loads(line)
    fields["resource"] = "projects/p/models/other/versions/1"
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def forged(lines: list[bytes], at: int) -> bytes:
    """A record that holds by itself, in the place of number `at + 1`: the next one tells."""
    before = Link(at, json.loads(lines[at])["previous"])
    return render(record(99), "audit", before)[0]


def moved_hash(line: bytes) -> bytes:
    member = line[line.rindex(b',"hash":"') :][:74]
    return line.replace(member, b"", 1).replace(b"}\n", member + b"}\n")


MUTATIONS: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "edited": lambda lines, at: [*lines[:at], edit(lines[at]), *lines[at + 1 :]],
    "rewritten": lambda lines, at: [*lines[:at], rewrite(lines[at]), *lines[at + 1 :]],
    "deleted": lambda lines, at: [*lines[:at], *lines[at + 1 :]],
    "doubled": lambda lines, at: [*lines[: at + 1], *lines[at:]],
    "not canonical": lambda lines, at: [
        *lines[:at],
        lines[at].replace(b'","', b'", "', 1),
        *lines[at + 1 :],
    ],
    "not JSON": lambda lines, at: [*lines[:at], b"gone\n", *lines[at + 1 :]],
    "inserted": lambda lines, at: [*lines[:at], forged(lines, at), *lines[at:]],
    "replaced": lambda lines, at: [*lines[:at], forged(lines, at), *lines[at + 1 :]],
    "hash elsewhere": lambda lines, at: [*lines[:at], moved_hash(lines[at]), *lines[at + 1 :]],
}


@pytest.mark.parametrize("at", range(RECORDS - 1))
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_f62_the_first_bad_record_is_named(folder: Path, mutation: str, at: int) -> None:
    path = the_segment(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(MUTATIONS[mutation](lines, at)))
    found = verify(folder)
    # A second copy, or a forgery with all its hashes, is found out at the record behind it.
    bad = at + (mutation in ("doubled", "inserted", "replaced"))
    assert found.whole_to == bad
    assert f"record {bad + 1} in {path.name}" in found.fault


@pytest.mark.parametrize("at", range(RECORDS - 1))
def test_f62_two_records_that_changed_places_are_named(folder: Path, at: int) -> None:
    path = the_segment(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    path.write_bytes(b"".join(lines))
    assert verify(folder).whole_to == at
    assert verify(folder).fault


def test_f62_a_deleted_segment_is_named(folder: Path) -> None:
    log = open_log(folder)
    log.append(record(RECORDS + 1))
    log.close()
    first, second = (path for path in segments(folder) if path.stat().st_size)
    first.unlink()
    found = verify(folder)
    assert found.whole_to == 0
    assert second.name in found.fault


def test_f62_a_cut_tail_leaves_the_end_unproven(folder: Path) -> None:
    path = the_segment(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    assert verify(folder).summary == f"audit: whole to record {RECORDS - 2}, end unproven"


def test_f63_a_torn_record_is_set_aside_and_recorded(folder: Path) -> None:
    path = the_segment(folder)
    whole = path.read_bytes()
    torn = whole.splitlines()[-1][:40]
    path.write_bytes(whole + torn)
    log = open_log(folder)
    log.append(record(9))
    log.close()
    assert path.read_bytes() == whole
    assert path.with_name(f"{path.name}.torn-1").read_bytes() == torn
    set_aside = list(read_records(folder))[RECORDS]
    assert set_aside["event"] == "audit_tail_set_aside"
    assert set_aside["details"] == {"bytes": "40"}
    assert verify(folder).summary == f"audit: whole to record {RECORDS + 2}, end unproven"


def test_f63_a_chain_that_was_edited_is_not_gone_on_from(folder: Path) -> None:
    path = the_segment(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-2] = edit(lines[-2])
    path.write_bytes(b"".join(lines))
    with pytest.raises(ConfigurationError, match="audit log is damaged"):
        open_log(folder)


def test_f63_a_second_process_does_not_fork_the_chain(folder: Path) -> None:
    log = open_log(folder)
    with pytest.raises(ConfigurationError, match="another process writes there"):
        open_log(folder)
    log.close()


def test_f63_many_threads_one_chain(tmp_path: Path) -> None:
    log = open_log(tmp_path / "audit")

    def append_some() -> None:
        for number in range(20):
            log.append(record(number))

    threads = [threading.Thread(target=append_some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.last_sequence == 160
    log.close()
    assert verify(tmp_path / "audit").whole_to == 160


def test_f61_a_failed_sync_is_not_retried_on_that_file(folder: Path) -> None:
    fails = [OSError(errno.EIO, "Input/output error")]
    synced: list[str] = []
    refused: list[str] = []

    def sync(descriptor: int) -> None:
        # Held open by a second descriptor, so that its number is not given to another file.
        kept.append(os.dup(descriptor))
        inode = str(os.fstat(descriptor).st_ino)
        if fails:
            refused.append(inode)
            raise fails.pop()
        synced.append(inode)
        os.fdatasync(descriptor)

    kept: list[int] = []
    log = open_log(folder, sync=sync)
    with pytest.raises(AuditUnavailable):
        log.append(record(8))
    assert log.last_sequence == RECORDS
    log.append(record(9))  # the disk is well again: a new file, not that one
    log.close()
    assert synced
    assert set(synced).isdisjoint(refused)
    for descriptor in kept:
        os.close(descriptor)
    assert verify(folder).fault == ""
    assert [entry["request_id"] for entry in read_records(folder)][-1] == f"{9:032x}"


def test_f61_nothing_is_appended_after_the_end(folder: Path) -> None:
    log = open_log(folder)
    log.close()
    with pytest.raises(AuditUnavailable):
        log.append(record(8))


@pytest.mark.parametrize("at", range(RECORDS - 1))
def test_f62_every_flipped_byte_is_found(folder: Path, at: int) -> None:
    line = the_segment(folder).read_bytes().splitlines(keepends=True)[at]
    before = Link(at, json.loads(line)["previous"])
    assert check_line(line, before)[1] == ""
    for position in range(len(line)):
        for bit in (0x01, 0x80):
            mutated = bytearray(line)
            mutated[position] ^= bit
            assert check_line(bytes(mutated), before)[1], position


def test_f62_what_a_detail_says_cannot_stand_for_the_hash() -> None:
    names = dict.fromkeys(('","instance":"', "hash", "instance", 'x","hash":"' + "0" * 64), "y")
    tricky = dataclasses.replace(record(1), details=names, resource='","previous":"')
    line, end = render(tricky, "audit", Link())
    assert check_line(line, Link()) == (end, "")
    assert json.loads(line)["hash"] == end.hash
    assert json.loads(line)["details"] == names


def test_f62_a_line_without_end_is_not_read_into_memory(folder: Path) -> None:
    with the_segment(folder).open("ab") as file:
        file.truncate(64 * 1024 * 1024)
    tracemalloc.start()
    found = verify(folder)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.whole_to, found.fault[:9]) == (RECORDS, "record 8 ")
    assert peak_bytes < 8 * 1024 * 1024


def test_segments_end_at_their_size_and_the_chain_goes_on(tmp_path: Path) -> None:
    log = open_log(tmp_path / "audit", segment_bytes=1500)
    for number in range(1, 21):
        log.append(record(number))
    log.close()
    files = segments(tmp_path / "audit")
    assert 5 <= len(files) <= 15
    assert {path.stat().st_size < 1500 + 800 for path in files} == {True}
    assert verify(tmp_path / "audit").summary == "audit: whole to record 20, end unproven"
    files[3].unlink()
    assert verify(tmp_path / "audit").fault.endswith(f"is missing: {files[4].name} comes next")


def test_records_are_gathered_and_synced_together(tmp_path: Path) -> None:
    """While one group is being synced, the next gathers."""
    synced = threading.Event()
    first_sync_began = threading.Event()
    groups: list[int] = []

    def sync(_descriptor: int) -> None:
        first_sync_began.set()
        assert synced.wait(30)

    log = open_log(tmp_path / "audit", sync=sync, tell=lambda lines: groups.append(len(lines)))
    threads = [threading.Thread(target=log.append, args=(record(n),)) for n in range(10)]
    threads[0].start()
    assert first_sync_began.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(log._queue) < 9:
        time.sleep(0.001)
    assert log.last_sequence == 0  # nothing is durable before its sync
    synced.set()
    for thread in threads:
        thread.join()
    log.close()
    assert groups == [1, 9]


def test_a_group_may_be_waited_for(tmp_path: Path) -> None:
    groups: list[int] = []
    log = open_log(
        tmp_path / "audit", gather_us=100_000, tell=lambda lines: groups.append(len(lines))
    )
    threads = [threading.Thread(target=log.append, args=(record(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sum(groups) == 8
    assert len(groups) < 8


def test_many_chains_are_verified_together(tmp_path: Path) -> None:
    for chain in ("blue", "green"):
        log = open_log(tmp_path / chain)
        log.append(record(1))
        log.close()
    assert [chain.summary for chain in verify_folder(tmp_path).chains] == [
        "blue: whole to record 1, end unproven",
        "green: whole to record 1, end unproven",
    ]
    (path,) = segments(tmp_path / "green")
    path.write_bytes(edit(path.read_bytes()))
    found = verify_folder(tmp_path)
    assert found.faulty
    assert [chain.whole_to for chain in found.chains] == [1, 0]
    assert found.chains[1].summary == (
        f"green: record 1 in {path.name} was edited: it does not have the hash it claims; "
        "whole to record 0"
    )


def test_f61_a_short_write_is_set_aside_and_not_acknowledged(folder: Path) -> None:
    """The kernel's own limit on a file's size: part of a record is written, then EFBIG."""
    size = the_segment(folder).stat().st_size
    log = open_log(folder)
    acknowledged, refused = [], []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        for number in range(8, 30):
            try:
                log.append(record(number))
            except AuditUnavailable:
                refused.append(f"{number:032x}")
            else:
                acknowledged.append(f"{number:032x}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.append(record(30))
    log.close()
    assert len(refused) > 3
    assert verify(folder).fault == ""
    found = list(read_records(folder))
    kept = [entry["request_id"] for entry in found[RECORDS:] if entry["request_id"]]
    assert kept == [*acknowledged, f"{30:032x}"]
    aside = [entry for entry in found if entry["event"] == "audit_tail_set_aside"]
    assert len(aside) == len(list(folder.glob("*.torn-*"))) == len(refused)


def test_f61_what_a_failed_sync_left_behind_is_not_gone_on_from(folder: Path) -> None:
    """It can be read back, but it is not on the disk: the chain goes on before it."""

    def fails_once(_descriptor: int) -> None:
        if not failed:
            failed.append(1)
            raise OSError(errno.EIO, "Input/output error")

    failed: list[int] = []
    log = open_log(folder, sync=fails_once)
    with pytest.raises(AuditUnavailable):
        log.append(record(8))
    log.append(record(9))
    log.close()
    assert verify(folder).fault == ""
    found = [entry["request_id"] for entry in read_records(folder)]
    assert f"{8:032x}" not in found
    assert found[-1] == f"{9:032x}"
    (aside,) = folder.glob("*.torn-*")
    assert f"{8:032x}" in aside.read_text()


def test_f61_a_full_disk_is_not_tried_at_every_call_and_not_filled_further(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = open_log(folder, sync=fails)
    with pytest.raises(AuditUnavailable):
        log.append(record(8))
    tried = []

    def no_room(path: Path, _data: bytes) -> None:
        tried.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_room)
    for _ in range(50):
        with pytest.raises(AuditUnavailable):
            log.append(record(8))
    assert 1 <= len(tried) <= 10
    assert list(folder.glob("*.torn-*")) == []
    log.close()
