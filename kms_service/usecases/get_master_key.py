"""The state of a project's master key, as Vault tells it."""

from __future__ import annotations

from kms_service.domain.decisions import Action
from kms_service.domain.errors import InvalidField
from kms_service.domain.identity import Caller
from kms_service.domain.names import ProjectName
from kms_service.domain.ports import Database, MasterKeys
from kms_service.usecases.answers import MasterKeyView
from kms_service.usecases.authorisation import Gate
from kms_service.usecases.trim_master_key import require_no_keys_below


class GetMasterKey:
    def __init__(self, *, gate: Gate, database: Database, master_keys: MasterKeys) -> None:
        self._gate = gate
        self._database = database
        self._master_keys = master_keys

    def __call__(self, caller: Caller, name: ProjectName) -> MasterKeyView:
        """
        Raises:
            ModelNotFoundOrDenied: missing, or not permitted; Vault was not called.
            MasterKeyMisconfigured, and outages of Vault.
        """
        with self._gate.admit(caller, Action.GET_MASTER_KEY, name) as permit:
            project = permit.require(permit.found.project)
            state = self._master_keys.describe(project.master_key)
            with self._database.read() as tx:
                keys_under_version = tx.versions.count_by_master_key_version(name)
            permit.record(master_key=state.name, latest_version=state.latest_version)
            return MasterKeyView(name, state, keys_under_version)

    def check_retirement(
        self, caller: Caller, name: ProjectName, oldest_version: int
    ) -> MasterKeyView:
        """The state, if no data key is under a version below `oldest_version`, of this project
        and of those that share its master key.

        Raises:
            InvalidField: `oldest_version` is not one of the key's.
            KeysUnderOldVersion: some are; its metadata tells how many under which.
            and as the call.
        """
        with self._gate.admit(
            caller, Action.GET_MASTER_KEY, name, event="CheckRetirement"
        ) as permit:
            project = permit.require(permit.found.project)
            state = self._master_keys.describe(project.master_key)
            if not 1 <= oldest_version <= state.latest_version:
                raise InvalidField("oldest_version", "must be a version of the master key")
            permit.note(master_key=state.name, oldest_version=oldest_version)
            with self._database.read() as tx:
                under = tx.versions.count_by_master_key_version(name)
                require_no_keys_below(tx, project.master_key, oldest_version)
            permit.record()
            return MasterKeyView(name, state, under)
