"""Publishing and reading: push, prefetch, cat, export."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from modelkms.cli.common import CommandLine, ModelReference, Reference, command
from modelkms.cli.output import size
from modelkms.errors import UsageError

if TYPE_CHECKING:
    from modelkms.types import Pushed

_CHUNK_BYTES = 1 << 20


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "push")(push)
    command(app, "prefetch")(prefetch)
    command(app, "cat")(cat)
    command(app, "export")(export)


def push(
    cli: CommandLine,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A model: a file or a folder.")],
    ref: ModelReference,
    promote: Annotated[
        bool, typer.Option("--promote", help="Make it what readers get (@stable).")
    ] = False,
) -> None:
    """Encrypt a model and publish it as the next version.

    The first version becomes @stable; later ones only with --promote.

    Example: modelkms push model.onnx camera/face-detector
    """
    with cli.client() as client, cli.progress() as progress:
        pushed = client.push(path, ref, promote=promote, progress=progress)
    cli.answer(
        {**pushed.as_dict(), "promoted": pushed.promoted},
        f"pushed {pushed.version.reference}; {_what_readers_get(pushed)}",
    )


def _what_readers_get(pushed: Pushed) -> str:
    if pushed.promoted:
        return "readers get it"
    promote = f"(modelkms promote {pushed.version.reference})"
    if not pushed.stable_version:
        return f"nothing is @stable yet {promote}"
    return f"readers still get @{pushed.stable_reference.rpartition('@')[2]} {promote}"


def prefetch(cli: CommandLine, ref: Reference) -> None:
    """Fetch a model's ciphertext into the cache. No key is asked for.

    Example: modelkms prefetch camera/face-detector
    """
    with cli.client() as client, cli.progress() as progress:
        version = client.prefetch(ref, progress=progress)
    length = version.pin.length_bytes if version.pin else None
    cli.answer(
        {"version": version.as_dict()}, f"cached {version.reference}: {size(length)} of ciphertext"
    )


def cat(
    cli: CommandLine,
    ref: Reference,
    member: Annotated[
        Optional[str],  # noqa: UP045 - typer
        typer.Argument(metavar="MEMBER", help="File of a folder model; see modelkms ls REF@3."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write to a terminal too: it may act on the bytes.")
    ] = False,
) -> None:
    """Write a model, or one of its files, to stdout.

    Every byte written was verified; if something later does not verify, the exit code is 6 and
    what was written is incomplete. --json changes only how errors are told.

    Example: modelkms cat camera/face-detector@3 config.json | jq .
    """
    if sys.stdout.isatty() and not force:
        raise UsageError(
            "stdout is a terminal, and a model's bytes may steer it",
            reason="TERMINAL_REFUSED",
            hint="redirect the output, or say --force",
        )
    # No progress bar: the bytes are on their way, and stderr may be the same terminal.
    with cli.client() as client, client.open(ref) as model, model.open(member) as source:
        shutil.copyfileobj(source, sys.stdout.buffer, _CHUNK_BYTES)
        sys.stdout.buffer.flush()


def export(
    cli: CommandLine,
    ref: Reference,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Required: the model is written in the clear.")
    ] = False,
) -> None:
    """Write a model, decrypted, to a folder on disk.

    There it outlives its lease: whoever can read the folder has the model.

    Example: modelkms export camera/face-detector --plaintext ./face-detector
    """
    if not plaintext:
        raise UsageError(
            f"this writes the model in the clear to {folder}",
            reason="PLAINTEXT_NOT_CONFIRMED",
            hint=f"if that is meant: modelkms export {ref} --plaintext {folder}",
        )
    with (
        cli.client() as client,
        cli.progress() as progress,
        client.open(ref, progress=progress) as model,
    ):
        model.export(folder)
        files = model.files()
        version = model.version
    cli.answer(
        {"version": version.as_dict(), "folder": str(folder), "members": list(files)},
        f"exported {version.reference} in plaintext to {folder}: {_files(len(files))}",
    )


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
