"""Letting old versions of a master key be destroyed in Vault: one officer asks, another confirms.

The service destroys nothing: it has no right to. It is the gate before the second officer's Vault
login does it, and looks at everything that it knows to need the old versions, both times.
"""

from __future__ import annotations

from kms_service.domain.decisions import Action
from kms_service.domain.errors import (
    BackupsNeedOldVersion,
    InvalidField,
    KeysUnderOldVersion,
    MasterKeyNotRetired,
    TrimNotRequested,
)
from kms_service.domain.identity import Caller
from kms_service.domain.names import ProjectName
from kms_service.domain.ports import Clock, Database, MasterKeys, Transaction
from kms_service.domain.trims import TRIM_REQUEST_LIFE, Trim
from kms_service.usecases.authorisation import Gate, Permit

_NAMED_BACKUPS = 10


class TrimMasterKey:
    def __init__(
        self, *, gate: Gate, database: Database, master_keys: MasterKeys, clock: Clock
    ) -> None:
        self._gate = gate
        self._database = database
        self._master_keys = master_keys
        self._clock = clock

    def request(self, caller: Caller, name: ProjectName, oldest_version: int) -> Trim:
        """That the versions below `oldest_version` be destroyed. It takes the place of what was
        asked for before, confirmed or not, and may be confirmed for seven days.

        Raises:
            InvalidField: `oldest_version` is not one of the key's, or leaves nothing to trim.
            ModelNotFoundOrDenied: missing, or not permitted; Vault was not called.
            MasterKeyNotRetired, KeysUnderOldVersion, BackupsNeedOldVersion: something may need
                the old versions.
            MasterKeyMisconfigured, and outages.
        """
        with self._gate.admit(caller, Action.REQUEST_TRIM, name) as permit:
            master_key = permit.require(permit.found.project).master_key
            permit.note(master_key=master_key, oldest_version=oldest_version)
            self._require_retired(master_key, oldest_version)
            now = self._clock.now()
            trim = Trim(
                master_key,
                name,
                oldest_version,
                caller.principal.id,
                now,
                now + TRIM_REQUEST_LIFE,
            )

            def request(tx: Transaction) -> Trim:
                _require_unneeded(tx, master_key, oldest_version)
                tx.trims.put(trim)
                permit.record(expire_time=trim.expire_time.isoformat())
                return trim

            return self._database.transact(request)

    def confirm(self, caller: Caller, name: ProjectName, oldest_version: int) -> Trim:
        """Another officer's word. Recorded before it is answered: what follows is Vault's.

        Raises:
            TrimNotRequested, SecondOfficerRequired: see `Trim.confirm`.
            and as `request`.
        """
        with self._gate.admit(caller, Action.CONFIRM_TRIM, name) as permit:
            master_key = permit.require(permit.found.project).master_key
            permit.note(master_key=master_key, oldest_version=oldest_version)
            self._require_retired(master_key, oldest_version)
            now = self._clock.now()

            def confirm(tx: Transaction) -> Trim:
                trim = tx.trims.get(master_key)
                if trim is None:
                    raise TrimNotRequested
                confirmed = trim.confirm(oldest_version, caller.principal.id, now)
                _require_unneeded(tx, master_key, oldest_version)
                tx.trims.put(confirmed)
                _record(permit, confirmed)
                return confirmed

            return self._database.transact(confirm)

    def _require_retired(self, master_key: str, oldest_version: int) -> None:
        """Retiring can be undone: so it has to have shown first that nothing is missed."""
        state = self._master_keys.describe(master_key)
        if not 1 < oldest_version <= state.latest_version:
            raise InvalidField("oldest_version", "must be a version of the master key above 1")
        if state.min_decryption_version < oldest_version:
            raise MasterKeyNotRetired


def _require_unneeded(tx: Transaction, master_key: str, oldest_version: int) -> None:
    """Of all projects that share the master key."""
    require_no_keys_below(tx, master_key, oldest_version)
    needing = [
        backup
        for backup in tx.backups.not_destroyed()
        if backup.needs_below(master_key, oldest_version)
    ]
    if needing:
        raise BackupsNeedOldVersion(
            f"{len(needing)} registered backups may need versions of the master key below "
            f"{oldest_version}",
            backups=",".join(backup.id for backup in needing[:_NAMED_BACKUPS]),
        )


def require_no_keys_below(tx: Transaction, master_key: str, oldest_version: int) -> None:
    """
    Raises:
        KeysUnderOldVersion: data keys are under older versions, of whatever project that shares
            the master key; its metadata tells how many under which.
    """
    under = tx.versions.count_under_master_key(master_key)
    old = {version: count for version, count in under.items() if version < oldest_version}
    if old:
        raise KeysUnderOldVersion(
            f"{sum(old.values())} data keys are wrapped under versions of the master key "
            f"below {oldest_version}; rewrap them first",
            **{f"v{version}": str(count) for version, count in sorted(old.items())},
        )


def _record(permit: Permit, trim: Trim) -> None:
    permit.record(requested_by=trim.requested_by, request_time=trim.create_time.isoformat())
