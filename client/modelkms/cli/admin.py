"""Administration: projects, and master keys under the officer's own Vault login."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from modelkms.cli import backups, policy, retirement, standing
from modelkms.cli.common import (
    CommandLine,
    ProjectOption,
    VersionReference,
    command,
    duration,
    group,
)
from modelkms.cli.output import moment, span, write_line
from modelkms.errors import RewrapIncomplete

if TYPE_CHECKING:
    from modelkms.types import RewrapInfo

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="Id of a project.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    admin = group("admin", "Projects, master keys, policy, blocks, freezes, destruction.")
    project = group("project", "Projects.")
    command(project, "create")(project_create)
    command(project, "list")(project_list)
    master_key = group("master-key", "Master keys. create and rotate use your own Vault login.")
    command(master_key, "create")(master_key_create)
    command(master_key, "rotate")(master_key_rotate)
    command(master_key, "status")(master_key_status)
    command(master_key, "rewrap")(master_key_rewrap)
    destroy = group("destroy", "Destructions that wait for a second officer.")
    command(destroy, "confirm")(destroy_confirm)
    admin.add_typer(project)
    retirement.register(master_key)
    admin.add_typer(master_key)
    policy.register(admin)
    standing.register(admin)
    backups.register(admin)
    admin.add_typer(destroy)
    command(admin, "exposure")(exposure)
    app.add_typer(admin)


def project_create(cli: CommandLine, project: Project) -> None:
    """Create a project.

    Its master key must exist: modelkms admin master-key create makes it.

    Example: modelkms admin project create camera
    """
    with cli.client() as client:
        created = client.create_project(project)
    cli.answer(
        {**created.as_dict(), "id": created.id},
        f"created project {created.id}, under master key {created.master_key}",
    )


def project_list(cli: CommandLine) -> None:
    """List the projects that you may see.

    Example: modelkms admin project list
    """
    with cli.client() as client:
        projects = client.list_projects()
    cli.answer_table(
        {"projects": [{**project.as_dict(), "id": project.id} for project in projects]},
        ("PROJECT", "MASTER KEY", "CREATED"),
        ((project.id, project.master_key, moment(project.create_time)) for project in projects),
    )


def master_key_create(
    cli: CommandLine,
    project: Project,
    auto_rotate_period: Annotated[
        Optional[str],  # noqa: UP045 - typer
        typer.Option(
            "--auto-rotate-period",
            "--auto-rotate",
            metavar="DURATION",
            help="Vault rotates it by itself this often: 24h, 30d (at least an hour).",
        ),
    ] = None,
) -> None:
    """Create a project's master key in Vault.

    Under your own Vault login. One that exists already is left as it is, and refused if it is
    not as a master key must be.

    Example: modelkms admin master-key create camera --auto-rotate 90d
    """
    from modelkms.officer import Officer

    period = None if auto_rotate_period is None else duration(auto_rotate_period)
    with Officer.from_profile(cli.profile()) as officer:
        key = officer.ensure_master_key(project, period)
    done = "created master key" if key.created else "nothing to do: there is a master key"
    rotates = ""
    if key.auto_rotate_period is not None:
        rotates = f", rotated by Vault every {span(key.auto_rotate_period)}"
    cli.answer(key.as_dict(), f"{done} {key.vault_key} at version {key.latest_version}{rotates}")


def master_key_rotate(cli: CommandLine, project: Project) -> None:
    """Add a version to a project's master key.

    Under your own Vault login. New data keys are wrapped under it; everything that exists still
    opens.

    Example: modelkms admin master-key rotate camera
    """
    from modelkms.officer import Officer

    with Officer.from_profile(cli.profile()) as officer:
        rotation = officer.rotate_master_key(project)
    cli.answer(
        rotation.as_dict(),
        f"rotated {rotation.vault_key}: version {rotation.before} → {rotation.after}",
    )


def master_key_status(cli: CommandLine, project: Project) -> None:
    """Tell the state of a project's master key.

    Its versions, and how many data keys are under which. Asks the service: this needs no Vault
    login.

    Example: modelkms admin master-key status camera
    """
    with cli.client() as client:
        key = client.get_master_key(project)
    period = key.auto_rotate_period
    cli.answer_fields(
        key.as_dict(),
        [
            ("vault key", key.vault_key),
            (
                "latest version",
                f"{key.latest_version}, of {moment(key.latest_version_create_time)}",
            ),
            ("decrypts from", f"version {key.min_decryption_version}"),
            ("rotates", "when an officer does" if period is None else f"every {span(period)}"),
            *(
                (f"under version {version}", f"{count:,} data {'key' if count == 1 else 'keys'}")
                for version, count in sorted(key.keys_under_version.items())
            ),
        ],
    )


def master_key_rewrap(
    cli: CommandLine,
    project: Project,
    rate: Annotated[
        int,
        typer.Option(
            "--rate",
            metavar="N",
            min=0,
            max=1_000_000,
            help="Data keys a second at most, all replicas together; 0: no limit.",
        ),
    ] = 0,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Start it, and do not watch it.")
    ] = False,
    pause: Annotated[
        bool, typer.Option("--pause", help="Pause the one that runs; rewrap resumes it.")
    ] = False,
) -> None:
    """Move data keys under the newest master key.

    All data keys of a project move under the newest version of its master key. The service does
    it, batch by batch, while everything still opens; Ctrl-C ends only the
    watching. Run again, it goes on watching, resumes what was paused, or tries again what failed.

    Example: modelkms admin master-key rewrap camera --rate 5000
    """
    with cli.client() as client:
        if pause:
            rewrap = client.pause_rewrap(client.get_rewrap(project).name)
        else:
            rewrap = client.rewrap_data_keys(project, rate)
        if not (pause or no_wait):
            with cli.rewrap_progress() as show:
                for seen in client.watch_rewrap(rewrap.name):
                    rewrap = seen
                    show(seen)
    if cli.json:
        cli.answer(rewrap.as_dict())
    else:
        for line in _rewrap_lines(rewrap):
            write_line(line)
    if rewrap.done and rewrap.failed_keys:
        raise RewrapIncomplete(
            f"{rewrap.failed_keys:,} of {rewrap.total_keys:,} data keys are still under an old "
            f"version of {rewrap.vault_key}"
        )


def _rewrap_lines(rewrap: RewrapInfo) -> Iterator[str]:
    for failure in rewrap.failures:
        yield f"failed: {failure.version_reference}: {failure.reason}"
    if rewrap.done:
        yield f"rewrapped {rewrap.rewrapped_keys:,} data keys under {rewrap.vault_key}"
        return
    state = "paused" if rewrap.state == "PAUSED" else "running"
    yield f"{state}: {rewrap.rewrapped_keys:,} done, {rewrap.left_keys:,} left"


def destroy_confirm(cli: CommandLine, ref: VersionReference) -> None:
    """Confirm a destruction that another officer scheduled.

    When it is due, the version's data key is destroyed for good.

    Example: modelkms admin destroy confirm camera/face-detector@3
    """
    with cli.client() as client:
        version = client.confirm_destroy(ref)
    due = version.destruction.due_time if version.destruction else None
    cli.answer(
        version.as_dict(),
        f"confirmed: {version.reference} is destroyed after {moment(due)} "
        f"(until then: modelkms restore {version.reference})",
    )


def exposure(
    cli: CommandLine,
    principal: Annotated[str, typer.Argument(metavar="PRINCIPAL", help="A SPIFFE ID.")],
    project: ProjectOption = None,
) -> None:
    """List the versions whose keys a holder has had.

    By its leases, ended ones too. What it has had, it may have kept: rekey what must not be read
    by it any more.

    Example: modelkms admin exposure spiffe://example.org/reader
    """
    with cli.client() as client:
        held = client.exposure(principal, project)
    cli.answer_table(
        {"exposure": [{**each.as_dict(), "reference": each.reference} for each in held]},
        ("VERSION", "LEASES", "FIRST", "LAST", "NOW"),
        (
            (
                each.reference,
                str(each.leases),
                moment(each.first_time),
                moment(each.last_time),
                "holds it" if each.live else "-",
            )
            for each in held
        ),
    )
