"""Leases of opened models, through the SDK against the real service: renewed, replaced, ended;
what happens while the service is away."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from modelkms import catalogue, keeper, leasing, opened, renewal
from modelkms.errors import (
    LeaseExpired,
    LeaseRevoked,
    ModelKmsError,
    ServiceUnavailable,
)
from modelkms.key_transport import boottime_s
from modelkms.opened import OpenedModel
from modelkms.types import LeaseEvent

from kms_service.domain.leases import LeaseBounds
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.unit.usecases.real_parts import migrated_database

CONTENT = b"weights" * 1000
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_database(tmp_path_factory.mktemp("template"))


@pytest.fixture
def service(tmp_path: Path, template: Path) -> Iterator[SdkWorld]:
    with sdk_world(tmp_path, template) as world:
        (tmp_path / "model.onnx").write_bytes(CONTENT)
        world.client("publisher").push(tmp_path / "model.onnx", "onnx")
        yield world


class Time:
    """The SDK's and the service's, moved together."""

    def __init__(self, service: SdkWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        self._service = service
        self._start_s = boottime_s()
        self._ahead_s = 0.0
        for module in (opened, leasing, renewal, keeper):
            monkeypatch.setattr(module, "boottime_s", lambda: self._start_s + self._ahead_s)

    def advance(self, by: timedelta) -> None:
        self._ahead_s += by.total_seconds()
        self._service.world.clock.advance(by)


@pytest.fixture
def clock(service: SdkWorld, monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(service, monkeypatch)


def now_s() -> float:
    """As the SDK sees it."""
    return float(vars(opened)["boottime_s"]())


class Opened:
    """A model of `reader`, and the events that it told."""

    def __init__(self, service: SdkWorld) -> None:
        self.events: list[LeaseEvent] = []
        self.model = service.client("reader").open("onnx", on_lease_event=self.events.append)
        service.clients.callback(self.model.close)

    def tend(self) -> None:
        """As the keeper does when it is due."""
        self.model.tend_lease()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def assert_ended(model: OpenedModel, kind: type[ModelKmsError]) -> None:
    acts: tuple[Callable[[], object], ...] = (
        model.read,
        model.open,
        model.files,
        model.renew,
        lambda: model.materialize().__enter__(),
    )
    for act in acts:
        with pytest.raises(kind):
            act()
    assert model.lease_due_s() is None
    assert model._leased.data_key.reveal() == bytes(32)


def test_a_lease_is_renewed_when_two_thirds_are_over(service: SdkWorld, clock: Time) -> None:
    held = Opened(service)
    due_s = held.model.lease_due_s()
    assert due_s is not None
    in_s = due_s - now_s()
    assert 3600 * (2 / 3 - 0.1) - 1 <= in_s <= 2400
    clock.advance(timedelta(seconds=in_s))
    held.tend()
    assert (held.kinds, held.model.lease.renewals) == (["renewed"], 1)
    assert held.model._leased.end_s - now_s() == pytest.approx(3600, abs=2)


def test_a_lease_that_cannot_be_longer_is_replaced_before_its_end(
    service: SdkWorld, clock: Time
) -> None:
    service.world.policy.bounds = LeaseBounds(HOUR, HOUR)
    held = Opened(service)
    first = held.model.lease.name
    clock.advance(timedelta(minutes=50))
    held.tend()
    assert held.kinds == []
    clock.advance(timedelta(minutes=5))
    held.tend()
    assert held.kinds == ["replaced"]
    assert held.model.lease.name != first
    clock.advance(timedelta(minutes=10))
    assert held.model.read() == CONTENT


def test_a_machine_that_slept_through_its_lease_gets_a_new_one(
    service: SdkWorld, clock: Time
) -> None:
    held = Opened(service)
    clock.advance(3 * HOUR)
    with pytest.raises(LeaseExpired):
        held.model.read()
    held.tend()
    assert held.kinds == ["replaced"]
    assert held.model.read() == CONTENT


def test_f20_a_revoked_lease_ends_the_model(service: SdkWorld, clock: Time) -> None:
    held = Opened(service)
    stream = held.model.open()
    stream.read(10)
    with held.model.materialize() as folder:
        assert (folder / "model.onnx").read_bytes() == CONTENT
        service.client("security").revoke_leases(lease=held.model.lease.name)
        clock.advance(timedelta(minutes=40))
        held.tend()
        assert not folder.exists()
    assert held.kinds == ["ended"]
    assert isinstance(held.events[0].error, LeaseRevoked)
    with pytest.raises(LeaseRevoked):
        stream.read()
    assert_ended(held.model, LeaseRevoked)
    assert isinstance(held.model.ended, LeaseRevoked)
    held.model.close()


def test_a_folder_may_be_kept_until_its_block_ends(service: SdkWorld) -> None:
    held = Opened(service)
    with held.model.materialize(keep_when_ended=True) as folder:
        held.model.lease_revoked(held.model.lease.name)
        assert (folder / "model.onnx").read_bytes() == CONTENT
    assert not folder.exists()


@pytest.mark.parametrize("act", ["disable", "block", "freeze", "withdraw"])
def test_f67_whatever_ends_it_ends_the_model(service: SdkWorld, clock: Time, act: str) -> None:
    security, held = service.client("security"), Opened(service)
    match act:
        case "disable":
            security.disable("onnx@1")
        case "block":
            security.block("spiffe://test.example/reader", "why")
        case "freeze":
            security.freeze("why")
        case "withdraw":
            service.world.policy.grants.clear()
    clock.advance(timedelta(minutes=40))
    held.tend()
    assert held.kinds == ["ended"]
    assert_ended(held.model, LeaseRevoked)


def test_renewing_by_hand_what_was_revoked_ends_the_model_too(service: SdkWorld) -> None:
    held = Opened(service)
    service.client("security").revoke_leases(lease=held.model.lease.name)
    with pytest.raises(LeaseRevoked):
        held.model.renew()
    assert_ended(held.model, LeaseRevoked)


def test_a_lease_that_cannot_be_had_anew_ends_the_model(service: SdkWorld, clock: Time) -> None:
    service.world.policy.bounds = LeaseBounds(HOUR, HOUR, one_time=True)
    held = Opened(service)
    clock.advance(timedelta(minutes=55))
    held.tend()
    assert held.kinds == ["ended"]
    assert "LEASE_USED_UP" in str(held.events[0].error)
    assert_ended(held.model, LeaseExpired)


# --- while the service is away -------------------------------------------------------------------


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """`away(True)`: the service cannot be reached; `away(False)`: it is back."""
    renew, lease_key = catalogue.renew_lease, leasing.lease_key

    def fail(*_: object) -> None:
        raise ServiceUnavailable("nothing listens")

    def set_away(is_away: bool) -> None:
        monkeypatch.setattr(catalogue, "renew_lease", fail if is_away else renew)
        monkeypatch.setattr(renewal, "lease_key", fail if is_away else lease_key)

    return set_away


def test_f42_while_the_service_is_away_what_is_open_stays_open(
    service: SdkWorld, clock: Time, away: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    bounds = replace(service.world.policy.bounds, max_offline=timedelta(hours=8))
    service.world.policy.bounds = bounds
    held = Opened(service)
    stream = held.model.open()
    with held.model.materialize() as folder:
        away(True)
        clock.advance(timedelta(minutes=40))
        held.tend()
        held.tend()
        # Told once, with until when: eight hours from when the service was last heard of.
        (offline,) = held.events
        assert offline.kind == "offline"
        assert isinstance(offline.error, ServiceUnavailable)
        assert offline.until is not None
        left = offline.until - datetime.now(UTC)
        assert timedelta(hours=7, minutes=19) < left <= timedelta(hours=7, minutes=21)
        assert f"stays open until {offline.until.isoformat(timespec='seconds')}" in caplog.text
        assert held.model.read() == CONTENT  # its hour is not over

        clock.advance(HOUR)
        held.tend()
        with pytest.raises(LeaseExpired):
            held.model.read()  # nothing new
        assert stream.read(100) == CONTENT[:100]
        assert (folder / "model.onnx").read_bytes() == CONTENT

        clock.advance(timedelta(hours=6, minutes=19))
        held.tend()
        assert folder.exists()
        clock.advance(timedelta(minutes=2))
        held.tend()
        assert not folder.exists()
    assert held.kinds == ["offline", "ended"]
    assert_ended(held.model, LeaseExpired)


@pytest.mark.parametrize("for_", [timedelta(minutes=5), 5 * HOUR])
def test_f42_back_in_time_all_goes_on(
    service: SdkWorld, clock: Time, away: Callable[[bool], None], for_: timedelta
) -> None:
    held = Opened(service)
    away(True)
    clock.advance(timedelta(minutes=40))
    held.tend()
    clock.advance(for_)
    away(False)
    held.tend()
    assert held.kinds == ["offline", "online"]
    assert held.model.read() == CONTENT


def test_retries_are_spread_and_bounded(
    service: SdkWorld, clock: Time, away: Callable[[bool], None]
) -> None:
    held = Opened(service)
    away(True)
    clock.advance(timedelta(minutes=40))
    pauses = []
    for _ in range(8):
        held.tend()
        due_s = held.model.lease_due_s()
        assert due_s is not None
        pauses.append(due_s - now_s())
    assert 2.5 <= pauses[0] <= 5
    assert all(pause <= 60 for pause in pauses)
    assert pauses[-1] >= 30


# --- the keeper ----------------------------------------------------------------------------------


def test_renewals_need_nobody_to_ask(service: SdkWorld) -> None:
    """In real time: leases of two seconds, renewed in the background, then revoked."""
    service.world.policy.bounds = LeaseBounds(timedelta(seconds=2), HOUR)
    held = Opened(service)
    _until(service, lambda: held.model.lease.renewals >= 2)
    service.client("security").revoke_leases(lease=held.model.lease.name)
    _until(service, lambda: held.model.ended is not None)
    assert_ended(held.model, LeaseRevoked)


def test_a_model_that_nobody_holds_is_not_kept(service: SdkWorld) -> None:
    client = service.client("reader")
    model, other = client.open("onnx"), client.open("onnx")
    names = {model.lease.name, other.lease.name}
    assert set(client._session.keeper.leases()) == names
    model.close()
    names.remove(model.lease.name)
    assert set(client._session.keeper.leases()) == names
    other._copy.close()  # its file would be warned of
    del other
    gc.collect()
    assert client._session.keeper.leases() == {}


def test_a_closed_client_keeps_nothing(service: SdkWorld) -> None:
    client = service.client("reader")
    model = service.clients.enter_context(client.open("onnx"))
    client.close()
    assert client._session.keeper.leases() == {}
    assert model.read() == CONTENT  # until its lease is over
    assert not [thread for thread in threading.enumerate() if thread.name == "modelkms-leases"] or (
        _gone("modelkms-leases")
    )


def test_a_callback_that_fails_harms_nothing(service: SdkWorld, clock: Time) -> None:
    def fail(_event: LeaseEvent) -> None:
        raise RuntimeError("the application's")

    model = service.client("reader").open("onnx", on_lease_event=fail)
    service.clients.callback(model.close)
    clock.advance(timedelta(minutes=40))
    model.tend_lease()
    assert model.lease.renewals == 1
    assert model.read() == CONTENT


def test_a_callback_may_close_the_model(service: SdkWorld) -> None:
    closed = threading.Event()

    def close(event: LeaseEvent) -> None:
        if event.kind == "ended":
            model.close()
            closed.set()

    model = service.client("reader").open("onnx", on_lease_event=close)
    service.clients.callback(model.close)
    model.lease_revoked(model.lease.name)
    assert closed.is_set()


def _until(service: SdkWorld, condition: Callable[[], bool]) -> None:
    """The service's clock follows the real one meanwhile."""
    last = time.monotonic()
    deadline = last + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
        now = time.monotonic()
        service.world.clock.advance(timedelta(seconds=now - last))
        last = now


def _gone(thread_name: str) -> bool:
    for thread in threading.enumerate():
        if thread.name == thread_name:
            thread.join(30)
    return all(thread.name != thread_name for thread in threading.enumerate())
