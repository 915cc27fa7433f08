"""Running a program on a model that is decrypted in memory: run."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelkms.cli.common import CommandLine, Reference, command
from modelkms.cli.lease_end import LeaseEnd, OnRevoke
from modelkms.cli.output import note, write_error
from modelkms.errors import LocalError, ModelKmsError, PathUnusable, UsageError

if TYPE_CHECKING:
    from modelkms.cli.signals import SignalRelay
    from modelkms.opened import OpenedModel
    from modelkms.timings import Timings

OWN_FAILURE = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127
_PLACEHOLDER = "{model}"
_PATH_VARIABLE = "MODELKMS_MODEL_PATH"
# Python ignores these; a program expects them as the system has them.
_DEFAULTED = (signal.SIGPIPE, signal.SIGXFSZ)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "run")(run)


def run(
    cli: CommandLine,
    ref: Reference,
    program: Annotated[
        list[str],
        typer.Argument(metavar="CMD", help="Behind --. {model} in it becomes the model's path."),
    ],
    on_revoke: Annotated[
        OnRevoke,
        typer.Option(
            "--on-revoke",
            help="When the lease is ended: SIGTERM and after the grace SIGKILL, SIGKILL at once, "
            "or nothing.",
        ),
    ] = OnRevoke.TERM,
    grace: Annotated[
        str,
        typer.Option("--grace", metavar="DURATION", help="Between SIGTERM and SIGKILL: 60s, 5m."),
    ] = "60s",
    trace: Annotated[
        bool, typer.Option("--trace", help="Tell where the time went until the command starts.")
    ] = False,
) -> None:
    """Run a command on a model, decrypted in memory only.

    {model} in its arguments, and MODELKMS_MODEL_PATH in its environment, are the file if the
    model is one file, else the folder. It is gone when the command ends. Signals go to the
    command; the exit code is the command's (128+n if signal n ended it), or 125 if it could not
    be started because of the model, 126 if it is not executable, 127 if it is not found.

    Example: modelkms run camera/face-detector -- python detect.py {model}
    """
    try:
        code = _run(cli, ref, program, on_revoke, _grace_s(grace), trace)
    except ModelKmsError as error:
        told_apart = isinstance(error, CommandNotFound | CommandNotExecutable)
        code = error.exit_code if told_apart else OWN_FAILURE
        write_error(error, as_json=cli.json, exit_code=code)
    raise typer.Exit(code)


class CommandNotFound(LocalError):
    exit_code = NOT_FOUND
    default_reason = "COMMAND_NOT_FOUND"


class CommandNotExecutable(LocalError):
    exit_code = NOT_EXECUTABLE
    default_reason = "COMMAND_NOT_EXECUTABLE"


def _grace_s(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6})([smh])", text, re.ASCII)
    if match is None:
        raise UsageError(
            f"{text!a} is no duration",
            reason="DURATION_INVALID",
            hint="write a number and s, m or h: 60s, 5m",
        )
    return float(int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]])


def _run(
    cli: CommandLine,
    ref: str,
    program: Sequence[str],
    on_revoke: OnRevoke,
    grace_s: float,
    trace: bool,
) -> int:
    from modelkms.cli.signals import Interrupted, SignalRelay

    if not program[0]:
        raise UsageError("the command is empty", hint="modelkms run REF -- CMD …")
    # F55: neither we, who hold key and plaintext, nor the command leave a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with SignalRelay() as relay:  # first of all: later threads inherit its signal mask
            lease_end = LeaseEnd(on_revoke, grace_s, relay)
            return _open_and_run(cli, ref, program, relay, lease_end, trace)
    except Interrupted as interrupted:
        return 128 + interrupted.number


def _open_and_run(
    cli: CommandLine,
    ref: str,
    program: Sequence[str],
    relay: SignalRelay,
    lease_end: LeaseEnd,
    trace: bool,
) -> int:
    with cli.client() as client:
        with cli.progress() as progress:
            model = client.open(ref, progress=progress, on_lease_event=lease_end)
        # The command ends first, then its files go.
        with model, model.materialize(keep_when_ended=True) as materialized:
            if trace:
                _tell(model.timings, as_json=cli.json)
            path = _model_path(model, materialized)
            arguments = [part.replace(_PLACEHOLDER, str(path)) for part in program]
            code = _wait(relay, arguments, path, lease_end)
            relay.finish()  # what is removed now is removed wholly
    return code


def _tell(timings: Timings, *, as_json: bool) -> None:
    """On stderr: stdout is the command's."""
    note(json.dumps({"trace": timings.as_dict()}) if as_json else f"trace: {timings}")


def _model_path(model: OpenedModel, materialized: Path) -> Path:
    """The file, if the model is one file; else its folder."""
    if not model.single_file:
        return materialized
    (name,) = model.files()
    return materialized / name


def _wait(relay: SignalRelay, arguments: list[str], path: Path, lease_end: LeaseEnd) -> int:
    """The command's exit code; 128+n if signal n ended it."""
    environment = {**os.environ, _PATH_VARIABLE: str(path)}

    def spawn(mask: set[signal.Signals]) -> int:
        return os.posix_spawnp(
            arguments[0], arguments, environment, setsigmask=mask, setsigdef=_DEFAULTED
        )

    try:
        pid = relay.start(spawn)
    except OSError as error:
        raise _unusable(arguments[0], error) from error
    except ValueError:  # a NUL in an argument
        raise PathUnusable("an argument of the command has a NUL in it") from None
    lease_end.command_started()
    _, status = os.waitpid(pid, 0)
    lease_end.cancel()
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _unusable(name: str, error: OSError) -> ModelKmsError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return CommandNotFound(f"the command {name} is not found")
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.EISDIR):
        return CommandNotExecutable(f"the command {name} cannot be executed: {error.strerror}")
    return LocalError(f"the command {name} cannot be started: {error.strerror}")
