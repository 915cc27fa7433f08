"""Who holds what, and ending it: lease list, lease revoke."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from modelkms.cli.common import CommandLine, ProjectOption, command, group
from modelkms.cli.output import moment
from modelkms.errors import UsageError

PrincipalOption = Annotated[
    Optional[str],  # noqa: UP045 - typer
    typer.Option("--principal", metavar="SPIFFE-ID", help="Only those of this holder."),
]
ModelOption = Annotated[
    Optional[str],  # noqa: UP045 - typer
    typer.Option("--model", metavar="REF", help="Only those of this model or version."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    lease = group("lease", "Who holds data keys.")
    command(lease, "list")(lease_list)
    command(lease, "revoke")(lease_revoke)
    app.add_typer(lease)


def lease_list(
    cli: CommandLine,
    project: ProjectOption = None,
    principal: PrincipalOption = None,
    model: ModelOption = None,
    ended: Annotated[
        bool, typer.Option("--ended", help="Also those that have expired or were revoked.")
    ] = False,
) -> None:
    """List a project's leases, newest first.

    Example: modelkms lease list --model camera/face-detector@3
    """
    with cli.client() as client:
        leases = client.list_leases(
            project=project, principal=principal, model=model, show_ended=ended
        )
    cli.answer_table(
        {"leases": [{**lease.as_dict(), "id": lease.id} for lease in leases]},
        ("LEASE", "VERSION", "STATE", "EXPIRES", "RENEWALS", "HOLDER"),
        (
            (
                lease.id,
                lease.version_reference,
                lease.state,
                moment(lease.expire_time),
                str(lease.renewals),
                lease.principal,
            )
            for lease in leases
        ),
    )


def lease_revoke(
    cli: CommandLine,
    lease: Annotated[
        Optional[str],  # noqa: UP045 - typer
        typer.Argument(metavar="LEASE", help="One lease, by id or name."),
    ] = None,
    project: ProjectOption = None,
    principal: PrincipalOption = None,
    model: ModelOption = None,
    instance: Annotated[
        Optional[str],  # noqa: UP045 - typer
        typer.Option("--instance", metavar="THUMBPRINT", help="Only those of this instance."),
    ] = None,
) -> None:
    """End one lease, or all that match everything given.

    No key is issued or renewed under them again. What a holder has already seen, it has seen.

    Example: modelkms lease revoke --principal spiffe://example.org/reader
    """
    matched = (principal, model, instance)
    if lease is not None and any(matched):
        raise UsageError(
            "a lease and something to match were given",
            hint="name one lease, or say --principal, --model, --instance",
        )
    if lease is None and not any(matched):
        raise UsageError(
            "nothing says which leases are to end",
            hint="name one, or say --principal, --model, --instance",
        )
    with cli.client() as client:
        revoked = client.revoke_leases(
            project=project, lease=lease, principal=principal, model=model, instance=instance
        )
    cli.answer({"revoked": revoked}, f"ended {revoked} {'lease' if revoked == 1 else 'leases'}")
