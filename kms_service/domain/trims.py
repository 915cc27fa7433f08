"""Trimming a master key: its old versions are destroyed in Vault, for good.

One officer asks for it, another confirms and does it under their own Vault login. Vault itself asks
for one officer only, and has no idea of what is wrapped under a version.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from kms_service.domain.errors import SecondOfficerRequired, TrimNotRequested
from kms_service.domain.names import ProjectName

TRIM_REQUEST_LIFE = timedelta(days=7)
"""Nobody confirms what was asked for in circumstances long gone."""


@dataclass(frozen=True, slots=True)
class Trim:
    """That an officer wants the versions below one destroyed. One for each master key.

    Attributes:
        master_key: name of the transit key.
        project: under whose name it was asked for.
        oldest_version: the oldest that is to stay.
        requested_by: principal of the officer.
        expire_time: from then on it cannot be confirmed.
        confirmed_by: principal of the second officer; empty until then.
    """

    master_key: str
    project: ProjectName
    oldest_version: int
    requested_by: str
    create_time: datetime
    expire_time: datetime
    confirmed_by: str = ""

    def confirm(self, oldest_version: int, by: str, now: datetime) -> Trim:
        """Confirmed by another officer, who names the version, too. Once more by either of those
        who may changes nothing but who did.

        Raises:
            TrimNotRequested: that is not what was asked for, or it was too long ago.
            SecondOfficerRequired: the one who asked for it.
        """
        if oldest_version != self.oldest_version or now >= self.expire_time:
            raise TrimNotRequested
        if by == self.requested_by:
            raise SecondOfficerRequired(
                "whoever asked for the trim cannot confirm it; another officer must"
            )
        return replace(self, confirmed_by=by)
