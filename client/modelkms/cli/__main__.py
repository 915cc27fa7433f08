"""`modelkms`: the frame around the commands, and how each of them can end."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from modelkms.cli import admin, doctor, identity, inspecting, leases, models, run, versions
from modelkms.cli.common import (
    SIGPIPE_EXIT_CODE,
    CommandLine,
    Connect,
    JsonOption,
    ProfileOption,
    VerboseOption,
    connect,
)
from modelkms.cli.output import note, write_error, write_line
from modelkms.errors import InternalError, LocalError, ModelKmsError, UsageError

_EPILOG = (
    "Exit codes: 0 done, 1 internal, 2 usage, 3 denied or missing, 4 identity, 5 unavailable, "
    "6 corrupt, 7 local (disk, memory, path), 8 wrong state; `run`: the command's own, "
    "125-127 for its own failures."
)


def main(argv: Sequence[str] | None = None, connect: Connect = connect) -> int:
    """Run one command. Never raises for what the commands declare; returns the exit code.

    Args:
        argv: without the program's name; None: the process's.
        connect: makes the client; tests give one of their own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command_line = CommandLine(connect)
    as_json = "--json" in _before_dashes(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a locale without a letter must not end a command
            stream.reconfigure(errors="backslashreplace")
    app = typer.main.get_command(_app())
    try:
        code = app.main(arguments, "modelkms", standalone_mode=False, obj=command_line)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python's own flush at exit would complain once more: give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGPIPE_EXIT_CODE
    except typer.TyperException as error:
        return _usage(error, _command_path(app, arguments), as_json)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        declared = _declared(error, command_line.verbose)
        write_error(declared, as_json=as_json)
        return declared.exit_code
    return code if isinstance(code, int) else 0


def _app() -> typer.Typer:
    app = typer.Typer(
        name="modelkms",
        help="Encrypted machine-learning models: publish, open, run.",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    for part in (models, versions, run, inspecting, leases, identity, doctor, admin):
        part.register(app)
    return app


def _common(
    ctx: typer.Context,
    profile: ProfileOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda shown: _version(shown),
            help="Print the version.",
        ),
    ] = False,
) -> None:
    ctx.ensure_object(CommandLine).merge(profile, json, verbose)


def _version(shown: bool) -> None:
    """Print the version and end."""
    if shown:
        from modelkms import __version__

        write_line(f"modelkms {__version__}")
        raise typer.Exit


def _usage(error: typer.TyperException, path: str, as_json: bool) -> int:
    """What click finds wrong with the arguments, told as every other error is."""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(str(error) + "\n")
        return UsageError.exit_code
    told = UsageError(error.format_message(), hint=f"{path} --help shows how it is used")
    # A usage error of `run` must not look like an exit code of the command that it runs.
    code = run.OWN_FAILURE if path == "modelkms run" else told.exit_code
    write_error(told, as_json=as_json, exit_code=code)
    return code


def _declared(error: Exception, verbose: bool) -> ModelKmsError:
    """`error` as one of ours; the text of an undeclared one is shown only to who asks for it."""
    if verbose:
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            note(line)
    if isinstance(error, ModelKmsError):
        return error
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return LocalError(f"{error.strerror}{where}")
    if isinstance(error, MemoryError):
        return LocalError("this machine has too little memory", reason="LOCAL_MEMORY_FULL")
    return InternalError(
        f"internal error ({type(error).__name__})",
        hint="this is a bug: run it again with --verbose and report what it tells",
    )


def _command_path(app: object, arguments: list[str]) -> str:
    """`modelkms alias set`: the command that the arguments lead to, as far as they do."""
    path, node, words = "modelkms", app, iter(_before_dashes(arguments))
    for word in words:
        if word == "--profile":
            next(words, None)
        elif not word.startswith("-"):
            node = getattr(node, "commands", {}).get(word)
            if node is None:
                break
            path += f" {word}"
    return path


def _before_dashes(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


if __name__ == "__main__":
    sys.exit(main())
