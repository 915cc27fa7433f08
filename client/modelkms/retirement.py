"""Retiring old versions of a master key: the service's inventory and the officer's Vault, together.

The officer's Vault login decides; the service's inventory is the gate. Vault itself has none: who
may write `transit/keys/NAME/config` can raise `min_decryption_version` past what is in use. That
strands nothing for good: it is lowered again the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelkms.client import Client
from modelkms.errors import ModelKmsError
from modelkms.officer import Officer
from modelkms.types import Info


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
