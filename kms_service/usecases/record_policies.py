"""The text of every policy set that decides goes into the audit log, before anybody asks for it.

A record says which policies of which set decided; years later the folder holds others. With the
files in the same chain "by what right" is answered from the log alone, and proven with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from kms_service.domain.audit import POLICY_FILE_LOADED, AuditRecord, Outcome
from kms_service.domain.ports import AuditLog, Clock

PART_CHARACTERS = 64 * 1024
"""Of a file's text in one record: at most 12 bytes each in its line, which ends at 1 MiB."""


class RecordPolicies:
    def __init__(self, *, audit: AuditLog, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock

    def __call__(self, epoch: str, files: Mapping[str, str]) -> None:
        """Record a set: each file, in parts if it is long. Durable when it returns.

        Args:
            epoch: of the set (see `Decision`).
            files: text by name.

        Raises:
            AuditUnavailable: some of it is not recorded; to be tried again as a whole.
        """
        for name in sorted(files):
            parts = _parts(files[name])
            for number, text in enumerate(parts, start=1):
                self._audit.append(
                    AuditRecord(
                        time=self._clock.now(),
                        event=POLICY_FILE_LOADED,
                        outcome=Outcome.OK,
                        policy_epoch=epoch,
                        details={
                            "file": name,
                            "part": str(number),
                            "parts": str(len(parts)),
                            "text": text,
                        },
                    )
                )


def _parts(text: str) -> list[str]:
    starts = range(0, max(len(text), 1), PART_CHARACTERS)
    return [text[start : start + PART_CHARACTERS] for start in starts]
