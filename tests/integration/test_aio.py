"""`modelkms.aio`: the same verbs; the loop goes on meanwhile; what is cancelled leaves nothing."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import modelkms
import pytest
from modelkms import aio
from modelkms.errors import ModelClosed, ModelNotFoundOrDenied
from modelkms.loaders import HeldModel
from modelkms.opened import OpenedModel

from tests.support.sdk_world import SdkWorld, sdk_world
from tests.unit.usecases.real_parts import migrated_database

LARGE = 64 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SdkWorld]:
    template = migrated_database(tmp_path_factory.mktemp("schema"))
    with sdk_world(tmp_path_factory.mktemp("world"), template) as world:
        yield world


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(1 << 20) * (LARGE >> 20)


@pytest.fixture(scope="module")
def large(service: SdkWorld, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "weights.bin"
    path.write_bytes(content)
    return service.client("publisher").push(path, "demo/large").version.reference


def client(service: SdkWorld, name: str, folder: Path) -> aio.Client:
    """Of an identity, with nothing in its cache."""
    settings = {**service.profile(name), "cache_dir": folder / "cache"}
    return aio.connect(None, observer=None, **settings)


class Lag:
    """How late the loop was, at worst, in seconds."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self.ticks = 0

    async def watch(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.002)
            self.worst_s = max(self.worst_s, time.perf_counter() - began - 0.002)
            self.ticks += 1


@asynccontextmanager
async def watched() -> AsyncIterator[Lag]:
    lag = Lag()
    task = asyncio.create_task(lag.watch())
    await asyncio.sleep(0.01)
    try:
        yield lag
    finally:
        task.cancel()


def test_the_verbs_and_the_loop_goes_on_meanwhile(
    service: SdkWorld, large: str, content: bytes, tmp_path: Path
) -> None:
    async def story() -> None:
        async with client(service, "reader", tmp_path) as reader:
            for verb in (
                lambda: reader.prefetch(large),
                lambda: reader.load(large),
                lambda: publish(),
            ):
                await not_blocked(verb)
            async with await reader.open(large) as model:
                assert model.files() == ["weights.bin"]
                assert model.version.reference == large
                assert await not_blocked(model.read) == content
                assert bytes(await model.memory(None, 5, 10)) == content[5:15]
                assert Path(await model.path()).stat().st_size == LARGE
                async with await model.open() as file:
                    assert await file.seek(7) == 7
                    assert await file.read(3) == content[7:10]
                    assert file.tell() == 10
                async with model.materialize() as folder:
                    assert (folder / "weights.bin").stat().st_size == LARGE
                assert not folder.exists()
                await model.export(tmp_path / "exported")
                assert (await model.renew()).renewals == 1
            with pytest.raises(ModelClosed):
                await model.read()

    async def publish() -> None:
        path = tmp_path / "again.bin"
        path.write_bytes(content)
        async with client(service, "publisher", tmp_path) as publisher:
            assert (await publisher.push(path, "demo/again")).version.number == 1

    asyncio.run(story())


async def not_blocked(verb: Callable[[], Awaitable[Any]]) -> Any:
    """What the verb gives; had it blocked the loop, that would have been late by all it took."""
    async with watched() as lag:
        began = time.perf_counter()
        answer = await verb()
        taken_s = time.perf_counter() - began
        await asyncio.sleep(0.01)
    assert lag.worst_s < taken_s / 2, f"late by {lag.worst_s:.3f} s in {taken_s:.3f} s"
    return answer


def test_the_other_verbs(service: SdkWorld, large: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with client(service, "reader", tmp_path) as reader:
            assert (await reader.resolve(large)).reference == large
            assert "demo/large" in [model.reference for model in await reader.list_models()]
            assert (await reader.whoami()).accepted
            with pytest.raises(ModelNotFoundOrDenied):
                await reader.open("demo/none")
            with pytest.raises(AttributeError):
                await reader.fly()
            with pytest.raises(AttributeError):
                await reader.stored(tmp_path)

    asyncio.run(story())


def test_every_verb_of_the_client_is_there(service: SdkWorld, tmp_path: Path) -> None:
    async def story() -> None:
        async with client(service, "reader", tmp_path) as reader:
            for name, _ in inspect.getmembers(modelkms.Client, inspect.isfunction):
                if not name.startswith("_") and name != "stored":
                    assert inspect.iscoroutinefunction(getattr(reader, name)), name

    asyncio.run(story())


# --- cancelling ----------------------------------------------------------------------------------


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[OpenedModel]:
    """Models that were closed."""
    models: list[OpenedModel] = []
    close = OpenedModel.close

    def counted(self: OpenedModel) -> None:
        models.append(self)
        close(self)

    monkeypatch.setattr(OpenedModel, "close", counted)
    return models


def test_a_cancelled_download_stops_and_is_gone_on_with(
    service: SdkWorld, large: str, content: bytes, tmp_path: Path
) -> None:
    seen: list[int] = []

    async def story() -> None:
        async with client(service, "reader", tmp_path) as reader:
            begun = asyncio.Event()
            loop = asyncio.get_running_loop()

            def progress(step: modelkms.Progress) -> None:
                seen.append(step.done_bytes)
                if step.done_bytes > 8 << 20:
                    loop.call_soon_threadsafe(begun.set)
                    cancelled.wait(30)  # not past the cancelling

            cancelled = threading.Event()
            opening = asyncio.create_task(reader.open(large, progress=progress))
            await begun.wait()
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            cancelled.set()
        assert seen[-1] < LARGE  # the thread has ended: it stopped at its next step
        async with client(service, "reader", tmp_path) as reader:
            assert await reader.load(large) == content

    asyncio.run(story())


def test_what_was_opened_when_it_was_cancelled_is_closed(
    service: SdkWorld,
    large: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    closed: list[OpenedModel],
) -> None:
    opened: list[OpenedModel] = []
    ready, go_on = threading.Event(), threading.Event()
    original = modelkms.Client.open

    def late(self: modelkms.Client, *arguments: Any) -> OpenedModel:
        opened.append(original(self, *arguments))
        ready.set()
        assert go_on.wait(30)
        return opened[-1]

    monkeypatch.setattr(modelkms.Client, "open", late)

    async def story() -> None:
        async with client(service, "reader", tmp_path) as reader:
            opening = asyncio.create_task(reader.open(large))
            await asyncio.to_thread(ready.wait, 30)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening  # at once, not when the thread is done
            assert closed == []
            go_on.set()
        assert closed == opened

    asyncio.run(story())


def test_a_cancelled_materialize_leaves_no_files(
    service: SdkWorld, large: str, tmp_path: Path
) -> None:
    folders: list[Path] = []

    async def story() -> None:
        async with client(service, "reader", tmp_path) as reader:
            model = await reader.open(large)

            async def use() -> None:
                async with model.materialize() as folder:
                    folders.append(folder)
                    await asyncio.sleep(3600)

            using = asyncio.create_task(use())
            while not folders:
                await asyncio.sleep(0.01)
            assert folders[0].exists()
            using.cancel()
            with pytest.raises(asyncio.CancelledError):
                await using
            assert not folders[0].exists()

            early = asyncio.create_task(use())
            await asyncio.sleep(0)  # it has begun to write
            early.cancel()
            with pytest.raises(asyncio.CancelledError):
                await early
            await model.close()

    before = leftovers()
    asyncio.run(story())
    assert leftovers() == before


def leftovers() -> set[str]:
    root = Path(f"/dev/shm/modelkms-{os.geteuid()}")
    return {path.name for path in root.iterdir()} - {"lock"} if root.is_dir() else set()


def test_a_cancelled_load_closes_what_it_holds(
    service: SdkWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "llm"
    path.write_bytes(b"GGUF" + bytes(100))
    service.client("publisher").push(path, "demo/llm")
    held: list[HeldModel] = []
    ready, go_on = threading.Event(), threading.Event()
    original = modelkms.Client.load

    def late(self: modelkms.Client, *arguments: Any, **options: Any) -> Any:
        held.append(original(self, *arguments, **options))
        ready.set()
        assert go_on.wait(30)
        return held[-1]

    monkeypatch.setattr(modelkms.Client, "load", late)

    async def story() -> None:
        async with client(service, "reader", tmp_path) as reader:
            loading = asyncio.create_task(reader.load("demo/llm"))
            await asyncio.to_thread(ready.wait, 30)
            assert held[0].path.exists()
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            go_on.set()
        assert not held[0].path.exists()

    asyncio.run(story())
