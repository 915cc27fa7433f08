"""F23, F25: what a request may hold. Errors name the field and never echo the value."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from modelkms_api.v1 import key_transport_pb2, resources_pb2

from kms_service.domain.catalogue import (
    Alias,
    ArtifactPin,
    Version,
    VersionState,
    WrappedDataKey,
)
from kms_service.domain.errors import InvalidField, RecipientKeyInvalid
from kms_service.domain.leases import Lease, LeaseState
from kms_service.domain.names import AliasName, LeaseName, VersionName
from kms_service.domain.ports import ClientKey
from kms_service.rpc import conversion
from kms_service.usecases.answers import LeaseView, VersionView

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        "a\x00b", "a\nb", "a\rb", "a\x1b[31mb", "a\x7fb", "a\x85b",  # control
        "a\u202eb", "a\u2066b", "a\u200fb", "a\u200bb", "\ufeffa",  # bidi, zero width
        "a\u2028b", "a\u2029b", "a\ue000b", "a\U0010ffffb",  # separators, private, unassigned
        "e\u0301",  # not NFC
        "",
        "x" * 2049, "\u00e9" * 1025,  # too long in bytes
    ],
)  # fmt: skip
def test_f23_free_text_that_could_deceive(value: str) -> None:
    with pytest.raises(InvalidField) as caught:
        conversion.text(value, "principal")
    assert caught.value.field == "principal"
    if value:
        assert value not in caught.value.message


@pytest.mark.parametrize("value", ["x", "x" * 2048, "\u00e9" * 1024, "Prüfung 7 / 測試", "🙂"])
def test_free_text_that_is_fine(value: str) -> None:
    assert conversion.text(value, "field") == value


@given(st.text(max_size=40))
def test_f24_what_is_accepted_is_one_printable_line(value: str) -> None:
    try:
        accepted = conversion.text(value, "field")
    except InvalidField:
        return
    assert accepted.splitlines() == [accepted]
    assert "\x1b" not in accepted


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Duration(seconds=60), timedelta(seconds=60)),
        (Duration(nanos=1_000_000), timedelta(milliseconds=1)),
        (Duration(seconds=366 * 86400), timedelta(days=366)),
    ],
)
def test_ttl(message: Duration, expected: timedelta) -> None:
    assert conversion.ttl(message, True) == expected
    assert conversion.ttl(message, False) is None


@pytest.mark.parametrize(
    "message",
    [
        Duration(), Duration(seconds=-1), Duration(nanos=999_999),
        Duration(seconds=366 * 86400, nanos=1_000_000), Duration(seconds=2**63 - 1),
    ],
)  # fmt: skip
def test_ttl_out_of_bounds(message: Duration) -> None:
    with pytest.raises(InvalidField):
        conversion.ttl(message, True)


def test_f25_client_key() -> None:
    message = key_transport_pb2.ClientKey(
        suite=key_transport_pb2.KEY_TRANSPORT_SUITE_X25519_HKDF_SHA256_AES256GCM,
        public_key=b"key",
        request_nonce=b"nonce",
    )
    assert conversion.client_key(message, True) == ClientKey(2, b"key", b"nonce")
    with pytest.raises(RecipientKeyInvalid):
        conversion.client_key(message, False)


def test_pin() -> None:
    message = resources_pb2.ArtifactPin(
        length_bytes=1, floe_header_tag=bytes(32), digest=bytes(range(32))
    )
    assert conversion.pin_message(conversion.pin(message, True)) == message
    with pytest.raises(InvalidField, match="pin: must be given"):
        conversion.pin(message, False)


def test_every_state_has_its_enum() -> None:
    version = Version(
        name=VersionName("p", "m", 3),
        uid="0" * 32,
        state=VersionState.PENDING,
        publisher="spiffe://t/p",
        request_id="r",
        artifact_id="1" * 32,
        wrapped_key=WrappedDataKey("vault:v1:secret-wrapped", 1),
        create_time=NOW,
    )
    for state in VersionState:
        message = conversion.version_message(VersionView(replace(version, state=state), ("a", "b")))
        name = resources_pb2.VersionState.Name(message.state)
        assert name == f"VERSION_STATE_{state}"
        assert list(message.aliases) == ["a", "b"]
        assert not message.HasField("pin")
        assert not message.HasField("finalize_time")
        assert b"secret-wrapped" not in message.SerializeToString()
    pin = ArtifactPin(9, bytes(32), bytes(32))
    done = replace(version, state=VersionState.ENABLED, pin=pin, finalize_time=NOW)
    message = conversion.version_message(VersionView(done, ()))
    assert message.pin.length_bytes == 9
    assert message.finalize_time.ToDatetime(tzinfo=UTC) == NOW


def test_every_lease_state_has_its_enum() -> None:
    lease = Lease(
        name=LeaseName("p", "a" * 32),
        version=VersionName("p", "m", 1),
        version_uid="0" * 32,
        principal="spiffe://t/p",
        instance="f" * 64,
        issue_time=NOW,
        expire_time=NOW + timedelta(hours=1),
        absolute_end_time=NOW + timedelta(hours=2),
    )
    states = {conversion.lease_message(LeaseView(lease, state)).state for state in LeaseState}
    assert {resources_pb2.LeaseState.Name(state) for state in states} == {
        f"LEASE_STATE_{state}" for state in LeaseState
    }


def test_alias() -> None:
    message = conversion.alias_message(Alias(AliasName("p", "m", "stable"), 4, NOW))
    assert message.name == "projects/p/models/m/aliases/stable"
    assert message.version == "projects/p/models/m/versions/4"
