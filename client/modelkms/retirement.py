"""Retiring and trimming old versions of a master key: the service's gate, the officer's Vault.

The officer's Vault login decides; the service's inventory is the gate. Vault itself has none: who
may write `transit/keys/NAME/config` can raise `min_decryption_version` past what is in use. That
strands nothing for good: it is lowered again the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelkms.client import Client
from modelkms.errors import MasterKeyMisconfigured, ModelKmsError
from modelkms.officer import Officer
from modelkms.types import Info, TrimInfo


@dataclass(frozen=True, slots=True)
class Retired(Info):
    """The oldest version that Vault decrypts under, before and after."""

    vault_key: str
    before: int
    after: int


def retire_master_key(client: Client, project: str, to: int | None = None) -> Retired:
    """Make `to` (the newest, if None) the oldest version that Vault decrypts under.

    Raises:
        KeysUnderOldVersion: data keys need an older one; nothing was changed, or it was put back.
        MasterKeyNotFound, MasterKeyMisconfigured, VaultDenied, VaultRequestRefused, and outages.
    """
    with Officer.from_profile(client.profile) as officer:
        key = officer.read_master_key(project)
        oldest = key.latest_version if to is None else to
        client.check_retirement(oldest, project)
        after = officer.set_oldest_version(project, oldest)
        if oldest > key.min_decryption_version:
            # A key that came under an old version between the two (a database put back, a replica
            # that was asleep) must not be stranded.
            try:
                client.check_retirement(oldest, project)
            except ModelKmsError:
                officer.set_oldest_version(project, key.min_decryption_version)
                raise
    return Retired(key.vault_key, key.min_decryption_version, after.min_decryption_version)


def trim_master_key(client: Client, project: str, oldest: int) -> TrimInfo:
    """Confirm the trim that another officer asked for, and do it: the versions below `oldest` are
    destroyed in Vault. For good: there is no way back, and none past the service's gate here.

    Where the second half fails, nothing is lost: the same officer calls it again.

    Raises:
        TrimNotRequested, SecondOfficerRequired, MasterKeyNotRetired, KeysUnderOldVersion,
            BackupsNeedOldVersion: nothing was destroyed.
        MasterKeyMisconfigured: this profile and the service mean two different keys.
        MasterKeyNotFound, VaultDenied, VaultRequestRefused, and outages.
    """
    with Officer.from_profile(client.profile) as officer:
        key = officer.read_master_key(project)
        trim = client.confirm_trim(oldest, project)
        if (trim.vault_key, trim.oldest_version) != (key.vault_key, oldest):
            raise MasterKeyMisconfigured(
                f"the service means version {trim.oldest_version} of {trim.vault_key}, this "
                f"profile version {oldest} of {key.vault_key}",
                hint="check master_key_template in [vault] of the profile",
            )
        officer.trim_master_key(project, oldest)
    return trim
