"""Tombstones of destroyed versions in Vault's key-value store, version 2.

    MOUNT/data/tombstones/{version uid}     {"version": …, "destroy_time": …}

The service may create and read them, not change or delete them (deploy/vault/policies): whoever
puts an old database back cannot bring back what was destroyed since.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from kms_service.adapters.vault_session import VaultSession
from kms_service.domain.binding import uid_of
from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.destruction import Tombstone
from kms_service.domain.errors import VaultAccessRefused, VaultBadReply, VersionDestroyed
from kms_service.domain.ports import MasterKeys, MasterKeyState, Tombstones
from kms_service.domain.secret import SecretBytes

_UID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class VaultTombstones:
    """Implements `domain.ports.Tombstones`. Safe to use from many threads.

    Args:
        session: to Vault; somebody else closes it.
        mount: of the key-value engine.
    """

    def __init__(self, session: VaultSession, mount: str) -> None:
        self._session = session
        self._mount = mount
        self._known: frozenset[str] | None = None
        self._when_found: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def when_found(self, act: Callable[[], object]) -> None:
        """Call `act` whenever tombstones become known that were not."""
        self._when_found = act

    def write(self, tombstone: Tombstone) -> None:
        path = f"{self._mount}/data/tombstones/{tombstone.uid}"
        end = self._session.patience()
        if not self._session.call("GET", path, end=end).ok:
            body = {
                "options": {"cas": 0},  # only if there is none
                "data": {
                    "version": tombstone.version,
                    "destroy_time": tombstone.destroy_time.isoformat(),
                },
            }
            # Refused where another replica was faster; and then it is there.
            self._session.call("POST", path, body, end=end)
            if not self._session.call("GET", path, end=end).ok:
                raise VaultBadReply
        with self._lock:
            if self._known is not None:  # else all are read when first asked for
                self._known |= {tombstone.uid}
        self._when_found()

    def uids(self) -> frozenset[str]:
        path = f"{self._mount}/metadata/tombstones?list=true"
        reply = self._session.call("GET", path, end=self._session.patience())
        if reply.status == 404 and not reply.body.get("errors"):
            found: frozenset[str] = frozenset()
        elif not reply.ok:
            # An engine that is not mounted is also a 404, but tells an error: it must not pass
            # for "nothing was ever destroyed".
            raise VaultAccessRefused
        else:
            found = _uids(reply.data.get("keys"))
        with self._lock:
            before = self._known or frozenset()
            # What was known once stays known: nobody of ours can delete one.
            known = self._known = found | before
        if known != before:
            self._when_found()
        return known

    def holds(self, uid: str) -> bool:
        known = self._known
        return uid in (known if known is not None else self.uids())


class WithheldMasterKeys:
    """`domain.ports.MasterKeys` that unwraps nothing for a version with a tombstone, whatever the
    database says of its state: the row may have been put back (F56, F60)."""

    def __init__(self, keys: MasterKeys, tombstones: Tombstones) -> None:
        self._keys = keys
        self._tombstones = tombstones

    def generate_data_key(
        self, master_key: str, context: bytes
    ) -> tuple[SecretBytes, WrappedDataKey]:
        return self._keys.generate_data_key(master_key, context)

    def unwrap(self, master_key: str, wrapped: WrappedDataKey, context: bytes) -> SecretBytes:
        """As the port says.

        Raises:
            VersionDestroyed: there is a tombstone.
        """
        if self._tombstones.holds(uid_of(context)):
            raise VersionDestroyed
        return self._keys.unwrap(master_key, wrapped, context)

    def describe(self, master_key: str) -> MasterKeyState:
        return self._keys.describe(master_key)

    def probe(self) -> None:
        self._keys.probe()


def _uids(keys: object) -> frozenset[str]:
    if not isinstance(keys, list):
        raise VaultBadReply
    for key in keys:
        if not isinstance(key, str) or _UID.fullmatch(key) is None:
            raise VaultBadReply
    return frozenset(keys)
