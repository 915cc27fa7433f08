"""What lies in the databases of the suites."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from kms_service.domain.catalogue import ArtifactPin, Version, VersionState, WrappedDataKey
from kms_service.domain.names import ModelName, ProjectName, VersionName

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
DEMO = ProjectName("demo")
FACE = ModelName("demo", "face")
PIN = ArtifactPin(2**40 + 1, b"\x00" * 32, b"\xff" * 32)


def version(number: int, **changes: object) -> Version:
    whole = Version(
        name=VersionName("demo", "face", number),
        uid=f"{number:032x}",
        state=VersionState.PENDING,
        publisher="spiffe://test.example/publisher/a",
        request_id=f"00000000-0000-0000-0000-{number:012d}",
        artifact_id=f"{number + 2**100:032x}",
        wrapped_key=WrappedDataKey(f"vault:v1:key{number}", 1),
        create_time=NOW + timedelta(seconds=number),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]
