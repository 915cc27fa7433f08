"""Encrypted artifacts, with a key and without a service (docs/spec/artifact-v1.md).

with open("model.mkms", "wb", buffering=0) as sink:
    pin = write_artifact("model.onnx", sink, key, version=…, version_uid=…, artifact_id=…)
with ArtifactReader("model.mkms", key, Expected(pin=pin)) as model:
    model.files()
"""

from modelkms.artifact.pin import ArtifactPin, PinLike, pin_of
from modelkms.artifact.reader import ArtifactReader, Expected, MemberFile, read_header
from modelkms.artifact.source import Source, look_at
from modelkms.artifact.sources import AnySource, ArtifactSource
from modelkms.artifact.writer import write_artifact

__all__ = [
    "AnySource",
    "ArtifactPin",
    "ArtifactReader",
    "ArtifactSource",
    "Expected",
    "MemberFile",
    "PinLike",
    "Source",
    "look_at",
    "pin_of",
    "read_header",
    "write_artifact",
]
