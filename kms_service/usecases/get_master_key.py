"""The state of a project's master key, as Vault tells it."""

from __future__ import annotations

from kms_service.domain.decisions import Action
from kms_service.domain.identity import Caller
from kms_service.domain.names import ProjectName
from kms_service.domain.ports import Database, MasterKeys
from kms_service.usecases.answers import MasterKeyView
from kms_service.usecases.authorisation import Gate


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
