"""ArtifactService: ciphertext to and from the store. Translates only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from modelkms_api.v1 import artifact_service_pb2 as pb

from kms_service.domain.errors import InvalidField
from kms_service.domain.names import VersionName
from kms_service.rpc.pipeline import Call
from kms_service.telemetry.metrics import Metrics
from kms_service.usecases.read_artifact import ReadArtifact
from kms_service.usecases.upload_artifact import UploadArtifact


class ArtifactServicer:
    def __init__(
        self, *, read_artifact: ReadArtifact, upload_artifact: UploadArtifact, metrics: Metrics
    ) -> None:
        self._read_artifact = read_artifact
        self._upload_artifact = upload_artifact
        self._metrics = metrics

    def read_artifact(
        self, request: pb.ReadArtifactRequest, call: Call
    ) -> Iterator[pb.ReadArtifactResponse]:
        chunks = self._read_artifact(
            call.caller,
            VersionName.parse(request.version, "version"),
            request.offset_bytes,
            request.length_bytes,
            liveness=call,
        )
        for chunk in chunks:
            self._metrics.artifact_bytes_read.inc(len(chunk))
            yield pb.ReadArtifactResponse(data=chunk)

    def write_artifact(
        self, requests: Iterator[pb.WriteArtifactRequest], call: Call
    ) -> pb.WriteArtifactResponse:
        first = next(requests, None)
        if first is None:
            raise InvalidField("version", "must be given in a first message")
        stored = self._upload_artifact.write(
            call.caller,
            VersionName.parse(first.version, "version"),
            first.offset_bytes,
            _counted(_chunks(first, requests), self._metrics.artifact_bytes_written.inc),
            liveness=call,
        )
        return pb.WriteArtifactResponse(stored_bytes=stored)

    def get_write_status(self, request: pb.GetWriteStatusRequest, call: Call) -> pb.WriteStatus:
        name = VersionName.parse(request.version, "version")
        return pb.WriteStatus(stored_bytes=self._upload_artifact.status(call.caller, name))


def _counted(chunks: Iterator[bytes], count: Callable[[float], None]) -> Iterator[bytes]:
    for chunk in chunks:
        count(len(chunk))
        yield chunk


def _chunks(
    first: pb.WriteArtifactRequest, rest: Iterator[pb.WriteArtifactRequest]
) -> Iterator[bytes]:
    if first.data:
        yield first.data
    for request in rest:
        if request.version or request.offset_bytes:
            raise InvalidField("version", "must be given in the first message only")
        if request.data:
            yield request.data
