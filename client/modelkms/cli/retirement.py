"""Old versions of master keys: retiring and trimming them. Under the officer's own Vault login."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from modelkms.cli.common import CommandLine, command
from modelkms.cli.output import moment
from modelkms.errors import UsageError

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="Id of a project.")]
ToOption = Annotated[
    Optional[int],  # noqa: UP045 - typer
    typer.Option("--to", metavar="N", min=1, help="The oldest version that stays [newest]."),
]


def register(master_key: typer.Typer) -> None:
    """Add the commands of this module."""
    command(master_key, "retire")(retire)
    command(master_key, "trim")(trim)


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


def trim(
    cli: CommandLine,
    project: Project,
    to: ToOption = None,
    confirm: Annotated[
        bool,
        typer.Option("--confirm", help="Do what another officer asked for. There is no way back."),
    ] = False,
) -> None:
    """Destroy a master key's old versions in Vault, for good.

    On the word of two officers. The first asks for it; for seven days another may --confirm it,
    which does it under their own Vault login. Only what is retired, and needed by no data key and
    no registered backup.

    Example: modelkms admin master-key trim camera --to 3
    """
    from modelkms.retirement import trim_master_key

    if confirm and to is None:
        raise UsageError(
            "--confirm destroys master-key versions: say which stay",
            hint="--to N, the oldest version that stays, as the first officer asked for it",
        )
    with cli.client() as client:
        if confirm and to is not None:
            done = trim_master_key(client, project, to)
            cli.answer(
                done.as_dict(),
                f"{done.vault_key} has no version below {done.oldest_version} any more",
            )
            return
        oldest = client.get_master_key(project).min_decryption_version if to is None else to
        asked = client.request_trim(oldest, project)
    cli.answer(
        asked.as_dict(),
        f"asked for: {asked.vault_key} to lose its versions below {asked.oldest_version}, for good",
        "a second officer does it until "
        f"{moment(asked.expire_time)}: modelkms admin master-key trim {project} "
        f"--to {asked.oldest_version} --confirm",
    )
