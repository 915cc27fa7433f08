"""Old versions of master keys: retiring them. Under the officer's own Vault login."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from modelkms.cli.common import CommandLine, command

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="Id of a project.")]
ToOption = Annotated[
    Optional[int],  # noqa: UP045 - typer
    typer.Option("--to", metavar="N", min=1, help="The oldest version that stays [newest]."),
]


def register(master_key: typer.Typer) -> None:
    """Add the commands of this module."""
    command(master_key, "retire")(retire)


def retire(cli: CommandLine, project: Project, to: ToOption = None) -> None:
    """Let Vault decrypt under a master key's old versions no more.

    Only if no data key needs them: asks the service before and after. It is undone by a lower --to.

    Example: modelkms admin master-key retire camera
    """
    from modelkms.retirement import retire_master_key

    with cli.client() as client:
        retired = retire_master_key(client, project, to)
    lines = [
        f"{retired.vault_key} decrypts from version {retired.after} on (before: {retired.before})"
    ]
    if retired.after > retired.before:
        lines.append(f"undo: modelkms admin master-key retire {project} --to {retired.before}")
    cli.answer(retired.as_dict(), *lines)
