"""Reading audit logs back: every chain checked record by record, offline, gigabytes as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What was found of one chain.

    Attributes:
        chain: its name, which is its folder's.
        whole_to: number of the last record up to which the chain is whole.
        fault: what is wrong with what follows; empty if nothing is.
    """

    chain: str
    whole_to: int
    fault: str

    @property
    def summary(self) -> str:
        if self.fault:
            return f"{self.chain}: {self.fault}; whole to record {self.whole_to}"
        return f"{self.chain}: whole to record {self.whole_to}, end unproven"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of a folder of chains."""

    chains: tuple[ChainReport, ...]

    @property
    def faulty(self) -> bool:
        return any(chain.fault for chain in self.chains)


def verify(folder: Path) -> Verification:
    """Check every record of every chain, offline.

    A cut tail, or an end that was written anew with all its hashes, cannot be seen without a
    checkpoint kept elsewhere: the end is unproven.

    Args:
        folder: of one chain, or of folders of chains.

    Raises:
        OSError: a file cannot be read.
    """
    readers = [ChainReader(path) for path in chain_folders(folder)]
    for reader in readers:
        for _ in reader.lines():
            pass
    reports = [reader.report for reader in readers]
    return Verification(tuple(reports or [ChainReport(folder.resolve().name, 0, "no records")]))


class ChainReader:
    """Reads one chain from its first record, checking each before it is handed out.

    Args:
        folder: of the chain, which has its name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = Link()
        self._fault = ""

    @property
    def report(self) -> ChainReport:
        """Of what was read so far."""
        fault = self._fault or ("" if self._last.sequence else "no records")
        return ChainReport(self._folder.resolve().name, self._last.sequence, fault)

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
                    found, fault = check_line(line, self._last)
                    if fault:
                        number = self._last.sequence + 1
                        self._fault = f"record {number} in {path.name} {fault}"
                        return
                    self._last = found
                    yield line


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
