"""`modelkms-server backup`, `restore`, `verify-state`: the database as a file, and held against the
audit log and Vault."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kms_service.config import load
from kms_service.console import say

ConfigFile = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The TOML configuration file.")
]
AuditFolder = Annotated[
    Path | None,
    typer.Option("--audit", metavar="DIR", help="Folder of the audit log [the configured one]."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("backup")(backup)
    app.command("restore")(restore)
    app.command("verify-state")(verify_state)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    config: ConfigFile,
) -> None:
    """Write the whole database to a file, as of one moment. The service goes on meanwhile."""
    from kms_service.state_keeping import back_up

    rows = back_up(load(config), file)
    say(f"wrote {rows} rows to {file}: keep it apart from Vault's backups, and as secret")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What backup wrote.")],
    config: ConfigFile,
    audit: AuditFolder = None,
) -> None:
    """Put a backup into an empty database, then do as verify-state does: what was destroyed since
    stays destroyed, and every key is tried."""
    from kms_service.state_keeping import put_back_backups, restore_rows, tell_of, verify_rows

    settings = load(config)
    rows = restore_rows(settings, file)
    say(f"restored {rows} rows from {file}")
    if known := put_back_backups(settings, audit):
        say(f"put {known} backups back into the registry, as the audit log has them")
    tell_of(*verify_rows(settings, audit, withhold=True, keys=True))


def verify_state(
    config: ConfigFile,
    audit: AuditFolder = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Tell what is found, and leave it as it is.")
    ] = False,
    keys: Annotated[
        bool, typer.Option("--keys", help="Also have Vault try every wrapped key.")
    ] = False,
) -> None:
    """Hold the database against the audit log and Vault's tombstones. What was put back gives no
    key from then on. The exit code is 6 if anything was found."""
    from kms_service.state_keeping import tell_of, verify_rows

    tell_of(*verify_rows(load(config), audit, withhold=not report_only, keys=keys))
