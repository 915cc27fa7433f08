"""PENDING → ENABLED ⇄ DISABLED → DESTROY_SCHEDULED → DESTROYED: each state against each event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_service.domain.catalogue import (
    NO_DATA_KEY,
    ArtifactPin,
    Version,
    VersionState,
    WrappedDataKey,
)
from kms_service.domain.destruction import Destruction, Moment, check_destroy_wait
from kms_service.domain.errors import (
    DestroyConfirmed,
    InvalidField,
    SecondOfficerRequired,
    ServiceError,
    VersionDestroyed,
    VersionDestroyScheduled,
    VersionDisabled,
    VersionNotFinalized,
    VersionNotPending,
    VersionNotScheduled,
)
from kms_service.domain.names import VersionName

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PIN = ArtifactPin(1, bytes(32), bytes(32))
PENDING = Version(
    name=VersionName("p", "m", 1),
    uid="0" * 32,
    state=VersionState.PENDING,
    publisher="spiffe://demo.example/publisher",
    request_id="r",
    artifact_id="1" * 32,
    wrapped_key=WrappedDataKey("vault:v1:abc", 1),
    create_time=NOW,
)
S = VersionState


DAY = timedelta(days=1)
START = Moment(NOW, timedelta(0))
DUE = START + 30 * DAY
SCHEDULED = Destruction("officer-1", DUE, delete_artifact=False)
CONFIRMED = replace(SCHEDULED, confirmed_by="officer-2")


def _in(state: VersionState) -> Version:
    finalized = state is not S.PENDING
    ending = state in (S.DESTROY_SCHEDULED, S.DESTROYED)
    return replace(
        PENDING,
        state=state,
        pin=PIN if finalized else None,
        destruction=CONFIRMED if ending else None,
    )


EVENTS: dict[str, Callable[[Version], Version]] = {
    "finalize": lambda version: version.finalize(PIN, NOW),
    "expire": lambda version: version.expire(),
    "enable": lambda version: version.enable(),
    "disable": lambda version: version.disable(),
    "schedule": lambda version: version.schedule_destroy(SCHEDULED),
    "confirm": lambda version: version.confirm_destroy("officer-2"),
    "restore": lambda version: version.restore(START),
    "restore late": lambda version: version.restore(DUE),
    "shred": lambda version: version.shred(DUE),
    "shred early": lambda version: version.shred(START),
}

TABLE: dict[tuple[str, VersionState], VersionState | type[ServiceError]] = {
    ("finalize", S.PENDING): S.ENABLED,
    ("finalize", S.ENABLED): VersionNotPending,
    ("finalize", S.DISABLED): VersionNotPending,
    ("finalize", S.DESTROY_SCHEDULED): VersionNotPending,
    ("finalize", S.DESTROYED): VersionDestroyed,
    ("expire", S.PENDING): S.DESTROYED,
    ("expire", S.ENABLED): VersionNotPending,
    ("expire", S.DISABLED): VersionNotPending,
    ("expire", S.DESTROY_SCHEDULED): VersionNotPending,
    ("expire", S.DESTROYED): VersionDestroyed,
    ("enable", S.PENDING): VersionNotFinalized,
    ("enable", S.ENABLED): S.ENABLED,
    ("enable", S.DISABLED): S.ENABLED,
    ("enable", S.DESTROY_SCHEDULED): VersionDestroyScheduled,
    ("enable", S.DESTROYED): VersionDestroyed,
    ("disable", S.PENDING): VersionNotFinalized,
    ("disable", S.ENABLED): S.DISABLED,
    ("disable", S.DISABLED): S.DISABLED,
    ("disable", S.DESTROY_SCHEDULED): VersionDestroyScheduled,
    ("disable", S.DESTROYED): VersionDestroyed,
    ("schedule", S.PENDING): VersionNotFinalized,
    ("schedule", S.ENABLED): S.DESTROY_SCHEDULED,
    ("schedule", S.DISABLED): S.DESTROY_SCHEDULED,
    ("schedule", S.DESTROY_SCHEDULED): VersionDestroyScheduled,
    ("schedule", S.DESTROYED): VersionDestroyed,
    **{
        (event, state): VersionNotScheduled
        for event in ("confirm", "restore", "restore late", "shred", "shred early")
        for state in (S.PENDING, S.ENABLED, S.DISABLED)
    },
    **{
        (event, S.DESTROYED): VersionDestroyed
        for event in ("confirm", "restore", "restore late", "shred", "shred early")
    },
    ("confirm", S.DESTROY_SCHEDULED): S.DESTROY_SCHEDULED,
    ("restore", S.DESTROY_SCHEDULED): S.DISABLED,
    ("restore late", S.DESTROY_SCHEDULED): VersionDestroyed,
    ("shred", S.DESTROY_SCHEDULED): S.DESTROYED,
    ("shred early", S.DESTROY_SCHEDULED): VersionDestroyScheduled,
}


def test_the_table_is_whole() -> None:
    assert set(TABLE) == {(event, state) for event in EVENTS for state in S}


@pytest.mark.parametrize(("event", "state"), TABLE, ids=lambda part: str(part))
def test_each_event_in_each_state(event: str, state: VersionState) -> None:
    before, expected = _in(state), TABLE[event, state]
    if isinstance(expected, VersionState):
        after = EVENTS[event](before)
        assert after.state is expected
        changed = after != replace(before, revision=after.revision)
        assert after.revision == before.revision + changed
    else:
        with pytest.raises(expected) as caught:
            EVENTS[event](before)
        assert type(caught.value) is expected


def test_finalizing_records_pin_and_time() -> None:
    after = PENDING.finalize(PIN, NOW)
    assert (after.pin, after.finalize_time) == (PIN, NOW)
    assert after.require_openable() == PIN


def test_expiring_takes_the_data_key_along() -> None:
    after = PENDING.expire()
    assert after.wrapped_key == NO_DATA_KEY
    assert after.pin is None


# --- destruction ----------------------------------------------------------------------------------


def test_two_officers() -> None:
    scheduled = _in(S.ENABLED).schedule_destroy(SCHEDULED)
    with pytest.raises(SecondOfficerRequired):
        scheduled.confirm_destroy("officer-1")
    confirmed = scheduled.confirm_destroy("officer-2")
    assert confirmed.revision == scheduled.revision + 1
    assert confirmed.confirm_destroy("officer-2") == confirmed
    with pytest.raises(DestroyConfirmed):
        confirmed.confirm_destroy("officer-3")


def test_nothing_is_destroyed_without_the_second() -> None:
    scheduled = _in(S.ENABLED).schedule_destroy(SCHEDULED)
    much_later = DUE + 1000 * DAY
    with pytest.raises(VersionDestroyScheduled):
        scheduled.shred(much_later)
    assert scheduled.restore(much_later).state is S.DISABLED


@pytest.mark.parametrize(
    "moment",
    [
        Moment(DUE.time, DUE.served - timedelta(microseconds=1)),
        Moment(DUE.time - timedelta(microseconds=1), DUE.served),
        Moment(DUE.time + 1000 * DAY, timedelta(0)),
    ],
    ids=["not served long enough", "not late enough", "clock set forward"],
)
def test_f21_f60_both_measures_of_time_must_have_come_to_it(moment: Moment) -> None:
    version = _in(S.DESTROY_SCHEDULED)
    with pytest.raises(VersionDestroyScheduled):
        version.shred(moment)
    assert version.restore(moment).state is S.DISABLED


def test_shredding_takes_the_data_key_along_and_remembers_who_decided() -> None:
    after = _in(S.DESTROY_SCHEDULED).shred(DUE)
    assert after.wrapped_key == NO_DATA_KEY
    assert after.destruction == replace(CONFIRMED, destroy_time=DUE.time)


def test_restoring_forgets_the_confirmation() -> None:
    restored = _in(S.DESTROY_SCHEDULED).restore(START)
    assert restored.destruction is None
    again = restored.schedule_destroy(SCHEDULED)
    with pytest.raises(VersionDestroyScheduled):
        again.shred(DUE)


@pytest.mark.parametrize(
    ("asked", "wait"), [(None, 30 * DAY), (DAY, DAY), (366 * DAY, 366 * DAY)], ids=str
)
def test_waits(asked: timedelta | None, wait: timedelta) -> None:
    assert check_destroy_wait(asked) == wait


@pytest.mark.parametrize(
    "asked", [timedelta(0), DAY - timedelta(microseconds=1), -DAY, 366 * DAY + DAY], ids=str
)
def test_no_wait_under_a_day(asked: timedelta) -> None:
    with pytest.raises(InvalidField):
        check_destroy_wait(asked)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (S.PENDING, VersionNotFinalized),
        (S.DISABLED, VersionDisabled),
        (S.DESTROY_SCHEDULED, VersionDestroyScheduled),
        (S.DESTROYED, VersionDestroyed),
    ],
)
def test_only_enabled_versions_open(state: VersionState, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        _in(state).require_openable()


def test_an_enabled_version_without_a_pin_does_not_open() -> None:
    with pytest.raises(VersionNotFinalized):
        replace(PENDING, state=S.ENABLED).require_openable()


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12))
def test_whatever_happens_open_means_pinned_and_destroyed_means_keyless(events: list[str]) -> None:
    version = PENDING
    for event in events:
        try:
            version = EVENTS[event](version)
        except ServiceError:
            continue
        assert (version.state is S.ENABLED) <= (version.pin == PIN)
        assert (version.state is S.DESTROYED) == (version.wrapped_key == NO_DATA_KEY)
        assert version.uid == PENDING.uid
