"""The catalogue: ls, promote, alias, enable, disable, destroy, restore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from modelkms.cli.common import (
    CommandLine,
    ModelReference,
    ProjectOption,
    VersionReference,
    command,
    duration,
    group,
)
from modelkms.cli.output import moment, size

if TYPE_CHECKING:
    from modelkms.client import Client
    from modelkms.types import VersionInfo


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "ls")(ls)
    command(app, "promote")(promote)
    command(app, "enable")(enable)
    command(app, "disable")(disable)
    command(app, "rekey")(rekey)
    command(app, "destroy")(destroy)
    command(app, "restore")(restore)
    alias = group("alias", "Movable names of versions.")
    command(alias, "set")(alias_set)
    command(alias, "list")(alias_list)
    app.add_typer(alias)


def ls(
    cli: CommandLine,
    ref: Annotated[
        Optional[str],  # noqa: UP045 - typer
        typer.Argument(
            metavar="REF",
            help="A model: its versions. With @version or @alias: its files (leases its key).",
        ),
    ] = None,
    project: ProjectOption = None,
) -> None:
    """List models, a model's versions, or a version's files.

    Example: modelkms ls camera/face-detector
    """
    with cli.client() as client:
        if ref is None:
            _list_models(cli, client, project)
        elif _names_version(client, ref):
            _list_members(cli, client, ref)
        else:
            _list_versions(cli, client, ref)


def _names_version(client: Client, ref: str) -> bool:
    reference = client.reference(ref)
    return reference.number is not None or reference.alias is not None


def _list_models(cli: CommandLine, client: Client, project: str | None) -> None:
    models = client.list_models(project)
    cli.answer_table(
        {"models": [{**model.as_dict(), "reference": model.reference} for model in models]},
        ("MODEL", "CREATED", "LABELS"),
        (
            (
                model.reference,
                moment(model.create_time),
                ",".join(f"{key}={value}" for key, value in sorted(model.labels.items())),
            )
            for model in models
        ),
    )


def _list_versions(cli: CommandLine, client: Client, ref: str) -> None:
    versions = client.list_versions(ref)
    cli.answer_table(
        {"versions": [version.as_dict() for version in versions]},
        ("VERSION", "STATE", "ALIASES", "SIZE", "CREATED", "PUBLISHER"),
        (
            (
                version.reference,
                version.state,
                ",".join(f"@{alias}" for alias in version.aliases) or "-",
                size(version.pin.length_bytes if version.pin else None),
                moment(version.create_time),
                version.publisher,
            )
            for version in versions
        ),
    )


def _list_members(cli: CommandLine, client: Client, ref: str) -> None:
    with cli.progress() as progress, client.open(ref, progress=progress) as model:
        names = model.files()
        version = model.version
    cli.answer(
        {"version": version.as_dict(), "members": [{"name": name} for name in names]}, *names
    )


def promote(cli: CommandLine, ref: VersionReference) -> None:
    """Make a version what readers get: point @stable to it.

    Example: modelkms promote camera/face-detector@4
    """
    with cli.client() as client:
        alias = client.promote(ref)
    cli.answer(alias.as_dict(), f"promoted {alias.version_reference}; readers get it")


def enable(cli: CommandLine, ref: VersionReference) -> None:
    """Let a disabled version be opened again.

    Example: modelkms enable camera/face-detector@3
    """
    with cli.client() as client:
        _tell_state(cli, client.enable(ref))


def disable(cli: CommandLine, ref: VersionReference) -> None:
    """Let a version be opened no more; its leases end.

    Example: modelkms disable camera/face-detector@3
    """
    with cli.client() as client:
        _tell_state(cli, client.disable(ref))


def rekey(cli: CommandLine, ref: VersionReference) -> None:
    """Give a version's content a new key; the old version is disabled.

    For a data key that leaked. Its aliases move to the new version. You must be permitted to read
    it and to publish.

    Example: modelkms rekey camera/face-detector@3
    """
    with cli.client() as client, cli.progress() as progress:
        rekeyed = client.rekey(ref, progress=progress)
    old = rekeyed.old_reference.rpartition("@")[2]
    cli.answer(
        rekeyed.as_dict(),
        f"{rekeyed.version.reference}: same content, new key; @{old} disabled",
    )


def destroy(
    cli: CommandLine,
    ref: VersionReference,
    wait: Annotated[
        str,
        typer.Option("--in", metavar="DURATION", help="How long it can be restored: 24h to 366d."),
    ] = "30d",
    delete_artifact: Annotated[
        bool, typer.Option("--delete-artifact", help="The stored ciphertext goes with the key.")
    ] = False,
) -> None:
    """Schedule a version's destruction. A second officer must confirm it.

    It opens no more from now on, and its leases end. Its data key is destroyed when the time is
    over and it is confirmed; until then it can be restored.

    Example: modelkms destroy camera/face-detector@3 --in 30d
    """
    with cli.client() as client:
        version = client.destroy(ref, duration(wait), delete_artifact=delete_artifact)
    due = version.destruction.due_time if version.destruction else None
    lines = [
        f"{version.reference} is to be destroyed after {moment(due)}",
        f"a second officer must confirm it: modelkms admin destroy confirm {version.reference}",
    ]
    if version.aliases:
        aliases = ", ".join(f"@{alias}" for alias in version.aliases)
        lines.append(f"still pointed to by {aliases}: readers of that are refused from now on")
    cli.answer(version.as_dict(), *lines)


def restore(cli: CommandLine, ref: VersionReference) -> None:
    """Undo a scheduled destruction; the version is disabled then.

    Example: modelkms restore camera/face-detector@3
    """
    with cli.client() as client:
        version = client.restore(ref)
    cli.answer(
        version.as_dict(),
        f"{version.reference} is {version.state.lower()} (modelkms enable {version.reference})",
    )


def _tell_state(cli: CommandLine, version: VersionInfo) -> None:
    cli.answer(version.as_dict(), f"{version.reference} is {version.state.lower()}")


def alias_set(
    cli: CommandLine,
    ref: VersionReference,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="canary, stable, …")],
) -> None:
    """Point an alias to a version, creating it if need be.

    Example: modelkms alias set camera/face-detector@4 canary
    """
    with cli.client() as client:
        moved = client.set_alias(ref, alias.removeprefix("@"))
    cli.answer(moved.as_dict(), f"@{moved.id} is {moved.version_reference}")


def alias_list(cli: CommandLine, ref: ModelReference) -> None:
    """List a model's aliases.

    Example: modelkms alias list camera/face-detector
    """
    with cli.client() as client:
        aliases = client.list_aliases(ref)
    cli.answer_table(
        {
            "aliases": [
                {**alias.as_dict(), "id": alias.id, "reference": alias.version_reference}
                for alias in aliases
            ]
        },
        ("ALIAS", "VERSION", "MOVED"),
        ((f"@{alias.id}", alias.version_reference, moment(alias.update_time)) for alias in aliases),
    )
