"""The registry of backups: which files hold data keys, and under which master-key versions.

A backup opens as long as Vault has the master-key versions that its data keys are under. So they
are not trimmed while a backup in the registry needs them. What was copied by other means (a volume
snapshot, `pg_dump`, a copy of a backup) is not in the registry, and out of its reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Backup:
    """One that `modelkms-server backup` made.

    Attributes:
        id: 32 hexadecimal digits.
        location: host and path it was written to.
        create_time: when it was begun.
        oldest_versions: the lowest master-key version that it needs, by name of the transit key;
            None: not known, since it was never seen to end. Then it may need any.
        destroyed_by: the officer who said that it is gone, and why; empty until then.
    """

    id: str
    location: str
    create_time: datetime
    oldest_versions: Mapping[str, int] | None = None
    destroyed_by: str = ""
    destroy_reason: str = ""
    destroy_time: datetime | None = None

    def needs_below(self, master_key: str, version: int) -> bool:
        """Whether it may hold a data key under a version of this master key below the one given."""
        if self.destroy_time is not None:
            return False
        if self.oldest_versions is None:
            return True
        return self.oldest_versions.get(master_key, version) < version

    def declare_destroyed(self, by: str, reason: str, now: datetime) -> Backup:
        """Said to be gone; who said it first, and why, stays."""
        if self.destroy_time is not None:
            return self
        return replace(self, destroyed_by=by, destroy_reason=reason, destroy_time=now)
