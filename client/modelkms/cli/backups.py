"""The registry of backups: admin backup list, admin backup destroyed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from modelkms.cli.common import CommandLine, command, group
from modelkms.cli.output import moment
from modelkms.types import BackupInfo


def register(admin: typer.Typer) -> None:
    """Add the commands of this module to the group admin."""
    backup = group("backup", "Backups of the service's database, and what they need.")
    command(backup, "list")(backup_list)
    command(backup, "destroyed")(backup_destroyed)
    admin.add_typer(backup)


def backup_list(cli: CommandLine) -> None:
    """List the backups, and the master-key versions they need.

    Only those of modelkms-server backup: what was copied otherwise is not known.

    Example: modelkms admin backup list
    """
    with cli.client() as client:
        found = client.list_backups()
    cli.answer_table(
        {"backups": [{**each.as_dict(), "id": each.id} for each in found]},
        ("BACKUP", "MADE", "NEEDS FROM", "WHERE", "DESTROYED"),
        (
            (
                each.id,
                moment(each.create_time),
                ", ".join(_needs(each)),
                each.location,
                moment(each.destroy_time) if each.destroyed_by else "-",
            )
            for each in found
        ),
    )


def backup_destroyed(
    cli: CommandLine,
    backup: Annotated[str, typer.Argument(metavar="BACKUP", help="Its id.")],
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="How you know that every copy is gone.")
    ],
) -> None:
    """Declare that every copy of a backup is destroyed.

    Your word counts, and is recorded: nobody can check it.

    Example: modelkms admin backup destroyed 5f0c… --reason "tape 7 shredded"
    """
    with cli.client() as client:
        declared = client.declare_backup_destroyed(backup, reason)
    cli.answer(
        {**declared.as_dict(), "id": declared.id},
        f"backup {declared.id} counts as destroyed, on the word of {declared.destroyed_by}",
    )


def _needs(backup: BackupInfo) -> Iterator[str]:
    if not backup.complete:
        yield "any version"
    for name, version in sorted(backup.oldest_versions.items()):
        yield f"{name} v{version}"
