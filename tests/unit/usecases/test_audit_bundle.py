"""The bundle for the day of the audit."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kms_service.adapters.audit_chain import segments
from kms_service.adapters.audit_reading import Reading
from kms_service.adapters.cedar_policy_set import PolicyFiles
from kms_service.adapters.signed_note import VerifierKey, open_note
from kms_service.audit_bundle import Bundle
from kms_service.domain.audit import ChainHead, Checkpoint, Outcome, checkpoint_name
from kms_service.domain.errors import VaultUnavailable
from kms_service.domain.names import ModelName
from kms_service.shipped_checkpoints import telling
from tests.support.audit_logs import (
    NOON,
    POLICIES,
    Signer,
    checkpoint,
    lease_record,
    policy_records,
    write_chain,
)
from tests.unit.usecases.world import World

MODEL = ModelName("demo", "face")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "audit"
    records = [
        *policy_records(),
        lease_record(1),
        lease_record(2, event="RenewLease"),
        lease_record(3, outcome=Outcome.DENIED, reason="X", policies=(), details={}),
        lease_record(4, event="RewrapDataKeys", details={}),
        lease_record(5, event="DestroyVersion", details={}),
        lease_record(6, event="SetAlias", details={}),
        lease_record(7, event="ListLeases", details={}),
        lease_record(8, event="service_started", principal="", details={}),
        lease_record(24 * 60, event="LeaseDataKey"),  # the next day
    ]
    write_chain(folder / "main", records)
    return folder


@pytest.fixture
def bundle() -> Bundle:
    return Bundle(NOON, NOON + timedelta(hours=11))


@pytest.fixture
def written(bundle: Bundle, tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    def write() -> dict[str, bytes]:
        bundle.write(tmp_path / "q.tar", NOON)
        with tarfile.open(tmp_path / "q.tar") as tar:
            return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]

    return write


def test_records_are_sorted_into_lists(
    bundle: Bundle, log: Path, written: Callable[[], dict[str, bytes]]
) -> None:
    assert bundle.add_records(Reading(log))
    files = written()
    assert files["access.csv"].decode().splitlines() == [
        "principal,version,leases,renewals,refused,first,last,policies",
        (
            "spiffe://example.org/reader,projects/camera/models/face,0,0,1,"
            "2026-11-17T12:03:00+00:00,2026-11-17T12:03:00+00:00,"
        ),
        (
            "spiffe://example.org/reader,projects/camera/models/face/versions/3,1,1,0,"
            "2026-11-17T12:01:00+00:00,2026-11-17T12:02:00+00:00,readers@6fcfb764d23e"
        ),
    ]
    events = {
        name: [json.loads(line)["event"] for line in files[f"{name}.jsonl"].splitlines()]
        for name in ("rotations", "destructions", "administration")
    }
    assert events == {
        "rotations": ["RewrapDataKeys"],
        "destructions": ["DestroyVersion"],
        "administration": ["SetAlias"],
    }
    manifest: dict[str, Any] = json.loads(files["manifest.json"])
    assert manifest["log"] == ["main: whole to record 12, end unproven"]
    assert manifest["files"] == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in files.items()
        if name != "manifest.json"
    }


def test_the_inventory_is_what_there_is(
    world: World, bundle: Bundle, log: Path, written: Callable[[], dict[str, bytes]]
) -> None:
    world.publisher()
    world.publish(MODEL)
    bundle.add_inventory(world.database, world.master_keys)
    (project,) = json.loads(written()["inventory.json"])["projects"]
    assert (project["name"], project["data_keys_by_master_key_version"]) == (
        "projects/demo",
        {"1": 1},
    )
    assert project["master_key"]["latest_version"] == 1
    ((version,),) = (model["versions"] for model in project["models"])
    assert (version["name"], version["state"], version["aliases"]) == (
        "projects/demo/models/face/versions/1",
        "ENABLED",
        ["stable"],
    )
    assert "wrapped" not in json.dumps(project)


def test_an_inventory_without_vault_says_so(
    world: World,
    bundle: Bundle,
    written: Callable[[], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(_key: str) -> None:
        raise VaultUnavailable

    monkeypatch.setattr(world.master_keys, "describe", away)
    bundle.add_inventory(world.database, world.master_keys)
    (project,) = json.loads(written()["inventory.json"])["projects"]
    assert project["master_key"]["unknown"] == "VAULT_UNAVAILABLE"


def test_f62_a_log_that_does_not_hold_makes_no_bundle(bundle: Bundle, log: Path) -> None:
    (path,) = segments(log / "main")
    path.write_bytes(path.read_bytes().replace(b"SetAlias", b"SetAliaz"))
    assert not bundle.add_records(Reading(log))
    assert bundle.log[0].startswith("main: record 9 in ")


def test_policy_sets_are_those_that_decided_then(
    bundle: Bundle, tmp_path: Path, written: Callable[[], dict[str, bytes]]
) -> None:
    before = PolicyFiles({"old.cedar": "forbid (principal, action, resource);"}, "{}")
    records = [
        *policy_records(before),
        lease_record(-60, policy_epoch=before.epoch),
        *policy_records(),
        lease_record(1),
        lease_record(2, policy_epoch="ee" * 32),  # its files are not there
    ]
    write_chain(tmp_path / "audit" / "main", records)
    assert bundle.add_records(Reading(tmp_path / "audit"))
    files = written()
    packed = {name: data.decode() for name, data in files.items() if name.startswith("policies/")}
    assert packed == {
        f"policies/{POLICIES.epoch}/{name}": text for name, text in POLICIES.named.items()
    }
    assert json.loads(files["manifest.json"])["policy_sets"] == {
        POLICIES.epoch: "whole",
        "ee" * 32: "not in this log",
    }


def test_checkpoints_come_with_the_keys_that_verify_them(
    bundle: Bundle, written: Callable[[], dict[str, bytes]]
) -> None:
    signer = Signer()
    note = signer.sign(checkpoint(ChainHead("main", 1, "ab" * 32)).text())
    bundle.add_checkpoints({"1.note": note}, [signer.verifier])
    files = written()
    assert files["checkpoints/1.note"] == note
    (key,) = files["checkpoints/public-keys"].decode().split()
    assert Checkpoint.parse(open_note(note, [VerifierKey.parse(key)])).heads


class Shipped:
    """Implements `domain.ports.CheckpointPlace`: names of what was shipped."""

    def __init__(self, *names: str) -> None:
        self._names = sorted(names)

    def names(self, after: str, before: str) -> list[str]:
        return [name for name in self._names if after < name < before]

    def get(self, name: str) -> bytes:
        return name.encode()

    def put(self, name: str, note: bytes) -> None:
        raise NotImplementedError

    def probe(self) -> None:
        raise NotImplementedError


def test_the_checkpoints_that_tell_most_of_a_time_are_fetched() -> None:
    def at(chain: str, *hours: float) -> list[str]:
        return [checkpoint_name(NOON + timedelta(hours=hour), chain) for hour in hours]

    place = Shipped(*at("a", -200, -2, -1, 0, 1, 5, 25, 26), *at("b", -0.5, 30), *at("gone", 3))
    found = telling(place, NOON, NOON + timedelta(hours=24))
    assert found.keys() == {*at("a", -1, 5, 25), *at("b", -0.5, 30), *at("gone", 3)}
    assert all(name.encode() == note for name, note in found.items())
    assert telling(Shipped(), NOON, NOON) == {}
