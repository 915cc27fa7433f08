"""The form of the audit log on disk: canonical JSON lines in a hash chain (audit-log-v1).

    FOLDER/00000000000000000001.jsonl     records 1…, named by the first
    FOLDER/00000000000000000042.jsonl     the next segment
    FOLDER/….torn-K                       set aside: bytes after the last whole record

A line is one JSON object, keys sorted, no spaces, ASCII only, ending in a newline. Its `hash` is
the SHA-256 of the length-prefixed parts: format, hash of the record before, and the line's object
without `hash`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelkms_api.encoding import length_prefixed

from kms_service.domain.audit import AuditRecord

_FORMAT = b"modelkms-audit-v1"
_NO_HASH = "0" * 64
_SEGMENT_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Link:
    """Where a chain stands: number and hash of its last record (0 and zeros at first)."""

    sequence: int = 0
    hash: str = _NO_HASH


def render(record: AuditRecord, last: Link) -> tuple[bytes, Link]:
    """The record's line and the chain's new end."""
    fields: dict[str, Any] = {
        "sequence": last.sequence + 1,
        "previous": last.hash,
        "time": record.time.isoformat(),
        "event": record.event,
        "outcome": record.outcome.value,
        "request_id": record.request_id,
        "principal": record.principal,
        "instance": record.instance,
        "peer": record.peer,
        "resource": record.resource,
        "decision_id": record.decision_id,
        "policies": list(record.policies),
        "reason": record.reason,
        "details": dict(record.details),
    }
    digest = _digest(fields, last.hash)
    line = _canonical({**fields, "hash": digest}) + b"\n"
    return line, Link(last.sequence + 1, digest)


def segment_name(first_sequence: int) -> str:
    return f"{first_sequence:0{_SEGMENT_DIGITS}d}.jsonl"


def segments(folder: Path) -> list[Path]:
    """The chain's files in order."""
    return sorted(folder.glob("[0-9]" * _SEGMENT_DIGITS + ".jsonl"))


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes:
        whole_to: number of the last record up to which the chain is whole.
        fault: what is wrong with the next one; empty if nothing is.
    """

    whole_to: int
    fault: str

    @property
    def summary(self) -> str:
        if self.fault:
            return f"{self.fault}; whole to record {self.whole_to}"
        return f"whole to record {self.whole_to}, end unproven"


def verify(folder: Path) -> Verification:
    """Check every record of a chain, offline.

    A cut tail cannot be seen without a checkpoint kept elsewhere: the end is unproven.

    Raises:
        OSError: a file cannot be read.
    """
    last = Link()
    for path in segments(folder):
        if path.name != segment_name(last.sequence + 1):
            return Verification(
                last.sequence, f"{path.name} does not begin with record {last.sequence + 1}"
            )
        with path.open("rb") as file:
            for line in file:
                fault = _fault(line, last)
                if fault:
                    where = f"record {last.sequence + 1} in {path.name}"
                    return Verification(last.sequence, f"{where} {fault}")
                last = Link(last.sequence + 1, json.loads(line)["hash"])
    if not last.sequence:
        return Verification(0, "no records")
    return Verification(last.sequence, "")


def read_records(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The records as they stand, unverified.

    Raises:
        OSError: a file cannot be read.
        ValueError: a line is not JSON.
    """
    for path in segments(folder):
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)


def end_of(path: Path) -> tuple[Link | None, bytes]:
    """The last whole record of a segment, None if there is none, and the bytes after it.

    Reads one segment only: that it follows the one before is for `verify` to prove.

    Raises:
        OSError: the file cannot be read.
    """
    last: Link | None = None
    end = 0
    with path.open("rb") as file:
        for line in file:
            before = last or _before(line)
            if before is None or _fault(line, before):
                break
            last = Link(before.sequence + 1, json.loads(line)["hash"])
            end += len(line)
        file.seek(end)
        return last, file.read()


def _before(line: bytes) -> Link | None:
    """What the first record of a segment says it follows."""
    try:
        fields = json.loads(line)
        return Link(int(fields["sequence"]) - 1, str(fields["previous"]))
    except (ValueError, KeyError, TypeError):
        return None


def _fault(line: bytes, last: Link) -> str:
    """What is wrong with the record that follows `last`; empty if nothing is."""
    try:
        fields = json.loads(line)
    except ValueError:
        return "is no JSON object"
    if not isinstance(fields, dict) or not line.endswith(b"\n"):
        return "is no whole line"
    digest = fields.get("hash")
    if _canonical(fields) + b"\n" != line:
        return "is not in canonical form"
    if fields.get("sequence") != last.sequence + 1:
        return f"has sequence number {fields.get('sequence')!r}"
    if fields.get("previous") != last.hash:
        return "does not follow the record before"
    if _digest({key: value for key, value in fields.items() if key != "hash"}, last.hash) != digest:
        return "does not have the hash it claims"
    return ""


def _digest(fields: Mapping[str, Any], previous: str) -> str:
    bound = length_prefixed(_FORMAT, bytes.fromhex(previous), _canonical(fields))
    return hashlib.sha256(bound).hexdigest()


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
