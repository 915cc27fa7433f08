"""The main job through the SDK, against the real service over a real channel."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import modelkms
import pytest
from modelkms import leasing as leasing_module
from modelkms import opened as opened_module
from modelkms.errors import (
    AlreadyExists,
    ArtifactCorrupt,
    ArtifactMismatch,
    CorruptError,
    KeyAnswerInvalid,
    LeaseExpired,
    LeaseRevoked,
    LocalDiskFull,
    MemberNotFound,
    ModelClosed,
    ModelNotFoundOrDenied,
    PathUnusable,
    ProjectFrozen,
    ReferenceInvalid,
    SourceChanged,
    SourceRejected,
    StorageUnavailable,
    UsageError,
    VersionDisabled,
    VersionNotFinalized,
)
from modelkms.key_transport import boottime_s
from modelkms.session import Session
from modelkms.types import Progress

from kms_service.adapters.key_transport import HpkeKeyTransport
from kms_service.domain import errors as service_errors
from kms_service.domain.leases import LeaseBounds
from kms_service.domain.ports import EncryptedDataKey
from tests.support.certificates import uris
from tests.support.planted_secrets import PLAINTEXT, plant
from tests.support.sdk_world import SdkWorld, sdk_world
from tests.unit.usecases.real_parts import migrated_database, open_store

CANARY = b"a piece of plaintext that must be nowhere else"
plant(PLAINTEXT, CANARY)
SEGMENT = 256 * 1024 - 32


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_database(tmp_path_factory.mktemp("schema"))


@pytest.fixture
def service(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SdkWorld]:
    monkeypatch.setattr(Session, "pause_s", lambda *_: 0.0)
    with sdk_world(tmp_path, template) as world:
        yield world


@pytest.fixture
def publisher(service: SdkWorld) -> modelkms.Client:
    return service.client("publisher")


@pytest.fixture
def reader(service: SdkWorld) -> modelkms.Client:
    return service.client("reader")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of several files: empty, small, and longer than a segment."""
    model = tmp_path / "source" / "digits.mlpackage"
    (model / "Data" / "weights").mkdir(parents=True)
    (model / "Manifest.json").write_bytes(b"{}")
    (model / "Data" / "empty").write_bytes(b"")
    (model / "Data" / "weights" / "weight.bin").write_bytes(CANARY + os.urandom(3 * SEGMENT + 7))
    return model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CANARY + os.urandom(2 * SEGMENT))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- the story -----------------------------------------------------------------------------------


def test_a_folder_is_pushed_and_opened(
    publisher: modelkms.Client, reader: modelkms.Client, folder: Path
) -> None:
    seen: list[Progress] = []
    pushed = publisher.push(folder, "digits", progress=seen.append)
    assert pushed.version.reference == "demo/digits@1"
    assert (pushed.version.state, pushed.version.aliases) == ("ENABLED", ("stable",))
    assert (pushed.promoted, pushed.resumed) == (True, False)
    assert {progress.step for progress in seen} == {"encrypt", "upload"}
    expected = contents(folder)
    with reader.open("digits") as model:
        assert model.version == pushed.version
        assert model.lease.version == pushed.version.name
        assert not model.single_file
        assert model.files() == sorted(expected)
        assert {name: model.read(name) for name in model.files()} == expected
        with model.open("Data/weights/weight.bin") as stream:
            whole = expected["Data/weights/weight.bin"]
            assert (stream.seekable(), stream.readable(), stream.writable()) == (True, True, False)
            for at in (0, SEGMENT - 1, SEGMENT, len(whole) - 3, len(whole)):
                stream.seek(at)
                assert stream.read(5) == whole[at : at + 5]
            assert stream.seek(-7, io.SEEK_END) == len(whole) - 7
            assert stream.read() == whole[-7:]
        with model.materialize() as path:
            assert contents(path) == expected
        assert not path.exists()
        one = "Data/weights/weight.bin"
        with model.materialize("named", files=[one, one]) as path:
            assert (path.name, contents(path)) == ("named", {one: expected[one]})
        with pytest.raises(MemberNotFound), model.materialize(files=[one, "other"]):
            pass


def test_a_file_is_pushed_and_opened(
    publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "demo/onnx")
    with reader.open("demo/onnx@1") as model:
        assert (model.single_file, model.files()) == (True, ["model.onnx"])
        assert model.read() == model.read("model.onnx") == file.read_bytes()
        with model.open() as stream:
            assert stream.read() == file.read_bytes()
        with model.materialize() as path:
            assert contents(path) == {"model.onnx": file.read_bytes()}


def test_an_empty_file_is_a_model_too(
    publisher: modelkms.Client, reader: modelkms.Client, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    publisher.push(tmp_path / "empty", "empty")
    with reader.open("empty") as model:
        assert model.read() == b""


def test_later_versions_become_stable_only_when_promoted(
    publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "onnx")
    file.write_bytes(b"two")
    second = publisher.push(file, "onnx")
    assert (second.promoted, second.stable_reference) == (False, "demo/onnx@1")
    assert reader.resolve("onnx").number == 1
    publisher.promote("onnx@2")
    assert reader.resolve("onnx").number == 2
    file.write_bytes(b"three")
    assert publisher.push(file, "onnx", promote=True).promoted
    assert reader.resolve("onnx@stable").number == 3
    publisher.set_alias("onnx@1", "canary")
    assert {alias.id: alias.version_reference for alias in publisher.list_aliases("onnx")} == {
        "canary": "demo/onnx@1",
        "stable": "demo/onnx@3",
    }
    assert [version.number for version in reader.list_versions("onnx")] == [3, 2, 1]
    assert [model.reference for model in reader.list_models()] == ["demo/onnx"]
    assert [project.id for project in reader.list_projects()] == ["demo"]


def test_plaintext_and_keys_are_nowhere_on_disk(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, folder: Path
) -> None:
    publisher.push(folder, "digits")
    with reader.open("digits") as model, model.materialize():
        model.read("Data/weights/weight.bin")
        key = model._leased.data_key.reveal()
        searched = 0
        for path in (service.folder).rglob("*"):
            if path.is_file() and "source" not in path.parts:
                content = path.read_bytes()
                searched += len(content)
                assert CANARY not in content, path
                assert key not in content, path
                assert key.hex().encode() not in content, path
        assert searched > 2 * 3 * SEGMENT  # store and cache were among it
    assert model._leased.data_key.reveal() == bytes(32)


def test_the_second_open_takes_the_ciphertext_from_the_cache(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "onnx")
    reader.prefetch("onnx")
    service.world.store.inner = open_store(service.folder / "empty")
    with reader.open("onnx") as model:
        assert model.read() == file.read_bytes()


def test_several_threads_open_with_one_client(
    publisher: modelkms.Client, reader: modelkms.Client, folder: Path
) -> None:
    publisher.push(folder, "digits")
    expected, results = contents(folder), []

    def work() -> None:
        with reader.open("digits") as model:
            results.append({name: model.read(name) for name in model.files()})

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [expected] * 6


# --- who may not ---------------------------------------------------------------------------------


def test_missing_and_forbidden_look_alike(
    service: SdkWorld, publisher: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "onnx")
    stranger = service.client("stranger")
    told = []
    for reference in ("onnx", "onnx@1", "nothing", "elsewhere/nothing"):
        with pytest.raises(ModelNotFoundOrDenied) as caught:
            stranger.open(reference)
        assert caught.value.metadata["decision_id"]
        told.append((caught.value.reason, caught.value.message, caught.value.hint))
    assert len(set(told)) == 1
    with pytest.raises(ModelNotFoundOrDenied):
        stranger.push(file, "onnx")


def test_a_disabled_version_opens_no_more_and_its_lease_ends(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "onnx")
    security = service.client("security")
    with reader.open("onnx") as model:
        assert security.disable("onnx@1").state == "DISABLED"
        with pytest.raises(VersionDisabled):
            reader.open("onnx")
        for act in (model.renew, model.read):  # it has ended, and is known to have
            with pytest.raises(LeaseRevoked):
                act()
    assert security.enable("onnx@1").state == "ENABLED"
    reader.open("onnx").close()
    for bad in ("onnx", "onnx@stable"):
        with pytest.raises(ReferenceInvalid):
            security.disable(bad)


def test_leases_are_listed_and_revoked(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "onnx")
    security = service.client("security")
    with reader.open("onnx") as first, reader.open("onnx") as second:
        names = {lease.name for lease in security.list_leases()}
        assert names == {first.lease.name, second.lease.name}
        assert security.revoke_leases(lease=first.lease.id) == 1
        assert [lease.name for lease in security.list_leases(model="onnx")] == [second.lease.name]
        assert security.revoke_leases(model="onnx@1") == 1
        assert security.list_leases() == []
        assert {lease.state for lease in security.list_leases(show_ended=True)} == {"REVOKED"}
        with pytest.raises(LeaseRevoked):
            reader.renew_lease(first.lease.name)
    with pytest.raises(UsageError):
        security.revoke_leases()
    with pytest.raises(UsageError):
        security.revoke_leases(lease=first.lease.id, model="onnx")


def test_a_lease_bounds_what_is_begun(
    service: SdkWorld,
    publisher: modelkms.Client,
    reader: modelkms.Client,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher.push(file, "onnx")
    service.world.policy.bounds = LeaseBounds(timedelta(hours=1), timedelta(hours=2))
    now = boottime_s()
    ahead = 0.0
    for module in (opened_module, leasing_module):
        monkeypatch.setattr(module, "boottime_s", lambda: now + ahead)

    def advance(minutes: float) -> None:
        nonlocal ahead
        ahead += 60 * minutes
        service.world.clock.advance(timedelta(minutes=minutes))

    with reader.open("onnx") as model, model.open() as stream:
        advance(50)
        assert model.read() == file.read_bytes()  # renewed on the way
        assert model.lease.renewals == 1
        advance(50)
        model.read()
        advance(19)
        model.read()  # cannot be renewed any more, but lasts to its absolute end
        advance(2)
        for act in (model.read, model.open, lambda: model.materialize().__enter__()):
            with pytest.raises(LeaseExpired):
                act()
        assert stream.read() == file.read_bytes()  # what is open stays open


def test_a_download_that_outlasts_its_lease_opens_under_a_new_one(
    service: SdkWorld,
    publisher: modelkms.Client,
    reader: modelkms.Client,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher.push(file, "onnx")
    file.write_bytes(b"two")
    publisher.push(file, "onnx")
    now, ahead = boottime_s(), 0.0
    for module in (opened_module, leasing_module):
        monkeypatch.setattr(module, "boottime_s", lambda: now + ahead)

    def slowly(progress: Progress) -> None:
        nonlocal ahead
        if progress.done_bytes == progress.total_bytes:
            ahead = 2 * 3600.0
            service.world.clock.advance(timedelta(hours=2))
            publisher.promote("onnx@2")  # what was begun is not changed under way

    with reader.open("onnx", progress=slowly) as model:
        assert model.version.number == 1
        assert len(model.read()) == len(CANARY) + 2 * SEGMENT
        assert len(service.client("security").list_leases(show_ended=True)) == 2


def test_f69_a_changed_key_answer_opens_nothing_and_is_not_retried(
    service: SdkWorld,
    publisher: modelkms.Client,
    reader: modelkms.Client,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher.push(file, "onnx")
    real, answers = HpkeKeyTransport.encrypt, []

    def change(transport: HpkeKeyTransport, *arguments: Any) -> EncryptedDataKey:
        answer = real(transport, *arguments)
        answers.append(answer)
        flipped = bytes([answer.ciphertext[0] ^ 1]) + answer.ciphertext[1:]
        return replace(answer, ciphertext=flipped)

    def replay(transport: HpkeKeyTransport, *arguments: Any) -> EncryptedDataKey:
        answers.append(real(transport, *arguments))
        return answers[0]

    for misbehave in (change, replay):
        before = len(answers)
        with monkeypatch.context() as patch:
            patch.setattr(HpkeKeyTransport, "encrypt", misbehave)
            with pytest.raises(KeyAnswerInvalid) as caught:
                reader.open("onnx")
            with pytest.raises(KeyAnswerInvalid):
                publisher.push(file, "onnx")
        assert len(answers) == before + 2
        assert caught.value.exit_code == 6
    assert not (service.folder / "home" / "reader" / "cache" / "artifacts").exists()
    assert spooled(service) == []


def test_closing_wipes_the_key_and_ends_reading(
    publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "onnx")
    model = reader.open("onnx")
    model.close()
    model.close()
    assert model._leased.data_key.reveal() == bytes(32)
    for act in (model.read, model.open, model.files):
        with pytest.raises(ModelClosed):
            act()


def test_f67_a_blocked_reader_and_a_frozen_project(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "onnx")
    security = service.client("security")
    who = reader.whoami().spiffe_id
    reader.open("onnx").close()
    assert security.block(who, "stolen laptop", datetime.now(UTC) + timedelta(days=9999)) == 1
    assert [block.principal for block in security.list_blocks()] == [who]
    with pytest.raises(ModelNotFoundOrDenied):
        reader.open("onnx")
    assert reader.list_projects() == []
    assert security.unblock(who)

    reader.open("onnx").close()
    assert security.freeze("incident 7") == 1
    assert [(freeze.id, freeze.reason) for freeze in security.list_freezes()] == [
        ("demo", "incident 7")
    ]
    for act in (lambda: reader.open("onnx"), lambda: publisher.push(file, "onnx")):
        with pytest.raises(ProjectFrozen) as caught:
            act()
        assert caught.value.exit_code == 8
    assert security.unfreeze()
    reader.open("onnx").close()


def test_names_that_are_not_there(
    publisher: modelkms.Client, reader: modelkms.Client, folder: Path
) -> None:
    publisher.push(folder, "digits")
    with reader.open("digits") as model:
        with pytest.raises(MemberNotFound):
            model.read("absent")
        with pytest.raises(MemberNotFound, match="3 files"):
            model.read()


# --- export --------------------------------------------------------------------------------------


def test_export_writes_plaintext_whole_or_not_at_all(
    publisher: modelkms.Client,
    reader: modelkms.Client,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher.push(folder, "digits")
    target = tmp_path / "exported"
    with reader.open("digits") as model:
        model.export(target)
        assert contents(target) == contents(folder)
        with pytest.raises(PathUnusable, match="not empty"):
            model.export(target)
        with pytest.raises(PathUnusable, match="no folder"):
            model.export(tmp_path / "absent" / "exported")
        monkeypatch.setattr(opened_module, "free_bytes", lambda _: 10)
        with pytest.raises(LocalDiskFull):
            model.export(tmp_path / "again")
        monkeypatch.undo()
        before = set(tmp_path.iterdir())
        monkeypatch.setattr(Path, "rename", _fail)
        with pytest.raises(LocalDiskFull):
            model.export(tmp_path / "again")
        monkeypatch.undo()
        assert set(tmp_path.iterdir()) == before


def _fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


# --- sources -------------------------------------------------------------------------------------


def test_f49_bad_sources_create_nothing(
    service: SdkWorld, publisher: modelkms.Client, tmp_path: Path
) -> None:
    with pytest.raises(PathUnusable):
        publisher.push(tmp_path / "absent", "onnx")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link").symlink_to("/etc/passwd")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "fifo")
    for name in ("empty", "link", "fifo", "inner", "pipe"):
        with pytest.raises(SourceRejected):
            publisher.push(tmp_path / name, "onnx")
    with pytest.raises(ModelNotFoundOrDenied):
        publisher.list_versions("onnx")
    assert service.stored() == []
    for reference in ("onnx@1", "onnx@stable", "ONNX", ""):
        with pytest.raises(ReferenceInvalid):
            publisher.push(tmp_path / "inner", reference)


def test_f49_a_source_that_changes_while_it_is_read_is_not_published(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    def change(progress: Progress) -> None:
        if progress.step == "encrypt":
            with file.open("ab") as more:
                more.write(b"x")

    with pytest.raises(SourceChanged):
        publisher.push(file, "onnx", progress=change)
    with pytest.raises((VersionNotFinalized, ModelNotFoundOrDenied)):
        reader.open("onnx@1")
    assert spooled(service) == []


def spooled(service: SdkWorld) -> list[str]:
    spool = service.folder / "home" / "publisher" / "state" / "spool"
    return sorted(path.suffix for path in spool.iterdir()) if spool.exists() else []


# --- pushes that break off (F50) -----------------------------------------------------------------


def break_off(
    service: SdkWorld, publisher: modelkms.Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push whose upload cannot begin: its spool is whole."""

    def away(*_: object) -> None:
        raise service_errors.StorageUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(service.world.store.inner.__class__, "resume", away)
        with pytest.raises(StorageUnavailable):
            publisher.push(file, "onnx")


def test_f50_a_push_that_broke_off_in_the_upload_goes_on_from_its_spool(
    service: SdkWorld,
    publisher: modelkms.Client,
    reader: modelkms.Client,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_off(service, publisher, file, monkeypatch)
    assert spooled(service) == [".artifact", ".json", ".lock"]
    with pytest.raises(VersionNotFinalized):
        reader.open("onnx@1")
    pushed = publisher.push(file, "onnx")
    assert (pushed.version.number, pushed.resumed) == (1, True)
    assert spooled(service) == []
    with reader.open("onnx") as model:
        assert model.read() == file.read_bytes()


def test_f50_a_lost_answer_to_finalize_publishes_once(
    service: SdkWorld,
    publisher: modelkms.Client,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real: Callable[..., object] = publisher._session.call

    def lose(method: object, request: object, **options: object) -> object:
        answer = real(method, request, **options)
        if type(request).__name__ == "FinalizeVersionRequest":
            raise StorageUnavailable("lost")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(publisher._session, "call", lose)
        with pytest.raises(StorageUnavailable):
            publisher.push(file, "onnx")
    pushed = publisher.push(file, "onnx")
    assert (pushed.version.number, pushed.resumed) == (1, True)
    assert [version.number for version in publisher.list_versions("onnx")] == [1]


def test_f50_a_changed_source_begins_a_new_version(
    service: SdkWorld,
    publisher: modelkms.Client,
    reader: modelkms.Client,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_off(service, publisher, file, monkeypatch)
    file.write_bytes(b"another model")
    pushed = publisher.push(file, "onnx")
    assert (pushed.version.number, pushed.resumed) == (2, False)
    with reader.open("onnx") as model:
        assert model.read() == b"another model"


PUSH = """
import os, sys, json
import modelkms
settings, path, step, after = json.loads(sys.argv[1]), *sys.argv[2:]
left = int(after)
def kill(progress):
    global left
    if progress.step == step:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
with modelkms.connect(None, **settings) as client:
    client.push(path, "onnx", progress=kill)
"""


@pytest.mark.parametrize(
    ("step", "after"), [("encrypt", 0), ("encrypt", 1), ("upload", 0), ("upload", 2)]
)
def test_f50_a_killed_push_is_invisible_and_its_rerun_publishes(
    service: SdkWorld,
    publisher: modelkms.Client,
    reader: modelkms.Client,
    file: Path,
    step: str,
    after: int,
) -> None:
    file.write_bytes(os.urandom(5 << 20))
    settings = {key: str(value) for key, value in service.profile("publisher").items()}
    killed = subprocess.run(
        [sys.executable, "-c", PUSH, json.dumps(settings), str(file), step, str(after)],
        check=False,
        timeout=60,
    )
    assert killed.returncode == -9
    with pytest.raises((VersionNotFinalized, ModelNotFoundOrDenied)):
        reader.open("onnx@1")
    pushed = publisher.push(file, "onnx")
    assert pushed.resumed is (step == "upload")
    with reader.open("onnx") as model:
        assert model.version == pushed.version
        assert model.read() == file.read_bytes()
    assert spooled(service) == []


def test_concurrent_pushes_of_one_source_do_not_collide(
    publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.append(publisher.push(file, "onnx").version.number))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(numbers) == [1, 2, 3, 4]
    for number in numbers:
        with reader.open(f"onnx@{number}") as model:
            assert model.read() == file.read_bytes()


# --- what is stored is not what was published ----------------------------------------------------


def stored_artifact(service: SdkWorld, version: modelkms.VersionInfo) -> Path:
    (path,) = [path for path in service.stored() if version.artifact_id in path.name]
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("change", ["flip first", "flip middle", "flip last", "swap"])
def test_f43_a_changed_object_never_opens(
    service: SdkWorld,
    publisher: modelkms.Client,
    reader: modelkms.Client,
    folder: Path,
    change: str,
) -> None:
    path = stored_artifact(service, publisher.push(folder, "digits").version)
    content = bytearray(path.read_bytes())
    match change:
        case "flip first":
            content[0] ^= 1
        case "flip middle":
            content[len(content) // 2] ^= 1
        case "flip last":
            content[-1] ^= 1
        case "swap":
            content[-1], content[-2] = content[-2] ^ 1, content[-1]
    path.write_bytes(content)
    with pytest.raises(ArtifactCorrupt) as caught:
        reader.open("digits")
    assert caught.value.exit_code == 6


def test_f43_a_cut_object_never_opens(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, folder: Path
) -> None:
    path = stored_artifact(service, publisher.push(folder, "digits").version)
    for kept in (path.stat().st_size - 1, path.stat().st_size // 2, 0):
        os.truncate(path, kept)
        with pytest.raises(CorruptError) as caught:
            reader.open("digits")
        assert caught.value.exit_code == 6


def test_f43_what_is_appended_to_an_object_reaches_no_reader(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, folder: Path
) -> None:
    path = stored_artifact(service, publisher.push(folder, "digits").version)
    with path.open("ab") as more:
        more.write(b"x")
    try:
        model = reader.open("digits")
    except CorruptError:
        return
    with model:  # the service serves no byte beyond the pin's length
        assert {name: model.read(name) for name in model.files()} == contents(folder)


def test_a_stored_artifact_is_looked_into_under_a_lease(
    service: SdkWorld,
    publisher: modelkms.Client,
    reader: modelkms.Client,
    folder: Path,
    tmp_path: Path,
) -> None:
    publisher.push(folder, "digits")
    (stored_file,) = service.stored()
    copy, progress = tmp_path / "copy", list[Progress]()
    copy.write_bytes(stored_file.read_bytes())

    with reader.stored(copy) as stored:
        assert stored.version.reference == "demo/digits@1"
        assert stored.sizes()["Manifest.json"] == 2
        stored.verify(progress.append)
    assert progress[-1].done_bytes == progress[-1].total_bytes
    assert progress[-1].done_bytes > 3 * SEGMENT

    with pytest.raises(ModelNotFoundOrDenied), service.client("stranger").stored(copy):
        pass
    data = bytearray(copy.read_bytes())
    data[-SEGMENT * 2] ^= 1
    copy.write_bytes(data)
    with reader.stored(copy) as stored, pytest.raises(ArtifactCorrupt):
        stored.verify()
    copy.write_bytes(data[:-1])
    with pytest.raises(ArtifactCorrupt), reader.stored(copy):
        pass
    with pytest.raises(PathUnusable), reader.stored(tmp_path):
        pass


def test_f45_another_versions_artifact_under_this_name_never_opens(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    first = stored_artifact(service, publisher.push(file, "onnx").version)
    second = stored_artifact(service, publisher.push(file, "onnx", promote=True).version)
    first.write_bytes(second.read_bytes())
    with pytest.raises(ArtifactMismatch):
        reader.open("onnx@1")
    with reader.open("onnx@2") as model:
        assert model.read() == file.read_bytes()


def test_f53_a_damaged_cache_entry_is_fetched_anew(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, folder: Path
) -> None:
    version = publisher.push(folder, "digits").version
    reader.prefetch("digits")
    cached = service.folder / "home" / "reader" / "cache" / "artifacts" / version.artifact_id
    whole = cached.read_bytes()
    for at in (-1, len(whole) // 2, len(whole) // 4):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        cached.write_bytes(damaged)
        with reader.open("digits") as model:
            assert {name: model.read(name) for name in model.files()} == contents(folder)
            with model.materialize() as path:
                assert contents(path) == contents(folder)
        assert cached.read_bytes() == whole


def test_f52_a_cache_that_cannot_hold_it_is_gone_past(
    service: SdkWorld, publisher: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "onnx")
    small = service.client("reader", cache_max_bytes=1000)
    with small.open("onnx") as model:
        assert model.read() == file.read_bytes()
    with pytest.raises(LocalDiskFull):
        small.prefetch("onnx")


# --- this client ---------------------------------------------------------------------------------


def test_whoami_tells_who_and_whether(service: SdkWorld, reader: modelkms.Client) -> None:
    identity = reader.whoami()
    assert identity.spiffe_id == "spiffe://test.example/reader"
    assert (identity.accepted, identity.refusal) == (True, "")
    assert len(identity.instance) == 64
    assert identity.as_dict()["not_after"]


def test_whoami_tells_why_an_identity_is_refused(service: SdkWorld, tmp_path: Path) -> None:
    two = uris("spiffe://test.example/a", "spiffe://test.example/b")
    service.server.authority.issue(two).write(tmp_path / "two")
    certificate, key = tmp_path / "two" / "certificate.pem", tmp_path / "two" / "key.pem"
    client = service.client("reader", certificate_file=certificate, key_file=key)
    identity = client.whoami()
    assert (identity.spiffe_id, identity.accepted) == ("", False)
    assert identity.refusal == "SPIFFE_ID_INVALID"


def test_projects_are_created_once(service: SdkWorld) -> None:
    security = service.client("security")
    service.world.make_master_key("modelkms-second")
    assert security.create_project("second").master_key == "modelkms-second"
    with pytest.raises(AlreadyExists):
        security.create_project("second")
    key = security.get_master_key("demo")
    assert (key.vault_key, key.latest_version) == ("modelkms-demo", 1)


def test_nothing_secret_is_logged(
    publisher: modelkms.Client,
    reader: modelkms.Client,
    file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    publisher.push(file, "onnx")
    with reader.open("onnx") as model:
        model.read()
        key = model._leased.data_key.reveal()
    assert key.hex() not in caplog.text
    assert repr(key)[2:-1] not in caplog.text
    assert CANARY.decode() not in caplog.text


def test_a_killed_reader_leaves_no_plaintext_in_memory_backed_storage(
    service: SdkWorld, publisher: modelkms.Client, reader: modelkms.Client, file: Path
) -> None:
    publisher.push(file, "onnx")
    settings = {key: str(value) for key, value in service.profile("reader").items()}
    code = (
        "import json, sys, time, modelkms\n"
        "with modelkms.connect(None, **json.loads(sys.argv[1])) as client:\n"
        "    with client.open('onnx') as model, model.materialize() as path:\n"
        "        print(path, flush=True)\n"
        "        time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(settings)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert (path / "model.onnx").read_bytes() == file.read_bytes()
        process.kill()
    end = time.monotonic() + 5
    while path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not path.parent.exists()
