"""The form of the audit log on disk: canonical JSON lines in a hash chain (docs/spec/audit-v1.md).

    FOLDER/CHAIN/00000000000000000001.jsonl     records 1…, named by the first
    FOLDER/CHAIN/00000000000000000042.jsonl     the next segment
    FOLDER/CHAIN/….torn-K                       set aside: bytes after the last whole record

A line is one JSON object, keys sorted, no spaces, ASCII only, ending in a newline. Its `hash` is
the SHA-256 of the length-prefixed parts: format, hash of the record before, and the line without
its `hash` member and newline.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from modelkms_api.encoding import length_prefixed

from kms_service.domain.audit import AuditRecord

SCHEMA = 1
MAX_LINE_BYTES = 1024 * 1024
"""Longer lines are none of ours; whoever reads need not hold more in memory."""
_FORMAT = b"modelkms-audit-v1"
_NO_HASH = "0" * 64
_SEGMENT_DIGITS = 20
_HASH_MEMBER = b',"hash":"'
_AFTER_HASH = b'","instance":'
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
_HEX_DIGITS = re.compile(rb"[0-9a-f]{64}")
_SEQUENCE = re.compile(rb'"sequence":([1-9][0-9]{0,18}),"time":"')


@dataclass(frozen=True, slots=True)
class Link:
    """Where a chain stands: number and hash of its last record (0 and zeros at first)."""

    sequence: int = 0
    hash: str = _NO_HASH


def render(record: AuditRecord, chain: str, last: Link) -> tuple[bytes, Link]:
    """The record's line and the chain's new end."""
    bound = _canonical(
        {
            "schema": SCHEMA,
            "chain": chain,
            "sequence": last.sequence + 1,
            "previous": last.hash,
            "time": record.time.isoformat(),
            "event": record.event,
            "outcome": record.outcome.value,
            "request_id": record.request_id,
            "trace_id": record.trace_id,
            "latency_us": record.latency_us,
            "principal": record.principal,
            "instance": record.instance,
            "peer": record.peer,
            "resource": record.resource,
            "decision_id": record.decision_id,
            "policies": list(record.policies),
            "policy_epoch": record.policy_epoch,
            "reason": record.reason,
            "details": dict(record.details),
        }
    )
    digest = _digest(bound, last.hash)
    # `hash` sorts right before `instance`, which is found from the end: `details` may have a key
    # of that name, but `details` comes before, and no other member holds an object. In strings,
    # every quotation mark is escaped.
    at = bound.rfind(b',"instance":')
    member = b'%s%s"' % (_HASH_MEMBER, digest.encode())
    return bound[:at] + member + bound[at:] + b"\n", Link(last.sequence + 1, digest)


def check_line(line: bytes, last: Link) -> tuple[Link, str]:
    """Whether `line` is the record that follows `last`.

    Looks at bytes only: what the hash covers is the line as it stands, so that nothing in it can
    differ from what was written, and a million records need not be parsed.

    Returns:
        The chain's new end, and what is wrong; empty if nothing is. With a fault the end is that
        which the line claims, if it can be read.
    """
    if not line.endswith(b"\n"):
        return last, "is no whole line"
    at = line.rfind(_HASH_MEMBER)
    start = at + len(_HASH_MEMBER)
    claimed = line[start : start + 64]
    if at < 0 or not _HEX_DIGITS.fullmatch(claimed) or not line.startswith(_AFTER_HASH, start + 64):
        return last, "is no audit record"
    numbers = _SEQUENCE.search(line, start)
    if numbers is None:
        return last, "is no audit record"
    found = Link(int(numbers[1]), claimed.decode())
    if found.sequence != last.sequence + 1:
        return found, f"is not there: record {found.sequence} stands in its place"
    bound = line[:at] + line[start + 65 : -1]
    if b'"previous":"%s"' % last.hash.encode() not in line[start:]:
        return found, "does not follow the record before: one of the two was changed"
    if _digest(bound, last.hash) != found.hash:
        return found, "was edited: it does not have the hash it claims"
    return found, ""


def segment_name(first_sequence: int) -> str:
    return f"{first_sequence:0{_SEGMENT_DIGITS}d}.jsonl"


def segments(folder: Path) -> list[Path]:
    """The chain's files in order."""
    return sorted(folder.glob("[0-9]" * _SEGMENT_DIGITS + ".jsonl"))


def chain_folders(folder: Path) -> list[Path]:
    """The folders with chains in them: `folder` itself, or those below it.

    Raises:
        OSError: the folder cannot be read.
    """
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    return [path for path in (folder, *below) if segments(path)]


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a segment, each of bounded length: what is longer comes in parts."""
    while line := file.readline(MAX_LINE_BYTES):
        yield line


def end_of(path: Path) -> tuple[Link | None, bytes]:
    """The last whole record of a segment, None if there is none, and the bytes after it.

    Reads one segment only: that it follows the one before is for verification to prove.

    Raises:
        OSError: the file cannot be read.
    """
    last: Link | None = None
    end = 0
    with path.open("rb") as file:
        for line in lines_of(file):
            before = last or _before(line)
            if before is None:
                break
            found, fault = check_line(line, before)
            if fault:
                break
            last = found
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


def _digest(bound: bytes, previous: str) -> str:
    return hashlib.sha256(length_prefixed(_FORMAT, bytes.fromhex(previous), bound)).hexdigest()


def _canonical(fields: Mapping[str, object]) -> bytes:
    return _JSON.encode(fields).encode()
