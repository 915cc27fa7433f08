"""Publishing: source → data key → ciphertext in the spool → store → finalized version."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import uuid
from pathlib import Path
from typing import BinaryIO

from modelkms_api import key_transport as layout
from modelkms_api.encoding import length_prefixed
from modelkms_api.v1 import model_service_pb2, resources_pb2

from modelkms import convert
from modelkms.errors import (
    AnswerInvalid,
    LocalDiskFull,
    ModelNotFoundOrDenied,
    PathUnusable,
    SourceChanged,
    VersionDestroyed,
    VersionDestroyScheduled,
    VersionNotPending,
)
from modelkms.folders import free_bytes, local_error
from modelkms.key_transport import Binding
from modelkms.reference import people_form
from modelkms.secret import SecretBytes
from modelkms.session import Session
from modelkms.spool import Spool, SpooledPush, claimed, spool_key
from modelkms.types import PinInfo, Progress, ProgressCallback, Pushed, VersionInfo
from modelkms.upload import upload

_log = logging.getLogger("modelkms")

_FINALIZE_DEADLINE_S = 120.0
_FINALIZE_BYTES_PER_S = 20 << 20
"""The service reads the whole object before it answers; so fast at least."""


def push(
    session: Session,
    state_folder: Path,
    source: Path,
    model: str,
    *,
    promote: bool,
    progress: ProgressCallback | None,
) -> Pushed:
    """Publish `source` as the next version of `model` (a resource name).

    What an interrupted push left whole in the spool is sent again as it is. Everything else begins
    with a new version and a new data key: no header is ever encrypted under twice.
    """
    source = _absolute(source)
    plain = SourceState.read(source)
    key = spool_key(session.profile.target, session.identity.principal, str(source), model)
    with claimed(state_folder / "spool", key, plain.digest) as spool:
        if (left := spool.whole()) is not None:
            _log.info("going on with the push of %s", people_form(left.version))
            try:
                return _send(session, spool, left, promote, progress, resumed=True)
            except _GONE:
                _log.info("%s is gone; beginning anew", people_form(left.version))
        push = _encrypt(session, spool, source, plain, model, progress)
        return _send(session, spool, push, promote, progress, resumed=False)


# The PENDING version expired, or was finalized with another artifact: this spool is for nothing.
_GONE = (ModelNotFoundOrDenied, VersionDestroyed, VersionDestroyScheduled, VersionNotPending)


# --- the source ------------------------------------------------------------------------------------


class SourceState:
    """What a source looked like: names, sizes and times of change, not its content.

    Attributes:
        digest: changes when a file of it is added, removed, renamed or written.
        plain_bytes: of all its files together.
    """

    def __init__(self, digest: str, plain_bytes: int) -> None:
        self.digest = digest
        self.plain_bytes = plain_bytes

    @classmethod
    def read(cls, source: Path) -> SourceState:
        """
        Raises:
            PathUnusable: there is nothing at `source`, or it cannot be looked at.
        """
        hasher, plain_bytes = hashlib.sha256(), 0
        try:
            for path in _below(source):
                status = os.lstat(path)
                fields = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
                inner = os.path.relpath(path, source)
                hasher.update(length_prefixed(os.fsencode(inner), *(b"%d" % f for f in fields)))
                plain_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
        except FileNotFoundError as error:
            raise PathUnusable(f"there is nothing at {error.filename}") from error
        except OSError as error:
            raise PathUnusable(f"{source} cannot be read: {error.strerror}") from error
        return cls(hasher.hexdigest(), plain_bytes)


def _below(source: Path) -> list[str]:
    """The source and, if it is a folder, all in it, in a fixed order."""
    found = [str(source)]
    if source.is_dir() and not source.is_symlink():
        for folder, folders, files in os.walk(source, onerror=_fail):
            found += [os.path.join(folder, name) for name in (*folders, *files)]  # noqa: PTH118
    return sorted(found)


def _fail(error: OSError) -> None:
    raise error


def _absolute(source: Path) -> Path:
    """Absolute, but with links as they are: a link is refused, not followed."""
    return Path(os.path.normpath(Path.cwd() / source.expanduser()))


# --- encrypting ----------------------------------------------------------------------------------


def _encrypt(
    session: Session,
    spool: Spool,
    source: Path,
    plain: SourceState,
    model: str,
    progress: ProgressCallback | None,
) -> SpooledPush:
    """Create a version and leave its ciphertext, whole, in the spool."""
    check_source(source)  # before anything is created
    _require_room(spool, plain)
    request_id = str(uuid.uuid4())
    offer = session.keys.offer()
    answer = session.call(
        session.models.CreateVersion,
        model_service_pb2.CreateVersionRequest(
            parent=model, request_id=request_id, client_key=offer.message
        ),
    )
    version = convert.version(answer.version)
    if not version.name.startswith(f"{model}/versions/"):
        raise AnswerInvalid("the service created a version of another model than was asked for")
    binding = Binding(layout.PURPOSE_PUBLISH, session.identity.principal, version.uid)
    data_key = offer.open(answer.data_key, binding)
    try:
        with spool.create() as file:
            pin = _write(file, source, version, data_key, plain.plain_bytes, progress)
            os.fsync(file.fileno())
    except OSError as error:
        spool.clear()
        raise local_error(error, "the spool of this push cannot be written") from error
    except BaseException:
        spool.clear()
        raise
    finally:
        data_key.wipe()
    if SourceState.read(source).digest != plain.digest:
        spool.clear()
        raise SourceChanged(f"{source} changed while it was read; nothing was published")
    push = SpooledPush(
        request_id=request_id,
        version=version.name,
        source=plain.digest,
        length_bytes=pin.length_bytes,
        floe_header_tag=pin.floe_header_tag.hex(),
        digest=pin.digest.hex(),
    )
    spool.complete(push)
    return push


def _require_room(spool: Spool, plain: SourceState) -> None:
    """The ciphertext is a little larger than the plaintext: 32 bytes a segment, and the index."""
    needed = plain.plain_bytes + plain.plain_bytes // 1000 + (1 << 20)
    if (free := free_bytes(spool.path.parent)) < needed:
        raise LocalDiskFull(
            f"the spool needs about {needed:,} bytes, {spool.path.parent} has {free:,} free",
            hint="free some space, or set state_dir in the profile to a larger disk",
        )


# --- sending ---------------------------------------------------------------------------------------


def _send(
    session: Session,
    spool: Spool,
    push: SpooledPush,
    promote: bool,
    progress: ProgressCallback | None,
    *,
    resumed: bool,
) -> Pushed:
    """Upload what is in the spool, finalize the version, forget the spool."""
    pin = push.pin
    with spool.open() as file:
        try:
            upload(session, push.version, file, pin.length_bytes, progress)
        except VersionNotPending:
            # Finalized already, and the answer was lost. With this pin, finalizing says so again;
            # with another, it raises.
            _log.info("%s is uploaded already", people_form(push.version))
    request = model_service_pb2.FinalizeVersionRequest(
        name=push.version,
        pin=resources_pb2.ArtifactPin(
            length_bytes=pin.length_bytes,
            floe_header_tag=pin.floe_header_tag,
            digest=pin.digest,
        ),
        promote=promote,
    )
    answer = session.call(
        session.models.FinalizeVersion,
        request,
        deadline_s=_FINALIZE_DEADLINE_S + pin.length_bytes / _FINALIZE_BYTES_PER_S,
    )
    version = convert.version(answer.version)
    if version.name != push.version or version.pin != pin:
        raise AnswerInvalid("the service finalized another version or pin than it was sent")
    spool.clear()
    return Pushed(version, answer.stable_version, resumed)
