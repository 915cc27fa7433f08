"""Who may do what, why, and what another policy set would change: admin policy …"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from modelkms.cli.common import CommandLine, ModelReference, command, group
from modelkms.cli.output import moment, note, span
from modelkms.errors import OperationUnsupported, UsageError
from modelkms.reference import people_form

if TYPE_CHECKING:
    from modelkms.policy import DecisionChangeInfo, ExplanationInfo, FindingInfo

_SERVER_PACKAGE = "kms_service"
_TOLD = {"YES": "permitted", "NO": "refused", "DEPENDS": "depends on the call"}
_STANDS = {"YES": "applies", "NO": "does not apply", "DEPENDS": "depends", "FAILS": "fails"}

Action = Annotated[
    str, typer.Argument(metavar="ACTION", help="Verb of the policy schema, as LeaseDataKey.")
]
PolicyPath = Annotated[
    Path, typer.Argument(metavar="FILE", help="A *.cedar file, or the folder of a policy set.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `admin`."""
    policy = group("policy", "Who may do what, and why.")
    command(policy, "show")(policy_show)
    command(policy, "explain")(policy_explain)
    command(policy, "who-can")(policy_who_can)
    command(policy, "dry-run")(policy_dry_run)
    command(policy, "test")(policy_test)
    app.add_typer(policy)


def policy_show(cli: CommandLine) -> None:
    """Show the policy set in force.

    Example: modelkms admin policy show
    """
    with cli.client() as client:
        found = client.get_policy_set()
    lines = [f"// epoch {found.epoch}, {found.canary_cases} canary cases"]
    lines += [
        f"// group {name}: {', '.join(members) or '(nobody)'}"
        for name, members in sorted(found.groups.items())
    ]
    for policy in found.policies:
        lines += ["", *policy.text.splitlines()]
    cli.answer(found.as_dict(), *lines)


def policy_explain(
    cli: CommandLine,
    subject: Annotated[
        str, typer.Argument(metavar="DECISION|PRINCIPAL", help="A decision id, or who.")
    ],
    action: Annotated[
        Optional[str],  # noqa: UP045 - typer
        typer.Argument(metavar="ACTION", help="Verb of the policy schema, as LeaseDataKey."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer
        typer.Argument(metavar="MODEL", help="[project/]model."),
    ] = None,
) -> None:
    """Tell why a call was, or would be, permitted or refused.

    For each policy that speaks of it: whether it applies, and what is missing.

    Example: modelkms admin policy explain spiffe://example.org/reader LeaseDataKey camera/fd
    """
    with cli.client() as client:
        if action is not None and model is not None:
            found = client.explain_access(subject, action, model)
        elif action is None and re.fullmatch(r"[0-9a-f]{32}", subject):
            found = client.explain_decision(subject)
        else:
            raise UsageError(
                "neither a decision id, nor a principal with action and model",
                hint="write: explain DECISION_ID, or: explain PRINCIPAL ACTION MODEL",
            )
    cli.answer(found.as_dict(), *_explained(found))


def policy_who_can(cli: CommandLine, action: Action, model: ModelReference) -> None:
    """List the known principals that may do something to a model.

    Known are those who called before, and those whom policies or groups name in full.

    Example: modelkms admin policy who-can LeaseDataKey camera/face-detector
    """
    with cli.client() as client:
        found = client.who_can(action, model)
    cli.answer_table(
        found.as_dict(),
        ("PRINCIPAL", "MAY", "BY", "LAST USE", "LAST SEEN", "IF"),
        (
            (
                each.principal,
                "yes" if each.verdict == "YES" else "depends",
                ",".join(each.policies),
                moment(each.last_use_time),
                moment(each.last_seen_time),
                each.missing or "-",
            )
            for each in found.principals
        ),
    )


def policy_dry_run(cli: CommandLine, path: PolicyPath) -> None:
    """List the recorded decisions that another policy set would change.

    Nothing is applied. A single file is tried with the canary cases and groups in force.

    Example: modelkms admin policy dry-run ./policies
    """
    with cli.client() as client:
        found = client.dry_run_policies(path)
    lines = [f"the service would refuse this set: {found.refusal}"] if found.refusal else []
    lines += [_changed(change) for change in found.changes]
    if found.truncated:
        lines.append("… and more")
    since = f" since {moment(found.oldest_time)}" if found.oldest_time else ""
    count = len(found.changes)
    lines.append(
        f"{count} {'change' if count == 1 else 'changes'} in {found.replayed:,} recorded "
        f"decisions{since}"
    )
    if found.inexact:
        lines.append(f"{found.inexact:,} of them were replayed without redacted values")
    cli.answer(found.as_dict(), *lines)


def policy_test(cli: CommandLine, path: PolicyPath) -> None:
    """Try a policy set on the cases beside it, without a service.

    Needs the package modelkms-server here. Exit code 2 if a case does not come out as it must.

    Example: modelkms admin policy test ./policies
    """
    if importlib.util.find_spec(_SERVER_PACKAGE) is None:
        raise OperationUnsupported(
            "policies are tried by the service's own engine, which is not installed here",
            hint="pip install modelkms-server",
        )
    command_line = [sys.executable, "-m", _SERVER_PACKAGE, "policy", "test", "--", str(path)]
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        command_line, check=False, capture_output=True, encoding="utf-8"
    )
    for line in done.stderr.splitlines():
        note(line)
    lines = done.stdout.splitlines()
    cli.answer({"passed": done.returncode == 0, "told": lines}, *lines)
    raise typer.Exit(done.returncode)


def _explained(found: ExplanationInfo) -> list[str]:
    what = f"{found.principal} {found.action} {_place(found.resource)}"
    lines = []
    if found.decided:
        by = f" by {', '.join(found.decided_by)}" if found.decided_by else ""
        lines.append(f"{_TOLD[found.decided]}{by} at {moment(found.decide_time)}: {what}")
        lines.append(f"now: {_TOLD.get(found.verdict, found.verdict)}")
    else:
        lines.append(f"{_TOLD.get(found.verdict, found.verdict)}: {what}")
    if found.groups:
        lines.append(f"groups: {', '.join(found.groups)}")
    lines += [_finding(finding) for finding in found.findings]
    if not found.findings:
        lines.append("no policy speaks of this")
    return lines


def _finding(finding: FindingInfo) -> str:
    effect = finding.policy.effect.lower()
    line = f"  {effect} {finding.policy.id}: {_STANDS.get(finding.verdict, finding.verdict)}"
    if finding.missing:
        line += f"; needs {finding.missing}"
    return line


def _changed(change: DecisionChangeInfo) -> str:
    what = f"{change.principal} {change.action} {_place(change.resource)}"
    times = f" ({change.decisions:,} times)" if change.decisions > 1 else ""
    if change.permitted_now and not change.permitted_then:
        became = "refused"
    elif change.permitted_then and not change.permitted_now:
        became = f"permitted by {', '.join(change.policies)}"
    elif change.lease_ttl_now is not None and change.lease_ttl_then is not None:
        became = f"leased for {span(change.lease_ttl_then)} instead of {span(change.lease_ttl_now)}"
    else:
        became = "leased under other terms"
    return f"{what}: {became}{times}, last {change.decision_id}"


def _place(resource: str) -> str:
    if "/models/" in resource:
        return people_form(resource)
    return resource.removeprefix("projects/") or "(the service)"
