"""The SDK with artifacts in a real S3 server: pushed both ways, read by presigned links, and all
that may happen to objects and connections in between."""

from __future__ import annotations

import os
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import modelkms
import obstore
import pytest
from modelkms import bucket as bucket_module
from modelkms import linked
from modelkms.artifact import write_artifact
from modelkms.artifact.pin import ParallelDigest
from modelkms.errors import (
    AnswerInvalid,
    ArtifactChanged,
    ArtifactCorrupt,
    ArtifactMismatch,
    ArtifactMissing,
    ProfileInvalid,
    StorageUnavailable,
    UnavailableError,
    UploadIncomplete,
)
from modelkms.linked import LinkedObject, ObjectChanged
from modelkms.session import Session
from modelkms.types import Progress
from modelkms_api.object_store import BucketSettings, connect, object_key

from kms_service.adapters.bucket_storage import BucketArtifactStore
from kms_service.domain.errors import StateUnavailable
from kms_service.domain.names import VersionName
from tests.support.proxy import Proxy
from tests.support.s3_gateway import S3Gateway
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.unit.usecases.real_parts import migrated_database

PIECE = 8 << 20
LENGTH = 2 * PIECE + 12_345


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_database(tmp_path_factory.mktemp("schema"))


@pytest.fixture
def settings(s3_gateway: S3Gateway) -> BucketSettings:
    return s3_gateway.make_bucket()


@pytest.fixture
def service(
    tmp_path: Path, template: Path, settings: BucketSettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SdkWorld]:
    monkeypatch.setattr(Session, "pause_s", lambda *_: 0.0)
    with sdk_world(tmp_path, template, BucketArtifactStore(settings)) as world:
        yield world


@pytest.fixture
def publisher(service: SdkWorld) -> modelkms.Client:
    return service.client("publisher")


@pytest.fixture
def reader(service: SdkWorld) -> modelkms.Client:
    return service.client("reader")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(LENGTH))
    return path


@pytest.fixture
def read_by_service(service: SdkWorld, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets of what was read through the service."""
    reads: list[int] = []
    store = service.world.read_artifact
    original = type(store).__call__

    def counted(self: Any, caller: Any, name: Any, offset: int, *rest: Any, **more: Any) -> Any:
        reads.append(offset)
        return original(self, caller, name, offset, *rest, **more)

    monkeypatch.setattr(type(store), "__call__", counted)
    return reads


def opened(client: modelkms.Client) -> bytes:
    with client.open("face") as model:
        return model.read()


def direct(settings: BucketSettings, **changes: object) -> dict[str, object]:
    return {
        "kind": "s3",
        "bucket": settings.bucket,
        "endpoint": settings.endpoint,
        "region": settings.region,
        "credentials_file": settings.credentials_file,
        **changes,
    }


# --- the story -----------------------------------------------------------------------------------


def test_pushed_through_the_service_and_read_by_the_link(
    publisher: modelkms.Client, reader: modelkms.Client, model: Path, read_by_service: list[int]
) -> None:
    publisher.push(model, "face")
    seen: list[Progress] = []
    with reader.open("face", progress=seen.append) as loaded:
        assert loaded.read() == model.read_bytes()
    assert read_by_service == []
    downloads = [progress.done_bytes for progress in seen if progress.step == "download"]
    assert downloads == sorted(downloads)
    assert downloads[-1] == seen[-1].total_bytes


def test_prefetched_by_the_link(
    publisher: modelkms.Client, reader: modelkms.Client, model: Path, read_by_service: list[int]
) -> None:
    publisher.push(model, "face")
    reader.prefetch("face")
    assert read_by_service == []
    assert opened(reader) == model.read_bytes()


def test_a_publisher_with_credentials_uploads_by_itself(
    service: SdkWorld, settings: BucketSettings, reader: modelkms.Client, model: Path
) -> None:
    publisher = service.client("publisher", store=direct(settings))
    seen: list[Progress] = []
    pushed = publisher.push(model, "face", progress=seen.append)
    assert [record.event for record in service.world.audit.take()].count("WriteArtifact") == 0
    assert seen[-1].step == "upload"
    assert seen[-1].done_bytes == seen[-1].total_bytes
    stored = obstore.head(connect(settings), object_key(pushed.version.artifact_id))
    assert pushed.version.pin is not None
    assert stored["size"] == pushed.version.pin.length_bytes
    assert opened(reader) == model.read_bytes()


def test_where_links_are_off_everything_goes_through_the_service(
    service: SdkWorld,
    settings: BucketSettings,
    reader: modelkms.Client,
    publisher: modelkms.Client,
    model: Path,
    read_by_service: list[int],
) -> None:
    service.world.store.inner = BucketArtifactStore(settings, signs_links=False)
    publisher.push(model, "face")
    assert opened(reader) == model.read_bytes()
    assert read_by_service == [0]


# --- pushing, broken -----------------------------------------------------------------------------


def test_f50_a_broken_direct_upload_sends_the_spooled_ciphertext_again(
    service: SdkWorld,
    settings: BucketSettings,
    reader: modelkms.Client,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher = service.client("publisher", store=direct(settings))

    def breaking(upload: object, part_bytes: int) -> Iterator[bytes]:
        yield os.urandom(part_bytes)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(bucket_module._Upload, "_parts", breaking)
        with pytest.raises(KeyboardInterrupt):
            publisher.push(model, "face")
    assert obstore.list(connect(settings)).collect() == []  # nobody sees half of an object
    pushed = publisher.push(model, "face")
    assert (pushed.resumed, pushed.version.number) == (True, 1)
    assert opened(reader) == model.read_bytes()


def test_f50_an_upload_that_was_whole_is_not_sent_again(
    service: SdkWorld, settings: BucketSettings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = service.client("publisher", store=direct(settings))
    puts: list[str] = []
    put = bucket_module.DirectStore.put

    def counted(self: bucket_module.DirectStore, artifact_id: str, *rest: object) -> None:
        puts.append(artifact_id)
        put(self, artifact_id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bucket_module.DirectStore, "put", counted)
    service.world.database.fail_writes = [None, *[StateUnavailable()] * 20]
    with pytest.raises(UnavailableError):
        publisher.push(model, "face")
    service.world.database.fail_writes = []
    assert publisher.push(model, "face").resumed
    assert len(puts) == 1


def test_f45_what_lies_there_already_is_not_believed(
    service: SdkWorld,
    settings: BucketSettings,
    reader: modelkms.Client,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the same length and another content: the service says so, and ours is sent."""
    publisher = service.client("publisher", store=direct(settings))
    put = bucket_module.DirectStore.put

    def planted(
        self: bucket_module.DirectStore, artifact_id: str, file: object, length: int, _: object
    ) -> None:
        obstore.put(connect(settings), object_key(artifact_id), os.urandom(length))
        raise StorageUnavailable("gone")

    with monkeypatch.context() as broken:
        broken.setattr(bucket_module.DirectStore, "put", planted)
        with pytest.raises(StorageUnavailable):
            publisher.push(model, "face")
    assert bucket_module.DirectStore.put is put
    with pytest.raises(modelkms.ModelKmsError) as first:
        publisher.push(model, "face")
    # Noise is no artifact at all; an artifact of another kind is a mismatch. Neither is published.
    assert first.value.reason in ("ARTIFACT_CORRUPT", "ARTIFACT_MISMATCH")
    with pytest.raises(modelkms.ModelKmsError):
        opened(reader)


def test_f51_credentials_that_the_store_refuses(
    service: SdkWorld, s3_gateway: S3Gateway, settings: BucketSettings, model: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(
        f'{{"access_key_id": "{s3_gateway.access_key_id}", "secret_access_key": "CANARY"}}'
    )
    publisher = service.client("publisher", store=direct(settings, credentials_file=wrong))
    with pytest.raises(StorageUnavailable, match="refuses this client's credentials") as refusal:
        publisher.push(model, "face")
    assert "CANARY" not in str(refusal.value) + str(refusal.value.hint)


def test_another_bucket_than_the_services_is_found_at_finalize(
    service: SdkWorld, s3_gateway: S3Gateway, model: Path
) -> None:
    elsewhere = s3_gateway.make_bucket()
    publisher = service.client("publisher", store=direct(elsewhere))
    with pytest.raises(UploadIncomplete):
        publisher.push(model, "face")


def test_a_store_section_that_cannot_be_used(
    service: SdkWorld, settings: BucketSettings, model: Path
) -> None:
    publisher = service.client(
        "publisher", store=direct(settings, credentials_file=model.with_name("none"))
    )
    with pytest.raises(ProfileInvalid, match=r"store\.credentials_file"):
        publisher.push(model, "face")


# --- objects that are not what was published -----------------------------------------------------


@pytest.fixture
def published(publisher: modelkms.Client, model: Path) -> modelkms.VersionInfo:
    return publisher.push(model, "face").version


def content(settings: BucketSettings, version: modelkms.VersionInfo) -> bytes:
    return bytes(obstore.get(connect(settings), object_key(version.artifact_id)).bytes())


def replace(settings: BucketSettings, version: modelkms.VersionInfo, data: bytes) -> None:
    obstore.put(connect(settings), object_key(version.artifact_id), data)


def test_f45_another_versions_object_never_opens(
    publisher: modelkms.Client,
    reader: modelkms.Client,
    settings: BucketSettings,
    published: modelkms.VersionInfo,
    model: Path,
) -> None:
    other = publisher.push(model, "face").version
    replace(settings, published, content(settings, other))
    with pytest.raises(ArtifactMismatch), reader.open("face@1"):
        pytest.fail("not opened")


def test_f66_an_object_encrypted_under_the_same_key_never_opens(
    service: SdkWorld,
    reader: modelkms.Client,
    settings: BucketSettings,
    published: modelkms.VersionInfo,
    tmp_path: Path,
    model: Path,
) -> None:
    """By a lease holder who can write the store: right key, header, length; other content."""
    version = service.world.version(VersionName.parse(published.name))
    assert version is not None
    key = service.world.unwrap(version)
    forged = tmp_path / "forged"
    other = tmp_path / "other" / model.name
    other.parent.mkdir()
    other.write_bytes(os.urandom(LENGTH))
    with forged.open("wb+", buffering=0) as sink:
        write_artifact(
            other,
            sink,
            key,
            version=published.name,
            version_uid=published.uid,
            artifact_id=published.artifact_id,
        )
    original, data = content(settings, published), forged.read_bytes()
    assert len(original) == len(data)
    replace(settings, published, data)
    with pytest.raises(ArtifactMismatch), reader.open("face"):
        pytest.fail("not opened")

    # Only what follows the header and its tag: the digest of the pin tells.
    assert published.pin is not None
    head = original[: original.index(published.pin.floe_header_tag) + 32]
    replace(settings, published, head + data[len(head) :])
    with pytest.raises((ArtifactMismatch, ArtifactCorrupt)), reader.open("face"):
        pytest.fail("not opened")


@pytest.mark.parametrize("change", [-1, 1, -PIECE])
def test_f43_a_longer_or_shorter_object_is_corrupt(
    reader: modelkms.Client,
    settings: BucketSettings,
    published: modelkms.VersionInfo,
    change: int,
) -> None:
    data = content(settings, published)
    replace(settings, published, data[:change] if change < 0 else data + b"x" * change)
    with pytest.raises(ArtifactCorrupt, match=r"were published"), reader.open("face"):
        pytest.fail("not opened")


def test_f51_an_object_that_is_gone_is_artifact_missing(
    reader: modelkms.Client, settings: BucketSettings, published: modelkms.VersionInfo
) -> None:
    obstore.delete(connect(settings), object_key(published.artifact_id))
    with pytest.raises(ArtifactMissing), reader.open("face"):
        pytest.fail("not opened")


def test_f46_an_object_replaced_between_two_ranges_is_read_anew(
    reader: modelkms.Client,
    settings: BucketSettings,
    published: modelkms.VersionInfo,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Put back by its owner: another state of the object, the same bytes."""
    data = content(settings, published)

    def replaced() -> None:
        """Parts of other sizes: another ETag for the same bytes."""
        obstore.put(
            connect(settings),
            object_key(published.artifact_id),
            data,
            use_multipart=True,
            chunk_size=6 << 20,
        )

    etags = after_first_range(monkeypatch, replaced)
    assert opened(reader) == model.read_bytes()
    assert len(etags) >= 1


def test_f46_an_object_replaced_each_time_is_artifact_changed(
    reader: modelkms.Client,
    settings: BucketSettings,
    published: modelkms.VersionInfo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = content(settings, published)
    original = LinkedObject._range
    seen: list[int] = []
    lock = threading.Lock()

    def ranged(self: LinkedObject, start: int, end: int) -> Any:
        if start != 0:  # the beginning is answered already: all others come after
            begun[id(self)].wait(30)
        return original(self, start, end)

    def check(self: LinkedObject, answer: Any, url: str, start: int, end: int) -> None:
        checked(self, answer, url, start, end)
        with lock:
            if start == 0:
                seen.append(start)
                kept.append(self)
                replace(settings, published, data[:-1] + bytes([len(seen)]))
                begun[id(self)].set()

    begun: dict[int, threading.Event] = defaultdict(threading.Event)
    checked = LinkedObject._check
    kept: list[LinkedObject] = []  # so that no id comes twice
    monkeypatch.setattr(LinkedObject, "_check", check)
    monkeypatch.setattr(LinkedObject, "_range", ranged)
    with pytest.raises(ArtifactChanged), reader.open("face"):
        pytest.fail("not opened")
    assert len(seen) == 3


def after_first_range(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[str]:
    """Run `act` once, when the first range was answered."""
    original = LinkedObject._check
    lock = threading.Lock()
    done: list[str] = []

    def check(self: LinkedObject, answer: object, url: str, start: int, end: int) -> None:
        original(self, answer, url, start, end)  # type: ignore[arg-type]
        with lock:
            if not done:
                done.append(str(self._etag))
                act()

    monkeypatch.setattr(LinkedObject, "_check", check)
    return done


# --- links and connections -----------------------------------------------------------------------


def test_an_ended_link_is_renewed(
    reader: modelkms.Client,
    service: SdkWorld,
    published: modelkms.VersionInfo,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    links: list[str] = []
    sign = service.world.store.link

    def link(artifact_id: str, valid_for: timedelta) -> str | None:
        url = sign(artifact_id, valid_for)
        assert url is not None
        links.append(url)
        return url.replace("X-Amz-Signature=", "X-Amz-Signature=0") if len(links) == 1 else url

    monkeypatch.setattr(service.world.store, "link", link)
    assert opened(reader) == model.read_bytes()
    assert len(links) == 2


def test_f51_links_that_are_refused_again_and_again(
    reader: modelkms.Client,
    service: SdkWorld,
    published: modelkms.VersionInfo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sign = service.world.store.link
    links: list[str] = []

    def link(artifact_id: str, valid_for: timedelta) -> str | None:
        links.append(str(sign(artifact_id, valid_for)) + "0")
        return links[-1]

    monkeypatch.setattr(service.world.store, "link", link)
    with pytest.raises(StorageUnavailable) as refusal, reader.open("face"):
        pytest.fail("not opened")
    assert "X-Amz" not in str(refusal.value)
    assert len(links) == 3


@pytest.fixture
def session(service: SdkWorld) -> Session:
    return service.client("reader")._session


@pytest.fixture
def stored(settings: BucketSettings) -> tuple[str, bytes]:
    artifact_id, data = secrets.token_hex(16), os.urandom(LENGTH)
    obstore.put(connect(settings), object_key(artifact_id), data)
    return artifact_id, data


def linked_object(session: Session, settings: BucketSettings, artifact_id: str) -> LinkedObject:
    url = BucketArtifactStore(settings).link(artifact_id, timedelta(hours=1))
    assert url is not None
    return LinkedObject(session, url, lambda: url, "face@1", LENGTH, None)


def append(subject: LinkedObject, path: Path) -> bytes:
    """What the file holds after reading on from its end."""
    with path.open("ab+", buffering=0) as file:
        digest = ParallelDigest()
        held = path.read_bytes()
        digest.add(0, memoryview(held))
        subject.append_to(file, len(held), digest, lambda _before, _end: None)
    return path.read_bytes()


@pytest.mark.parametrize("held", [0, 1, PIECE - 1, PIECE, PIECE + 1, LENGTH - 1])
def test_it_goes_on_wherever_the_file_ends(
    session: Session, settings: BucketSettings, stored: tuple[str, bytes], tmp_path: Path, held: int
) -> None:
    artifact_id, data = stored
    (tmp_path / "file").write_bytes(data[:held])
    subject = linked_object(session, settings, artifact_id)
    assert append(subject, tmp_path / "file") == data


@pytest.mark.faults
def test_f51_cut_connections_are_taken_up_and_silent_ones_given_up(
    session: Session,
    settings: BucketSettings,
    stored: tuple[str, bytes],
    s3_gateway: S3Gateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact_id, data = stored
    monkeypatch.setattr(linked, "_READ_S", 1.0)
    with Proxy(s3_gateway.port) as proxy:
        through = s3_gateway.settings(settings.bucket, port=proxy.port)
        done = threading.Event()

        def cut() -> None:
            for _ in range(3):
                done.wait(0.02)
                proxy.cut()

        cuts = threading.Thread(target=cut)
        cuts.start()
        assert append(linked_object(session, through, artifact_id), tmp_path / "cut") == data
        done.set()
        cuts.join()

        proxy.silent = True
        with pytest.raises(StorageUnavailable):
            append(linked_object(session, through, artifact_id), tmp_path / "silent")
        proxy.silent = False
        assert append(linked_object(session, through, artifact_id), tmp_path / "silent") == data


def answering(status: int, headers: dict[str, str], body: bytes) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (503, {}, StorageUnavailable),
        (200, {"Content-Length": "4"}, StorageUnavailable),
        (302, {"Location": "http://127.0.0.1:1/"}, StorageUnavailable),
        (206, {"Content-Range": f"bytes 1-4/{LENGTH}"}, StorageUnavailable),
        (206, {"Content-Range": f"bytes 0-{PIECE - 1}/{LENGTH}"}, StorageUnavailable),
        (206, {"Content-Range": f"bytes 0-{PIECE - 1}/{LENGTH + 1}"}, ArtifactCorrupt),
        (404, {}, ArtifactMissing),
        (412, {}, ObjectChanged),
        (416, {}, ArtifactCorrupt),
    ],
)
def test_f51_what_a_store_may_answer(
    session: Session, tmp_path: Path, status: int, headers: dict[str, str], error: type[Exception]
) -> None:
    server = answering(status, headers, b"abcd")
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/object?signature=CANARY"
        subject = LinkedObject(session, url, lambda: url, "face@1", LENGTH, None)
        with pytest.raises(error) as raised:
            append(subject, tmp_path / "file")
        assert "CANARY" not in str(raised.value)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "url",
    [
        "http://store.example/x",
        "ftp://store.example",
        "file:///x",
        "",
        "https://",
        "http://127.0.0.1.store.example/",
    ],
)
def test_a_link_that_is_not_https_is_not_followed(session: Session, url: str) -> None:
    with pytest.raises(AnswerInvalid):
        LinkedObject(session, url, lambda: url, "face@1", LENGTH, None)
