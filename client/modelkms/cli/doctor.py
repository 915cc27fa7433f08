"""What is wrong here, and what to do: doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from modelkms.cli.common import CommandLine, command
from modelkms.cli.output import note, write_json, write_line

if TYPE_CHECKING:
    from modelkms.cli.checks import Finding


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "doctor")(doctor)


def doctor(cli: CommandLine) -> None:
    """Check everything on the way, and say what to do.

    Profile, storage, identity, endpoint, TLS, clock, policy and, for officers, Vault. The exit
    code is 0 if nothing failed (warnings aside), else that of the first failure: later ones
    often follow from it.

    Example: modelkms doctor --profile reader
    """
    from modelkms.cli.checks import Examination

    findings: list[Finding] = []
    for finding in Examination(cli.profile, cli.connect, cli.profile_name).findings():
        findings.append(finding)
        if not cli.json:
            _show(finding)
    failed = [finding for finding in findings if finding.status == "failed"]
    exit_code = failed[0].exit_code if failed else 0
    if cli.json:
        checks = [finding.as_dict() for finding in findings]
        write_json({"healthy": not failed, "exit_code": exit_code, "checks": checks})
    elif failed:
        note(f"error: {len(failed)} of {len(findings)} checks failed")
    if exit_code:
        raise typer.Exit(exit_code)


def _show(finding: Finding) -> None:
    write_line(f"{finding.status:<8} {finding.check:<12} {finding.message}")
    if finding.hint and finding.status != "ok":
        write_line(f"{'':<21} {finding.hint}")
