"""What the commands of `modelkms-server audit` find out, offline: F62 with checkpoints, queries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kms_service.__main__ import main
from kms_service.adapters.audit_chain import Link, render, segment_name, segments
from kms_service.adapters.audit_query import RecordFilter, matching
from kms_service.adapters.audit_reading import Reading, verify
from kms_service.domain.audit import ChainHead, Checkpoint, Outcome
from tests.support.audit_logs import (
    NOON,
    POLICIES,
    Signer,
    checkpoint,
    lease_record,
    policy_records,
    write_chain,
)

RECORDS = 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def heads(folder: Path) -> tuple[ChainHead, ChainHead]:
    """Of two chains of nine records, in files of about two."""
    return (
        write_chain(folder / "blue", map(lease_record, range(RECORDS)), segment_bytes=1500),
        write_chain(folder / "green", map(lease_record, range(RECORDS)), segment_bytes=1500),
    )


def faults(folder: Path, *checkpoints: Checkpoint) -> list[str]:
    return [chain.summary for chain in verify(folder, checkpoints).chains if chain.fault]


def rewrite(folder: Path, records: int, *, changed_at: int) -> None:
    """The whole chain anew, with all hashes, one record changed: it holds by itself."""
    for path in segments(folder):
        path.unlink()
    lines, last = [], Link()
    for number in range(records):
        record = lease_record(number)
        if number + 1 == changed_at:
            record = dataclasses.replace(record, principal="spiffe://example.org/nobody")
        line, last = render(record, folder.name, last)
        lines.append(line)
    (folder / segment_name(1)).write_bytes(b"".join(lines))


def test_what_checkpoints_vouch_for_is_proven(folder: Path, heads: tuple[ChainHead, ...]) -> None:
    write_chain(folder / "blue", [lease_record(10), lease_record(11)])
    found = verify(folder, [checkpoint(*heads)])
    assert not found.faulty
    assert [chain.summary for chain in found.chains] == [
        (
            "blue: whole to record 11, proven to record 9 by the checkpoint of "
            "2026-11-17T13:00:00+00:00; the 2 after it unproven"
        ),
        (
            "green: whole to record 9, proven to record 9 by the checkpoint of "
            "2026-11-17T13:00:00+00:00"
        ),
    ]


@pytest.mark.parametrize("cut", range(1, RECORDS))
def test_f62_a_cut_tail_is_named(folder: Path, heads: tuple[ChainHead, ...], cut: int) -> None:
    for path in reversed(segments(folder / "blue")):
        lines = path.read_bytes().splitlines(keepends=True)
        path.unlink()
        first = int(path.stem)
        if first <= cut:
            path.write_bytes(b"".join(lines[: cut - first + 1]))
            break
    assert faults(folder) == []  # not to be seen without a checkpoint
    assert faults(folder, checkpoint(*heads)) == [
        (
            f"blue: record {cut + 1} and what follows it were cut: the checkpoint of "
            f"2026-11-17T13:00:00+00:00 has 9 records; whole to record {cut}"
        )
    ]


def test_f62_a_missing_chain_is_named(folder: Path, heads: tuple[ChainHead, ...]) -> None:
    for path in (folder / "green").iterdir():
        path.unlink()
    assert faults(folder) == []
    (told,) = faults(folder, checkpoint(*heads))
    assert told == (
        "green: the chain is missing: the checkpoint of 2026-11-17T13:00:00+00:00 has 9 records "
        "of it; whole to record 0"
    )
    # Who verifies one chain says nothing of the others.
    assert faults(folder / "blue", checkpoint(*heads)) == []


@pytest.mark.parametrize("changed_at", range(1, RECORDS + 1))
def test_f62_a_chain_written_anew_is_found_out(
    folder: Path, heads: tuple[ChainHead, ...], changed_at: int
) -> None:
    """At the first checkpoint after the change: of two, the one at record 5 or the one at 9."""
    early = write_chain(folder.parent / "blue", map(lease_record, range(5)))
    rewrite(folder / "blue", RECORDS, changed_at=changed_at)
    assert faults(folder) == []
    (told,) = faults(folder, checkpoint(early, minutes=30), checkpoint(*heads))
    caught, time = (5, "12:30:00") if changed_at <= 5 else (9, "13:00:00")
    assert told.startswith(f"blue: record {caught} in ")
    assert f"the checkpoint of 2026-11-17T{time}+00:00 vouches for" in told


def test_f62_chains_that_changed_places_are_found_out(
    folder: Path, heads: tuple[ChainHead, ...]
) -> None:
    (folder / "blue").rename(folder / "x")
    (folder / "green").rename(folder / "blue")
    (folder / "x").rename(folder / "green")
    assert len(faults(folder, checkpoint(*heads))) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n",
        "o\nmodelkms-audit-v1 checkpoint\n2026-11-17T13:00:00+00:00\n",
        "o\nother\n2026-11-17T13:00:00+00:00\nblue 9 " + "0" * 64 + "\n",
        "o\nmodelkms-audit-v1 checkpoint\nyesterday\nblue 9 " + "0" * 64 + "\n",
        "o\nmodelkms-audit-v1 checkpoint\n2026-11-17T13:00:00+00:00\nblue 09 " + "0" * 64 + "\n",
        "o\nmodelkms-audit-v1 checkpoint\n2026-11-17T13:00:00+00:00\nblue 0 " + "0" * 64 + "\n",
        "o\nmodelkms-audit-v1 checkpoint\n2026-11-17T13:00:00+00:00\nblue 9 0\n",
    ],
)
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(ValueError):
        Checkpoint.parse(text)


def test_a_checkpoint_is_read_back(heads: tuple[ChainHead, ...]) -> None:
    assert Checkpoint.parse(checkpoint(*heads).text()) == checkpoint(*heads)


# --- queries -------------------------------------------------------------------------------------


@pytest.fixture
def busy(folder: Path) -> Path:
    """Two replicas, whose records interleave: readers, a stranger, an operator."""
    stranger = lease_record(
        5,
        principal="spiffe://example.org/stranger",
        outcome=Outcome.DENIED,
        reason="MODEL_NOT_FOUND_OR_DENIED",
        details={"cause": "denied LeaseDataKey"},
    )
    other = lease_record(
        3,
        resource="projects/camera/models/face2",
        details={**lease_record(3).details, "version": "projects/camera/models/face2/versions/30"},
    )
    revoked = lease_record(
        8,
        event="RevokeLeases",
        resource=f"projects/camera/leases/{1:032x}",
        details={"version": "projects/camera/models/face/versions/3"},
    )
    write_chain(folder / "blue", [lease_record(1), other, stranger])
    write_chain(folder / "green", [lease_record(2), lease_record(4), revoked])
    return folder


def minutes(folder: Path, **wanted: Any) -> list[int]:
    """Which records match, by their minute past noon."""
    found = matching(Reading(folder), RecordFilter(**wanted))
    return [int(record["request_id"], 16) for record in found]


FACE = "projects/camera/models/face"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [1, 2, 3, 4, 5, 8]),
        ({"principal": "spiffe://example.org/stranger"}, [5]),
        ({"principal": "spiffe://example.org/stran"}, []),
        ({"model": FACE}, [1, 2, 4, 5, 8]),
        ({"model": f"{FACE}/versions/3"}, [1, 2, 4, 8]),
        ({"model": f"{FACE}2/versions/3"}, []),
        ({"model": f"{FACE}2/versions/30"}, [3]),
        ({"lease": f"{1:032x}"}, [1, 8]),
        ({"lease": f"projects/camera/leases/{2:032x}"}, [2]),
        ({"event": "RevokeLeases"}, [8]),
        ({"outcome": "denied"}, [5]),
        ({"since": NOON + timedelta(minutes=4)}, [4, 5, 8]),
        ({"until": NOON + timedelta(minutes=2)}, [1, 2]),
        # Leases of an hour: those of minutes 1 and 2 had ended before 13:03.
        ({"held": True, "since": NOON + timedelta(minutes=63)}, [3, 4]),
        ({"held": True, "until": NOON + timedelta(minutes=1)}, [1]),
    ],
)
def test_records_are_found(busy: Path, wanted: dict[str, Any], found: list[int]) -> None:
    assert minutes(busy, **wanted) == found


# --- the commands --------------------------------------------------------------------------------


@pytest.fixture
def audit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`audit("verify", folder)`: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["modelkms-server", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, told.out, told.err

    return run


Audit = Callable[..., tuple[int, str, str]]


def test_verify_with_a_shipped_checkpoint(
    audit: Audit, folder: Path, heads: tuple[ChainHead, ...], tmp_path: Path
) -> None:
    signer = Signer()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "1.note").write_bytes(signer.sign(checkpoint(*heads).text()))
    key = tmp_path / "key.txt"
    key.write_text(f"{Signer().verifier}\n{signer.verifier}\n")  # an old key, and the one in use
    options = ("--public-key", key, "--checkpoint", kept)
    code, out, err = audit("verify", folder, *options)
    assert (code, err) == (0, "")
    assert [line.split(", ")[1][:18] for line in out.splitlines()] == ["proven to record 9"] * 2

    segments(folder / "green")[-1].unlink()
    code, out, err = audit("verify", folder, *options)
    assert code == 6
    assert out.startswith("blue: whole to record 9, proven")
    assert err.startswith("error: green: record ")
    assert "were cut" in err


def test_checkpoints_that_prove_nothing(
    audit: Audit, folder: Path, heads: tuple[ChainHead, ...], tmp_path: Path
) -> None:
    key, note = tmp_path / "key.txt", tmp_path / "note"
    key.write_text(f"{Signer().verifier}\n")
    note.write_bytes(Signer().sign(checkpoint(*heads).text()))
    code, _, err = audit("verify", folder, "--checkpoint", note)
    assert (code, err) == (
        2,
        "error: --checkpoint: proves nothing without --public-key; give both\n",
    )
    code, _, err = audit("verify", folder, "--checkpoint", note, "--public-key", key)
    assert code == 6
    assert "is not signed by a key that is trusted" in err
    signer = Signer()
    key.write_text(str(signer.verifier))
    note.write_bytes(signer.sign("something else\n"))
    code, _, err = audit("verify", folder, "--checkpoint", note, "--public-key", key)
    assert (code, err) == (6, f"error: checkpoint {note.name} is none of an audit log\n")
    key.write_text("no key")
    code, _, err = audit("verify", folder, "--checkpoint", note, "--public-key", key)
    assert code == 2


def test_query_tells_who_held_the_key_by_what_right_and_how_far_the_log_holds(
    audit: Audit, busy: Path
) -> None:
    code, out, err = audit(
        *("query", busy, "--model", "camera/face", "--held"),
        *("--from", "2026-11-17", "--to", "2026-11-17"),
    )
    assert code == 0
    table, _, right = out.partition("\n\n")
    rows = [line.split("  ") for line in table.splitlines()]
    assert [cell.strip() for cell in rows[0] if cell] == [
        *("TIME", "CHAIN", "RECORD", "EVENT", "OUTCOME"),
        *("PRINCIPAL", "ON", "UNTIL", "POLICIES"),
    ]
    assert len(rows) == 1 + 3
    assert [cell.strip() for cell in rows[1] if cell] == [
        *("2026-11-17 12:01:00Z", "blue", "1", "LeaseDataKey", "ok"),
        *("spiffe://example.org/reader", "projects/camera/models/face/versions/3"),
        *("2026-11-17 13:01:00", f"readers@{POLICIES.epoch[:12]}"),
    ]
    assert right == (
        f"readers@{POLICIES.epoch[:12]}, of the policy set {POLICIES.epoch}:\n"
        "    its text is not in this log\n"
    )
    assert err == (
        "log: blue: whole to record 3, end unproven\nlog: green: whole to record 3, end unproven\n"
    )


def test_query_shows_the_policies_as_they_stood_and_the_groups(
    audit: Audit, folder: Path, tmp_path: Path
) -> None:
    """The set may have been recorded by another replica, and after what is asked for."""
    old = lease_record(2, policy_epoch="")  # of a version that did not record it
    blue = write_chain(folder / "blue", [lease_record(1), old])
    green = write_chain(folder / "green", policy_records())
    signer, key, note = Signer(), tmp_path / "key", tmp_path / "note"
    key.write_text(str(signer.verifier))
    note.write_bytes(signer.sign(checkpoint(blue, green).text()))
    code, out, err = audit(
        *("query", folder, "--model", "camera/face", "--held"),
        *("--from", "2026-11-17", "--to", "2026-11-17"),
        *("--public-key", key, "--checkpoint", note),
    )
    assert code == 0
    table, _, right = out.partition("\n\n")
    assert [row.split()[-1] for row in table.splitlines()[1:]] == [
        *(f"readers@{POLICIES.epoch[:12]}", "readers")
    ]
    assert right.splitlines() == [
        f"readers@{POLICIES.epoch[:12]}, of the policy set {POLICIES.epoch}:",
        '    @id("readers")',
        "    permit (",
        '      principal in ModelKMS::Group::"robots",',
        '      action == ModelKMS::Action::"LeaseDataKey",',
        "      resource",
        "    );",
        "    spiffe://example.org/reader was in: robots",
    ]
    assert err.splitlines() == [
        f"log: {chain}, proven to record {n} by the checkpoint of 2026-11-17T13:00:00+00:00"
        for chain, n in (("blue: whole to record 2", 2), ("green: whole to record 3", 3))
    ]


def test_query_as_json_and_bounded(audit: Audit, busy: Path) -> None:
    code, out, _ = audit("query", busy, "--json", "--limit", 2)
    assert code == 0
    shown = [json.loads(line) for line in out.splitlines()]
    assert [record["chain"] for record in shown] == ["blue", "green"]
    assert [record["schema"] for record in shown] == [1, 1]


def test_query_of_a_log_that_does_not_hold(audit: Audit, busy: Path) -> None:
    (path,) = segments(busy / "green")
    path.write_bytes(path.read_bytes().replace(b"RevokeLeases", b"RevokeNobody"))
    code, _, err = audit("query", busy, "--limit", 1)
    assert code == 6
    assert "error: green: record 3 in " in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--from", "soon"), "--from: must be a day or a time, as 2026-11-24"),
        (("--model", "face"), "--model: must be PROJECT/MODEL or PROJECT/MODEL@NUMBER"),
        (("--model", "camera/face@stable"), "--model: must be PROJECT/MODEL or PROJECT/MODEL@N"),
    ],
)
def test_query_usage(audit: Audit, busy: Path, arguments: tuple[str, str], told: str) -> None:
    code, _, err = audit("query", busy, *arguments)
    assert code == 2
    assert err.startswith(f"error: {told}")


def test_a_folder_that_is_not_there(audit: Audit, tmp_path: Path) -> None:
    code, _, err = audit("verify", tmp_path / "none")
    assert code == 2
    assert err.endswith("cannot be read: No such file or directory\n")
