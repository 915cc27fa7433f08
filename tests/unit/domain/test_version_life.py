"""PENDING → ENABLED ⇄ DISABLED, PENDING → DESTROYED: each state against each event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

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
from kms_service.domain.errors import (
    ServiceError,
    VersionDestroyed,
    VersionDestroyScheduled,
    VersionDisabled,
    VersionNotFinalized,
    VersionNotPending,
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


def _in(state: VersionState) -> Version:
    finalized = state is not S.PENDING
    return replace(PENDING, state=state, pin=PIN if finalized else None)


EVENTS: dict[str, Callable[[Version], Version]] = {
    "finalize": lambda version: version.finalize(PIN, NOW),
    "expire": lambda version: version.expire(),
    "enable": lambda version: version.enable(),
    "disable": lambda version: version.disable(),
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
}


def test_the_table_is_whole() -> None:
    assert set(TABLE) == {(event, state) for event in EVENTS for state in S}


@pytest.mark.parametrize(("event", "state"), TABLE, ids=lambda part: str(part))
def test_each_event_in_each_state(event: str, state: VersionState) -> None:
    before, expected = _in(state), TABLE[event, state]
    if isinstance(expected, VersionState):
        after = EVENTS[event](before)
        assert after.state is expected
        assert after.revision == before.revision + (after.state is not before.state)
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
