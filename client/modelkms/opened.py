"""An opened model: its files, decrypted as they are read."""

from __future__ import annotations

import io
import logging
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_FILE

from modelkms.artifact.parallel import ProgressBytes
from modelkms.artifact.pin import ArtifactPin
from modelkms.artifact.reader import ArtifactReader
from modelkms.artifact.writer import Sink, rewrite_artifact
from modelkms.copies import ArtifactCopy, ArtifactSource, ModelFile
from modelkms.download import Downloader
from modelkms.errors import (
    ArtifactCorrupt,
    LeaseExpired,
    LeaseMaxTtl,
    LeaseRevoked,
    LocalDiskFull,
    ModelClosed,
    ModelKmsError,
    NotFoundError,
    PathUnusable,
    UnavailableError,
)
from modelkms.folders import free_bytes, local_error
from modelkms.key_transport import boottime_s
from modelkms.leasing import LeasedKey, lease_key
from modelkms.materialize import materialized
from modelkms.memory_file import MemoryFile
from modelkms.renewal import LeaseCallback, Tenure
from modelkms.session import Session
from modelkms.timings import Stopwatch, Timings
from modelkms.types import LeaseEvent, LeaseInfo, ProgressCallback, VersionInfo

_log = logging.getLogger("modelkms")

T = TypeVar("T")

_BUFFER_BYTES = 64 << 10


def open_model(
    session: Session,
    downloader: Downloader,
    name: str,
    attributes: Mapping[str, str] | None,
    progress: ProgressCallback | None,
    on_lease_event: LeaseCallback | None = None,
) -> OpenedModel:
    """Lease the data key, get the artifact, open it. `name` is a resource name."""
    watch = Stopwatch()
    with watch.step("lease"):
        leased = lease_key(session, name, attributes)
    source = ArtifactSource(
        downloader, leased.version, leased.data_key, progress, leased.link, watch
    )
    copy: ArtifactCopy | None = None
    try:
        copy = source.open()
        if boottime_s() >= leased.renew_at_s:
            # The download took most of the lease, or all of it; one that has ended cannot be
            # renewed. The same version anew, whatever the reference means by now.
            with watch.step("lease"):
                leased = leased.replaced_by(lease_key(session, leased.version.name, attributes))
    except BaseException:
        if copy is not None:
            copy.close()
        leased.data_key.wipe()
        raise
    model = OpenedModel(session, source, copy, leased, attributes, on_lease_event)
    session.keeper.keep(model)
    return model


class OpenedModel:
    """A version of a model, readable until it is closed. Safe to use from several threads.

    Its lease is renewed in the background, and replaced when it cannot be made longer. When the
    service ends it, the model ends: the key and cached plaintext are wiped, materialized folders
    are removed, and every use raises `LeaseRevoked` or `LeaseExpired`. While the service cannot be
    reached, the lease bounds what is *begun*: once its time is over nothing new can be opened, and
    what is open stays open for as long as policy lets it.

    Closing wipes this copy of the data key; files that were opened from it can then no longer be
    read. What was handed out, as bytes or as memory, is the caller's.
    """

    def __init__(
        self,
        session: Session,
        source: ArtifactSource,
        copy: ArtifactCopy,
        leased: LeasedKey,
        attributes: Mapping[str, str] | None,
        on_lease_event: LeaseCallback | None,
    ) -> None:
        self._session = session
        self._source = source
        self._watch = source.watch
        self._copy = copy
        self._retired: list[ArtifactCopy] = []
        self._memory_files: dict[str, MemoryFile] = {}
        self._on_lease_event = on_lease_event
        self._events: list[LeaseEvent] = []
        self._tenure = Tenure(session, leased, attributes, self._events.append)
        self._folders: set[ExitStack] = set()
        self._lock = threading.RLock()
        # Held while the service is asked, which may take long; nothing that reads waits for it.
        self._tenure_lock = threading.RLock()
        self._closed = False
        self._ended: ModelKmsError | None = None

    @property
    def version(self) -> VersionInfo:
        """What the reference meant."""
        return self._leased.version

    @property
    def timings(self) -> Timings:
        """Where the time went, so far."""
        return self._watch.timings()

    @contextmanager
    def timing_load(self) -> Iterator[None]:
        """Count what the block takes as loading, but for what is decrypted in it."""
        with self._watch.rest("load", without="decrypt"):
            yield

    @property
    def ended(self) -> ModelKmsError | None:
        """Why the service ended the lease; None while it has not."""
        return self._ended

    @property
    def lease(self) -> LeaseInfo:
        """As it was issued, or last renewed."""
        return self._leased.lease

    @property
    def single_file(self) -> bool:
        """Whether the model was pushed as one file, not as a folder."""
        return self._copy.reader.header.payload_kind == PAYLOAD_KIND_FILE

    @property
    def plain_bytes(self) -> int:
        """Of what it decrypts to: the file, or the folder's archive."""
        return self._copy.reader.payload_bytes

    def rewrite(
        self, sink: Sink, key: bytes, version: VersionInfo, progress: ProgressBytes | None
    ) -> ArtifactPin:
        """Encrypt the same content under another key, as `version`; plaintext stays in memory.

        Raises: as `artifact.writer.rewrite_artifact`, and LeaseExpired.
        """
        self._begin()
        return rewrite_artifact(
            self._copy.reader,
            sink,
            key,
            version=version.name,
            version_uid=version.uid,
            artifact_id=version.artifact_id,
            progress=progress,
        )

    def files(self) -> list[str]:
        """Names of the files, sorted; `/` between folders. One name for a single-file model."""
        self._require_open()
        return self._copy.reader.files()

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by name."""
        self._require_open()
        return self._copy.reader.sizes()

    def read(self, name: str | None = None) -> bytes:
        """The whole content of a file; of the only one if `name` is None.

        Raises:
            MemberNotFound: no such file, or no name is given and there are several.
            ArtifactCorrupt: it does not authenticate; no byte of it is handed out.
            LeaseExpired: the lease has ended and could not be renewed.
        """
        self._begin()
        return self._with_fresh_copy(lambda reader: reader.read(name))

    def memory(
        self, name: str | None = None, offset: int = 0, length: int | None = None
    ) -> memoryview:
        """A file, or a part of it, in memory that is the caller's alone: writable, page-aligned,
        gone with the last view of it.

        No slower than `read`, and arrays can be made on it without a copy (`numpy.frombuffer`).

        Args:
            length: fewer bytes come only at the file's end; None: to its end.

        Raises: as `read`; ValueError: offset or length is negative.
        """
        self._begin()
        return self._with_fresh_copy(lambda reader: reader.memory(name, offset, length))

    def open(self, name: str | None = None) -> io.BufferedReader:
        """A file as a binary stream: seekable, read-only. Each read decrypts what it needs.

        Raises: as `read`; reads of the stream raise ArtifactCorrupt where a segment does not
            authenticate, and ModelClosed after `close`.
        """
        self._begin()
        return io.BufferedReader(ModelFile(self._with_fresh_copy, name), _BUFFER_BYTES)

    def path(self, name: str | None = None) -> str:
        """A path to a file in memory, for libraries that want one; valid in this process and its
        children until `close`, and gone when this process ends, however it ends. Nobody can change
        the file. The same name gives the same path.

        Only this file: a library that looks for others beside it needs `materialize`.

        Raises:
            LocalDiskFull: there is not enough free memory. And as `read`.
        """
        self._begin()
        with self._lock:
            reader = self._copy.reader
            size = reader.size(name)  # the name must be there
            key = name if name is not None else reader.files()[0]
            file = self._memory_files.get(key)
            if file is None:
                file = MemoryFile(
                    size, lambda fd: self._with_fresh_copy(lambda r: r.write_to(fd, name))
                )
                self._memory_files[key] = file
            return file.path

    @contextmanager
    def materialize(
        self,
        name: str | None = None,
        *,
        files: Iterable[str] | None = None,
        keep_when_ended: bool = False,
        only_in_memory: bool = False,
    ) -> Iterator[Path]:
        """A private folder in memory-backed storage with the files; gone when the block ends.

        It is gone too after an exception, when this process is killed, and when the lease is ended;
        `keep_when_ended` leaves it until the block ends. A single-file model is one file in the
        folder.

        Args:
            name: of the folder, for programs that look at it; None: any.
            files: only these; None: all.
            only_in_memory: never on a disk, though the profile has an `insecure_plaintext_dir`.

        Raises:
            MemberNotFound: one of `files` is not there.
            LocalDiskFull: memory-backed storage has too little room: both sizes and a hint.
            MemoryStorageMissing, LocalDiskError, CacheUnsafe, and as `read`.
        """
        self._begin()
        reader = self._copy.reader
        wanted = None if files is None else sorted(set(files))
        sizes = reader.sizes() if wanted is None else {each: reader.size(each) for each in wanted}
        stack = ExitStack()
        with stack:
            root = stack.enter_context(
                materialized(
                    sizes,
                    lambda folder: self._extract_to(folder / name if name else folder, wanted),
                    insecure_folder=(
                        None if only_in_memory else self._session.profile.insecure_plaintext_dir
                    ),
                )
            )
            if not keep_when_ended:
                with self._lock:
                    self._require_open()
                    self._folders.add(stack)
            try:
                yield root / name if name else root
            finally:
                self._folders.discard(stack)

    def export(self, folder: str | Path) -> None:
        """Write all files, decrypted, to disk: the one way by which plaintext leaves memory.

        `folder` appears whole or not at all.

        Raises:
            PathUnusable: `folder` exists and is not empty, or its parent does not exist.
            LocalDiskFull, LocalDiskError: nothing is left behind. And as `read`.
        """
        self._begin()
        target = Path(folder).absolute()
        _require_new(target)
        needed = sum(self._copy.reader.sizes().values())
        if (free := free_bytes(target.parent)) < needed:
            raise LocalDiskFull(
                f"the model has {needed:,} bytes, {target.parent} has {free:,} free",
                metadata={"needed_bytes": str(needed), "free_bytes": str(free)},
            )
        # Beside the target, so that the rename stays within one file system.
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            partial.mkdir(mode=0o700)
            self._extract_to(partial)
            if target.is_dir():
                target.rmdir()
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise local_error(error, f"the model cannot be written to {target}") from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def renew(self, ttl: timedelta | None = None) -> LeaseInfo:
        """Extend the lease now, rather than when it is due.

        Raises:
            LeaseExpired, LeaseRevoked, LeaseMaxTtl: it cannot be.
        """
        with self._telling(), self._tenure_lock:
            self._require_open()
            try:
                self._tenure.renew(ttl)
            except (LeaseRevoked, NotFoundError) as error:
                self._end(error)
                raise
            return self.lease

    def close(self) -> None:
        """Wipe the key and let go of the artifact. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OpenedModel({self.version.reference})"

    # --- for the keeper of leases ----------------------------------------------------------------

    def lease_due_s(self) -> float | None:
        return None if self._closed or self._ended else self._tenure.due_s

    def lease_name(self) -> str | None:
        return None if self._closed or self._ended else self.lease.name

    def tend_lease(self) -> None:
        with self._telling(), self._tenure_lock:
            if not self._closed and not self._ended and (error := self._tenure.tend()):
                self._end(error)

    def lease_revoked(self, lease: str) -> None:
        if lease != self.lease_name():
            return
        if boottime_s() >= self._leased.end_s:
            self.tend_lease()  # it ran out, which is no revocation: a new one may be had
            return
        with self._telling():
            self._end(self._tenure.revoked())

    # --- helpers ---------------------------------------------------------------------------------

    @property
    def _leased(self) -> LeasedKey:
        return self._tenure.leased

    def _end(self, error: ModelKmsError) -> None:
        with self._lock:
            if self._closed or self._ended:
                return
            self._ended = error
            self._let_go()
            while self._folders:
                self._folders.pop().close()
        _log.warning("%s can no longer be used: %s", self.version.reference, error.message)
        self._events.append(
            LeaseEvent("ended", self.version.reference, self.lease.name, error=error)
        )

    def _let_go(self) -> None:
        for copy in (self._copy, *self._retired):
            copy.close()
        while self._memory_files:
            self._memory_files.popitem()[1].close()
        self._leased.data_key.wipe()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What happened inside is told outside of the lock: a callback may use or close us."""
        try:
            yield
        finally:
            while self._events:
                event = self._events.pop(0)
                if self._on_lease_event is not None:
                    try:
                        self._on_lease_event(event)
                    except Exception:
                        _log.exception("the callback for lease events failed")

    def _begin(self) -> None:
        """Whether something new may be opened."""
        self._require_open()
        now_s, leased = boottime_s(), self._leased
        if now_s >= leased.end_s:
            raise LeaseExpired(f"the lease of {self.version.reference} has ended")
        # In its last third the keeper is late, or has tried in vain, or is trying right now.
        if now_s < leased.renew_at_s or self._tenure.offline:
            return
        if not self._tenure_lock.acquire(blocking=False):
            return
        try:
            self.renew()
        except (LeaseMaxTtl, UnavailableError) as error:
            # It cannot be made longer now; until its end it holds.
            _log.warning("the lease %s was not renewed: %s", self.lease.id, error.reason)
        finally:
            self._tenure_lock.release()

    def _require_open(self) -> None:
        if self._closed:
            raise ModelClosed(f"{self.version.reference} was closed")
        if self._ended is not None:
            raise type(self._ended)(self._ended.message, metadata=self._ended.metadata)

    def _extract_to(self, folder: Path, files: Iterable[str] | None = None) -> None:
        self._with_fresh_copy(lambda reader: reader.extract_to(folder, files))

    def _with_fresh_copy(self, act: Callable[[ArtifactReader], T]) -> T:
        """Act; if the copy at hand is damaged, once more on one fetched anew (F53)."""
        with self._watch.step("decrypt"):
            return self._act(act)

    def _act(self, act: Callable[[ArtifactReader], T]) -> T:
        copy = self._copy
        try:
            return act(copy.reader)
        except ModelClosed:
            self._require_open()  # says why, if the lease was ended
            raise
        except ArtifactCorrupt:
            with self._lock:
                self._require_open()
                if copy is self._copy:  # else another thread has fetched it already
                    self._retired.append(copy)  # others may be reading from it
                    self._copy = self._source.open_anew()
                copy = self._copy
            return act(copy.reader)


def _require_new(target: Path) -> None:
    try:
        empty = not any(target.iterdir())
    except FileNotFoundError:
        empty = True
        if not target.parent.is_dir():
            raise PathUnusable(f"there is no folder {target.parent}") from None
    except OSError as error:
        raise PathUnusable(f"{target} cannot be used: {error.strerror}") from error
    if not empty:
        raise PathUnusable(f"{target} is not empty", hint="name a folder that is not there yet")
