"""Reading audit logs back: every chain checked record by record, offline, gigabytes as a stream.

A chain by itself proves its records up to its last. Checkpoints that were kept elsewhere prove the
rest: that the end was not cut, no chain taken away, nothing written anew with all its hashes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kms_service.adapters.audit_chain import (
    Link,
    chain_folders,
    check_line,
    lines_of,
    segment_name,
    segments,
)
from kms_service.domain.audit import Checkpoint


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What was found of one chain.

    Attributes:
        chain: its name, which is its folder's.
        whole_to: number of the last record up to which the chain is whole.
        proven_to: number of the last record that a checkpoint vouches for; 0: none does.
        proven_at: time of that checkpoint.
        fault: what is wrong with what follows; empty if nothing is.
    """

    chain: str
    whole_to: int
    proven_to: int
    proven_at: datetime | None
    fault: str

    @property
    def summary(self) -> str:
        if self.fault:
            return f"{self.chain}: {self.fault}; whole to record {self.whole_to}"
        whole = f"{self.chain}: whole to record {self.whole_to}"
        if self.proven_at is None:
            return f"{whole}, end unproven"
        after = self.whole_to - self.proven_to
        rest = f"; the {after} after it unproven" if after else ""
        by = f"the checkpoint of {self.proven_at.isoformat()}"
        return f"{whole}, proven to record {self.proven_to} by {by}{rest}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of a folder of chains."""

    chains: tuple[ChainReport, ...]

    @property
    def faulty(self) -> bool:
        return any(chain.fault for chain in self.chains)


@dataclass(frozen=True, slots=True)
class Vouched:
    """A hash that checkpoints vouch for, and the time of one."""

    hash: str
    time: datetime


Expected = Mapping[int, Sequence[Vouched]]
"""What checkpoints say of one chain, by the record's number."""


def verify(folder: Path, checkpoints: Iterable[Checkpoint] = ()) -> Verification:
    """Check every record of every chain, offline.

    A cut tail, or an end that was written anew with all its hashes, cannot be seen without a
    checkpoint kept elsewhere: the end is unproven.

    Args:
        folder: of one chain, or of folders of chains.
        checkpoints: whose signatures were verified.

    Raises:
        OSError: a file cannot be read.
    """
    reading = Reading(folder, checkpoints)
    for reader in reading.chains:
        for _ in reader.lines():
            pass
    return reading.verification


class Reading:
    """All chains of a folder, checked while they are read; see `verify`."""

    def __init__(self, folder: Path, checkpoints: Iterable[Checkpoint] = ()) -> None:
        self._folder = folder
        expected = _expected(checkpoints)
        paths = chain_folders(folder)
        self.chains = [ChainReader(path, expected.pop(path.resolve().name, {})) for path in paths]
        # Of a folder that is a chain itself, nothing is said of the others.
        self._missing = {} if paths == [folder] else expected

    @property
    def verification(self) -> Verification:
        """Once every chain was read to its end."""
        reports = [reader.report for reader in self.chains]
        for chain, heads in sorted(self._missing.items()):
            most = max(heads)
            time = heads[most][0].time.isoformat()
            fault = f"the chain is missing: the checkpoint of {time} has {most} records of it"
            reports.append(ChainReport(chain, 0, 0, None, fault))
        if not reports:
            reports = [ChainReport(self._folder.resolve().name, 0, 0, None, "no records")]
        return Verification(tuple(reports))


class ChainReader:
    """Reads one chain from its first record, checking each before it is handed out.

    Args:
        folder: of the chain, which has its name.
        expected: what checkpoints vouch for.
    """

    def __init__(self, folder: Path, expected: Expected | None = None) -> None:
        self._folder = folder
        self._expected = expected or {}
        self._last = Link()
        self._proven: tuple[int, datetime | None] = (0, None)
        self._fault = ""

    @property
    def chain(self) -> str:
        return self._folder.resolve().name

    @property
    def report(self) -> ChainReport:
        """Of what was read so far."""
        # A chain that was begun and has nothing to record yet is whole; an empty folder is none.
        fault = self._fault or ("" if segments(self._folder) else "no records")
        return ChainReport(self.chain, self._last.sequence, *self._proven, fault)

    def lines(self) -> Iterator[bytes]:
        """Record after record as it stands in the file, up to the first that does not hold.

        Raises:
            OSError: a file cannot be read.
        """
        for path in segments(self._folder):
            if path.name != segment_name(self._last.sequence + 1):
                missing = self._last.sequence + 1
                self._fault = f"record {missing} is missing: {path.name} comes next"
                return
            with path.open("rb") as file:
                for line in lines_of(file):
                    self._fault = self._check(line, path)
                    if self._fault:
                        return
                    yield line
        self._fault = self._cut()

    def _check(self, line: bytes, path: Path) -> str:
        number = self._last.sequence + 1
        found, fault = check_line(line, self._last)
        if fault:
            return f"record {number} in {path.name} {fault}"
        for vouched in self._expected.get(number, ()):
            if vouched.hash != found.hash:
                return (
                    f"record {number} in {path.name} is not the one that the checkpoint of "
                    f"{vouched.time.isoformat()} vouches for: it, or records before it, were "
                    "written anew"
                )
            self._proven = (number, vouched.time)
        self._last = found
        return ""

    def _cut(self) -> str:
        most = max(self._expected, default=0)
        if most <= self._last.sequence:
            return ""
        time = self._expected[most][0].time.isoformat()
        return (
            f"record {self._last.sequence + 1} and what follows it were cut: the checkpoint of "
            f"{time} has {most} records"
        )


def _expected(checkpoints: Iterable[Checkpoint]) -> dict[str, dict[int, list[Vouched]]]:
    """Each hash once, vouched for by the latest checkpoint that has it: there are 1,440 a day."""
    hashes: dict[tuple[str, int, str], datetime] = {}
    for checkpoint in checkpoints:
        for head in checkpoint.heads:
            key = (head.chain, head.records, head.hash)
            hashes[key] = max(checkpoint.time, hashes.get(key, checkpoint.time))
    expected: dict[str, dict[int, list[Vouched]]] = {}
    for (chain, records, digest), time in hashes.items():
        expected.setdefault(chain, {}).setdefault(records, []).append(Vouched(digest, time))
    return expected


def read_records(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The records of one chain as they stand, unverified.

    Raises:
        OSError: a file cannot be read.
        ValueError: a line is not JSON.
    """
    for path in segments(folder):
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)
