"""The state of a project's master key, as Vault tells it."""

from __future__ import annotations

from kms_service.domain.decisions import Action
from kms_service.domain.errors import InvalidField, KeysUnderOldVersion
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

    def check_retirement(
        self, caller: Caller, name: ProjectName, oldest_version: int
    ) -> MasterKeyView:
        """The state, if no data key of the project is under a version below `oldest_version`.

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
            with self._database.read() as tx:
                under = tx.versions.count_by_master_key_version(name)
            permit.note(master_key=state.name, oldest_version=oldest_version)
            old = {version: count for version, count in under.items() if version < oldest_version}
            if old:
                raise KeysUnderOldVersion(
                    f"{sum(old.values())} data keys are wrapped under versions of the master key "
                    f"below {oldest_version}; rewrap them first",
                    **{f"v{version}": str(count) for version, count in sorted(old.items())},
                )
            permit.record()
            return MasterKeyView(name, state, under)
