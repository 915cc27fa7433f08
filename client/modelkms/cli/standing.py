"""Stopping issuing at once: admin block, unblock, blocks, freeze, unfreeze, freezes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Optional

import typer

from modelkms.cli.common import CommandLine, command
from modelkms.cli.output import moment
from modelkms.errors import UsageError

Principal = Annotated[
    str,
    typer.Argument(metavar="PRINCIPAL", help="SPIFFE ID, or oidc:ISSUER:SUBJECT."),
]
Project = Annotated[str, typer.Argument(metavar="PROJECT", help="Id of a project.")]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; for the record and the officers.")
]

_UNITS_S = {"m": 60, "h": 3600, "d": 86400}


def register(admin: typer.Typer) -> None:
    """Add the commands of this module to the group admin."""
    command(admin, "block")(block)
    command(admin, "unblock")(unblock)
    command(admin, "blocks")(blocks)
    command(admin, "freeze")(freeze)
    command(admin, "unfreeze")(unfreeze)
    command(admin, "freezes")(freezes)


def block(
    cli: CommandLine,
    principal: Principal,
    reason: Reason,
    until: Annotated[
        Optional[str],  # noqa: UP045 - typer
        typer.Option(
            "--until",
            metavar="WHEN",
            help="End by itself: 12h, 30d, or a time such as 2027-01-31T08:00Z.",
        ),
    ] = None,
) -> None:
    """Block a principal at once, whatever policy says.

    It sees what a stranger sees, under any certificate or token, and its leases end. Holds on
    every replica until it is taken off, or until the time given.

    Example: modelkms admin block spiffe://example.org/laptop-7 --reason "stolen" --until 30d
    """
    ends = None if until is None else _until(until)
    with cli.client() as client:
        revoked = client.block(principal, reason, ends)
    cli.answer(
        {
            "principal": principal,
            "until_time": ends.isoformat() if ends else None,
            "revoked": revoked,
        },
        f"blocked {principal}{_until_text(ends)}; {_ended(revoked)}",
    )


def unblock(cli: CommandLine, principal: Principal) -> None:
    """Take a block off. Leases that it ended stay ended.

    Example: modelkms admin unblock spiffe://example.org/laptop-7
    """
    with cli.client() as client:
        was_blocked = client.unblock(principal)
    cli.answer(
        {"principal": principal, "was_blocked": was_blocked},
        f"unblocked {principal}" if was_blocked else f"nothing to do: {principal} is not blocked",
    )


def blocks(cli: CommandLine) -> None:
    """List who is blocked, since when, by whom and why.

    Example: modelkms admin blocks
    """
    with cli.client() as client:
        found = client.list_blocks()
    cli.answer_table(
        {"blocks": [each.as_dict() for each in found]},
        ("PRINCIPAL", "SINCE", "UNTIL", "BY", "REASON"),
        (
            (
                each.principal,
                moment(each.create_time),
                moment(each.until_time),
                each.blocked_by,
                each.reason,
            )
            for each in found
        ),
    )


def freeze(cli: CommandLine, project: Project, reason: Reason) -> None:
    """Freeze a project: no keys of it from now on, its leases end.

    Holds on every replica until it is taken off.

    Example: modelkms admin freeze camera --reason "incident 7"
    """
    with cli.client() as client:
        revoked = client.freeze(reason, project)
    cli.answer(
        {"project": project, "revoked": revoked}, f"froze project {project}; {_ended(revoked)}"
    )


def unfreeze(cli: CommandLine, project: Project) -> None:
    """Take a freeze off. Leases that it ended stay ended.

    Example: modelkms admin unfreeze camera
    """
    with cli.client() as client:
        was_frozen = client.unfreeze(project)
    cli.answer(
        {"project": project, "was_frozen": was_frozen},
        f"unfroze project {project}"
        if was_frozen
        else f"nothing to do: project {project} is not frozen",
    )


def freezes(cli: CommandLine) -> None:
    """List the frozen projects, since when, by whom and why.

    Example: modelkms admin freezes
    """
    with cli.client() as client:
        found = client.list_freezes()
    cli.answer_table(
        {"freezes": [{**each.as_dict(), "id": each.id} for each in found]},
        ("PROJECT", "SINCE", "BY", "REASON"),
        ((each.id, moment(each.create_time), each.frozen_by, each.reason) for each in found),
    )


def _until(text: str) -> datetime:
    """`12h`, `30d` from now, or a time of ISO 8601 with its zone."""
    if match := re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text, re.ASCII):
        return datetime.now(UTC) + timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise UsageError(
            f"{text!a} is no time",
            reason="TIME_INVALID",
            hint="write 12h, 30d, or a time with its zone: 2027-01-31T08:00Z",
        )
    return time.astimezone(UTC)


def _until_text(ends: datetime | None) -> str:
    return "" if ends is None else f" until {moment(ends)}"


def _ended(revoked: int) -> str:
    return f"ended {revoked} {'lease' if revoked == 1 else 'leases'}"
