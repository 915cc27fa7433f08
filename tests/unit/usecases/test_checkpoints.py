"""Checkpoints of the audit chains: all of them in each, shipped once, never a step back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from kms_service.adapters.signed_note import open_note
from kms_service.domain.audit import ChainHead, Checkpoint
from kms_service.domain.errors import AuditChainForked, StorageUnavailable, VaultUnavailable
from kms_service.usecases.checkpoint_audit import CheckpointAudit
from tests.support.audit_logs import ORIGIN, Signer
from tests.unit.usecases.world import World


@dataclass
class Chain:
    head: ChainHead | None = None


@dataclass
class Store:
    """Keeps what is put; `broken` while it does not."""

    kept: dict[str, bytes] = field(default_factory=dict)
    broken: bool = False

    def put(self, name: str, note: bytes) -> None:
        if self.broken or name in self.kept:
            raise StorageUnavailable
        self.kept[name] = note


class SilentSigner:
    def sign(self, text: str) -> bytes:
        raise VaultUnavailable


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def process(world: World, store: Store, signer: Signer) -> Callable[..., CheckpointAudit]:
    """One of several processes that share database and place."""

    def of(chain: Chain, **changes: object) -> CheckpointAudit:
        parts: dict[str, object] = {
            "chain": chain,
            "database": world.database,
            "signer": signer,
            "store": store,
            "clock": world.clock,
            "origin": ORIGIN,
        }
        return CheckpointAudit(**{**parts, **changes})  # type: ignore[arg-type]

    return of


def head(chain: str, records: int, digit: str = "a") -> ChainHead:
    return ChainHead(chain, records, digit * 64)


def test_each_checkpoint_lists_all_chains(
    world: World, store: Store, signer: Signer, process: Callable[..., CheckpointAudit]
) -> None:
    blue, green = Chain(head("blue", 5)), Chain(head("green", 7))
    process(blue)()
    world.clock.advance(timedelta(seconds=60))
    made = process(green)()
    assert made == Checkpoint(ORIGIN, world.clock.now(), (head("blue", 5), head("green", 7)))
    assert sorted(store.kept) == [
        "20300101T000000.000000Z-blue.note",
        "20300101T000100.000000Z-green.note",
    ]
    notes = [Checkpoint.parse(open_note(note, [signer.verifier])) for note in store.kept.values()]
    assert notes == [Checkpoint(ORIGIN, notes[0].time, (head("blue", 5),)), made]


def test_without_a_record_there_is_nothing_to_vouch_for(
    store: Store, process: Callable[..., CheckpointAudit]
) -> None:
    assert process(Chain())() is None
    assert store.kept == {}


@pytest.mark.parametrize(
    "now", [head("blue", 4), head("blue", 5, "b")], ids=["shorter", "another record"]
)
def test_f63_a_chain_that_stood_further_is_not_vouched_for(
    store: Store, process: Callable[..., CheckpointAudit], now: ChainHead
) -> None:
    process(Chain(head("blue", 5)))()
    with pytest.raises(AuditChainForked):
        process(Chain(now))()
    assert len(store.kept) == 1


def test_what_was_not_shipped_is_covered_by_the_next(
    world: World, store: Store, process: Callable[..., CheckpointAudit]
) -> None:
    blue = Chain(head("blue", 5))
    with pytest.raises(VaultUnavailable):
        process(blue, signer=SilentSigner())()
    store.broken = True
    with pytest.raises(StorageUnavailable):
        process(blue)()
    store.broken = False
    world.clock.advance(timedelta(seconds=60))
    blue.head = head("blue", 6, "b")
    made = process(blue)()
    assert made is not None
    assert made.heads == (head("blue", 6, "b"),)
