"""Rolling upgrades (F65): what speaks only the API published last works with what speaks more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from modelkms import convert, session
from modelkms.channel import open_channel
from modelkms.errors import LeaseRevoked, OperationUnsupported
from modelkms.identity import ClientIdentity
from modelkms.profile import Profile
from modelkms_api.v1 import resources_pb2

from tests.support.old_api import OldChannel, PublishedApi
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.unit.usecases.real_parts import migrated_database

KEYS, MODELS = "/modelkms_api.v1.KeyService/", "/modelkms_api.v1.ModelService/"
CONTENT = b"weights" * 100_000


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_database(tmp_path_factory.mktemp("template"))


@pytest.fixture
def service(tmp_path: Path, template: Path) -> Iterator[SdkWorld]:
    with sdk_world(tmp_path, template) as world:
        yield world


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> PublishedApi:
    """From here on every client of the SDK speaks it, and no more."""
    api = PublishedApi()

    def old(profile: Profile, identity: ClientIdentity) -> grpc.Channel:
        return OldChannel(open_channel(profile, identity), api)

    monkeypatch.setattr(session, "open_channel", old)
    return api


def test_f65_an_old_client_and_an_old_service_publish_open_and_renew(
    service: SdkWorld, api: PublishedApi, tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(CONTENT)
    pushed = service.client("publisher").push(tmp_path / "model", "face")
    reader = service.client("reader")
    assert [version.number for version in reader.list_versions("face")] == [pushed.version.number]
    with reader.open("face") as model:
        assert model.read() == CONTENT
        model.renew()
        # Nobody can be told at once: an old service knows no watches. The renewal tells.
        service.client("security").revoke_leases(principal=model.lease.principal)
        with pytest.raises(LeaseRevoked):
            model.renew()
    used = {f"{KEYS}{name}" for name in ("LeaseDataKey", "RenewLease", "RevokeLeases")}
    used |= {f"{MODELS}{name}" for name in ("CreateVersion", "FinalizeVersion", "ListVersions")}
    assert api.used >= used


def test_f65_what_an_old_service_cannot_is_told_as_that(
    service: SdkWorld, api: PublishedApi
) -> None:
    with pytest.raises(OperationUnsupported):
        service.client("security").block("spiffe://test.example/reader", reason="stolen")
    assert api.used == set()


def test_f65_a_state_of_later_is_not_taken_for_one_that_is_known() -> None:
    """A newer service has states that this client has no name for."""
    name = "projects/demo/models/face/versions/3"
    version = resources_pb2.Version(name=name, uid=32 * "a", artifact_id=32 * "b", state=99)  # type: ignore[arg-type]
    assert convert.version(version).state == "UNKNOWN"
    lease = resources_pb2.Lease(
        name="projects/demo/leases/1",
        version=name,
        state=99,  # type: ignore[arg-type]
    )
    assert convert.lease(lease).state == "UNKNOWN"
