"""The security officer's own way to Vault: creating and rotating master keys (DESIGN §2).

The service can use master keys, not administer them. What is here runs under the officer's own
Vault login, from the `[vault]` section of their profile, and never goes through the service.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import requests

from modelkms.errors import (
    MasterKeyMisconfigured,
    NotFoundError,
    ProfileInvalid,
    UnavailableError,
    UsageError,
    VaultBadReply,
    VaultUnavailable,
)
from modelkms.officer_vault import OfficerVault
from modelkms.profile import Profile, VaultProfile
from modelkms.reference import check_id
from modelkms.types import Info

KEY_TYPE = "aes256-gcm96"
_KEY_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?")
_MIN_AUTO_ROTATE = timedelta(hours=1)
"""Vault's own limit (transit API, `auto_rotate_period`)."""

# What a master key must be, field by field as `GET transit/keys/NAME` tells it, and why.
_REQUIRED: Mapping[str, object] = {
    "type": KEY_TYPE,
    "derived": True,  # data keys are bound to their version by the derivation context
    "convergent_encryption": False,  # derives nonces from plaintext: equal keys would show
    "exportable": False,  # the master key never leaves Vault
    "allow_plaintext_backup": False,
    "deletion_allowed": False,
}
# Vault leaves these away where they are off.
_ABSENT_IS_FALSE = frozenset({"convergent_encryption"})


class MasterKeyNotFound(NotFoundError):
    """The project has no master key in Vault."""

    default_reason = "MASTER_KEY_NOT_FOUND"


class RotationUnknown(UnavailableError):
    """The answer to a rotation was lost; whether it happened could not be found out."""

    default_reason = "ROTATION_UNKNOWN"
    default_hint = (
        "look at `modelkms admin master-key status` before you rotate again: it may have happened"
    )


@dataclass(frozen=True, slots=True)
class VaultKey(Info):
    """A transit key that is as a master key must be.

    Attributes:
        vault_key: its name in Vault.
        latest_version: newest version, from 1.
        min_decryption_version: oldest version that Vault decrypts under.
        min_encryption_version: oldest that it encrypts under; 0: it was never set.
        min_available_version: oldest that is there; 0: none was ever trimmed.
        auto_rotate_period: None if Vault does not rotate it by itself.
        created: whether it was made just now.
    """

    vault_key: str
    latest_version: int
    min_decryption_version: int
    auto_rotate_period: timedelta | None
    created: bool = False
    min_encryption_version: int = 0
    min_available_version: int = 0


@dataclass(frozen=True, slots=True)
class Rotation(Info):
    """What a rotation did: newest version before and after."""

    vault_key: str
    before: int
    after: int


class Officer:
    """Administers master keys. Logs in when first needed; the login ends with `close`.

    Args:
        vault: where Vault is, and the login.
        session: to speak HTTP with; None: a new one. Closed by `close`.
    """

    def __init__(self, vault: VaultProfile, session: requests.Session | None = None) -> None:
        self._vault = vault
        self._connection = OfficerVault(vault, session)

    @classmethod
    def from_profile(cls, profile: Profile) -> Self:
        """
        Raises:
            ProfileInvalid: the profile has no `[vault]` section.
        """
        if profile.vault is None:
            raise ProfileInvalid(
                f"{profile.described} has no [vault] section: this needs an officer's Vault login",
                hint="choose the officer's profile (--profile), or add [vault] with address, "
                "ca_file, role_id_file and secret_id_file",
            )
        return cls(profile.vault)

    def ensure_master_key(
        self, project: str, auto_rotate_period: timedelta | None = None
    ) -> VaultKey:
        """The project's master key, created if it is not there.

        Args:
            auto_rotate_period: how long a version serves before Vault rotates it by itself, at
                least an hour; None: it does not, or as the key has it already.

        Raises:
            MasterKeyMisconfigured: it is there, and is not as it must be.
        """
        name = self._key_name(project)
        _check_period(auto_rotate_period)
        key = self._find(name)
        if key is None:
            return self._create(name, auto_rotate_period)
        if auto_rotate_period not in (None, key.auto_rotate_period):
            raise MasterKeyMisconfigured(
                f"the master key {name} exists already, with another rotation period: "
                f"{key.auto_rotate_period or 'none'}",
                hint=f"bao write {self._vault.transit_mount}/keys/{name}/config "
                f"auto_rotate_period={_seconds(auto_rotate_period)}",
            )
        return key

    def read_master_key(self, project: str) -> VaultKey:
        """
        Raises:
            MasterKeyNotFound: there is none.
            MasterKeyMisconfigured: it is not as it must be.
        """
        name = self._key_name(project)
        key = self._find(name)
        if key is None:
            raise MasterKeyNotFound(
                f"there is no master key {name} in Vault",
                hint=f"modelkms admin master-key create {project}",
            )
        return key

    def rotate_master_key(self, project: str) -> Rotation:
        """Add a version to the master key: new data keys are wrapped under it.

        Rotates once. If the answer is lost, what happened is read from Vault, and the call is not
        repeated (F37): a rotation that is not seen may still happen.

        Raises:
            MasterKeyNotFound, MasterKeyMisconfigured: as `read_master_key`.
            RotationUnknown: the answer was lost, and no new version is there (yet).
        """
        before = self.read_master_key(project)
        name = before.vault_key
        lost = False
        try:
            self._connection.call(
                lambda client: client.secrets.transit.rotate_key(
                    name=name, mount_point=self._vault.transit_mount
                )
            )
        except (VaultUnavailable, VaultBadReply):
            lost = True
        try:
            after = self.read_master_key(project)
        except UnavailableError as error:
            raise RotationUnknown(
                f"{name} was told to rotate, and then Vault did not answer"
            ) from error
        if after.latest_version <= before.latest_version:
            if lost:
                raise RotationUnknown(
                    f"{name} was told to rotate, the answer was lost, and it is still at version "
                    f"{after.latest_version}"
                )
            raise VaultBadReply(
                f"Vault took the rotation of {name}, but it is still at version "
                f"{after.latest_version}"
            )
        return Rotation(name, before.latest_version, after.latest_version)

    def set_oldest_version(self, project: str, oldest: int) -> VaultKey:
        """Make `oldest` the oldest version that Vault decrypts under; told as Vault has it then.
        Whether data keys need an older one is for `retirement.retire_master_key` to ask.

        Raises:
            MasterKeyNotFound, MasterKeyMisconfigured: as `read_master_key`.
            VaultRequestRefused: it is no version of the key, or was trimmed.
            VaultBadReply: Vault took it, and tells another.
        """
        name = self.read_master_key(project).vault_key
        self._connection.call(
            lambda client: client.secrets.transit.update_key_configuration(
                name=name,
                min_decryption_version=oldest,
                mount_point=self._vault.transit_mount,
            )
        )
        after = self.read_master_key(project)
        if after.min_decryption_version != oldest:
            raise VaultBadReply(
                f"Vault was told to decrypt {name} from version {oldest} on, and says "
                f"{after.min_decryption_version}"
            )
        return after

    def trim_master_key(self, project: str, oldest: int) -> VaultKey:
        """Destroy the versions below `oldest`, for good; told as Vault has the key then. Whether
        anything needs them is for `retirement.trim_master_key` to ask. Done already, it does
        nothing; interrupted anywhere, it may be called again.

        Raises:
            MasterKeyNotFound, MasterKeyMisconfigured: as `read_master_key`.
            VaultDenied: the login may not (deploy/vault/policies/trim.hcl).
            VaultRequestRefused: Vault still decrypts under one of them, or there is none such.
            VaultBadReply: Vault took it, and tells another.
        """
        key = self.read_master_key(project)
        name, mount = key.vault_key, self._vault.transit_mount
        if key.min_available_version >= oldest:
            return key
        if key.min_encryption_version < oldest:
            # Vault trims nothing that it would still encrypt under. It encrypts under the newest
            # version in any case, so this changes nothing else.
            self._connection.call(
                lambda client: client.secrets.transit.update_key_configuration(
                    name=name, min_encryption_version=oldest, mount_point=mount
                )
            )
        self._connection.call(
            lambda client: client.secrets.transit.trim_key(
                name=name, min_version=oldest, mount_point=mount
            )
        )
        after = self.read_master_key(project)
        if after.min_available_version != oldest:
            raise VaultBadReply(
                f"Vault was told to trim {name} to version {oldest} on, and says "
                f"{after.min_available_version}"
            )
        return after

    def check_login(self) -> None:
        """Log in, and nothing else.

        Raises:
            VaultLoginRefused: the login is not taken.
        """
        self._connection.check_login()

    def close(self) -> None:
        """End the login that was made here; a token from a file is left as it is. Idempotent."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- keys -----------------------------------------------------------------------------------

    def _key_name(self, project: str) -> str:
        name = self._vault.master_key_template.replace("{project}", check_id(project, "project"))
        if _KEY_NAME.fullmatch(name) is None:
            raise ProfileInvalid(
                f"master_key_template gives {name!a}, which is no name of a transit key",
                hint="it may have letters, digits, and . _ - inside",
            )
        return name

    def _find(self, name: str) -> VaultKey | None:
        """The key, if there is one that is as it must be."""
        answer = self._connection.read(
            lambda client: client.secrets.transit.read_key(
                name=name, mount_point=self._vault.transit_mount
            )
        )
        return None if answer is None else _checked(name, answer)

    def _create(self, name: str, auto_rotate_period: timedelta | None) -> VaultKey:
        self._connection.call(
            lambda client: client.secrets.transit.create_key(
                name=name,
                key_type=KEY_TYPE,
                derived=True,
                exportable=False,
                allow_plaintext_backup=False,
                convergent_encryption=False,
                auto_rotate_period=_seconds(auto_rotate_period),
                mount_point=self._vault.transit_mount,
            )
        )
        # Vault leaves a key that somebody made meanwhile as it is, and says nothing: look at what
        # is there now. `deletion_allowed` is off in a new key.
        key = self._find(name)
        if key is None:
            raise VaultBadReply(f"Vault took the creation of {name}, but the key is not there")
        return dataclasses.replace(key, created=True)


def _checked(name: str, answer: Any) -> VaultKey:
    """What Vault told of a key, if it is a master key as it must be.

    Raises:
        MasterKeyMisconfigured: it is not; the message names what is wrong.
        VaultBadReply: that is not what Vault tells of a key.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, dict):
        raise VaultBadReply(f"Vault's answer about {name} has no data")
    wrong = []
    for field, required in _REQUIRED.items():
        value = data.get(field, False if field in _ABSENT_IS_FALSE else None)
        if value is not required and value != required:
            wrong.append(f"{field} is {value!a}, not {required!a}")
    if wrong:
        raise MasterKeyMisconfigured(
            f"the key {name} in Vault cannot be a master key: {'; '.join(wrong)}",
            hint="these cannot be changed once a key exists: use another project, or remove the "
            "key in Vault if nothing is wrapped under it",
        )
    latest, oldest, encrypts, available, period_s = (
        _count(name, data, field)
        for field in (
            "latest_version",
            "min_decryption_version",
            "min_encryption_version",
            "min_available_version",
            "auto_rotate_period",
        )
    )
    return VaultKey(
        name,
        latest,
        oldest,
        timedelta(seconds=period_s) if period_s else None,
        min_encryption_version=encrypts,
        min_available_version=available,
    )


def _check_period(period: timedelta | None) -> None:
    if period is not None and period < _MIN_AUTO_ROTATE:
        raise UsageError(
            "a master key rotates by itself at most once an hour",
            reason="AUTO_ROTATE_PERIOD_INVALID",
            hint="write 24h, 30d, …",
        )


def _seconds(period: timedelta | None) -> str | None:
    return None if period is None else f"{int(period.total_seconds())}s"


def _count(name: str, data: Mapping[str, object], field: str) -> int:
    value = data.get(field, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise VaultBadReply(f"Vault's answer about {name} has no sound {field}")
    return value
