"""How fresh the keys are: for each project its master key, and the data keys under its versions.

The service asks for itself, for its metrics: nobody's call, so no policy and no record. Nothing
here is or leads to key material.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kms_service.domain.catalogue import Project
from kms_service.domain.errors import MasterKeyMisconfigured
from kms_service.domain.names import ProjectName
from kms_service.domain.ports import Database, MasterKeys, MasterKeyState


@dataclass(frozen=True, slots=True)
class SurveyedMasterKey:
    """`state` is None if Vault has no such key, or not as it must be."""

    project: ProjectName
    state: MasterKeyState | None
    keys_under_version: dict[int, int]

    @property
    def keys(self) -> int:
        """All data keys of the project."""
        return sum(self.keys_under_version.values())

    @property
    def keys_under_old_versions(self) -> int:
        """Those that are not under the newest version of the master key; 0 if it is not known."""
        if self.state is None:
            return 0
        return self.keys - self.keys_under_version.get(self.state.latest_version, 0)


class SurveyMasterKeys:
    """Goes through all projects, a bounded number at a time, so that ten thousand of them do not
    become ten thousand calls to Vault at once.

    Args:
        at_once: projects looked at by one call.
    """

    def __init__(self, *, database: Database, master_keys: MasterKeys, at_once: int = 100) -> None:
        self._database = database
        self._master_keys = master_keys
        self._at_once = at_once
        self._next_page = ""

    def __call__(self) -> Iterator[SurveyedMasterKey]:
        """The next projects, by name; after the last, the first again.

        Raises:
            outages of Vault and database; the same projects come again then.
        """
        with self._database.read() as tx:
            page = tx.projects.list(self._at_once, self._next_page)
        for project in page.items:
            yield self._survey(project)
        self._next_page = page.next_page_token

    def _survey(self, project: Project) -> SurveyedMasterKey:
        with self._database.read() as tx:
            keys_under_version = tx.versions.count_by_master_key_version(project.name)
        state: MasterKeyState | None
        try:
            state = self._master_keys.describe(project.master_key)
        except MasterKeyMisconfigured:
            state = None
        return SurveyedMasterKey(project.name, state, keys_under_version)
