"""Moving data keys under the newest version of their master key: in Vault and in the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import ServiceError
from kms_service.domain.names import ProjectName, RewrapName
from kms_service.domain.ports.master_keys import MasterKeyState
from kms_service.domain.rewrapping import (
    Finished,
    NothingYet,
    Rewrap,
    RewrapBatch,
    RewrapFailure,
    Rewrapped,
)


class Rewrapper(Protocol):
    """Moves data keys under the newest version of their master key, inside Vault."""

    def describe(self, master_key: str) -> MasterKeyState:
        """As `MasterKeys.describe`."""

    @property
    def rewrap_batch_size(self) -> int:
        """How many data keys one call of `rewrap` should be given; it learns."""

    def rewrap(
        self, master_key: str, keys: Sequence[tuple[WrappedDataKey, bytes]]
    ) -> Sequence[WrappedDataKey | ServiceError]:
        """Each data key (with its context) under the newest version of the master key, in order;
        an error in place of one that cannot be. Nobody sees a data key.

        Raises: as `MasterKeys.generate_data_key`; then none was rewrapped.
        """


class Rewraps(Protocol):
    """Rewrap operations, and the work they share out. Each method is a transaction of its own,
    and bears any interleaving with others: a stored wrapped key is replaced only if it is still
    the one that was looked at."""

    def start(self, rewrap: Rewrap) -> Rewrap:
        """Store it, its `total` counted; or the one that is not done yet, if the project has one.

        Raises:
            StateUnavailable, StateCorrupt, StateConflict: here, and of every method.
        """

    def get(self, name: RewrapName) -> Rewrap | None: ...
    def latest(self, project: ProjectName) -> Rewrap | None:
        """The one started last."""

    def running(self) -> Sequence[Rewrap]:
        """All that are RUNNING, of any project, oldest first."""

    def change(self, name: RewrapName, change: Callable[[Rewrap], Rewrap]) -> Rewrap | None:
        """Store what `change` makes of it: of its state and rate. None: there is no such one."""

    def claim(
        self, name: RewrapName, size: int, now: datetime
    ) -> RewrapBatch | NothingYet | Finished | None:
        """At most `size` data keys that nobody else works on, for a while; what nobody came back
        from in that time is given out again. None: it is not RUNNING."""

    def settle(
        self,
        batch: RewrapBatch,
        rewrapped: Sequence[Rewrapped],
        failed: Sequence[RewrapFailure],
        now: datetime,
        *,
        whole: bool,
    ) -> int:
        """Store what became of a batch; how many wrapped keys were replaced: those that were
        changed or destroyed meanwhile stay as they are.

        Args:
            whole: nothing of the batch is left to do; else the rest is given out again.
        """

    def failures(self, name: RewrapName, limit: int) -> Sequence[RewrapFailure]: ...
    def keys_under_older(self, project: ProjectName, version: int) -> int:
        """How many data keys are under an older master-key version than this."""
