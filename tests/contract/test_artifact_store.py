"""What every `ArtifactStore` promises: run against the local folder and a real S3 server."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
import pytest
import requests
from modelkms_api.object_store import UPLOADS, BucketSettings, connect, object_key

from kms_service.adapters.bucket_storage import BucketArtifactStore
from kms_service.adapters.object_storage import LocalArtifactStore
from kms_service.domain.errors import (
    ArtifactMissing,
    ConcurrentUpdate,
    ConfigurationError,
    StorageUnavailable,
    UploadOffsetWrong,
)
from kms_service.domain.ports import ArtifactStore
from tests.support.s3_gateway import S3Gateway

PART_BYTES = 5 << 20
DAY = timedelta(days=1)


@pytest.fixture
def settings(s3_gateway: S3Gateway) -> BucketSettings:
    return s3_gateway.make_bucket()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "local":
        return LocalArtifactStore(tmp_path / "store")
    return BucketArtifactStore(request.getfixturevalue("settings"), part_bytes=PART_BYTES)


@pytest.fixture
def artifact_id() -> str:
    return secrets.token_hex(16)


def upload(store: ArtifactStore, artifact_id: str, data: bytes, offset: int = 0) -> int:
    with store.resume(artifact_id, offset) as writer:
        for at in range(0, len(data), 1 << 20):
            writer.append(data[at : at + (1 << 20)])
        return writer.commit()


def read(store: ArtifactStore, artifact_id: str, offset: int, length: int) -> bytes:
    chunks = list(store.read(artifact_id, offset, length))
    assert all(0 < len(chunk) <= 1 << 20 for chunk in chunks)
    return b"".join(chunks)


def test_nothing_is_there_at_first(store: ArtifactStore, artifact_id: str) -> None:
    store.probe()
    assert store.stored_bytes(artifact_id) is None
    with pytest.raises(ArtifactMissing):
        read(store, artifact_id, 0, 1)
    with pytest.raises(ArtifactMissing):
        store.publish(artifact_id)
    store.delete(artifact_id)
    assert list(store.stored_before(datetime.now(UTC) + DAY)) == []


@pytest.mark.parametrize("length", [1, PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 1])
def test_an_upload_becomes_the_object(store: ArtifactStore, artifact_id: str, length: int) -> None:
    data = os.urandom(length)
    assert upload(store, artifact_id, data) == length
    assert store.stored_bytes(artifact_id) == length
    assert read(store, artifact_id, 0, length) == data  # unfinished uploads too

    store.publish(artifact_id)
    store.publish(artifact_id)

    assert store.stored_bytes(artifact_id) == length
    assert read(store, artifact_id, 0, length) == data


def test_an_upload_goes_on_where_it_ended_and_nowhere_else(
    store: ArtifactStore, artifact_id: str
) -> None:
    data = os.urandom(PART_BYTES + 3_000_000)
    assert upload(store, artifact_id, data[:3_000_000]) == 3_000_000
    for wrong in (0, 2_999_999, 3_000_001):
        with pytest.raises(UploadOffsetWrong), store.resume(artifact_id, wrong):
            pass
    assert upload(store, artifact_id, data[3_000_000:], 3_000_000) == len(data)
    store.publish(artifact_id)
    assert read(store, artifact_id, 0, len(data)) == data


def test_what_was_committed_stays_when_the_writer_breaks_off(
    store: ArtifactStore, artifact_id: str
) -> None:
    with pytest.raises(RuntimeError), store.resume(artifact_id, 0) as writer:  # noqa: PT012
        writer.append(b"a" * 1000)
        writer.commit()
        raise RuntimeError
    assert store.stored_bytes(artifact_id) == 1000


def test_one_writer_at_a_time(store: ArtifactStore, artifact_id: str) -> None:
    with store.resume(artifact_id, 0) as writer:
        with pytest.raises(ConcurrentUpdate), store.resume(artifact_id, 0):
            pass
        writer.append(b"mine")
        writer.commit()
    assert read(store, artifact_id, 0, 4) == b"mine"


@pytest.mark.parametrize("published", [False, True])
def test_any_range_can_be_read(store: ArtifactStore, artifact_id: str, published: bool) -> None:
    data = os.urandom(2 * PART_BYTES + 100)
    upload(store, artifact_id, data)
    if published:
        store.publish(artifact_id)
    for offset, length in (
        (0, 1),
        (PART_BYTES - 1, 2),
        (PART_BYTES, PART_BYTES),
        (100, 2 * PART_BYTES),
        (len(data) - 1, 1),
    ):
        assert read(store, artifact_id, offset, length) == data[offset : offset + length]
    assert read(store, artifact_id, len(data) - 5, 100) == data[-5:]
    assert read(store, artifact_id, 7, 0) == b""


def test_deleting_removes_object_and_upload(store: ArtifactStore, artifact_id: str) -> None:
    other = secrets.token_hex(16)
    for each in (artifact_id, other):
        upload(store, each, b"content")
    store.publish(artifact_id)
    for each in (artifact_id, other):
        store.delete(each)
        store.delete(each)
        assert store.stored_bytes(each) is None


def test_what_is_stored_can_be_listed_by_age(store: ArtifactStore) -> None:
    published, unfinished = secrets.token_hex(16), secrets.token_hex(16)
    upload(store, published, b"content")
    store.publish(published)
    upload(store, unfinished, b"content")
    now = datetime.now(UTC)
    assert set(store.stored_before(now + DAY)) == {published, unfinished}
    assert set(store.stored_before(now - DAY)) == set()


@pytest.mark.parametrize("name", ["", "../x", "A" * 32, "0" * 31, "0" * 32 + "/x"])
def test_no_name_leads_elsewhere(store: ArtifactStore, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.stored_bytes(name),
        lambda: list(store.read(name, 0, 1)),
        lambda: store.publish(name),
        lambda: store.delete(name),
        lambda: store.resume(name, 0).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="artifact id"):
            call()


# --- what a bucket does besides -------------------------------------------------------------------


@pytest.fixture
def bucket(settings: BucketSettings) -> BucketArtifactStore:
    return BucketArtifactStore(settings, part_bytes=PART_BYTES)


def test_a_local_folder_signs_nothing(tmp_path: Path, artifact_id: str) -> None:
    assert LocalArtifactStore(tmp_path).link(artifact_id, DAY) is None


def test_a_link_gives_the_object_and_ranges_of_it(
    bucket: BucketArtifactStore, artifact_id: str
) -> None:
    data = os.urandom(100_000)
    upload(bucket, artifact_id, data)
    bucket.publish(artifact_id)
    url = bucket.link(artifact_id, DAY)
    assert url is not None
    assert url == bucket.link(artifact_id, DAY)  # signed once an hour
    assert "X-Amz-Expires=90000" in url
    whole = requests.get(url, timeout=10)
    assert (whole.status_code, whole.content) == (200, data)
    etag = whole.headers["ETag"]
    part = requests.get(url, headers={"Range": "bytes=5-9", "If-Match": etag}, timeout=10)
    assert (part.status_code, part.content) == (206, data[5:10])
    other = requests.get(url, headers={"Range": "bytes=5-9", "If-Match": '"other"'}, timeout=10)
    assert other.status_code == 412
    assert requests.put(url, data=b"x", timeout=10).status_code == 403


def test_links_can_be_turned_off(settings: BucketSettings, artifact_id: str) -> None:
    assert BucketArtifactStore(settings, signs_links=False).link(artifact_id, DAY) is None


def test_another_replica_goes_on_with_an_upload(settings: BucketSettings, artifact_id: str) -> None:
    one, two = BucketArtifactStore(settings), BucketArtifactStore(settings)
    assert upload(one, artifact_id, b"first") == 5
    assert upload(two, artifact_id, b"second", 5) == 11
    one.publish(artifact_id)
    assert read(two, artifact_id, 0, 11) == b"firstsecond"


def test_of_two_replicas_that_write_at_once_one_goes_on(
    settings: BucketSettings, artifact_id: str
) -> None:
    one, two = BucketArtifactStore(settings), BucketArtifactStore(settings)
    with one.resume(artifact_id, 0) as mine, two.resume(artifact_id, 0) as theirs:
        mine.append(b"mine")
        theirs.append(b"theirs")
        assert mine.commit() == 4
        with pytest.raises(ConcurrentUpdate):
            theirs.commit()
    assert read(one, artifact_id, 0, 10) == b"mine"


def test_a_part_stored_twice_is_no_conflict(settings: BucketSettings, artifact_id: str) -> None:
    """The answer to a put was lost, and obstore has sent it again."""
    one, two = BucketArtifactStore(settings), BucketArtifactStore(settings)
    with one.resume(artifact_id, 0) as mine, two.resume(artifact_id, 0) as again:
        for writer in (mine, again):
            writer.append(b"the same")
            assert writer.commit() == 8


def test_publishing_leaves_no_parts(settings: BucketSettings, artifact_id: str) -> None:
    store = BucketArtifactStore(settings, part_bytes=1000)
    upload(store, artifact_id, b"x" * 4500)
    client = connect(settings)
    assert len(obstore.list(client, UPLOADS).collect()) == 5
    store.publish(artifact_id)
    assert obstore.list(client, UPLOADS).collect() == []


def test_an_object_that_a_publisher_wrote_needs_no_upload(
    settings: BucketSettings, bucket: BucketArtifactStore, artifact_id: str
) -> None:
    obstore.put(connect(settings), object_key(artifact_id), b"whole")
    assert bucket.stored_bytes(artifact_id) == 5
    bucket.publish(artifact_id)
    assert read(bucket, artifact_id, 0, 5) == b"whole"


def test_f46_an_object_replaced_while_the_service_reads_it_is_not_gone_on_with(
    settings: BucketSettings, bucket: BucketArtifactStore, artifact_id: str
) -> None:
    client, key = connect(settings), object_key(artifact_id)
    obstore.put(client, key, os.urandom(24 << 20))
    chunks = bucket.read(artifact_id, 0, 24 << 20)
    first = next(chunks)
    obstore.put(client, key, os.urandom(24 << 20))
    try:
        rest = b"".join(chunks)
    except StorageUnavailable:
        return
    # What was in flight was of the old object: the gateway keeps the file open.
    assert len(first) + len(rest) == 24 << 20


def test_what_is_not_named_by_an_artifact_is_left_alone(
    settings: BucketSettings, bucket: BucketArtifactStore
) -> None:
    client = connect(settings)
    obstore.put(client, "objects/README", b"by an operator")
    obstore.put(client, "elsewhere/" + "0" * 32, b"of somebody else")
    assert list(bucket.stored_before(datetime.now(UTC) + DAY)) == []


@pytest.fixture
def refused(s3_gateway: S3Gateway, settings: BucketSettings, tmp_path: Path) -> BucketArtifactStore:
    credentials = {"access_key_id": s3_gateway.access_key_id, "secret_access_key": "another"}
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps(credentials))
    return BucketArtifactStore(dataclasses.replace(settings, credentials_file=file))


def test_f51_a_store_that_refuses_us_is_unavailable(
    refused: BucketArtifactStore, artifact_id: str
) -> None:
    calls: list[Callable[[], object]] = [
        refused.probe,
        lambda: refused.stored_bytes(artifact_id),
        lambda: list(refused.read(artifact_id, 0, 1)),
        lambda: refused.publish(artifact_id),
        lambda: refused.delete(artifact_id),
        lambda: list(refused.stored_before(datetime.now(UTC))),
        lambda: upload(refused, artifact_id, b"x"),
    ]
    for call in calls:
        with pytest.raises(StorageUnavailable):
            call()


def test_settings_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "credentials.json"
    for text in ("", "[]", "{}", '{"access_key_id": 5}', '{"password": "CANARY"}'):
        bad.write_text(text)
        with pytest.raises(ConfigurationError, match=r"store\.credentials_file") as refusal:
            BucketArtifactStore(BucketSettings("s3", "b", credentials_file=bad))
        assert "CANARY" not in str(refusal.value)
    for endpoint in ("http://store.example", "ftp://store.example", "nothing"):
        with pytest.raises(ConfigurationError, match=r"store\.endpoint"):
            BucketArtifactStore(BucketSettings("s3", "b", endpoint=endpoint))
    with pytest.raises(ConfigurationError, match=r"store\.ca_file"):
        BucketArtifactStore(BucketSettings("s3", "b", ca_file=tmp_path / "missing"))
