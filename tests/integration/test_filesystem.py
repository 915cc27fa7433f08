"""`modelkms://project/model@version/member` through fsspec."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import modelkms
import pytest
from modelkms.errors import ModelClosed
from modelkms.filesystem import ModelKmsFileSystem

from tests.support.sdk_world import SdkWorld, sdk_world
from tests.unit.usecases.real_parts import migrated_database

FILES = {
    "config.json": b"{}",
    "weights/a.bin": os.urandom(700_000),
    "weights/deep/b.bin": b"",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkWorld]:
    template = migrated_database(tmp_path_factory.mktemp("schema"))
    with sdk_world(tmp_path_factory.mktemp("world"), template) as world:
        root = tmp_path_factory.mktemp("source")
        for name, content in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        world.client("publisher").push(root, "demo/folder")
        world.client("publisher").push(root / "config.json", "demo/file")
        yield world


@pytest.fixture
def filesystem(service: SdkWorld) -> Iterator[ModelKmsFileSystem]:
    made = fsspec.filesystem("modelkms", client=service.client("reader"))
    assert isinstance(made, ModelKmsFileSystem)
    yield made
    made.close()


def test_files_are_listed_and_read(filesystem: ModelKmsFileSystem) -> None:
    root = "demo/folder@1"
    assert filesystem.ls(f"modelkms://{root}", detail=False) == [
        f"{root}/config.json",
        f"{root}/weights",
    ]
    assert filesystem.ls(f"{root}/weights") == [
        {"name": f"{root}/weights/a.bin", "size": 700_000, "type": "file"},
        {"name": f"{root}/weights/deep", "size": 0, "type": "directory"},
    ]
    assert sorted(filesystem.find(root)) == sorted(f"{root}/{name}" for name in FILES)
    assert filesystem.glob(f"{root}/**/*.bin") == [
        f"{root}/weights/a.bin",
        f"{root}/weights/deep/b.bin",
    ]
    for name, content in FILES.items():
        assert filesystem.cat(f"modelkms://{root}/{name}") == content
        assert filesystem.info(f"{root}/{name}")["size"] == len(content)
        with filesystem.open(f"{root}/{name}") as file:
            assert file.read() == content
    assert filesystem.isdir(f"{root}/weights")
    assert filesystem.isfile(f"{root}/config.json")
    assert filesystem.exists(root)


def test_parts_are_read_at_random_and_by_several_threads(filesystem: ModelKmsFileSystem) -> None:
    path, content = "demo/folder/weights/a.bin", FILES["weights/a.bin"]
    assert filesystem.cat_file(path, start=500_000, end=500_100) == content[500_000:500_100]
    assert filesystem.cat_file(path, start=-5) == content[-5:]
    wrong: list[int] = []

    def read(at: int) -> None:
        with filesystem.open(path) as file:
            file.seek(at)
            if file.read(1000) != content[at : at + 1000]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(at,)) for at in range(0, 700_000, 70_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_model_of_one_file(filesystem: ModelKmsFileSystem) -> None:
    assert filesystem.ls("demo/file", detail=False) == ["demo/file/config.json"]
    assert filesystem.cat("demo/file/config.json") == b"{}"


@pytest.mark.parametrize(
    "path",
    [
        "demo/none",
        "demo/none/config.json",
        "demo/folder/none",
        "demo/folder/weights/none/x",
        "demo",
    ],
)
def test_what_is_not_there(filesystem: ModelKmsFileSystem, path: str) -> None:
    assert not filesystem.exists(path)
    for act in (filesystem.info, filesystem.ls):
        with pytest.raises(FileNotFoundError):
            act(path)
    if path != "demo":
        with pytest.raises(FileNotFoundError):
            filesystem.cat_file(path)


def test_nothing_is_written(filesystem: ModelKmsFileSystem) -> None:
    with pytest.raises((ValueError, NotImplementedError)):
        filesystem.open("demo/folder/new", "wb")
    with pytest.raises(NotImplementedError):
        filesystem.rm("demo/folder/config.json")


def test_closing_ends_it(service: SdkWorld, filesystem: ModelKmsFileSystem) -> None:
    file = filesystem.open("demo/folder/weights/a.bin")
    filesystem.close()
    with pytest.raises(ModelClosed):
        file.read()


def test_a_url_opens_by_itself(
    service: SdkWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = service.client("reader")
    monkeypatch.setattr(modelkms, "connect", lambda _profile: reader)
    opened = fsspec.open("modelkms://demo/folder@stable/config.json")
    with opened as file:
        assert file.read() == b"{}"
    opened.fs.close()
