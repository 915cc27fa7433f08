"""Artifacts whose clear part is right and whose payload is noise: enough for cache and transfer."""

from __future__ import annotations

import os
from dataclasses import dataclass

from modelkms.types import PinInfo, VersionInfo
from modelkms_api.artifact import PinDigest, clear_prefix, floe_parameters, parse_clear_prefix
from modelkms_api.v1.artifact_pb2 import PAYLOAD_KIND_ZIP, ArtifactHeader

VERSION = "projects/p/models/m/versions/1"
SEGMENT_BYTES = 4096


@dataclass(frozen=True)
class NoiseArtifact:
    content: bytes
    version: VersionInfo

    @property
    def pin(self) -> PinInfo:
        assert self.version.pin is not None
        return self.version.pin

    @property
    def artifact_id(self) -> str:
        return self.version.artifact_id


def noise_artifact(length_bytes: int = 20_000, *, name: str = VERSION) -> NoiseArtifact:
    """A new artifact of about that length."""
    artifact_id, uid = os.urandom(16).hex(), os.urandom(16).hex()
    header = ArtifactHeader(
        version=name,
        version_uid=uid,
        artifact_id=artifact_id,
        payload_kind=PAYLOAD_KIND_ZIP,
        segment_length_bytes=SEGMENT_BYTES,
    )
    head = clear_prefix(header) + floe_parameters(SEGMENT_BYTES) + os.urandom(64)
    content = head + os.urandom(max(length_bytes - len(head), 0))
    return NoiseArtifact(content, version_of(content, name, uid, artifact_id))


def version_of(content: bytes, name: str, uid: str, artifact_id: str) -> VersionInfo:
    """The ENABLED version that is pinned to `content`."""
    tag = parse_clear_prefix(content).floe_header_tag(content)
    digest = PinDigest()
    digest.update(content)
    pin = PinInfo(len(content), tag, digest.digest())
    return VersionInfo(name, uid, "ENABLED", None, None, "", pin, (), artifact_id)
