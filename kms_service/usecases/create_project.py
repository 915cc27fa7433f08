"""Creating a project. Its master key is an officer's work and must be there already."""

from __future__ import annotations

from kms_service.domain.catalogue import Project
from kms_service.domain.decisions import Action
from kms_service.domain.identity import Caller
from kms_service.domain.names import ProjectName
from kms_service.domain.ports import Clock, Database, MasterKeys, Transaction
from kms_service.usecases.authorisation import Gate


class CreateProject:
    def __init__(
        self,
        *,
        gate: Gate,
        database: Database,
        master_keys: MasterKeys,
        clock: Clock,
        master_key_template: str,
    ) -> None:
        """
        Args:
            master_key_template: name of a project's transit key, with `{project}` in it.
        """
        self._gate = gate
        self._database = database
        self._master_keys = master_keys
        self._clock = clock
        self._template = master_key_template

    def __call__(self, caller: Caller, name: ProjectName) -> Project:
        """The new project.

        Raises:
            ModelNotFoundOrDenied: not permitted.
            MasterKeyMisconfigured: its transit key is missing or not as required.
            ResourceExists: the id is taken.
        """
        with self._gate.admit(caller, Action.CREATE_PROJECT, name) as permit:
            master_key = self._template.replace("{project}", name.project)
            self._master_keys.describe(master_key)

            def create(tx: Transaction) -> Project:
                project = Project(name, master_key, self._clock.now())
                tx.projects.insert(project)
                # Recorded before it commits: no change without a record. Should the commit
                # fail after all, the gate records that too.
                permit.record(master_key=master_key)
                return project

            return self._database.transact(create)
