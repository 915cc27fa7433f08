"""Who watches which lease, and what has become of it: all in one event loop, so without locks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

from kms_service.domain.errors import StreamLimit
from kms_service.domain.identity import Principal
from kms_service.domain.names import LeaseName

K = TypeVar("K", bound=Hashable)


class Watch:
    """One stream, and the leases that ended since it was last told."""

    __slots__ = ("_changed", "holder", "leases", "pending")

    def __init__(self, holder: tuple[str, str], leases: Iterable[LeaseName]) -> None:
        self.holder = holder
        self.leases = frozenset(leases)
        self.pending: set[LeaseName] = set()  # at most `leases`, however slowly it is read
        self._changed: asyncio.Future[None] | None = None

    def end(self, lease: LeaseName) -> None:
        self.pending.add(lease)
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def wait(self, timeout_s: float) -> list[LeaseName]:
        """What has ended, as soon as something has; nothing after `timeout_s`."""
        if not self.pending:
            loop = asyncio.get_running_loop()
            self._changed = loop.create_future()
            timer = loop.call_later(timeout_s, _wake, self._changed)
            try:
                await self._changed
            finally:
                timer.cancel()
                self._changed = None
        ended, self.pending = sorted(self.pending), set()
        return ended


def _wake(waited: asyncio.Future[None]) -> None:
    if not waited.done():
        waited.set_result(None)


class LeaseWatches:
    """The watches there are, by lease.

    Args:
        max_watches: in all.
        max_of_principal: of one principal: nobody takes all there are.
        max_of_instance: of one principal's one TLS key, or other instance. Bounds mistakes: who
            comes with a token that is bound to no key names its instance itself.
    """

    def __init__(self, max_watches: int, max_of_principal: int, max_of_instance: int) -> None:
        self._max_watches = max_watches
        self._max_of_principal = max_of_principal
        self._max_of_instance = max_of_instance
        self._by_lease: dict[LeaseName, set[Watch]] = {}
        self._by_holder: Counter[tuple[str, str]] = Counter()
        self._by_principal: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, principal: Principal, leases: Iterable[LeaseName]) -> Watch:
        """
        Raises:
            StreamLimit: there are as many as may be, in all, of this principal or instance.
        """
        holder = (principal.id, principal.instance)
        if (
            self._count >= self._max_watches
            or self._by_principal[principal.id] >= self._max_of_principal
            or self._by_holder[holder] >= self._max_of_instance
        ):
            raise StreamLimit
        watch = Watch(holder, leases)
        self._count += 1
        self._by_principal[principal.id] += 1
        self._by_holder[holder] += 1
        for lease in watch.leases:
            self._by_lease.setdefault(lease, set()).add(watch)
        return watch

    def remove(self, watch: Watch) -> None:
        self._count -= 1
        _one_less(self._by_principal, watch.holder[0])
        _one_less(self._by_holder, watch.holder)
        for lease in watch.leases:
            watches = self._by_lease[lease]
            watches.discard(watch)
            if not watches:
                del self._by_lease[lease]

    def ended(self, lease: LeaseName) -> None:
        """Tell those who watch it."""
        for watch in self._by_lease.get(lease, ()):
            watch.end(lease)


def _one_less(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
