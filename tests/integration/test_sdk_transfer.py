"""Artifacts on their way to and from a store that misbehaves: F43, F45, F46, F51, F66."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from modelkms import download as download_module
from modelkms.cache import ArtifactCache
from modelkms.download import Downloader
from modelkms.errors import (
    AnswerInvalid,
    ArtifactChanged,
    ArtifactCorrupt,
    ArtifactMismatch,
    ArtifactMissing,
    ConcurrentUpdate,
    LocalDiskFull,
    StorageUnavailable,
    VersionNotFinalized,
    VersionNotPending,
)
from modelkms.profile import Profile
from modelkms.session import ATTEMPTS, Session
from modelkms.types import Progress
from modelkms.upload import CHUNK_BYTES, upload
from modelkms_api.v1 import artifact_service_pb2 as pb

from kms_service.domain import errors as service_errors
from kms_service.rpc.pipeline import Call
from tests.support.sdk_artifacts import VERSION, NoiseArtifact, noise_artifact, version_of
from tests.support.server import RunningServer, running_server

LENGTH = 3 * CHUNK_BYTES + 17


@dataclass
class Store:
    """One object in memory. `before_chunk(index of the call, offset)` may raise or swap it."""

    content: bytearray = field(default_factory=bytearray)
    reads: list[tuple[int, int]] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    before_chunk: Callable[[int, int], None] = lambda _call, _offset: None
    status: Callable[[], None] = lambda: None

    def read_artifact(
        self, request: pb.ReadArtifactRequest, call: Call
    ) -> Iterator[pb.ReadArtifactResponse]:
        self.reads.append((request.offset_bytes, request.length_bytes))
        number = len(self.reads)
        end = request.offset_bytes + (request.length_bytes or len(self.content))
        for at in range(request.offset_bytes, end, CHUNK_BYTES):
            self.before_chunk(number, at)
            data = bytes(self.content[at : min(at + CHUNK_BYTES, end)])
            if not data:
                return
            yield pb.ReadArtifactResponse(data=data)

    def write_artifact(
        self, requests: Iterator[pb.WriteArtifactRequest], call: Call
    ) -> pb.WriteArtifactResponse:
        first = next(requests)
        assert first.version == VERSION
        self.writes.append(first.offset_bytes)
        number = len(self.writes)
        if first.offset_bytes != len(self.content):
            raise service_errors.UploadOffsetWrong
        self.content += first.data
        for request in requests:
            self.before_chunk(number, len(self.content))
            assert not request.version
            self.content += request.data
        return pb.WriteArtifactResponse(stored_bytes=len(self.content))

    def get_write_status(self, request: pb.GetWriteStatusRequest, call: Call) -> pb.WriteStatus:
        self.status()
        return pb.WriteStatus(stored_bytes=len(self.content))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def server(tmp_path: Path, store: Store) -> Iterator[RunningServer]:
    service: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["ArtifactService"]
    with running_server(tmp_path / "server", {service: store}) as running:
        yield running


@pytest.fixture
def session(tmp_path: Path, server: RunningServer) -> Iterator[Session]:
    server.authority.client("reader").write(tmp_path / "client")
    profile = Profile(
        endpoint=f"localhost:{server.port}",
        ca_file=tmp_path / "client" / "ca.pem",
        certificate_file=tmp_path / "client" / "certificate.pem",
        key_file=tmp_path / "client" / "key.pem",
    )
    opened = Session(profile, sleep=lambda _: None)
    yield opened
    opened.close()


@pytest.fixture
def cache_folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def downloader(session: Session, cache_folder: Path) -> Downloader:
    return Downloader(session, ArtifactCache(cache_folder, 1 << 30))


@pytest.fixture
def artifact(store: Store) -> NoiseArtifact:
    made = noise_artifact(LENGTH)
    store.content[:] = made.content
    return made


def fetch(downloader: Downloader, artifact: NoiseArtifact) -> bytes:
    with downloader.open(artifact.version) as file:
        file.seek(0)
        return file.read()


def cached(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


# --- reading -------------------------------------------------------------------------------------


def test_an_artifact_is_fetched_once_with_progress(
    downloader: Downloader, artifact: NoiseArtifact, store: Store
) -> None:
    seen: list[Progress] = []
    with downloader.open(artifact.version, seen.append) as file:
        assert file.read() == artifact.content
    assert seen[0] == Progress("download", 0, LENGTH)
    assert seen[-1] == Progress("download", LENGTH, LENGTH)
    assert fetch(downloader, artifact) == artifact.content
    assert len(store.reads) == 1


def test_a_large_artifact_comes_in_pieces(
    session: Session, cache_folder: Path, artifact: NoiseArtifact, store: Store
) -> None:
    downloader = Downloader(session, ArtifactCache(cache_folder, 1 << 30), piece_bytes=CHUNK_BYTES)
    assert fetch(downloader, artifact) == artifact.content
    assert [offset for offset, _ in store.reads] == [0, 1 << 20, 2 << 20, 3 << 20]


def test_f51_a_broken_stream_goes_on_where_it_broke(
    downloader: Downloader, artifact: NoiseArtifact, store: Store
) -> None:
    def break_off(call: int, offset: int) -> None:
        if offset == call * CHUNK_BYTES:
            raise service_errors.StorageUnavailable

    store.before_chunk = break_off
    assert fetch(downloader, artifact) == artifact.content
    assert [offset for offset, _ in store.reads] == [0, 1 << 20, 2 << 20, 3 << 20]


def test_f51_a_store_that_is_away_is_told_after_a_few_attempts_and_resumed_later(
    downloader: Downloader, artifact: NoiseArtifact, store: Store
) -> None:
    def fail(call: int, offset: int) -> None:
        if offset:
            raise service_errors.StorageUnavailable

    store.before_chunk = fail
    with pytest.raises(StorageUnavailable):
        fetch(downloader, artifact)
    assert len(store.reads) == ATTEMPTS
    store.before_chunk = lambda _call, _offset: None
    store.reads.clear()
    assert fetch(downloader, artifact) == artifact.content
    assert store.reads[0][0] == CHUNK_BYTES


def test_f51_a_missing_object_is_artifact_missing(
    downloader: Downloader, artifact: NoiseArtifact, store: Store
) -> None:
    def fail(call: int, offset: int) -> None:
        raise service_errors.ArtifactMissing

    store.before_chunk = fail
    with pytest.raises(ArtifactMissing):
        fetch(downloader, artifact)
    assert len(store.reads) == 1


@pytest.mark.parametrize("cut", [1, 17, CHUNK_BYTES, LENGTH])
def test_f43_a_truncated_object_is_artifact_corrupt(
    downloader: Downloader, artifact: NoiseArtifact, store: Store, cut: int
) -> None:
    del store.content[LENGTH - cut :]
    with pytest.raises(ArtifactCorrupt):
        fetch(downloader, artifact)


@pytest.mark.parametrize("more", [1, CHUNK_BYTES])
def test_f43_an_extended_object_is_artifact_corrupt(
    downloader: Downloader, artifact: NoiseArtifact, store: Store, cache_folder: Path, more: int
) -> None:
    store.content += bytes(more)
    with pytest.raises(ArtifactCorrupt, match="longer"):
        fetch(downloader, artifact)
    assert artifact.artifact_id not in cached(cache_folder)


def test_f45_another_versions_artifact_is_a_mismatch_after_its_first_chunk(
    downloader: Downloader, artifact: NoiseArtifact, store: Store, cache_folder: Path
) -> None:
    for name in (VERSION, "projects/p/models/m/versions/2", "projects/p/models/n/versions/1"):
        store.content[:] = noise_artifact(LENGTH, name=name).content
        with pytest.raises(ArtifactMismatch, match="another version"):
            fetch(downloader, artifact)
        assert artifact.artifact_id not in cached(cache_folder)


def test_f66_the_same_version_encrypted_again_is_a_mismatch(
    downloader: Downloader, artifact: NoiseArtifact, store: Store
) -> None:
    at = artifact.content.index(artifact.pin.floe_header_tag)
    store.content[at : at + 32] = os.urandom(32)
    with pytest.raises(ArtifactMismatch, match="another artifact"):
        fetch(downloader, artifact)


def test_f66_content_under_the_same_header_is_a_mismatch_by_its_digest(
    downloader: Downloader, artifact: NoiseArtifact, store: Store, cache_folder: Path
) -> None:
    store.content[-1] ^= 1
    with pytest.raises(ArtifactMismatch, match="digest"):
        fetch(downloader, artifact)
    with pytest.raises(ArtifactMismatch), downloader.open(artifact.version, None, lambda _: True):
        pytest.fail("not opened")
    assert artifact.artifact_id not in cached(cache_folder)


def test_f43_what_does_not_even_authenticate_is_corrupt_rather_than_forged(
    downloader: Downloader, artifact: NoiseArtifact, store: Store
) -> None:
    store.content[-1] ^= 1
    with pytest.raises(ArtifactCorrupt), downloader.open(artifact.version, None, lambda _: False):
        pytest.fail("not opened")


def test_f46_an_object_replaced_between_two_reads_is_read_anew(
    downloader: Downloader, artifact: NoiseArtifact, store: Store
) -> None:
    other = noise_artifact(LENGTH).content

    def replace(call: int, offset: int) -> None:
        if call == 1 and offset == CHUNK_BYTES:
            store.content[:] = other
            raise service_errors.StorageUnavailable
        if call == 3:
            store.content[:] = artifact.content

    store.before_chunk = replace
    assert fetch(downloader, artifact) == artifact.content
    assert [offset for offset, _ in store.reads] == [0, 1 << 20, 0]


def test_f46_an_object_replaced_again_and_again_is_artifact_changed(
    downloader: Downloader, artifact: NoiseArtifact, store: Store, cache_folder: Path
) -> None:
    def replace(call: int, offset: int) -> None:
        if call % 2:
            store.content[:] = artifact.content
            if offset == CHUNK_BYTES:
                raise service_errors.StorageUnavailable
        else:
            store.content[-1] ^= 1

    store.before_chunk = replace
    with pytest.raises(ArtifactChanged):
        fetch(downloader, artifact)
    assert len(store.reads) == 6
    assert artifact.artifact_id not in cached(cache_folder)


def test_f52_a_full_cache_is_gone_past_and_prefetch_says_so(
    session: Session, cache_folder: Path, artifact: NoiseArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloader = Downloader(session, ArtifactCache(cache_folder, 1000))
    assert fetch(downloader, artifact) == artifact.content
    monkeypatch.setattr(download_module, "available_memory", lambda: 0)  # then in a nameless file
    assert fetch(downloader, artifact) == artifact.content
    with pytest.raises(LocalDiskFull):
        downloader.prefetch(artifact.version)


def test_a_version_without_a_pin_is_not_fetched(
    downloader: Downloader, artifact: NoiseArtifact, store: Store
) -> None:
    with pytest.raises(VersionNotFinalized):
        downloader.open(dataclasses.replace(artifact.version, pin=None))
    assert not store.reads


def test_what_is_no_artifact_at_all_is_corrupt(downloader: Downloader, store: Store) -> None:
    made = noise_artifact(LENGTH)
    store.content[:] = os.urandom(LENGTH)
    with pytest.raises(ArtifactCorrupt, match="no artifact"):
        fetch(downloader, made)


def test_a_small_artifact_works_too(downloader: Downloader, store: Store) -> None:
    made = noise_artifact(0)
    store.content[:] = made.content
    assert fetch(downloader, made) == made.content
    again = version_of(made.content, VERSION, made.version.uid, made.artifact_id)
    assert again.pin == made.pin


# --- writing -------------------------------------------------------------------------------------


CONTENT = os.urandom(LENGTH)


def send(session: Session, piece_bytes: int = 1 << 30) -> list[Progress]:
    seen: list[Progress] = []
    upload(session, VERSION, io.BytesIO(CONTENT), LENGTH, seen.append, piece_bytes=piece_bytes)
    return seen


def test_an_artifact_is_stored_with_progress(session: Session, store: Store) -> None:
    seen = send(session)
    assert store.content == CONTENT
    assert store.writes == [0]
    assert seen[-1] == Progress("upload", LENGTH, LENGTH)


def test_a_large_artifact_is_stored_in_pieces(session: Session, store: Store) -> None:
    send(session, piece_bytes=CHUNK_BYTES + 6)
    assert store.content == CONTENT
    assert len(store.writes) == 3


@pytest.mark.parametrize("there", [1, CHUNK_BYTES, LENGTH - 1, LENGTH])
def test_f50_an_upload_goes_on_where_the_store_says(
    session: Session, store: Store, there: int
) -> None:
    store.content += CONTENT[:there]
    send(session)
    assert store.content == CONTENT
    assert store.writes == ([there] if there < LENGTH else [])


def test_f51_a_broken_upload_is_taken_up_at_what_is_durable(session: Session, store: Store) -> None:
    def break_off(call: int, offset: int) -> None:
        if offset == call * CHUNK_BYTES:
            raise service_errors.StorageUnavailable

    store.before_chunk = break_off
    send(session)
    assert store.content == CONTENT
    assert store.writes == [0, 1 << 20, 2 << 20, 3 << 20][: len(store.writes)]


def test_f51_an_upload_without_progress_is_given_up(session: Session, store: Store) -> None:
    def fail(call: int, offset: int) -> None:
        del store.content[CHUNK_BYTES:]
        raise service_errors.StorageUnavailable

    store.before_chunk = fail
    with pytest.raises(StorageUnavailable):
        send(session)
    assert len(store.writes) <= 2 * ATTEMPTS


def test_f50_the_broken_stream_of_a_killed_push_is_waited_for(
    session: Session, store: Store
) -> None:
    def held(call: int, offset: int) -> None:
        if call <= 2:
            raise service_errors.ConcurrentUpdate

    store.before_chunk = held
    send(session)
    assert store.content == CONTENT


def test_f50_a_push_that_another_one_is_writing_too_is_given_up(
    session: Session, store: Store
) -> None:
    def held(call: int, offset: int) -> None:
        del store.content[CHUNK_BYTES:]
        raise service_errors.ConcurrentUpdate

    store.before_chunk = held
    with pytest.raises(ConcurrentUpdate):
        send(session)
    assert len(store.writes) <= 2 * ATTEMPTS


def test_more_than_there_is_to_store_is_a_mismatch(session: Session, store: Store) -> None:
    store.content += CONTENT + b"x"
    with pytest.raises(ArtifactMismatch):
        send(session)


def test_a_finalized_version_takes_no_upload(session: Session, store: Store) -> None:
    def fail() -> None:
        raise service_errors.VersionNotPending

    store.status = fail
    with pytest.raises(VersionNotPending):
        send(session)


def test_a_spool_cut_short_under_our_hands_is_noticed(session: Session, store: Store) -> None:
    with pytest.raises(AnswerInvalid):
        upload(session, VERSION, io.BytesIO(CONTENT[:1000]), LENGTH)
