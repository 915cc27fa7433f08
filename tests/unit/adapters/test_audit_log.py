"""The audit log on a real folder: F61 to F63."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kms_service.adapters.audit_chain import segments
from kms_service.adapters.audit_log import FileAuditLog, read_records, verify
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


def open_log(folder: Path, sync: Callable[[int], None] = os.fdatasync) -> FileAuditLog:
    return FileAuditLog(folder, lambda: NOON, sync=sync)


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
    assert verify(folder).summary == f"whole to record {RECORDS}, end unproven"
    assert {path.stat().st_mode & 0o777 for path in segments(folder)} == {0o600}


def edit(line: bytes) -> bytes:
    return line.replace(b'"outcome":"ok"', b'"outcome":"denied"')


def rewrite(line: bytes) -> bytes:
    """An edit that mends its own hash's neighbour fields, but cannot mend the next record."""
    fields = json.loads(line)
    fields["resource"] = "projects/p/models/other/versions/1"
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"


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
}


@pytest.mark.parametrize("at", range(RECORDS - 1))
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_f62_the_first_bad_record_is_named(folder: Path, mutation: str, at: int) -> None:
    path = the_segment(folder)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(MUTATIONS[mutation](lines, at)))
    found = verify(folder)
    bad = at + 1 if mutation == "doubled" else at
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
    assert verify(folder).summary == f"whole to record {RECORDS - 2}, end unproven"


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
    assert verify(folder).summary == f"whole to record {RECORDS + 2}, end unproven"


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
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        if fails:
            raise fails.pop()
        synced.append(descriptor)
        os.fdatasync(descriptor)

    log = open_log(folder, sync)
    before = segments(folder)
    with pytest.raises(AuditUnavailable):
        log.append(record(8))
    assert log.last_sequence == RECORDS
    log.append(record(9))  # the disk is well again: a new segment, not that one
    log.close()
    assert len(synced) == 1
    assert len(segments(folder)) > len(before)
    assert verify(folder).fault == ""
    assert [entry["request_id"] for entry in read_records(folder)][-1] == f"{9:032x}"


def test_f61_nothing_is_appended_after_the_end(folder: Path) -> None:
    log = open_log(folder)
    log.close()
    with pytest.raises(AuditUnavailable):
        log.append(record(8))
