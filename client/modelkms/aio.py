"""The SDK for asyncio: the same verbs, awaited.

    async with modelkms.aio.connect() as client:
        session = await client.load("camera/face-detector")
        async with await client.open("camera/face-detector") as model:
            weights = await model.read()

Whatever takes time (network, disk, cryptography) happens in threads of the client's own; the event
loop is never waited on. A cancelled verb stops at its next step, and what it had opened is closed:
`close` of the client returns when all of it is.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from modelkms import client as _sync
from modelkms.loaders import HeldModel
from modelkms.observing import Observer
from modelkms.opened import OpenedModel
from modelkms.renewal import LeaseCallback
from modelkms.types import LeaseInfo, Progress, ProgressCallback, Pushed, VersionInfo

T = TypeVar("T")

_THREADS = 8
"""Verbs of a client that run at once; more wait for their turn."""


def connect(
    profile: str | Path | None = None, *, observer: Observer | None = None, **overrides: object
) -> Client:
    """As `modelkms.connect`. Reads the profile's files, small ones, before it returns."""
    return Client(_sync.connect(profile, observer=observer, **overrides))


class Client:
    """`modelkms.Client`, awaited: every method of it but `stored`, of the same name, arguments and
    errors. Callbacks (`progress`, `on_lease_event`) are called in other threads than the loop's.
    """

    def __init__(self, client: _sync.Client) -> None:
        self._client = client
        self._threads = _Threads()

    @property
    def profile(self) -> Any:
        return self._client.profile

    async def push(
        self,
        path: str | Path,
        ref: str,
        *,
        promote: bool = False,
        progress: ProgressCallback | None = None,
    ) -> Pushed:
        """As `modelkms.Client.push`; cancelled in its upload, the next push goes on from there."""
        return await self._threads.run(
            lambda stop: self._client.push(
                path, ref, promote=promote, progress=stop.watching(progress)
            )
        )

    async def open(
        self,
        ref: str,
        attributes: Mapping[str, str] | None = None,
        progress: ProgressCallback | None = None,
        on_lease_event: LeaseCallback | None = None,
    ) -> Model:
        """As `modelkms.Client.open`."""
        opened = await self._threads.run(
            lambda stop: self._client.open(
                ref, attributes, stop.watching(progress), on_lease_event
            ),
            dispose=OpenedModel.close,
        )
        return Model(opened, self._threads)

    async def load(
        self,
        ref: str,
        attributes: Mapping[str, str] | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Any:
        """As `modelkms.Client.load`. Closing a `HeldModel` removes files in memory: that is quick,
        and not awaited."""
        return await self._threads.run(
            lambda stop: self._client.load(ref, attributes, stop.watching(progress), **options),
            dispose=_close_held,
        )

    async def prefetch(self, ref: str, progress: ProgressCallback | None = None) -> VersionInfo:
        """As `modelkms.Client.prefetch`; cancelled, the next one goes on from there."""
        return await self._threads.run(
            lambda stop: self._client.prefetch(ref, stop.watching(progress))
        )

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """The other verbs."""
        verb = None if name.startswith("_") else getattr(self._client, name, None)
        if not callable(verb) or name == "stored":
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

        @functools.wraps(verb)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            answer = await self._threads.run(lambda _: verb(*arguments, **named))
            if isinstance(answer, Iterator):
                return _iterated(answer, self._threads)
            return answer

        return awaited

    async def close(self) -> None:
        """Close the connection, once every verb that was cancelled has ended. Idempotent."""
        await self._threads.close()
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Model:
    """`modelkms.OpenedModel`, awaited. Close it before its client."""

    def __init__(self, opened: OpenedModel, threads: _Threads) -> None:
        self.opened = opened
        self._threads = threads

    @property
    def version(self) -> VersionInfo:
        return self.opened.version

    @property
    def lease(self) -> LeaseInfo:
        return self.opened.lease

    def files(self) -> list[str]:
        """As `OpenedModel.files`: known since it was opened."""
        return self.opened.files()

    async def read(self, name: str | None = None) -> bytes:
        """As `OpenedModel.read`."""
        return await self._threads.run(lambda _: self.opened.read(name))

    async def memory(
        self, name: str | None = None, offset: int = 0, length: int | None = None
    ) -> memoryview:
        """As `OpenedModel.memory`."""
        return await self._threads.run(lambda _: self.opened.memory(name, offset, length))

    async def path(self, name: str | None = None) -> str:
        """As `OpenedModel.path`."""
        return await self._threads.run(lambda _: self.opened.path(name))

    async def open(self, name: str | None = None) -> File:
        """As `OpenedModel.open`."""
        stream = await self._threads.run(lambda _: self.opened.open(name))
        return File(stream, self._threads)

    @asynccontextmanager
    async def materialize(
        self, name: str | None = None, *, files: Iterable[str] | None = None
    ) -> AsyncIterator[Path]:
        """As `OpenedModel.materialize`. Cancelled while files are written, it removes them."""
        manager: AbstractContextManager[Path] = self.opened.materialize(name, files=files)
        entered = _Entered(manager)
        folder = await self._threads.run(lambda _: entered.enter(), dispose=entered.dispose)
        try:
            yield folder
        finally:
            # To its end, whatever is cancelled meanwhile: no plaintext stays.
            await asyncio.shield(self._threads.run(lambda _: entered.exit()))

    async def export(self, folder: str | Path) -> None:
        """As `OpenedModel.export`."""
        await self._threads.run(lambda _: self.opened.export(folder))

    async def renew(self) -> LeaseInfo:
        """As `OpenedModel.renew`."""
        return await self._threads.run(lambda _: self.opened.renew())

    async def close(self) -> None:
        """As `OpenedModel.close`."""
        await asyncio.shield(self._threads.run(lambda _: self.opened.close()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class File:
    """A file of a model as a stream: one verb at a time."""

    def __init__(self, stream: Any, threads: _Threads) -> None:
        self._stream = stream
        self._threads = threads

    async def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; all that is left if negative."""
        return await self._threads.run(lambda _: bytes(self._stream.read(size)))

    async def seek(self, offset: int, whence: int = 0) -> int:
        return await self._threads.run(lambda _: int(self._stream.seek(offset, whence)))

    def tell(self) -> int:
        return int(self._stream.tell())

    async def close(self) -> None:
        await self._threads.run(lambda _: self._stream.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# --- threads -------------------------------------------------------------------------------------


class _Stopped(BaseException):
    """Ends the work of a verb that was cancelled. No `Exception`: nobody takes it for a failure to
    be tried again."""


class _Stop:
    """Whether a verb was cancelled: asked by its work at each step."""

    def __init__(self) -> None:
        self._set = threading.Event()

    def set(self) -> None:
        self._set.set()

    def watching(self, progress: ProgressCallback | None) -> ProgressCallback:
        """`progress`, that ends the work once the verb was cancelled."""

        def told(step: Progress) -> None:
            if self._set.is_set():
                raise _Stopped
            if progress is not None:
                progress(step)

        return told


class _Work(Generic[T]):
    """One verb in a thread: its result is either taken by who awaits it, or disposed of."""

    def __init__(self, act: Callable[[_Stop], T], dispose: Callable[[T], object] | None) -> None:
        self._act = act
        self._dispose = dispose
        self._stop = _Stop()
        self._lock = threading.Lock()
        self._cancelled = False
        self._results: list[T] = []

    def run(self) -> T:
        if self._cancelled:  # before its turn came
            raise _Stopped
        result = self._act(self._stop)
        with self._lock:
            if not self._cancelled:
                self._results.append(result)
                return result
        self._dispose_of(result)
        raise _Stopped

    def cancel(self) -> Callable[[], None] | None:
        """Stop at the next step; what is to be done if there is a result already."""
        self._stop.set()
        with self._lock:
            self._cancelled = True
            if not self._results:
                return None
            result = self._results.pop()
        return lambda: self._dispose_of(result)

    def _dispose_of(self, result: T) -> None:
        if self._dispose is not None:
            self._dispose(result)


class _Threads:
    """The threads of one client."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="modelkms-aio")

    async def run(
        self, act: Callable[[_Stop], T], *, dispose: Callable[[T], object] | None = None
    ) -> T:
        work = _Work(act, dispose)
        future = asyncio.get_running_loop().run_in_executor(self._pool, work.run)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_retrieve)
            if (left := work.cancel()) is not None:
                self._pool.submit(left)
            raise

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """So that nobody is told of an exception that nobody took."""
    if not future.cancelled():
        future.exception()


class _Entered:
    """A context that is entered in one thread and left in another, once."""

    def __init__(self, manager: AbstractContextManager[Path]) -> None:
        self._manager = manager

    def enter(self) -> Path:
        return self._manager.__enter__()

    def exit(self) -> None:
        self._manager.__exit__(None, None, None)

    def dispose(self, _: Path) -> None:
        self.exit()


async def _iterated(items: Iterator[T], threads: _Threads) -> AsyncIterator[T]:
    end = object()
    while (item := await threads.run(lambda _: next(items, end))) is not end:
        yield item  # type: ignore[misc]  # not the end


def _close_held(loaded: object) -> None:
    if isinstance(loaded, HeldModel):
        loaded.close()
