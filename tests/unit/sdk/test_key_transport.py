"""F69 against the service's own encryption, and against everything that may come instead."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from modelkms.errors import KeyAnswerInvalid
from modelkms.key_transport import KEY_LIFETIME_S, Binding, KeyOffer, KeyTransport
from modelkms_api.v1 import key_transport_pb2

from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.domain import ports
from kms_service.domain.secret import SecretBytes

DATA_KEY = bytes(range(32))
PRINCIPAL = "spiffe://test.example/reader"
HOUR = Duration(seconds=3600)
BINDING = Binding("lease", PRINCIPAL, "0" * 32, "projects/p/leases/" + "1" * 32, b"pin", HOUR)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def answer(offer: KeyOffer, binding: Binding = BINDING) -> key_transport_pb2.EncryptedDataKey:
    """What the service answers."""
    message = offer.message
    duration = binding.lease_duration.ToTimedelta() if binding.lease_duration else timedelta()
    made = HpkeKeyTransport().encrypt(
        SecretBytes(DATA_KEY),
        binding.principal,
        ports.ClientKey(message.suite, message.public_key, message.request_nonce),
        ports.KeyAnswerBinding(
            binding.purpose, binding.lease, binding.version_uid, binding.pin, duration
        ),
    )
    return key_transport_pb2.EncryptedDataKey(
        session=key_transport_pb2.TransportSession(
            suite=message.suite,
            session_id=made.session_id,
            encrypted_secret=made.encrypted_secret,
        ),
        nonce=made.nonce,
        ciphertext=made.ciphertext,
    )


@pytest.mark.parametrize("hybrid", [True, False, None])
def test_the_services_answer_opens(hybrid: bool | None) -> None:
    offer = KeyTransport(hybrid=hybrid).offer()
    assert len(offer.message.public_key) == (32 if hybrid is False else 1216)
    assert offer.open(answer(offer), BINDING).reveal() == DATA_KEY


def test_offers_share_a_pair_but_never_a_nonce() -> None:
    keys = KeyTransport()
    first, second = keys.offer().message, keys.offer().message
    assert first.public_key == second.public_key
    assert first.request_nonce != second.request_nonce


@pytest.mark.parametrize("hybrid", [True, False])
def test_f69_any_flipped_bit_is_key_answer_invalid(hybrid: bool) -> None:
    keys = KeyTransport(hybrid=hybrid)
    length = len(answer(keys.offer()).SerializeToString())
    for at in range(0, length, 7 if hybrid else 1):  # a spread of the long form
        offer = keys.offer()
        sent = answer(offer)
        data = bytearray(sent.SerializeToString())
        data[at] ^= 1 << (at % 8)
        try:
            changed = key_transport_pb2.EncryptedDataKey.FromString(bytes(data))
        except DecodeError:
            continue  # gRPC itself refuses it
        if changed != sent:
            with pytest.raises(KeyAnswerInvalid):
                offer.open(changed, BINDING)


@pytest.mark.parametrize(
    "other",
    [
        replace(BINDING, purpose="publish"),
        replace(BINDING, principal=PRINCIPAL + "2"),
        replace(BINDING, version_uid="2" * 32),
        replace(BINDING, lease="projects/p/leases/" + "2" * 32),
        replace(BINDING, pin=b"pim"),
        replace(BINDING, pin=b""),
        replace(BINDING, lease_duration=Duration(seconds=7200)),
        replace(BINDING, lease_duration=Duration(seconds=3600, nanos=1_000_000)),
        replace(BINDING, lease_duration=Duration(seconds=3600, nanos=1)),
        replace(BINDING, lease_duration=Duration(seconds=-1)),
        replace(BINDING, lease_duration=None),
    ],
)
def test_f69_whatever_else_was_bound_is_key_answer_invalid(other: Binding) -> None:
    offer = KeyTransport().offer()
    with pytest.raises(KeyAnswerInvalid):
        offer.open(answer(offer), other)


def test_f69_an_answer_to_another_request_is_invalid() -> None:
    keys = KeyTransport()
    recorded = answer(keys.offer())
    with pytest.raises(KeyAnswerInvalid):
        keys.offer().open(recorded, BINDING)


def test_f69_an_answer_to_another_client_is_invalid() -> None:
    recorded = answer(KeyTransport().offer())
    with pytest.raises(KeyAnswerInvalid):
        KeyTransport().offer().open(recorded, BINDING)


def test_f69_a_replayed_answer_is_invalid() -> None:
    offer = KeyTransport().offer()
    recorded = answer(offer)
    offer.open(recorded, BINDING)
    with pytest.raises(KeyAnswerInvalid, match="before"):
        offer.open(recorded, BINDING)


def test_f69_an_answer_of_the_other_suite_is_invalid() -> None:
    offer, other = KeyTransport(hybrid=True).offer(), KeyTransport(hybrid=False).offer()
    with pytest.raises(KeyAnswerInvalid, match="suite"):
        offer.open(answer(other), BINDING)


def test_f69_an_answer_past_its_end_is_invalid_and_pairs_are_renewed() -> None:
    clock = Clock()
    keys = KeyTransport(clock)
    offer = keys.offer()
    recorded = answer(offer)
    clock.now = KEY_LIFETIME_S
    assert keys.offer().message.public_key != offer.message.public_key
    clock.now = 2 * KEY_LIFETIME_S
    with pytest.raises(KeyAnswerInvalid, match="end"):
        offer.open(recorded, BINDING)


def test_a_forked_child_makes_a_pair_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = KeyTransport()
    mine = keys.offer().message.public_key
    child = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: child)
    assert keys.offer().message.public_key != mine


@settings(max_examples=100)
@given(
    st.binary(max_size=40),
    st.binary(max_size=1300),
    st.binary(max_size=20),
    st.binary(max_size=70),
    st.integers(0, 3),
)
def test_f69_arbitrary_answers_are_invalid_and_nothing_else(
    session_id: bytes, secret: bytes, nonce: bytes, ciphertext: bytes, suite: int
) -> None:
    message = key_transport_pb2.EncryptedDataKey(
        session=key_transport_pb2.TransportSession(session_id=session_id, encrypted_secret=secret),
        nonce=nonce,
        ciphertext=ciphertext,
    )
    message.session.suite = suite  # type: ignore[assignment]  # also numbers that are no suite
    with pytest.raises(KeyAnswerInvalid):
        KeyTransport(hybrid=False).offer().open(message, BINDING)


def test_the_data_key_is_in_no_repr() -> None:
    offer = KeyTransport().offer()
    key = offer.open(answer(offer), BINDING)
    assert DATA_KEY.hex() not in repr(key)
    assert "private" not in repr(offer._pair)
    key.wipe()
    assert key.reveal() == bytes(32)
    with pytest.raises(TypeError):
        _ = key == key
