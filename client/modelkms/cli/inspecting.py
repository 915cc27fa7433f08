"""What a stored artifact tells without any key, and with the key of its version: inspect."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelkms.cli.common import CommandLine, command
from modelkms.cli.output import size, write_line, write_table
from modelkms.errors import ArtifactCorrupt, PathUnusable

if TYPE_CHECKING:
    from typing import BinaryIO

    from modelkms.stored import StoredArtifact
    from modelkms.types import ProgressCallback

_CHUNK_BYTES = 1 << 20
_KINDS = {1: "file", 2: "zip"}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "inspect")(inspect)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the clear part of an artifact says, and what its length adds.

    Attributes:
        version: resource name of the version it was made for.
        reference: the same, as people write it.
        version_uid, artifact_id: 32 hexadecimal digits each.
        payload_kind: `file`, `zip` or `unknown`.
        file_name: of a single file; else empty.
        file_bytes: of the whole artifact.
        payload_offset: where the FLOE header begins.
        segments_offset: where the first segment begins.
        floe_header_tag: 64 hexadecimal digits: part of the pin.
        segment_length_bytes: of an encrypted segment.
        segments: how many there are.
        last_segment_bytes: encrypted length of the last.
        payload_bytes: what it decrypts to.
    """

    version: str
    reference: str
    version_uid: str
    artifact_id: str
    payload_kind: str
    file_name: str
    file_bytes: int
    payload_offset: int
    segments_offset: int
    floe_header_tag: str
    segment_length_bytes: int
    segments: int
    last_segment_bytes: int
    payload_bytes: int


def inspect(
    cli: CommandLine,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An encrypted artifact.")],
    pin: Annotated[
        bool, typer.Option("--pin", help="Also compute its digest, as the pin has it.")
    ] = False,
    members: Annotated[
        bool, typer.Option("--members", help="Also list its files; leases the version's key.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also check every segment; leases the version's key.")
    ] = False,
) -> None:
    """Tell what an artifact says of itself, without a key.

    Its clear header and its layout: neither key nor service is needed. Nothing of this is
    authenticated: --verify, or opening the model, proves it.

    Example: modelkms inspect artifact.mkms
    """
    document: dict[str, object] = {}
    sizes: dict[str, int] = {}
    try:
        with file.open("rb") as source:
            layout = read_layout(source)
            fields = _fields(layout)
            document |= {"file": str(file), **asdict(layout)}
            if pin:
                with cli.progress() as progress:
                    document["digest"] = digest = _digest(source, layout.file_bytes, progress)
                fields.append(("digest", digest))
    except OSError as error:
        raise PathUnusable(f"{file} cannot be read: {error.strerror or 'I/O error'}") from error
    if members or verify:
        with cli.client() as client, cli.progress() as progress, client.stored(file) as stored:
            if verify:
                _verify(stored, layout, progress)
                fields.append(("verified", f"all {layout.segments:,} segments, and the digest"))
                document["verified"] = True
            if members:
                sizes = stored.sizes()
                document["members"] = [
                    {"name": name, "size_bytes": length} for name, length in sizes.items()
                ]
    cli.answer_fields(document, fields)
    if members and not cli.json:
        write_line()
        write_table(("SIZE", "MEMBER"), [(f"{length:,}", name) for name, length in sizes.items()])


def _fields(layout: Layout) -> list[tuple[str, str]]:
    return [
        ("version", layout.reference),
        ("version uid", layout.version_uid),
        ("artifact id", layout.artifact_id),
        ("payload", layout.payload_kind + f" {layout.file_name!r}" * bool(layout.file_name)),
        ("decrypts to", _exact(layout.payload_bytes)),
        ("file", _exact(layout.file_bytes)),
        ("layout", _layout(layout)),
        ("header tag", layout.floe_header_tag),
    ]


def _verify(stored: StoredArtifact, layout: Layout, progress: ProgressCallback | None) -> None:
    try:
        stored.verify(progress)
    except ArtifactCorrupt as error:
        if (segment := error.metadata.get("segment")) is not None:
            start = layout.segments_offset + int(segment) * layout.segment_length_bytes
            end = min(start + layout.segment_length_bytes, layout.file_bytes)
            error.hint = (
                f"the first bad one is at bytes {start:,} to {end:,} of the file; "
                "later ones were not looked at"
            )
        raise


def read_layout(source: BinaryIO) -> Layout:
    """
    Raises:
        ArtifactCorrupt: it is no artifact, or is cut short.
        OSError: it cannot be read.
    """
    from modelkms_api.artifact import (
        MAX_CLEAR_PREFIX_BYTES,
        SEGMENT_OVERHEAD_BYTES,
        ArtifactFormatError,
        parse_clear_prefix,
    )

    from modelkms.reference import people_form

    file_bytes = source.seek(0, os.SEEK_END)
    source.seek(0)
    head = source.read(MAX_CLEAR_PREFIX_BYTES)
    try:
        clear = parse_clear_prefix(head)
        tag = clear.floe_header_tag(head)
    except ArtifactFormatError as error:
        raise ArtifactCorrupt(
            f"this is no artifact of ModelKMS, or it is damaged: {error}",
            hint="artifacts are what the store and the cache hold; see docs/spec/artifact-v1.md",
        ) from error
    header = clear.header
    encrypted = file_bytes - clear.segments_offset
    segments, rest = divmod(encrypted, header.segment_length_bytes)
    last = rest or header.segment_length_bytes
    segments += bool(rest)
    if encrypted < SEGMENT_OVERHEAD_BYTES or last < SEGMENT_OVERHEAD_BYTES:
        raise ArtifactCorrupt(f"the artifact is cut short at {file_bytes:,} bytes")
    return Layout(
        version=header.version,
        reference=people_form(header.version),
        version_uid=header.version_uid,
        artifact_id=header.artifact_id,
        payload_kind=_KINDS.get(header.payload_kind, "unknown"),
        file_name=header.file_name,
        file_bytes=file_bytes,
        payload_offset=clear.payload_offset,
        segments_offset=clear.segments_offset,
        floe_header_tag=tag.hex(),
        segment_length_bytes=header.segment_length_bytes,
        segments=segments,
        last_segment_bytes=last,
        payload_bytes=encrypted - segments * SEGMENT_OVERHEAD_BYTES,
    )


def _digest(source: BinaryIO, total_bytes: int, progress: ProgressCallback | None) -> str:
    """The pin's digest (artifact-v1 §6), in hexadecimal."""
    from modelkms_api.artifact import PinDigest

    from modelkms.types import Progress

    digest, done = PinDigest(), 0
    source.seek(0)
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        done += len(chunk)
        if progress is not None:
            progress(Progress("digest", done, total_bytes))
    return digest.digest().hex()


def _layout(layout: Layout) -> str:
    return (
        f"clear header to byte {layout.payload_offset:,}, FLOE header, {layout.segments:,} x "
        f"{layout.segment_length_bytes:,} bytes of segments, the last {layout.last_segment_bytes:,}"
    )


def _exact(length_bytes: int) -> str:
    return f"{length_bytes:,} bytes" + f" ({size(length_bytes)})" * (length_bytes >= 1024)
