"""What every command has: the common options, a client when it asks for one, one way to answer."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from modelkms.cli.output import write_fields, write_json, write_line, write_table
from modelkms.errors import UsageError

if TYPE_CHECKING:
    from modelkms.client import Client
    from modelkms.profile import Profile
    from modelkms.types import ProgressCallback, RewrapInfo

COMMON_OPTIONS = "Common options"
SIGPIPE_EXIT_CODE = 128 + 13
"""The reader of our output is gone (`modelkms ls | head`): as a program that SIGPIPE ends."""

ProfileOption = Annotated[
    Optional[str],  # noqa: UP045 - typer shows `str | None` as a type of its own
    typer.Option(
        "--profile",
        metavar="NAME|PATH",
        help="Profile to use [env: MODELKMS_PROFILE].",
        rich_help_panel=COMMON_OPTIONS,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="One JSON document on stdout; errors as JSON on stderr.",
        rich_help_panel=COMMON_OPTIONS,
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", help="Tell causes of errors.", rich_help_panel=COMMON_OPTIONS),
]

Connect = Callable[[str | None], "Client"]


def connect(profile: str | None) -> Client:
    """The SDK's client under a profile."""
    from modelkms.client import connect as connect_sdk

    return connect_sdk(profile)


@dataclass
class CommandLine:
    """The invocation: common options, wherever they stood, and how to reach the service.

    Attributes:
        connect: makes a client from the chosen profile; tests give one of their own.
    """

    connect: Connect = connect
    profile_name: str | None = None
    json: bool = False
    verbose: bool = False

    def client(self) -> Client:
        """A client under the chosen profile; the caller closes it."""
        return self.connect(self.profile_name)

    def profile(self) -> Profile:
        """The chosen profile.

        Raises:
            ProfileInvalid: it is missing or wrong.
        """
        from modelkms.profile import Profile

        return Profile.load(self.profile_name)

    def progress(self) -> AbstractContextManager[ProgressCallback | None]:
        """A progress bar on stderr if it is a terminal; never in --json mode."""
        from modelkms.cli.progress import progress_bar

        return progress_bar(enabled=not self.json)

    def rewrap_progress(self) -> AbstractContextManager[Callable[[RewrapInfo], None]]:
        """A bar for a rewrap, as `progress`."""
        from modelkms.cli.progress import rewrap_bar

        return rewrap_bar(enabled=not self.json)

    def answer(self, document: Mapping[str, object], *lines: str) -> None:
        """The result: `document` under --json, else the lines."""
        if self.json:
            write_json(document)
        else:
            for line in lines:
                write_line(line)

    def answer_fields(
        self, document: Mapping[str, object], fields: Iterable[tuple[str, str]]
    ) -> None:
        """As `answer`, with `name  value` lines."""
        if self.json:
            write_json(document)
        else:
            write_fields(fields)

    def answer_table(
        self,
        document: Mapping[str, object],
        header: tuple[str, ...],
        rows: Iterable[tuple[str, ...]],
    ) -> None:
        """As `answer`, with a table."""
        if self.json:
            write_json(document)
        else:
            write_table(header, rows)

    def merge(self, profile_name: str | None, json: bool, verbose: bool) -> None:
        """Take common options that stood behind a command; what stood before it stays."""
        self.profile_name = profile_name if profile_name is not None else self.profile_name
        self.json = self.json or json
        self.verbose = self.verbose or verbose


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose function takes a `CommandLine` and its own parameters.

    The common options are added to its signature, so that they may stand before or behind the
    command's name and show in its help. Its docstring is its help.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def entry(
            ctx: typer.Context, profile: str | None, json: bool, verbose: bool, **own: Any
        ) -> None:
            command_line = ctx.ensure_object(CommandLine)
            command_line.merge(profile, json, verbose)
            try:
                function(command_line, **own)
            except BrokenPipeError:  # typer would end with 1, as an internal error does
                raise typer.Exit(SIGPIPE_EXIT_CODE) from None

        entry.__signature__ = _signature(function)  # type: ignore[attr-defined]  # inspect's protocol
        entry.__annotations__ = {
            parameter.name: parameter.annotation
            for parameter in entry.__signature__.parameters.values()  # type: ignore[attr-defined]  # set above
        }
        app.command(name)(entry)
        return function

    return register


def group(name: str, help_text: str) -> typer.Typer:
    """Commands under a name of their own; the common options may stand behind it too."""
    made = typer.Typer(name=name, no_args_is_help=True)

    def common(
        ctx: typer.Context,
        profile: ProfileOption = None,
        json: JsonOption = False,
        verbose: VerboseOption = False,
    ) -> None:
        ctx.ensure_object(CommandLine).merge(profile, json, verbose)

    made.callback(help=help_text)(common)
    return made


def _signature(function: Callable[..., None]) -> inspect.Signature:
    """The function's own parameters, then the common options, and click's context in front."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    return inspect.Signature(
        [
            inspect.Parameter("ctx", keyword, annotation=typer.Context),
            *(parameter.replace(kind=keyword) for parameter in own),
            inspect.Parameter("profile", keyword, default=None, annotation=ProfileOption),
            inspect.Parameter("json", keyword, default=False, annotation=JsonOption),
            inspect.Parameter("verbose", keyword, default=False, annotation=VerboseOption),
        ]
    )


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> timedelta:
    """`90s`, `15m`, `24h`, `30d`.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if match is None:
        raise UsageError(
            f"{text!a} is no duration",
            reason="DURATION_INVALID",
            hint="write a number and s, m, h or d: 24h, 30d",
        )
    return timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])


Reference = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="[project/]model[@version|@alias]; without @ it is @stable."
    ),
]
VersionReference = Annotated[
    str, typer.Argument(metavar="REF", help="[project/]model@version: an explicit version.")
]
ModelReference = Annotated[str, typer.Argument(metavar="REF", help="[project/]model.")]
ProjectOption = Annotated[
    Optional[str],  # noqa: UP045 - as above
    typer.Option("--project", metavar="PROJECT", help="Instead of the profile's project."),
]
