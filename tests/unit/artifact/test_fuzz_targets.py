"""The fuzz targets themselves: quiet on their seeds and on noise, loud on a defect."""

from __future__ import annotations

import random

import pytest
from modelkms_api.artifact import MAX_CLEAR_PREFIX_BYTES

from tests.fuzz import targets
from tests.fuzz.__main__ import NAMES
from tests.fuzz.targets import TARGETS


def test_the_runner_knows_every_target() -> None:
    assert set(NAMES) == set(TARGETS)


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_quiet_on_seeds_and_on_changed_ones(name: str) -> None:
    target, chance = TARGETS[name], random.Random(name)

    for seed in target.seeds():
        assert len(seed) <= 1 << 16
        target.run(seed)
        for _ in range(20):
            changed = bytearray(seed)
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            target.run(bytes(changed))
    for length in (0, 1, 100, MAX_CLEAR_PREFIX_BYTES):
        target.run(chance.randbytes(length))


def test_a_target_is_loud_on_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelkms.artifact.floe.decrypt", lambda *_: b"forged")

    with pytest.raises(AssertionError, match="forged"):
        targets.floe_ciphertext(b"anything")
