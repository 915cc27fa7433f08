"""Publishing: source → data key → ciphertext in the spool → store → finalized version."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from modelkms_api import key_transport as layout
from modelkms_api.encoding import length_prefixed
from modelkms_api.v1 import model_service_pb2, resources_pb2

from modelkms import convert
from modelkms.artifact.pin import ArtifactPin
from modelkms.artifact.reader import read_header
from modelkms.artifact.source import Source, look_at
from modelkms.artifact.writer import write_artifact
from modelkms.bucket import DirectStore
from modelkms.download import Downloader
from modelkms.errors import (
    AnswerInvalid,
    ArtifactMismatch,
    LocalDiskFull,
    ModelNotFoundOrDenied,
    SourceChanged,
    VersionDestroyed,
    VersionDestroyScheduled,
    VersionNotPending,
)
from modelkms.folders import free_bytes, local_error
from modelkms.key_transport import Binding
from modelkms.opened import open_model
from modelkms.reference import Reference, people_form
from modelkms.session import Session
from modelkms.spool import Spool, SpooledPush, claimed, spool_key
from modelkms.types import Progress, ProgressCallback, Pushed, Rekeyed, VersionInfo
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
    # Absolute, but with links as they are: a link is refused, not followed.
    looked_at = look_at(os.path.normpath(Path.cwd() / source.expanduser()))
    key = spool_key(session.profile.target, session.identity.principal, str(looked_at.path), model)
    with claimed(state_folder / "spool", key, _digest(looked_at)) as spool:
        if (left := spool.whole()) is not None:
            _log.info("going on with the push of %s", people_form(left.version))
            try:
                return _send(session, spool, left, promote, progress, resumed=True)
            except _GONE:
                _log.info("%s is gone; beginning anew", people_form(left.version))
        push = _encrypt(session, spool, looked_at, model, progress)
        return _send(session, spool, push, promote, progress, resumed=False)


def rekey(
    session: Session,
    downloader: Downloader,
    state_folder: Path,
    name: str,
    progress: ProgressCallback | None,
) -> Rekeyed:
    """Publish the content of the version `name` once more, under a fresh data key; the old version
    is disabled, and its aliases moved, as the new one is finalized.

    Decrypted under the old key and encrypted under the new one chunk by chunk: only ciphertext
    touches a disk. What an interrupted one left whole in the spool is sent again as it is.
    """
    model = Reference.parse(name).model_name
    key = spool_key(session.profile.target, session.identity.principal, "rekey", name)
    with claimed(state_folder / "spool", key, name) as spool:
        if (left := spool.whole()) is not None:
            _log.info("going on with the rekey to %s", people_form(left.version))
            try:
                pushed = _send(session, spool, left, False, progress, resumed=True, rekey_of=name)
                return Rekeyed(pushed.version, name)
            except _GONE:
                _log.info("%s is gone; beginning anew", people_form(left.version))
        with open_model(session, downloader, name, None, progress) as opened:

            def write(file: BinaryIO, data_key: bytes, version: VersionInfo) -> ArtifactPin:
                return opened.rewrite(file, data_key, version, _told(progress))

            push = _encrypt_by(session, spool, model, opened.plain_bytes, name, write)
        pushed = _send(session, spool, push, False, progress, resumed=False, rekey_of=name)
        return Rekeyed(pushed.version, name)


# The PENDING version expired, or was finalized with another artifact: this spool is for nothing.
_GONE = (ModelNotFoundOrDenied, VersionDestroyed, VersionDestroyScheduled, VersionNotPending)


# --- the source ----------------------------------------------------------------------------------


def _digest(source: Source) -> str:
    """Changes when a file of the source is added, removed, renamed, replaced or written."""
    hasher = hashlib.sha256()
    for file in source.files:
        hasher.update(length_prefixed(os.fsencode(file.name), file.identity))
    return hasher.hexdigest()


# --- encrypting ----------------------------------------------------------------------------------


def _encrypt(
    session: Session,
    spool: Spool,
    source: Source,
    model: str,
    progress: ProgressCallback | None,
) -> SpooledPush:
    """Create a version and leave its ciphertext, whole, in the spool."""

    def write(file: BinaryIO, data_key: bytes, version: VersionInfo) -> ArtifactPin:
        pin = write_artifact(
            source.path,
            file,
            data_key,
            version=version.name,
            version_uid=version.uid,
            artifact_id=version.artifact_id,
            progress=_told(progress),
        )
        # The writer has compared the source with what *it* saw first; that must be what we saw.
        if _digest(look_at(source.path)) != _digest(source):
            raise SourceChanged(f"{source.path} changed while it was read; nothing was published")
        return pin

    return _encrypt_by(session, spool, model, source.plain_bytes, _digest(source), write)


def _encrypt_by(
    session: Session,
    spool: Spool,
    model: str,
    plain_bytes: int,
    source: str,
    write: Callable[[BinaryIO, bytes, VersionInfo], ArtifactPin],
) -> SpooledPush:
    """Create a version, let `write` encrypt into the spool under its data key."""
    _require_room(spool, plain_bytes)
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
    principal = session.identity.principal_as_told(version.publisher)
    binding = Binding(layout.PURPOSE_PUBLISH, principal, version.uid)
    data_key = offer.open(answer.data_key, binding)
    try:
        with spool.create() as file:
            pin = write(file, data_key.reveal(), version)
            os.fsync(file.fileno())
    except OSError as error:
        spool.clear()
        raise local_error(error, "the model cannot be encrypted into the spool") from error
    except BaseException:
        spool.clear()
        raise
    finally:
        data_key.wipe()
    push = SpooledPush(
        request_id=request_id,
        version=version.name,
        source=source,
        length_bytes=pin.length_bytes,
        floe_header_tag=pin.floe_header_tag.hex(),
        digest=pin.digest.hex(),
    )
    spool.complete(push)
    return push


def _require_room(spool: Spool, plain_bytes: int) -> None:
    """The ciphertext is a little larger than the plaintext: 32 bytes a segment, and a header."""
    needed = plain_bytes + plain_bytes // 1000 + (1 << 16)
    if (free := free_bytes(spool.path.parent)) < needed:
        raise LocalDiskFull(
            f"the spool needs about {needed:,} bytes, {spool.path.parent} has {free:,} free",
            hint="free some space, or set state_dir in the profile to a larger disk",
            metadata={"needed_bytes": str(needed), "free_bytes": str(free)},
        )


def _told(progress: ProgressCallback | None) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(Progress("encrypt", done, total))


# --- sending -------------------------------------------------------------------------------------


def _send(
    session: Session,
    spool: Spool,
    push: SpooledPush,
    promote: bool,
    progress: ProgressCallback | None,
    *,
    resumed: bool,
    rekey_of: str = "",
) -> Pushed:
    """Upload what is in the spool, finalize the version, forget the spool."""
    pin = push.pin
    store = session.profile.store
    finalize = partial(_finalize, session, spool, push, promote, resumed, rekey_of)
    if store is not None and store.bucket is not None:
        return _send_directly(DirectStore(store), spool, push, progress, resumed, finalize)
    with spool.open() as file:
        try:
            upload(session, push.version, file, pin.length_bytes, progress)
        except VersionNotPending:
            # Finalized already, and the answer was lost. With this pin, finalizing says so again;
            # with another, it raises.
            _log.info("%s is uploaded already", people_form(push.version))
    return finalize()


def _send_directly(
    store: DirectStore,
    spool: Spool,
    push: SpooledPush,
    progress: ProgressCallback | None,
    resumed: bool,
    finalize: Callable[[], Pushed],
) -> Pushed:
    """As `_send`, into the store itself: all of the object, unless it is there already."""
    length = push.pin.length_bytes
    with spool.open() as file:
        artifact_id = read_header(file).artifact_id
        there = resumed and store.has(artifact_id, length)
        if not there:
            store.put(artifact_id, file, length, progress)
        try:
            return finalize()
        except ArtifactMismatch:
            if not there:
                raise
        # What was there is something else of the same length. Ours is whole, in the spool.
        _log.warning("the stored object of %s is not ours: storing it anew", push.version)
        store.put(artifact_id, file, length, progress)
    return finalize()


def _finalize(
    session: Session,
    spool: Spool,
    push: SpooledPush,
    promote: bool,
    resumed: bool,
    rekey_of: str,
) -> Pushed:
    pin = push.pin
    request = model_service_pb2.FinalizeVersionRequest(
        name=push.version,
        pin=resources_pb2.ArtifactPin(
            length_bytes=pin.length_bytes,
            floe_header_tag=pin.floe_header_tag,
            digest=pin.digest,
        ),
        promote=promote,
        rekey_of=rekey_of,
    )
    answer = session.call(
        session.models.FinalizeVersion,
        request,
        deadline_s=_FINALIZE_DEADLINE_S + pin.length_bytes / _FINALIZE_BYTES_PER_S,
    )
    version = convert.version(answer.version)
    if version.name != push.version or version.pin != pin:  # a published lie would never open
        raise AnswerInvalid("the service finalized another version or pin than it was sent")
    spool.clear()
    return Pushed(version, answer.stable_version, resumed)
