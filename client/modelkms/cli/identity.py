"""Who am I: whoami."""

from __future__ import annotations

import typer

from modelkms.cli.common import CommandLine, command
from modelkms.cli.output import moment
from modelkms.errors import IdentityError


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "whoami")(whoami)


def whoami(cli: CommandLine) -> None:
    """Tell who you are, and whether the service takes it.

    The exit code is 4 if it does not.

    Example: modelkms whoami --profile publisher
    """
    with cli.client() as client:
        identity = client.whoami()
    cli.answer_fields(
        identity.as_dict(),
        [
            ("identity", identity.spiffe_id or identity.subject or "(no SPIFFE ID)"),
            ("instance", identity.instance),
            ("valid", f"{moment(identity.not_before)} to {moment(identity.not_after)}"),
            ("issuer", identity.issuer),
            ("endpoint", identity.endpoint),
            ("ca", identity.ca_file),
            ("accepted", "yes" if identity.accepted else f"no: {identity.refusal}"),
        ],
    )
    if not identity.accepted:
        raise typer.Exit(IdentityError.exit_code)
