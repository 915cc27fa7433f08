"""What holds whatever the order: no key leaves without permit, record and lease; no call without a
record; missing and forbidden cost alike."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kms_service.domain.audit import Outcome
from kms_service.domain.catalogue import VersionState
from kms_service.domain.decisions import Action
from kms_service.domain.errors import ModelNotFoundOrDenied, ServiceError
from kms_service.domain.names import ModelName, VersionName
from tests.support.usecase_fakes import HOUR, Waiting, caller
from tests.unit.usecases.real_parts import migrated_database
from tests.unit.usecases.world import Client, World, stable

MODEL = ModelName("demo", "face")
STABLE = stable(MODEL)
V1 = VersionName("demo", "face", 1)
READER = caller("reader")


class Issuing(RuleBasedStateMachine):
    """Grants come and go, the audit log breaks, callers leave, versions are disabled, time goes
    on, also while Vault works: and readers go on asking."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.world = World(
            Path(self.folder) / str(time.monotonic_ns()), self.folder / "template.db"
        )
        self.world.publisher()
        self.world.publish(MODEL)
        self.security = self.world.security()
        self.world.reader()
        self.granted = True
        self.enabled = True
        self.audit_works = True
        self.delivered: list[str] = []
        self.world.audit.take()

    def teardown(self) -> None:
        self.world.close()

    @rule(what=st.sampled_from(["grant", "state", "audit"]))
    def change(self, what: str) -> None:
        self._flip(what)

    @rule(seconds=st.integers(1, 8000))
    def wait(self, seconds: int) -> None:
        self.world.clock.advance(timedelta(seconds=seconds))

    @rule(checks=st.sampled_from([None, None, 0, 1, 2]), suite=st.sampled_from([1, 2]))
    def ask(self, checks: int | None, suite: int) -> None:
        self._ask(checks, suite)

    @rule(
        meanwhile=st.sampled_from(["grant", "state", "audit"]),
        checks=st.sampled_from([None, 2]),
    )
    def ask_and_be_interrupted(self, meanwhile: str, checks: int | None) -> None:
        self.world.master_keys.meanwhile = lambda: self._flip(meanwhile)
        self._ask(checks, suite=2)

    def _ask(self, checks: int | None, suite: int) -> None:
        before = (self.granted, self.enabled, self.audit_works)
        client = Client(suite)
        calls = len(self.world.master_keys.calls)
        try:
            leased = self.world.lease(
                READER, STABLE, client=client, liveness=Waiting(checks=checks)
            )
        except ServiceError:
            if not (before[0] and before[1]):
                assert len(self.world.master_keys.calls) == calls, "Vault without a permit"
            return
        finally:
            self.world.master_keys.meanwhile = None
        assert before[0]
        assert before[1]
        assert self.granted, "a key without a permit"
        assert self.enabled, "a key of a disabled version"
        assert self.audit_works, "a key without a record"
        assert checks is None or checks >= 2, "a key for nobody"
        version = leased.version.version
        assert client.open_leased(leased, READER) == self.world.unwrap(version)
        self.delivered.append(str(leased.lease.lease.name))

    @precondition(lambda self: self.delivered)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.delivered))
        lease = next(
            stored for stored in self.world.list_leases_past_policy() if str(stored.name) == name
        )
        try:
            renewed = self.world.renew_lease(READER, lease.name, None)
        except ServiceError:
            return
        assert self.granted
        assert self.audit_works
        assert lease.revoke_time is None
        assert self.world.clock.now() < lease.expire_time
        assert renewed.lease.expire_time <= lease.issue_time + 12 * HOUR

    @invariant()
    def every_delivery_has_a_record(self) -> None:
        recorded = {
            record.details["lease"]
            for record in self.world.audit.records
            if (record.event, record.outcome) == ("LeaseDataKey", Outcome.OK)
        }
        undelivered = {
            record.details["lease"]
            for record in self.world.audit.records
            if record.details.get("delivered") == "no"
        }
        assert set(self.delivered) <= recorded
        assert not set(self.delivered) & undelivered

    @invariant()
    def nothing_is_live_under_a_disabled_version(self) -> None:
        if not self.enabled:
            assert self.world.live_leases() == 0

    def _flip(self, what: str) -> None:
        flips = {"grant": self._flip_grant, "state": self._flip_state, "audit": self._flip_audit}
        flips[what]()

    def _flip_grant(self) -> None:
        self.granted = not self.granted
        if self.granted:
            self.world.reader()
        else:
            self.world.policy.withdraw("reader", Action.LEASE_DATA_KEY)

    def _flip_state(self) -> None:
        act = self.world.states.disable if self.enabled else self.world.states.enable
        try:
            act(self.security, V1)
        except ServiceError:
            assert not self.audit_works
            return
        self.enabled = not self.enabled

    def _flip_audit(self) -> None:
        self.audit_works = not self.audit_works
        works = self.audit_works
        self.world.audit.broken = lambda record: not works


def test_no_key_leaves_without_permit_record_and_lease(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("issuing")
    migrated_database(folder)

    class InFolder(Issuing):
        pass

    InFolder.folder = folder
    machine: Any = InFolder.TestCase
    machine.settings = settings(
        max_examples=20,
        stateful_step_count=20,
        deadline=None,
        phases=(Phase.reuse, Phase.generate),  # shrinking would take minutes
        suppress_health_check=list(HealthCheck),
    )
    machine("runTest").runTest()


def test_f19_leases_race_with_disabling(world: World) -> None:
    """Real threads on the real database: whatever wins, no lease stays live under a disabled
    version, and every key that was given was given before."""
    world.publisher()
    world.publish(MODEL)
    world.reader()
    security = world.security()
    start = threading.Barrier(5)
    unexpected: list[BaseException] = []

    def ask() -> None:
        start.wait()
        for _ in range(10):
            try:
                world.lease(READER, V1)
            except ServiceError as error:
                if error.reason != "VERSION_DISABLED":
                    unexpected.append(error)

    readers = [threading.Thread(target=ask) for _ in range(4)]
    for reader in readers:
        reader.start()
    start.wait()
    world.states.disable(security, V1)
    live_after_disabling = world.live_leases()
    for reader in readers:
        reader.join(30)

    assert unexpected == []
    assert live_after_disabling == 0
    assert world.live_leases() == 0
    stored = world.version(V1)
    assert stored is not None
    assert stored.state is VersionState.DISABLED


def test_f50_one_request_id_from_many_threads_makes_one_version(world: World) -> None:
    world.publisher()
    request_id = "01234567-89ab-cdef-0123-456789abcdef"
    start = threading.Barrier(6)
    keys: set[bytes] = set()
    failed: list[BaseException] = []

    def create() -> None:
        client = Client(2)
        start.wait()
        try:
            created = world.create_version(
                caller("publisher"), MODEL, request_id=request_id, client=client
            )
        except BaseException as error:
            failed.append(error)
            return
        keys.add(client.open_published(created, caller("publisher")))

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
    assert len(keys) == 1
    assert world.version(VersionName("demo", "face", 2)) is None


def test_f17_missing_and_forbidden_take_the_same_time(world: World) -> None:
    """2,000 pairs, interleaved so that what the machine does otherwise falls on both."""
    world.publisher()
    world.publish(MODEL)
    stranger, absent = caller("stranger"), stable(ModelName("demo", "fact"))

    def timed(refused: Callable[[], object]) -> float:
        begin = time.perf_counter()
        with pytest.raises(ModelNotFoundOrDenied):
            refused()
        return time.perf_counter() - begin

    key = Client(2).offer()
    forbidden, missing = [], []
    for _ in range(2000):
        forbidden.append(timed(lambda: world.lease(stranger, STABLE, client_key=key)))
        missing.append(timed(lambda: world.lease(stranger, absent, client_key=key)))
    ratio = statistics.median(forbidden) / statistics.median(missing)
    # A look-up more would show as a quarter and more; a row parsed more does not show over a
    # network, nor over the durable record that both wait for in a real service.
    assert 0.85 < ratio < 1.15
