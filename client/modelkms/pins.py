"""What a stored artifact is compared with before anything of it is decrypted."""

from __future__ import annotations

import hmac
import os
from typing import BinaryIO

from modelkms_api.artifact import MAX_CLEAR_PREFIX_BYTES, ArtifactFormatError, parse_clear_prefix

from modelkms.errors import ArtifactCorrupt, ArtifactMismatch
from modelkms.types import PinInfo, VersionInfo

HEAD_BYTES = MAX_CLEAR_PREFIX_BYTES
"""The clear prefix and the FLOE header lie within these."""


def matches_pin(file: BinaryIO, pin: PinInfo) -> bool:
    """Whether length and header tag are the pin's: the check at each open. Reads from the start,
    leaves the position there."""
    if file.seek(0, os.SEEK_END) != pin.length_bytes:
        return False
    head = _head(file)
    try:
        tag = parse_clear_prefix(head).floe_header_tag(head)
    except ArtifactFormatError:
        return False
    return hmac.compare_digest(tag, pin.floe_header_tag)


def check_head(file: BinaryIO, version: VersionInfo, pin: PinInfo) -> None:
    """Compare the clear header with the version, and the header tag with the pin.

    Raises:
        ArtifactCorrupt: there is no clear header.
        ArtifactMismatch: it is another version's, or another artifact of this one.
    """
    head = _head(file)
    try:
        clear = parse_clear_prefix(head)
        tag = clear.floe_header_tag(head)
    except ArtifactFormatError as error:
        raise ArtifactCorrupt(
            f"what the store has for {version.reference} is no artifact"
        ) from error
    header = clear.header
    if (header.version, header.version_uid, header.artifact_id) != (
        version.name,
        version.uid,
        version.artifact_id,
    ):
        raise ArtifactMismatch(
            f"what the store has for {version.reference} is the artifact of another version"
        )
    if not hmac.compare_digest(tag, pin.floe_header_tag):
        raise ArtifactMismatch(
            f"what the store has for {version.reference} is another artifact than was published"
        )


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    head = b""
    while len(head) < HEAD_BYTES and (data := file.read(HEAD_BYTES - len(head))):
        head += data
    file.seek(0)
    return head
