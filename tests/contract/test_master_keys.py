"""One suite for the port `MasterKeys`: the fake, OpenBao, HashiCorp Vault."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

import pytest

from kms_service.domain.catalogue import WrappedDataKey
from kms_service.domain.errors import (
    KeyRecordCorrupt,
    MasterKeyMisconfigured,
    WrappingVersionUnusable,
)
from kms_service.domain.ports import MasterKeys, Rewrapper
from tests.support.fake_master_keys import FakeMasterKeys
from tests.support.vault_servers import VaultRig

pytestmark = pytest.mark.xdist_group("vault")

CONTEXT = b"\x00\x00\x00\x04demo"


class _Port(MasterKeys, Rewrapper, Protocol):
    """What Vault is to us."""


@dataclass(frozen=True)
class Rig:
    """The port, and what an officer does to the same keys."""

    port: _Port
    make: Callable[[str], object]
    make_underived: Callable[[str], object]
    rotate: Callable[[str], object]
    set_min_decryption_version: Callable[[str, int], object]


def _fake() -> Rig:
    keys = FakeMasterKeys()
    return Rig(
        keys,
        keys.make,
        lambda name: keys.make(name, derived=False),
        keys.rotate,
        keys.set_min_decryption_version,
    )


@pytest.fixture(params=["fake", "openbao", pytest.param("hashicorp", marks=pytest.mark.vault)])
def rig(request: pytest.FixtureRequest, vault_of: Callable[[str], VaultRig]) -> Iterator[Rig]:
    if request.param == "fake":
        yield _fake()
        return
    vault = vault_of(request.param)
    transit = vault.root.secrets.transit
    with vault.master_keys() as port:
        yield Rig(
            port,
            vault.make_key,
            lambda name: vault.make_key(name, derived=False),
            transit.rotate_key,
            lambda name, version: transit.update_key_configuration(
                name, min_decryption_version=version
            ),
        )


@pytest.fixture
def key(rig: Rig) -> str:
    """A fresh master key."""
    name = f"modelkms-{secrets.token_hex(4)}"
    rig.make(name)
    return name


def test_a_data_key_is_32_fresh_bytes_and_unwraps(rig: Rig, key: str) -> None:
    first, wrapped = rig.port.generate_data_key(key, CONTEXT)
    second, _ = rig.port.generate_data_key(key, CONTEXT)
    assert len(first) == 32
    assert first.reveal() != second.reveal()
    assert rig.port.unwrap(key, wrapped, CONTEXT).reveal() == first.reveal()


def test_the_wrapped_form_names_its_master_key_version(rig: Rig, key: str) -> None:
    _, before = rig.port.generate_data_key(key, CONTEXT)
    rig.rotate(key)
    _, after = rig.port.generate_data_key(key, CONTEXT)
    assert (before.master_key_version, after.master_key_version) == (1, 2)
    assert after.ciphertext.startswith("vault:v2:")


def test_rotation_strands_nothing(rig: Rig, key: str) -> None:
    data_key, wrapped = rig.port.generate_data_key(key, CONTEXT)
    rig.rotate(key)
    assert rig.port.unwrap(key, wrapped, CONTEXT).reveal() == data_key.reveal()


def test_another_context_does_not_unwrap(rig: Rig, key: str) -> None:
    _, wrapped = rig.port.generate_data_key(key, CONTEXT)
    with pytest.raises(KeyRecordCorrupt):
        rig.port.unwrap(key, wrapped, CONTEXT + b"x")


def test_another_master_key_does_not_unwrap(rig: Rig, key: str) -> None:
    _, wrapped = rig.port.generate_data_key(key, CONTEXT)
    other = f"{key}-other"
    rig.make(other)
    with pytest.raises(KeyRecordCorrupt):
        rig.port.unwrap(other, wrapped, CONTEXT)


def test_damaged_wrapped_keys_do_not_unwrap(rig: Rig, key: str) -> None:
    _, wrapped = rig.port.generate_data_key(key, CONTEXT)
    text = wrapped.ciphertext
    flipped = text[:-6] + ("A" if text[-6] != "A" else "B") + text[-5:]
    for damaged in (flipped, text[:40], "vault:v1:", "vault:v1:!!!!", ""):
        with pytest.raises(KeyRecordCorrupt):
            rig.port.unwrap(key, WrappedDataKey(damaged, 1), CONTEXT)


def test_a_wrong_version_beside_the_ciphertext_is_corrupt(rig: Rig, key: str) -> None:
    _, wrapped = rig.port.generate_data_key(key, CONTEXT)
    rig.rotate(key)
    with pytest.raises(KeyRecordCorrupt):
        rig.port.unwrap(key, replace(wrapped, master_key_version=2), CONTEXT)


def test_f39_missing_or_underived_master_key(rig: Rig) -> None:
    missing, underived = (f"modelkms-{secrets.token_hex(4)}" for _ in range(2))
    rig.make_underived(underived)
    for name in (missing, underived):
        with pytest.raises(MasterKeyMisconfigured):
            rig.port.generate_data_key(name, CONTEXT)
        with pytest.raises(MasterKeyMisconfigured):
            rig.port.describe(name)
    with pytest.raises(MasterKeyMisconfigured):  # asking made no key
        rig.port.describe(missing)


def test_f41_min_decryption_version_raised_past_a_wrapped_key(rig: Rig, key: str) -> None:
    data_key, wrapped = rig.port.generate_data_key(key, CONTEXT)
    rig.rotate(key)
    rig.set_min_decryption_version(key, 2)
    with pytest.raises(WrappingVersionUnusable):
        rig.port.unwrap(key, wrapped, CONTEXT)
    rig.set_min_decryption_version(key, 1)
    assert rig.port.unwrap(key, wrapped, CONTEXT).reveal() == data_key.reveal()


def test_f41_a_version_that_vault_does_not_know_yet(rig: Rig, key: str) -> None:
    """As after Vault was restored from an older snapshot."""
    _, wrapped = rig.port.generate_data_key(key, CONTEXT)
    newer = WrappedDataKey(wrapped.ciphertext.replace("vault:v1:", "vault:v9:"), 9)
    with pytest.raises(WrappingVersionUnusable):
        rig.port.unwrap(key, newer, CONTEXT)


def test_rewrap_moves_under_the_newest_version_and_keeps_the_data_key(rig: Rig, key: str) -> None:
    contexts = [CONTEXT + bytes([number]) for number in range(5)]
    made = [rig.port.generate_data_key(key, context) for context in contexts]
    rig.rotate(key)
    rig.rotate(key)
    wrapped = [(each, context) for (_, each), context in zip(made, contexts, strict=True)]
    answers = rig.port.rewrap(key, wrapped)
    for (data_key, old), new, context in zip(made, answers, contexts, strict=True):
        assert isinstance(new, WrappedDataKey)
        assert (old.master_key_version, new.master_key_version) == (1, 3)
        assert rig.port.unwrap(key, new, context).reveal() == data_key.reveal()
        assert rig.port.unwrap(key, old, context).reveal() == data_key.reveal()
    assert rig.port.rewrap(key, []) == []
    with pytest.raises(MasterKeyMisconfigured):
        rig.port.rewrap(f"{key}-missing", wrapped)


def test_f40_one_bad_key_of_a_batch_fails_alone(rig: Rig, key: str) -> None:
    _, good = rig.port.generate_data_key(key, CONTEXT)
    rig.rotate(key)
    damaged = WrappedDataKey(good.ciphertext[:40], 1)
    keys = [(good, CONTEXT), (good, CONTEXT + b"x"), (damaged, CONTEXT), (good, CONTEXT)]
    answers = rig.port.rewrap(key, keys)
    assert [type(answer).__name__ for answer in answers] == [
        "WrappedDataKey",
        "KeyRecordCorrupt",
        "KeyRecordCorrupt",
        "WrappedDataKey",
    ]
    (alone,) = rig.port.rewrap(key, keys[1:2])
    assert isinstance(alone, KeyRecordCorrupt)


def test_f41_rewrap_under_a_version_that_is_no_longer_usable(rig: Rig, key: str) -> None:
    _, old = rig.port.generate_data_key(key, CONTEXT)
    rig.rotate(key)
    _, new = rig.port.generate_data_key(key, CONTEXT)
    rig.set_min_decryption_version(key, 2)
    answers = rig.port.rewrap(key, [(old, CONTEXT), (new, CONTEXT)])
    assert isinstance(answers[0], WrappingVersionUnusable)
    assert isinstance(answers[1], WrappedDataKey)
    rig.set_min_decryption_version(key, 1)
    (healed,) = rig.port.rewrap(key, [(old, CONTEXT)])
    assert isinstance(healed, WrappedDataKey)


def test_f40_more_than_fits_into_one_request(rig: Rig, key: str) -> None:
    """OpenBao refuses bodies with too many strings; the size is found, halving, and remembered."""
    _, wrapped = rig.port.generate_data_key(key, CONTEXT)
    rig.rotate(key)
    answers = rig.port.rewrap(key, [(wrapped, CONTEXT)] * 1200)
    assert len(answers) == 1200
    assert {type(answer) for answer in answers} == {WrappedDataKey}
    size = rig.port.rewrap_batch_size
    assert rig.port.rewrap(key, [(wrapped, CONTEXT)] * size)
    assert size >= 100
    assert rig.port.rewrap_batch_size == size


def test_describe(rig: Rig, key: str) -> None:
    rig.rotate(key)
    state = rig.port.describe(key)
    assert (state.name, state.latest_version, state.min_decryption_version) == (key, 2, 1)
    assert abs(state.latest_version_create_time - datetime.now(UTC)) < timedelta(minutes=1)
    assert state.auto_rotate_period is None


def test_many_threads(rig: Rig, key: str) -> None:
    def one(number: int) -> bool:
        context = CONTEXT + bytes([number])
        data_key, wrapped = rig.port.generate_data_key(key, context)
        return rig.port.unwrap(key, wrapped, context).reveal() == data_key.reveal()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(40)))


def test_probe(rig: Rig) -> None:
    rig.port.probe()
