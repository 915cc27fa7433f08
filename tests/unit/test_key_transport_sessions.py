"""Sessions: one for one principal and client key, bounded in time, answers and number (KT-8)."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import pytest

from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.adapters.key_transport_sessions import LIFETIME_S, Session, SessionTable
from kms_service.domain.errors import RecipientKeyInvalid
from kms_service.domain.ports import ClientKey, EncryptedDataKey, KeyAnswerBinding
from kms_service.domain.secret import SecretBytes
from tests.support import key_transport_opener as opener

READER, STRANGER = "spiffe://demo.example/reader", "spiffe://demo.example/stranger"
BINDING = KeyAnswerBinding("lease", "projects/p/leases/x", "ab" * 16, b"pin", timedelta(hours=1))


class ManualSeconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> ManualSeconds:
    return ManualSeconds()


def _client_key(number: int) -> ClientKey:
    return ClientKey(2, number.to_bytes(32, "big"), bytes(32))


def _encrypt_secret(session_id: bytes, secret: bytearray) -> bytes:
    return session_id + secret


def _ask(table: SessionTable, number: int, principal: str = READER) -> Session:
    return table.for_one_answer(principal, _client_key(number), _encrypt_secret)


# --- which session answers -----------------------------------------------------------------------


def test_one_client_key_has_one_session(seconds: ManualSeconds) -> None:
    table = SessionTable(seconds)
    first = _ask(table, 1)
    assert _ask(table, 1) is first
    assert first.answers == 2
    assert _ask(table, 2) is not first
    assert len(table) == 2


def test_f69_another_principal_with_the_same_key_gets_a_session_of_its_own(
    seconds: ManualSeconds,
) -> None:
    table = SessionTable(seconds)
    own = _ask(table, 1)
    foreign = _ask(table, 1, STRANGER)
    assert foreign.session_id != own.session_id
    assert (foreign.principal, len(table)) == (STRANGER, 1)


def test_a_session_ends_after_ten_minutes(seconds: ManualSeconds) -> None:
    table = SessionTable(seconds)
    first = _ask(table, 1)
    seconds.now += LIFETIME_S - 0.001
    assert _ask(table, 1) is first
    seconds.now += 0.001
    assert _ask(table, 1) is not first


def test_a_session_ends_after_its_last_answer(seconds: ManualSeconds) -> None:
    table = SessionTable(seconds, max_answers=3)
    first = _ask(table, 1)
    assert [_ask(table, 1) is first for _ in range(3)] == [True, True, False]


def test_answers_are_bounded_as_specified(seconds: ManualSeconds) -> None:
    table = SessionTable(seconds)
    first = _ask(table, 1)
    first.answers = 2**20 - 1
    assert _ask(table, 1) is first
    assert _ask(table, 1) is not first


# --- how many there are --------------------------------------------------------------------------


def test_a_principal_over_its_bound_loses_its_own_oldest(seconds: ManualSeconds) -> None:
    table = SessionTable(seconds, max_of_principal=3)
    other = _ask(table, 100, STRANGER)
    sessions = [_ask(table, number) for number in range(4)]
    assert len(table) == 4
    assert _ask(table, 100, STRANGER) is other
    assert [_ask(table, number) is sessions[number] for number in (3, 2, 1)] == [True] * 3
    assert _ask(table, 0) is not sessions[0]


def test_the_table_is_bounded(seconds: ManualSeconds) -> None:
    table = SessionTable(seconds, max_sessions=5)
    for number in range(20):
        _ask(table, number, f"spiffe://demo.example/{number}")
    assert len(table) == 5
    assert set(table._of_principal) == {f"spiffe://demo.example/{n}" for n in range(15, 20)}


def test_ended_sessions_are_forgotten_without_being_asked_for(seconds: ManualSeconds) -> None:
    table = SessionTable(seconds)
    _ask(table, 1)
    seconds.now += LIFETIME_S / 2
    _ask(table, 2)
    seconds.now += LIFETIME_S / 2
    table.forget_ended()
    assert (len(table), table.knows(_client_key(1)), table.knows(_client_key(2))) == (
        1,
        False,
        True,
    )
    seconds.now += LIFETIME_S
    table.forget_ended()
    assert (len(table), table._of_principal) == (0, {})


def test_a_secret_that_cannot_be_encrypted_leaves_nothing(seconds: ManualSeconds) -> None:
    def refuse(_session_id: bytes, _secret: bytearray) -> bytes:
        raise RecipientKeyInvalid

    table = SessionTable(seconds)
    with pytest.raises(RecipientKeyInvalid):
        table.for_one_answer(READER, _client_key(1), refuse)
    assert (len(table), table._of_principal) == (0, {})


def test_the_secret_is_wiped_but_in_the_cipher(seconds: ManualSeconds) -> None:
    seen: list[bytearray] = []

    def remember(_session_id: bytes, secret: bytearray) -> bytes:
        seen.append(secret)
        return bytes(secret)

    session = SessionTable(seconds).for_one_answer(READER, _client_key(1), remember)
    assert seen == [bytearray(32)]
    ciphertext = session.cipher.encrypt(bytes(12), b"key", b"")
    assert opener.open_data_key(session.encrypted_secret, bytes(12), ciphertext, b"") == b"key"
    assert "cipher" not in repr(session)


def test_many_threads_stay_within_the_bounds(seconds: ManualSeconds) -> None:
    table = SessionTable(seconds, max_sessions=8, max_of_principal=4, max_answers=7)
    broken: list[str] = []

    def ask(worker: int) -> None:
        for step in range(400):
            principal = f"spiffe://demo.example/{step % 3}"
            session = _ask(table, (worker + step) % 12, principal)
            if session.principal != principal or len(table) > 8:
                broken.append(f"{worker} {step}")

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broken == []
    assert sum(map(len, table._of_principal.values())) == len(table) <= 8
    assert all(len(own) <= 4 for own in table._of_principal.values())


# --- through the transport -----------------------------------------------------------------------


def _encrypt(
    transport: HpkeKeyTransport, pair: opener.PrivateKey, principal: str = READER
) -> tuple[bytes, bytes, EncryptedDataKey]:
    nonce, data_key = os.urandom(32), os.urandom(32)
    client_key = ClientKey(pair.suite, pair.public_bytes, nonce)
    transport.check(client_key)
    return (
        nonce,
        data_key,
        transport.encrypt(SecretBytes(data_key), principal, client_key, BINDING),
    )


@pytest.mark.parametrize("suite", [1, 2])
def test_answers_of_one_session_share_the_secret_and_nothing_else(suite: int) -> None:
    transport, pair = HpkeKeyTransport(), opener.PrivateKey.from_seed(suite, os.urandom(32))
    answers = [_encrypt(transport, pair) for _ in range(5)]

    assert transport.sessions == 1
    encrypted = [answer for _, _, answer in answers]
    assert len({(answer.session_id, answer.encrypted_secret) for answer in encrypted}) == 1
    assert len({answer.nonce for answer in encrypted}) == 5
    assert len({answer.ciphertext for answer in encrypted}) == 5
    for nonce, data_key, answer in answers:
        info = opener.info(suite, READER, pair.public_bytes, answer.session_id)
        secret = pair.open_secret(answer.encrypted_secret, info)
        aad = opener.aad("lease", nonce, "projects/p/leases/x", "ab" * 16, b"pin", 3_600_000)
        assert opener.open_data_key(secret, answer.nonce, answer.ciphertext, aad) == data_key


def test_f69_the_transport_keeps_principals_apart() -> None:
    """The same public key of two principals: two secrets, each bound to its principal (KT-8)."""
    transport, pair = HpkeKeyTransport(), opener.PrivateKey.from_seed(2, os.urandom(32))
    answers = {who: _encrypt(transport, pair, who)[2] for who in (READER, STRANGER)}
    assert len({answer.session_id for answer in answers.values()}) == 2
    for who, answer in answers.items():
        info = opener.info(2, who, pair.public_bytes, answer.session_id)
        pair.open_secret(answer.encrypted_secret, info)


def test_looks_for_sessions_are_told() -> None:
    looks: list[bool] = []
    transport = HpkeKeyTransport(looked_up=looks.append)
    pair = opener.PrivateKey.from_seed(2, os.urandom(32))
    for who in (READER, READER, STRANGER):
        _encrypt(transport, pair, who)
    assert looks == [False, True, False]


def test_f25_a_known_public_key_does_not_excuse_a_wrong_nonce() -> None:
    transport, pair = HpkeKeyTransport(), opener.PrivateKey.from_seed(1, os.urandom(32))
    _encrypt(transport, pair)
    wrong = ClientKey(1, pair.public_bytes, bytes(15))
    with pytest.raises(RecipientKeyInvalid):
        transport.check(wrong)
    with pytest.raises(RecipientKeyInvalid):
        transport.encrypt(SecretBytes(bytes(32)), READER, wrong, BINDING)
    # Nor does a key known in one suite pass in the other.
    with pytest.raises(RecipientKeyInvalid):
        transport.check(ClientKey(2, pair.public_bytes, bytes(32)))


def test_ended_sessions_leave_the_transport(seconds: ManualSeconds) -> None:
    transport = HpkeKeyTransport(SessionTable(seconds))
    _encrypt(transport, opener.PrivateKey.from_seed(2, os.urandom(32)))
    seconds.now += LIFETIME_S
    transport.forget_ended_sessions()
    assert transport.sessions == 0
