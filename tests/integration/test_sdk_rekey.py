"""Rekey through the SDK on a real service: same content, another key, no plaintext on any disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import modelkms
import pytest
from modelkms.artifact.reader import ArtifactReader
from modelkms.errors import (
    ArtifactCorrupt,
    ModelNotFoundOrDenied,
    StorageUnavailable,
    VersionDisabled,
)
from modelkms.session import Session

from kms_service.domain import errors
from kms_service.domain.names import VersionName
from tests.support.planted_secrets import PLAINTEXT, plant
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.unit.usecases.real_parts import migrated_database

CANARY = b"a piece of plaintext that must be nowhere else"
plant(PLAINTEXT, CANARY)
SEGMENT = 256 * 1024 - 32


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_database(tmp_path_factory.mktemp("schema"))


@pytest.fixture
def service(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SdkWorld]:
    monkeypatch.setattr(Session, "pause_s", lambda *_: 0.0)
    folder = tmp_path / "service"
    folder.mkdir()
    with sdk_world(folder, template) as world:
        yield world


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "model"
    (folder / "weights").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "weights" / "a.bin").write_bytes(CANARY + os.urandom(5 * SEGMENT + 7))
    return folder


def files_of(client: modelkms.Client, ref: str) -> dict[str, bytes]:
    with client.open(ref) as opened:
        return {name: opened.read(name) for name in opened.files()}


def wrapped_data_key(service: SdkWorld, number: int) -> bytes:
    version = service.world.version(VersionName("demo", "face", number))
    assert version is not None
    return service.world.unwrap(version)


def test_same_content_new_key_old_version_disabled(service: SdkWorld, model: Path) -> None:
    publisher, reader = service.client("publisher"), service.client("reader")
    publisher.push(model, "face")
    publisher.set_alias("face@1", "canary")
    before = files_of(reader, "face")
    rekeyed = publisher.rekey("face@1")
    assert rekeyed.version.reference == "demo/face@2"
    assert rekeyed.version.aliases == ("canary", "stable")
    assert files_of(reader, "face") == before
    assert files_of(reader, "face@canary") == before
    with pytest.raises(VersionDisabled):
        reader.open("face@1")
    # The leaked key opens the old artifact, and not the new one.
    old_key, new_key = (wrapped_data_key(service, number) for number in (1, 2))
    assert old_key != new_key
    stored = {path.name: path for path in service.stored()}
    new = stored[rekeyed.version.artifact_id]
    ArtifactReader(new, new_key).close()
    with pytest.raises(ArtifactCorrupt):
        ArtifactReader(new, old_key)
    for path in service.folder.rglob("*"):
        assert not (path.is_file() and CANARY in path.read_bytes()), path


def test_a_file_keeps_its_name(service: SdkWorld, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(os.urandom(2 * SEGMENT))
    publisher = service.client("publisher")
    publisher.push(path, "face")
    publisher.rekey("face@1")
    with service.client("reader").open("face") as opened:
        assert opened.files() == ["model.onnx"]
        assert opened.read() == path.read_bytes()


def test_broken_off_it_goes_on_with_the_same_version(service: SdkWorld, model: Path) -> None:
    publisher, reader = service.client("publisher"), service.client("reader")
    publisher.push(model, "face")
    before = files_of(reader, "face")

    def fail() -> None:
        service.world.store.before_publishing = fail
        raise errors.StorageUnavailable

    service.world.store.before_publishing = fail
    with pytest.raises(StorageUnavailable):
        publisher.rekey("face@1")
    assert files_of(reader, "face@1") == before
    service.world.store.before_publishing = None
    assert publisher.rekey("face@1").version.reference == "demo/face@2"
    assert files_of(reader, "face@2") == before


def test_who_may_not_read_cannot_rekey(service: SdkWorld, model: Path) -> None:
    publisher = service.client("publisher")
    publisher.push(model, "face")
    with pytest.raises(ModelNotFoundOrDenied):
        service.client("reader").rekey("face@1")
    with pytest.raises(ModelNotFoundOrDenied):
        service.client("stranger").rekey("face@1")
    assert publisher.list_versions("face")[-1].state == "ENABLED"


def test_exposure_is_what_was_leased(service: SdkWorld, model: Path) -> None:
    publisher, reader = service.client("publisher"), service.client("reader")
    for _ in range(2):
        publisher.push(model, "face", promote=True)
    for ref in ("face@1", "face@1", "face@2"):
        reader.open(ref).close()
        service.world.clock.advance(timedelta(seconds=1))
    principal = reader.whoami().spiffe_id
    service.client("security").disable("face@1")
    held = service.client("security").exposure(principal)
    assert [(each.reference, each.leases, each.live) for each in held] == [
        ("demo/face@2", 1, True),
        ("demo/face@1", 2, False),
    ]
    assert service.client("security").exposure("spiffe://test.example/nobody") == []
