"""The SDK's end of key transport against the service's: they meet in the bytes only."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from modelkms.errors import KeyAnswerInvalid
from modelkms.key_transport import Binding, KeyOffer, KeyTransport
from modelkms_api.key_transport import pin_bytes
from modelkms_api.v1.key_transport_pb2 import EncryptedDataKey, TransportSession

from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.domain import ports
from kms_service.domain.secret import SecretBytes

PRINCIPAL = "spiffe://demo.example/reader"
LEASE = "projects/demo/leases/" + "0" * 32
UID = "1" * 32
PIN = pin_bytes(length_bytes=2**40, floe_header_tag=bytes(32), digest=bytes(32))


def _answer(
    offer: KeyOffer, data_key: bytes, *, duration: timedelta = timedelta(hours=1)
) -> EncryptedDataKey:
    asked = offer.message
    made = HpkeKeyTransport().encrypt(
        SecretBytes(data_key),
        PRINCIPAL,
        ports.ClientKey(asked.suite, asked.public_key, asked.request_nonce),
        ports.KeyAnswerBinding("lease", LEASE, UID, PIN, duration),
    )
    session = TransportSession(
        suite=asked.suite, session_id=made.session_id, encrypted_secret=made.encrypted_secret
    )
    return EncryptedDataKey(session=session, nonce=made.nonce, ciphertext=made.ciphertext)


def _binding(**changes: str) -> Binding:
    given = {"principal": PRINCIPAL, "version_uid": UID, "lease": LEASE, **changes}
    return Binding(purpose="lease", pin=PIN, lease_duration=Duration(seconds=3600), **given)


@pytest.mark.parametrize("hybrid", [True, False])
def test_the_client_opens_what_the_service_made_for_it(hybrid: bool) -> None:
    transport, data_key = KeyTransport(hybrid=hybrid), os.urandom(32)
    offer = transport.offer()
    assert offer.open(_answer(offer, data_key), _binding()).reveal() == data_key


@pytest.mark.parametrize("milliseconds", [0, 1, 999, 1000, 86_400_001])
def test_durations_mean_the_same_on_both_sides(milliseconds: int) -> None:
    offer, duration = KeyTransport().offer(), timedelta(milliseconds=milliseconds)
    told = Duration()
    told.FromTimedelta(duration)
    binding = Binding("lease", PRINCIPAL, UID, LEASE, PIN, told)
    answer = _answer(offer, bytes(32), duration=duration)
    assert offer.open(answer, binding).reveal() == bytes(32)


@pytest.mark.parametrize(
    "changed",
    [
        {"principal": "spiffe://demo.example/stranger"},
        {"version_uid": "2" * 32},
        {"lease": LEASE[:-1] + "1"},
    ],
)
def test_an_answer_bound_to_something_else_is_refused(changed: dict[str, str]) -> None:
    offer = KeyTransport().offer()
    with pytest.raises(KeyAnswerInvalid):
        offer.open(_answer(offer, bytes(32)), _binding(**changed))


def test_an_answer_to_another_offer_of_the_same_pair_is_refused() -> None:
    transport = KeyTransport()
    one, other = transport.offer(), transport.offer()
    with pytest.raises(KeyAnswerInvalid):
        other.open(_answer(one, bytes(32)), _binding())
