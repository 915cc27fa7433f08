"""Publishing: source → data key → ciphertext in the spool → store → finalized version."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from modelkms_api import key_transport as layout
from modelkms_api.encoding import length_prefixed
from modelkms_api.v1 import model_service_pb2, resources_pb2

from modelkms import convert
from modelkms.artifact.reader import read_header
from modelkms.artifact.source import Source, look_at
from modelkms.artifact.writer import write_artifact
from modelkms.bucket import DirectStore
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
from modelkms.reference import people_form
from modelkms.session import Session
from modelkms.spool import Spool, SpooledPush, claimed, spool_key
from modelkms.types import Progress, ProgressCallback, Pushed
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
    _require_room(spool, source.plain_bytes)
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
            pin = write_artifact(
                source.path,
                file,
                data_key.reveal(),
                version=version.name,
                version_uid=version.uid,
                artifact_id=version.artifact_id,
                progress=_told(progress),
            )
            os.fsync(file.fileno())
    except OSError as error:
        spool.clear()
        raise local_error(error, "the model cannot be encrypted into the spool") from error
    except BaseException:
        spool.clear()
        raise
    finally:
        data_key.wipe()
    # The writer has compared the source with what *it* saw first; that must be what we saw.
    if _digest(look_at(source.path)) != _digest(source):
        spool.clear()
        raise SourceChanged(f"{source.path} changed while it was read; nothing was published")
    push = SpooledPush(
        request_id=request_id,
        version=version.name,
        source=_digest(source),
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
) -> Pushed:
    """Upload what is in the spool, finalize the version, forget the spool."""
    pin = push.pin
    store = session.profile.store
    if store is not None and store.bucket is not None:
        return _send_directly(session, DirectStore(store), spool, push, promote, progress, resumed)
    with spool.open() as file:
        try:
            upload(session, push.version, file, pin.length_bytes, progress)
        except VersionNotPending:
            # Finalized already, and the answer was lost. With this pin, finalizing says so again;
            # with another, it raises.
            _log.info("%s is uploaded already", people_form(push.version))
    return _finalize(session, spool, push, promote, resumed)


def _send_directly(
    session: Session,
    store: DirectStore,
    spool: Spool,
    push: SpooledPush,
    promote: bool,
    progress: ProgressCallback | None,
    resumed: bool,
) -> Pushed:
    """As `_send`, into the store itself: all of the object, unless it is there already."""
    length = push.pin.length_bytes
    with spool.open() as file:
        artifact_id = read_header(file).artifact_id
        there = resumed and store.has(artifact_id, length)
        if not there:
            store.put(artifact_id, file, length, progress)
        try:
            return _finalize(session, spool, push, promote, resumed)
        except ArtifactMismatch:
            if not there:
                raise
        # What was there is something else of the same length. Ours is whole, in the spool.
        _log.warning("the stored object of %s is not ours: storing it anew", push.version)
        store.put(artifact_id, file, length, progress)
    return _finalize(session, spool, push, promote, resumed)


def _finalize(
    session: Session, spool: Spool, push: SpooledPush, promote: bool, resumed: bool
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
