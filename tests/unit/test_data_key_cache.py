"""Cached data keys: Vault is asked once, and every kill switch empties the cache."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from kms_service.adapters.data_key_cache import CacheResult, DataKeyCache
from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import (
    KeyRecordCorrupt,
    MasterKeyMisconfigured,
    ServiceError,
    VaultAccessRefused,
    VaultBadReply,
    VaultSealed,
    VaultThrottled,
    VaultUnavailable,
    WrappingVersionUnusable,
)
from kms_service.domain.secret import SecretBytes
from tests.support.fake_master_keys import FakeMasterKeys
from tests.support.usecase_fakes import WatchedMasterKeys

DEMO, OTHER = "modelkms-demo", "modelkms-other"
CONTEXT = b"context"


@dataclass
class Rig:
    """A cache before a fake Vault, at a time that stands still."""

    vault: FakeMasterKeys = field(default_factory=FakeMasterKeys)
    now_s: float = 1000.0
    random: float = 0.0
    results: Counter[CacheResult] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.watched = WatchedMasterKeys(self.vault)
        for name in (DEMO, OTHER):
            self.vault.make(name)
        self.cache = self.make()

    def make(self, *, ttl_s: float = 60, grace_s: float = 60, keys: int = 100) -> DataKeyCache:
        self.cache = DataKeyCache(
            self.watched,
            ttl=timedelta(seconds=ttl_s),
            outage_grace=timedelta(seconds=grace_s),
            max_keys=keys,
            monotonic=lambda: self.now_s,
            random=lambda: self.random,
            count=lambda result: self.results.update([result]),
        )
        return self.cache

    def wrapped(self, master_key: str = DEMO) -> tuple[bytes, WrappedDataKey]:
        data_key, wrapped = self.vault.generate_data_key(master_key, CONTEXT)
        return data_key.reveal(), wrapped

    def unwrap(self, wrapped: WrappedDataKey, master_key: str = DEMO) -> bytes:
        return self.cache.unwrap(master_key, wrapped, CONTEXT).reveal()

    @property
    def asked(self) -> int:
        return self.watched.calls.count("unwrap")


@pytest.fixture
def rig() -> Rig:
    return Rig()


# --- while Vault answers -------------------------------------------------------------------------


def test_vault_is_asked_once_a_minute(rig: Rig) -> None:
    data_key, wrapped = rig.wrapped()
    for _ in range(3):
        assert rig.unwrap(wrapped) == data_key
    rig.now_s += 59.9
    rig.unwrap(wrapped)
    assert rig.asked == 1
    rig.now_s += 0.1
    rig.unwrap(wrapped)
    assert rig.asked == 2
    assert rig.results == {CacheResult.HIT: 3, CacheResult.MISS: 2}


def test_keys_fetched_together_are_not_asked_for_together(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.random = 0.5
    rig.unwrap(wrapped)
    rig.now_s += 57
    rig.unwrap(wrapped)
    assert rig.asked == 2


def test_every_caller_has_a_copy_of_its_own(rig: Rig) -> None:
    data_key, wrapped = rig.wrapped()
    rig.cache.unwrap(DEMO, wrapped, CONTEXT).wipe()
    rig.cache.unwrap(DEMO, wrapped, CONTEXT).wipe()
    assert rig.unwrap(wrapped) == data_key


def test_a_key_is_found_under_all_that_decides_it(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.unwrap(wrapped)
    for master_key, context in ((OTHER, CONTEXT), (DEMO, b"other")):
        with pytest.raises(KeyRecordCorrupt):
            rig.cache.unwrap(master_key, wrapped, context)
    assert rig.asked == 3


def test_without_a_time_to_live_nothing_is_kept(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.make(ttl_s=0)
    for _ in range(2):
        rig.unwrap(wrapped)
    assert (rig.asked, len(rig.cache)) == (2, 0)


def test_the_key_not_used_for_longest_goes_first(rig: Rig) -> None:
    rig.make(keys=2)
    first, second, third = (rig.wrapped()[1] for _ in range(3))
    for wrapped in (first, second, first, third):
        rig.unwrap(wrapped)
    assert (len(rig.cache), rig.asked) == (2, 3)
    rig.unwrap(first)
    assert rig.asked == 3
    rig.unwrap(second)
    assert rig.asked == 4


def test_f42_a_thousand_readers_cost_one_unwrap(rig: Rig) -> None:
    data_key, wrapped = rig.wrapped()
    waiting = threading.Semaphore(0)
    released = threading.Event()

    def hold() -> None:
        released.wait(30)

    rig.watched.meanwhile = hold

    def ask(_number: int) -> bytes:
        waiting.release()
        return rig.unwrap(wrapped)

    with ThreadPoolExecutor(50) as readers:
        answers = [readers.submit(ask, number) for number in range(1000)]
        for _ in range(50):
            assert waiting.acquire(timeout=30)
        released.set()
        assert {answer.result(30) for answer in answers} == {data_key}
    assert rig.asked == 1
    assert rig.results[CacheResult.MISS] == 1
    assert rig.results.total() == 1000


def test_what_the_one_call_meets_all_who_wait_meet(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    entered, released = threading.Event(), threading.Event()

    def fail_later() -> None:
        entered.set()
        released.wait(30)
        rig.vault.fail_with = VaultThrottled

    rig.watched.meanwhile = fail_later
    with ThreadPoolExecutor(4) as readers:
        answers = [readers.submit(rig.unwrap, wrapped)]
        assert entered.wait(30)
        answers += [readers.submit(rig.unwrap, wrapped) for _ in range(3)]
        _until(lambda: next(iter(rig.cache._flights.values())).waiting == 3)
        released.set()
        assert [type(answer.exception(30)) for answer in answers] == [VaultThrottled] * 4
    assert rig.asked == 1
    # It was theirs, not the next one's.
    rig.vault.fail_with = None
    rig.unwrap(wrapped)


# --- kill switches -------------------------------------------------------------------------------


def test_f35_a_probe_that_finds_vault_sealed_flushes_all_keys(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.unwrap(wrapped)
    rig.vault.fail_with = VaultSealed
    with pytest.raises(VaultSealed):
        rig.cache.probe()
    assert len(rig.cache) == 0
    with pytest.raises(VaultSealed):
        rig.unwrap(wrapped)


@pytest.mark.parametrize("outage", [VaultUnavailable, VaultBadReply])
def test_a_probe_that_finds_vault_away_leaves_them(rig: Rig, outage: type[ServiceError]) -> None:
    _, wrapped = rig.wrapped()
    rig.unwrap(wrapped)
    rig.vault.fail_with = outage
    with pytest.raises(outage):
        rig.cache.probe()
    rig.unwrap(wrapped)
    assert rig.asked == 1


@pytest.mark.parametrize("error", [VaultSealed, VaultAccessRefused])
def test_f35_sealed_or_refused_to_any_call_flushes_all_keys(
    rig: Rig, error: type[ServiceError]
) -> None:
    held, fresh = rig.wrapped()[1], rig.wrapped(OTHER)[1]
    rig.unwrap(held)
    rig.vault.fail_with = error
    with pytest.raises(error):
        rig.unwrap(fresh, OTHER)
    with pytest.raises(error):
        rig.unwrap(held)


def test_a_missing_master_key_flushes_its_keys_and_no_others(rig: Rig) -> None:
    (_, held), (_, fresh), (_, foreign) = rig.wrapped(), rig.wrapped(), rig.wrapped(OTHER)
    rig.unwrap(held)
    rig.unwrap(foreign, OTHER)
    del rig.vault._keys[DEMO]
    for wrapped in (fresh, held):
        with pytest.raises(MasterKeyMisconfigured):
            rig.unwrap(wrapped)
    rig.unwrap(foreign, OTHER)
    assert rig.asked == 4


def test_an_unusable_wrapping_version_flushes_that_key(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.unwrap(wrapped)
    rig.vault.rotate(DEMO)
    rig.vault.set_min_decryption_version(DEMO, 2)
    rig.now_s += 61
    with pytest.raises(WrappingVersionUnusable):
        rig.unwrap(wrapped)
    rig.vault.fail_with = VaultUnavailable
    with pytest.raises(VaultUnavailable):
        rig.unwrap(wrapped)


def test_an_answer_that_was_on_its_way_when_keys_were_flushed_is_not_kept(rig: Rig) -> None:
    data_key, wrapped = rig.wrapped()
    rig.watched.meanwhile = lambda: rig.cache.flush("sealed")
    assert rig.unwrap(wrapped) == data_key  # Vault gave it before
    assert len(rig.cache) == 0


def test_flushed_keys_are_wiped(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.unwrap(wrapped)
    (entry,) = rig.cache._entries.values()
    rig.cache.flush("stop")
    assert entry.data_key.reveal() == bytes(32)


# --- while Vault is unreachable ------------------------------------------------------------------


def test_f42_an_outage_stretches_a_key_by_the_grace_and_no_further(rig: Rig) -> None:
    data_key, wrapped = rig.wrapped()
    rig.unwrap(wrapped)
    rig.vault.fail_with = VaultUnavailable
    rig.now_s += 119.9
    assert rig.unwrap(wrapped) == data_key
    assert rig.cache.outage
    assert rig.results[CacheResult.OUTAGE] == 1
    rig.now_s += 0.1
    with pytest.raises(VaultUnavailable):
        rig.unwrap(wrapped)
    assert len(rig.cache) == 0
    rig.vault.fail_with = None
    assert rig.unwrap(wrapped) == data_key
    assert not rig.cache.outage


def test_f42_in_an_outage_few_calls_try_vault(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.unwrap(wrapped)
    rig.vault.fail_with = VaultUnavailable
    rig.now_s += 61
    for _ in range(100):
        rig.unwrap(wrapped)
    assert rig.asked == 2
    rig.now_s += 1
    rig.unwrap(wrapped)
    assert rig.asked == 3
    assert rig.results[CacheResult.OUTAGE] == 101


def test_f42_a_key_never_held_is_not_to_be_had_in_an_outage(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.vault.fail_with = VaultUnavailable
    with pytest.raises(VaultUnavailable):
        rig.unwrap(wrapped)


@pytest.mark.parametrize("answer", [VaultThrottled, VaultBadReply, VaultSealed, VaultAccessRefused])
def test_f42_an_answer_of_vault_stretches_nothing(rig: Rig, answer: type[ServiceError]) -> None:
    _, wrapped = rig.wrapped()
    rig.unwrap(wrapped)
    rig.vault.fail_with = answer
    rig.now_s += 61
    with pytest.raises(answer):
        rig.unwrap(wrapped)


def test_f42_sealed_in_the_middle_of_an_outage_ends_the_grace(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.unwrap(wrapped)
    rig.vault.fail_with = VaultUnavailable
    rig.now_s += 61
    rig.unwrap(wrapped)
    rig.vault.fail_with = VaultSealed
    with pytest.raises(VaultSealed):
        rig.cache.probe()
    rig.vault.fail_with = VaultUnavailable
    with pytest.raises(VaultUnavailable):
        rig.unwrap(wrapped)


def test_f42_without_grace_an_outage_ends_at_the_time_to_live(rig: Rig) -> None:
    _, wrapped = rig.wrapped()
    rig.make(grace_s=0)
    rig.unwrap(wrapped)
    rig.vault.fail_with = VaultUnavailable
    rig.now_s += 60
    with pytest.raises(VaultUnavailable):
        rig.unwrap(wrapped)


def test_a_bug_below_keeps_nobody_waiting(rig: Rig) -> None:
    _, wrapped = rig.wrapped()

    def fail() -> None:
        raise RuntimeError

    rig.watched.meanwhile = fail
    with pytest.raises(RuntimeError):
        rig.unwrap(wrapped)
    rig.unwrap(wrapped)


def test_secrets_are_not_shown(rig: Rig) -> None:
    data_key, wrapped = rig.wrapped()
    held: SecretBytes = rig.cache.unwrap(DEMO, wrapped, CONTEXT)
    assert data_key.hex() not in repr(vars(rig.cache)) + repr(held)


def _until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to that")
