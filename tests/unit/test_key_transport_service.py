"""HPKE key transport of the service: what it refuses, and that an opener written from the
specification alone opens what it makes."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from modelkms_api import key_transport as layout

from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.domain.errors import RecipientKeyInvalid
from kms_service.domain.ports import ClientKey, EncryptedDataKey, KeyAnswerBinding
from kms_service.domain.secret import SecretBytes
from tests.support import key_transport_opener as opener

VECTORS = Path(__file__).parents[1] / "vectors" / "key-transport-v1.json"
PRINCIPAL = "spiffe://demo.example/reader"
BINDING = KeyAnswerBinding("lease", "projects/p/leases/x", "ab" * 16, b"pin", timedelta(hours=1))
P = 2**255 - 19


def _pair(suite: int) -> opener.PrivateKey:
    return opener.PrivateKey.from_seed(suite, os.urandom(32))


def _offer(suite: int, public_key: bytes | None = None, nonce_bytes: int = 32) -> ClientKey:
    key = _pair(suite).public_bytes if public_key is None else public_key
    return ClientKey(suite, key, os.urandom(nonce_bytes))


# --- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("nonce_bytes", [16, 17, 31, 32])
def test_takes_nonces_of_16_to_32_bytes(suite: int, nonce_bytes: int) -> None:
    HpkeKeyTransport().check(_offer(suite, nonce_bytes=nonce_bytes))


@pytest.mark.parametrize("nonce_bytes", [0, 1, 15, 33, 64])
def test_f25_refuses_other_nonces(nonce_bytes: int) -> None:
    with pytest.raises(RecipientKeyInvalid):
        HpkeKeyTransport().check(_offer(1, nonce_bytes=nonce_bytes))


@pytest.mark.parametrize("suite", [-1, 0, 3, 0x647A, 2**31 - 1])
def test_f25_refuses_unknown_suites(suite: int) -> None:
    with pytest.raises(RecipientKeyInvalid):
        HpkeKeyTransport().check(_offer(suite, _pair(1).public_bytes))


@pytest.mark.parametrize("suite", [1, 2])
@pytest.mark.parametrize("change", [-1216, -33, -32, -1, 1, 32])
def test_f25_refuses_other_lengths(suite: int, change: int) -> None:
    whole = _pair(suite).public_bytes
    wrong = whole + bytes(change) if change > 0 else whole[:change]
    with pytest.raises(RecipientKeyInvalid):
        HpkeKeyTransport().check(_offer(suite, wrong))


def test_f25_refuses_the_other_suites_key() -> None:
    for suite, other in ((1, 2), (2, 1)):
        with pytest.raises(RecipientKeyInvalid):
            HpkeKeyTransport().check(_offer(suite, _pair(other).public_bytes))


def _low_order_encodings() -> Iterator[bytes]:
    """Each point of small order in each of its encodings of 255 bits, with and without the bit
    that RFC 7748 ignores."""
    for u in (
        0,
        1,
        P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        P,
        P + 1,
    ):
        for highest_bit in (0, 1 << 255):
            yield (u | highest_bit).to_bytes(32, "little")


@pytest.mark.parametrize("point", list(_low_order_encodings()), ids=lambda point: point.hex()[:16])
def test_f25_refuses_low_order_points(point: bytes) -> None:
    # The library agrees that they are: no exchange with them gives a secret.
    with pytest.raises(ValueError, match="shared key"):
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(point))

    with pytest.raises(RecipientKeyInvalid):
        HpkeKeyTransport().check(_offer(2, point))
    with pytest.raises(RecipientKeyInvalid):
        HpkeKeyTransport().check(_offer(1, _pair(1).public_bytes[:-32] + point))


def test_f25_refuses_an_encapsulation_key_that_fails_the_modulus_check() -> None:
    # FIPS 203 §7.2: each of the 768 12-bit coefficients must be below q = 3329.
    outside = b"\xff" * 1152 + os.urandom(32)
    with pytest.raises(RecipientKeyInvalid):
        HpkeKeyTransport().check(_offer(1, outside + _pair(2).public_bytes))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), st.binary(max_size=1300), st.binary(max_size=40))
def test_f25_any_bytes_are_refused_or_answered(
    suite: int, public_key: bytes, request_nonce: bytes
) -> None:
    offer = ClientKey(suite, public_key, request_nonce)
    transport = HpkeKeyTransport()
    try:
        transport.check(offer)
    except RecipientKeyInvalid:
        with pytest.raises(RecipientKeyInvalid):
            transport.encrypt(SecretBytes(bytes(32)), PRINCIPAL, offer, BINDING)
    else:
        transport.encrypt(SecretBytes(bytes(32)), PRINCIPAL, offer, BINDING)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_encrypts_data_keys_of_32_bytes_only(length: int) -> None:
    with pytest.raises(ValueError, match=r"^a data key has 32 bytes$"):
        HpkeKeyTransport().encrypt(SecretBytes(bytes(length)), PRINCIPAL, _offer(2), BINDING)


def test_binds_durations_of_whole_milliseconds_only() -> None:
    binding = KeyAnswerBinding("lease", "", "", b"", timedelta(microseconds=1500))
    with pytest.raises(ValueError, match=r"^a lease lasts whole milliseconds$"):
        HpkeKeyTransport().encrypt(SecretBytes(bytes(32)), PRINCIPAL, _offer(2), binding)


# --- what it makes -----------------------------------------------------------------------------


def _encrypt(suite: int, key: opener.PrivateKey, data_key: bytes) -> tuple[bytes, EncryptedDataKey]:
    nonce = os.urandom(32)
    return nonce, HpkeKeyTransport().encrypt(
        SecretBytes(data_key), PRINCIPAL, ClientKey(suite, key.public_bytes, nonce), BINDING
    )


@pytest.mark.parametrize(("suite", "encrypted_secret_bytes"), [(1, 1168), (2, 80)])
def test_an_answer_opens_to_the_data_key(suite: int, encrypted_secret_bytes: int) -> None:
    key, data_key = _pair(suite), os.urandom(32)
    nonce, answer = _encrypt(suite, key, data_key)

    assert answer.suite == suite
    lengths = {
        "session_id": len(answer.session_id),
        "encrypted_secret": len(answer.encrypted_secret),
        "nonce": len(answer.nonce),
        "ciphertext": len(answer.ciphertext),
    }
    assert lengths == {
        "session_id": 16,
        "encrypted_secret": encrypted_secret_bytes,
        "nonce": 12,
        "ciphertext": 48,
    }
    info = opener.info(suite, PRINCIPAL, key.public_bytes, answer.session_id)
    secret = key.open_secret(answer.encrypted_secret, info)
    aad = opener.aad("lease", nonce, "projects/p/leases/x", "ab" * 16, b"pin", 3_600_000)
    assert opener.open_data_key(secret, answer.nonce, answer.ciphertext, aad) == data_key


def test_nothing_of_an_answer_comes_twice() -> None:
    key, data_key = _pair(2), os.urandom(32)
    answers = [_encrypt(2, key, data_key)[1] for _ in range(20)]

    for field in ("session_id", "encrypted_secret", "nonce", "ciphertext"):
        assert len({getattr(answer, field) for answer in answers}) == 20
    assert all(data_key not in repr(answer).encode() for answer in answers)


def test_another_key_does_not_open_it() -> None:
    key, other = _pair(1), _pair(1)
    _, answer = _encrypt(1, key, os.urandom(32))
    info = opener.info(1, PRINCIPAL, key.public_bytes, answer.session_id)
    with pytest.raises(InvalidTag):
        other.open_secret(answer.encrypted_secret, info)


# --- the vectors -------------------------------------------------------------------------------

_DOCUMENT = json.loads(VECTORS.read_text())["vectors"]


@pytest.mark.parametrize("vector", _DOCUMENT, ids=lambda vector: vector["name"])
def test_the_vectors_open(vector: dict[str, Any]) -> None:
    assert _open(vector) == bytes.fromhex(vector["data_key"])


@pytest.mark.parametrize("vector", _DOCUMENT, ids=lambda vector: vector["name"])
def test_the_shared_layouts_give_the_vectors_bytes(vector: dict[str, Any]) -> None:
    client_key, binding = vector["client_key"], vector["binding"]
    info = layout.hpke_info(
        suite=vector["suite"],
        principal=vector["principal"],
        client_public_key=bytes.fromhex(client_key["public_key"]),
        session_id=bytes.fromhex(vector["answer"]["session_id"]),
    )
    pin = binding["pin"]
    aad = layout.answer_aad(
        purpose=binding["purpose"],
        request_nonce=bytes.fromhex(client_key["request_nonce"]),
        lease=binding["lease"],
        version_uid=binding["version_uid"],
        pin=layout.pin_bytes(
            length_bytes=pin["length_bytes"],
            floe_header_tag=bytes.fromhex(pin["floe_header_tag"]),
            digest=bytes.fromhex(pin["digest"]),
        )
        if pin
        else b"",
        lease_duration_ms=binding["lease_duration_ms"],
    )
    assert (info.hex(), aad.hex()) == (vector["info"], vector["aad"])


@pytest.mark.parametrize("vector", _DOCUMENT, ids=lambda vector: vector["name"])
def test_a_vector_with_one_thing_changed_does_not_open(vector: dict[str, Any]) -> None:
    for change in vector["invalid"]:
        changed = copy.deepcopy(vector)
        *path, last = change["field"].split(".")
        at = changed
        for step in path:
            at = at[step]
        assert at[last] != change["value"], change["field"]
        at[last] = change["value"]
        with pytest.raises((InvalidTag, ValueError)):
            _open(changed)


def _open(vector: dict[str, Any]) -> bytes:
    """As a client does: from its private key and what it knows, not from `info` and `aad`."""
    suite, answer, binding = vector["suite"], vector["answer"], vector["binding"]
    seed = vector["private_key"]["seed" if suite == 1 else "x25519"]
    key = opener.PrivateKey.from_seed(suite, bytes.fromhex(seed))
    assert key.public_bytes.hex() == vector["client_key"]["public_key"]
    pin = binding["pin"]
    info = opener.info(
        suite, vector["principal"], key.public_bytes, bytes.fromhex(answer["session_id"])
    )
    secret = key.open_secret(bytes.fromhex(answer["encrypted_secret"]), info)
    assert secret.hex() == vector["session_secret"]
    aad = opener.aad(
        binding["purpose"],
        bytes.fromhex(vector["client_key"]["request_nonce"]),
        binding["lease"],
        binding["version_uid"],
        opener.pin(
            pin["length_bytes"],
            bytes.fromhex(pin["floe_header_tag"]),
            bytes.fromhex(pin["digest"]),
        )
        if pin
        else b"",
        binding["lease_duration_ms"],
    )
    return opener.open_data_key(
        secret, bytes.fromhex(answer["nonce"]), bytes.fromhex(answer["ciphertext"]), aad
    )
