"""`modelkms-server`: serve, migrate, check-config, backup, restore, verify-state, audit, policy,
the first officer, dev.

Exit codes: 0 done · 1 internal · 2 usage or configuration · 5 unavailable · 6 corrupt (a damaged
audit log). Errors are `error:` and `hint:` lines on standard error.
"""

from __future__ import annotations

import kms_service.rpc.tls_environment  # noqa: F401 - before anything imports grpc

# isort: split
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from kms_service import __version__, state_commands
from kms_service.audit_commands import audit_app
from kms_service.config import Config, load
from kms_service.console import CORRUPT, INTERNAL, UNAVAILABLE, USAGE, fail, say, tell
from kms_service.domain.errors import (
    ConfigurationError,
    Corrupt,
    ServiceError,
    Throttled,
    Unavailable,
)
from kms_service.telemetry.logging import configure_logging

app = typer.Typer(
    name="modelkms-server",
    help="The ModelKMS service: keys of encrypted machine-learning models, leased over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(audit_app, name="audit")
state_commands.register(app)
policy_app = typer.Typer(help="Policy sets.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")

ConfigFile = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The TOML configuration file.")
]


@app.command()
def serve(
    config: ConfigFile,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=256,
            help="Processes that share the ports, one a core; more than 1 needs PostgreSQL. "
            "Instead of server.workers.",
        ),
    ] = None,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    run_folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the policies again."""
    from kms_service.serving import serve_until_signalled
    from kms_service.workers import WorkersFailed, become_worker, serve_by_workers

    settings = load(config)
    configure_logging(settings.log.level, settings.log.format)
    if worker is not None and run_folder is not None:  # one that `serve_by_workers` started
        own, metrics = become_worker(settings, worker, run_folder)
        serve_until_signalled(own, worker_metrics=metrics)
        return
    count = workers or settings.server.workers
    if count == 1:
        serve_until_signalled(settings)
        return
    try:
        serve_by_workers(settings, config, count)
    except WorkersFailed as error:
        sys.exit(error.code)


@app.command()
def migrate(config: ConfigFile) -> None:
    """Bring the database's schema to this version's; makes the database if there is none."""
    from kms_service.parts import migrate_database

    migrate_database(load(config))
    say("the database's schema is current")


@app.command("check-config")
def check_config(
    config: ConfigFile,
    live: Annotated[
        bool, typer.Option("--live", help="Also try Vault, database, store and policies.")
    ] = False,
) -> None:
    """Check the configuration; with --live also what it names."""
    settings = load(config)
    say(f"ok    {config} is well-formed")
    if live:
        _check_live(settings)


@app.command()
def status(
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="All that the service tells.")] = False,
) -> None:
    """How the running service is, in a line. Exit code 5: not as it should be."""
    from kms_service.status import summary
    from kms_service.status_query import ask

    facts = ask(load(config))
    say(json.dumps(facts) if as_json else summary(facts))
    if facts["state"] != "SERVING":
        sys.exit(UNAVAILABLE)


@app.command("bootstrap-officer")
def bootstrap_officer(
    config: ConfigFile,
    officer: Annotated[str, typer.Argument(metavar="PRINCIPAL", help="SPIFFE ID, or oidc:…")],
) -> None:
    """Make the first security officer, once; it is recorded in the audit log."""
    from kms_service.officers import bootstrap_officer

    folder = bootstrap_officer(load(config), officer)
    say(f"{officer} is the first security officer, by the policies in {folder}")


@app.command("break-glass")
def break_glass(
    config: ConfigFile,
    principal: Annotated[str, typer.Argument(metavar="PRINCIPAL", help="SPIFFE ID, or oidc:…")],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")],
    minutes: Annotated[int, typer.Option(help="For how long, at most 240.")] = 60,
) -> None:
    """Let a principal administer for a while, when no officer can; it is recorded."""
    from datetime import timedelta

    from kms_service.officers import break_glass

    broken = break_glass(load(config), principal, reason, timedelta(minutes=minutes))
    until = broken.until.strftime("%Y-%m-%d %H:%M:%SZ")
    say(f"{principal} administers until {until}; then remove {broken.file}")


@policy_app.command("test")
def policy_test(
    path: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A policy set's folder, or a file in it."),
    ],
) -> None:
    """Try a policy set on its canary cases, and on those of every *.cases.json beside them."""
    from kms_service.policy_cases import try_cases

    tried, problems = try_cases(path)
    for problem in problems:
        tell("error", problem)
    if problems:
        fail(f"{len(problems)} of {tried} cases fail", None, USAGE)
    say(f"ok    {tried} cases")


@app.command()
def dev(
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where everything is kept.")
    ] = Path(".modelkms-dev"),
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Of the service; port 0: any free one.")
    ] = "127.0.0.1:0",
    metrics_listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Of /metrics; port 0: any free one.")
    ] = "127.0.0.1:0",
) -> None:
    """A development stack: OpenBao, the service, a CA with identities. Ctrl-C stops all."""
    try:
        from kms_service.development.process import ChildFailed
        from kms_service.development.stack import run
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the development stack needs {error.name}: pip install 'modelkms-server[dev-stack]'"
        ) from error
    try:
        run(directory, listen=listen, metrics_listen=metrics_listen)
    except ChildFailed as error:
        fail(str(error), None, INTERNAL)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    if version:
        say(f"modelkms-server {__version__}")
        raise typer.Exit


def main() -> None:
    """The command; exits the process."""
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            sys.stderr.write(f"{error}\n")
            sys.exit(USAGE)
        fail(error.format_message(), "modelkms-server --help shows how it is used", USAGE)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except ConfigurationError as error:
        for line in error.message.splitlines():
            tell("error", line)
        sys.exit(USAGE)
    except (Unavailable, Throttled) as error:
        fail(f"{error.message} ({error.reason})", "try again once it answers", UNAVAILABLE)
    except Corrupt as error:
        fail(f"{error.message} ({error.reason})", None, CORRUPT)
    except ServiceError as error:
        fail(f"{error.message} ({error.reason})", None, INTERNAL)
    sys.exit(code if isinstance(code, int) else 0)


def _check_live(config: Config) -> None:
    """Every check runs, so that one run tells all that is wrong; the worst decides the code."""
    from kms_service.live_checks import live_checks

    worst: ServiceError | None = None
    for name, check in live_checks(config):
        try:
            check()
        except ServiceError as error:
            tell("error", f"{name}: {error.message} ({error.reason})")
            worst = error if worst is None or isinstance(error, ConfigurationError) else worst
        else:
            say(f"ok    {name}")
    if worst is not None:
        sys.exit(UNAVAILABLE if isinstance(worst, Unavailable | Throttled) else USAGE)


if __name__ == "__main__":
    main()
