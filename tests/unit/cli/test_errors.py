"""How commands end when something is wrong: every error class, every way of telling it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import modelkms.cli.run
import modelkms.officer
import pytest
from modelkms.cli.__main__ import main
from modelkms.errors import ModelKmsError, ModelNotFoundOrDenied, all_errors

from tests.unit.cli.conftest import Cli
from tests.unit.cli.fake_client import FakeService

_GUIDE = Path(__file__).parents[3] / "docs/guides/cli.md"
_CODES = {0, 1, 2, 3, 4, 5, 6, 7, 8}
_RUN_ONLY: dict[type[ModelKmsError], int] = {
    modelkms.cli.run.CommandNotFound: 127,
    modelkms.cli.run.CommandNotExecutable: 126,
}
_ERRORS = sorted(
    (kind for kind in all_errors() if kind.__module__.startswith("modelkms.")),
    key=lambda kind: kind.__qualname__,
)


@pytest.mark.parametrize("kind", _ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_class(cli: Cli, service: FakeService, kind: type[ModelKmsError]) -> None:
    service.failure = kind("it went wrong", metadata={"decision_id": "d-42"})
    assert kind.exit_code in _CODES - {0} | {_RUN_ONLY.get(kind, 1)}
    ended = cli("ls")
    assert ended.code == kind.exit_code
    assert ended.out == ""
    first, *rest = ended.err.splitlines()
    assert first == "error: it went wrong (decision id d-42)"
    assert rest == ([f"hint: {service.failure.hint}"] if service.failure.hint else [])

    as_json = cli("ls", "--json")
    assert as_json.code == kind.exit_code
    assert as_json.error() == {
        "reason": kind.default_reason,
        "message": "it went wrong",
        "hint": service.failure.hint,
        "metadata": {"decision_id": "d-42"},
        "exit_code": kind.exit_code,
    }


@pytest.mark.parametrize("kind", _ERRORS, ids=lambda kind: kind.__name__)
def test_run_has_its_own_codes(cli: Cli, service: FakeService, kind: type[ModelKmsError]) -> None:
    """What hinders the command must not look like an exit code of the command."""
    service.failure = kind("it went wrong")
    ended = cli("--json", "run", "file", "--", "true")
    expected = _RUN_ONLY.get(kind, 125)
    assert ended.code == expected
    assert ended.error()["exit_code"] == expected


def test_the_guide_has_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| ", _GUIDE.read_text(), re.MULTILINE)
    assert {int(row) for row in rows} == _CODES | {125, 126, 127, 130}


def test_bugs_tell_their_text_only_who_asks(cli: Cli, service: FakeService) -> None:
    service.failure = ValueError("s3cr3t")
    ended = cli("ls")
    assert ended.code == 1
    assert ended.err.startswith("error: internal error (ValueError)\nhint: this is a bug")
    assert "s3cr3t" not in ended.err
    verbose = cli("ls", "--verbose")
    assert "Traceback" in verbose.err
    assert "ValueError: s3cr3t" in verbose.err


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (OSError(28, "No space left on device", "/x/y"), "LOCAL_ERROR"),
        (MemoryError(), "LOCAL_MEMORY_FULL"),
    ],
)
def test_this_machines_errors(
    cli: Cli, service: FakeService, failure: BaseException, reason: str
) -> None:
    service.failure = failure
    ended = cli("ls", "--json")
    assert ended.code == 7
    assert ended.error()["reason"] == reason


def test_interrupted(cli: Cli, service: FakeService) -> None:
    service.failure = KeyboardInterrupt()
    assert cli("ls").code == 130


@pytest.mark.parametrize(
    ("arguments", "told", "hint"),
    [
        (["push"], "Missing argument 'PATH'", "modelkms push --help"),
        (["push", "a", "b", "c"], "unexpected extra argument", "modelkms push --help"),
        (["alias", "set", "a"], "Missing argument 'ALIAS'", "modelkms alias set --help"),
        (["nonsense"], "No such command 'nonsense'", "modelkms --help"),
        (["ls", "--nonsense"], "No such option: --nonsense", "modelkms ls --help"),
        (
            ["--profile", "x", "alias", "--verbose", "set", "a"],
            "Missing argument 'ALIAS'",
            "modelkms alias set --help",
        ),
        (["lease", "list", "--model"], "requires an argument", "modelkms lease list --help"),
    ],
)
def test_usage(cli: Cli, arguments: list[str], told: str, hint: str) -> None:
    ended = cli(*arguments)
    assert ended.code == 2
    error, hinted = ended.err.splitlines()
    assert error.startswith("error: ")
    assert told in error
    assert hinted == f"hint: {hint} shows how it is used"
    as_json = cli("--json", *arguments)
    assert as_json.code == 2
    assert as_json.error()["reason"] == "USAGE_INVALID"


def test_usage_of_run_is_no_exit_code_of_the_command(cli: Cli) -> None:
    assert cli("run").code == 125
    assert cli("run", "file").code == 125
    assert cli("--profile", "x", "run", "file", "--profile").code == 125
    assert cli("run", "file", "python", "-c", "pass").code == 125


@pytest.mark.parametrize("arguments", [[], ["alias"], ["lease"], ["admin"], ["admin", "project"]])
def test_nothing_asked_for_shows_the_help(cli: Cli, arguments: list[str]) -> None:
    ended = cli(*arguments)
    assert ended.code == 2
    assert "Usage: modelkms" in ended.err
    assert "Traceback" not in ended.err


def test_common_options_stand_anywhere(cli: Cli, service: FakeService) -> None:
    chosen: list[str | None] = []

    def connect(profile: str | None) -> object:
        chosen.append(profile)
        return service.connect(profile)

    for arguments in (
        ["--profile", "reader", "lease", "list"],
        ["lease", "list", "--profile", "reader"],
    ):
        main(arguments, connect=connect)  # type: ignore[arg-type]  # a fake's client
    main(["lease", "list"], connect=connect)  # type: ignore[arg-type]  # as above
    assert chosen == ["reader", "reader", None]


# --- what a service says does nothing to a terminal (F24) ----------------------------------------

_HOSTILE = (
    "\x1b[31mred\x1b[0m\r\nerror: forged\x07\x00\x7f\u202egnp.exe\u2028next\u200b\x9b2J\ud800 end"
)


def test_f24_errors_are_escaped(cli: Cli, service: FakeService) -> None:
    service.failure = ModelNotFoundOrDenied(
        _HOSTILE, hint=_HOSTILE, metadata={"decision_id": "d\n1"}
    )
    ended = cli("ls")
    assert len(ended.err.splitlines()) == 2
    _harmless(ended.err)
    assert r"\x1b[31mred\x1b[0m\r\nerror: forged\x07\x00\x7f\u202egnp" in ended.err
    as_json = cli("ls", "--json")
    _harmless(as_json.err)
    assert as_json.error()["message"] == _HOSTILE


def test_f24_tables_and_fields_are_escaped(cli: Cli, service: FakeService) -> None:
    service.labels = {"a": _HOSTILE}
    service.refusal = _HOSTILE
    service.contents["projects/demo/models/file/versions/1"] = {_HOSTILE: b"", "ok": b""}
    for arguments, lines in ((["ls"], 3), (["whoami"], 7), (["ls", "file@1"], 2)):
        ended = cli(*arguments)
        _harmless(ended.out)
        assert len(ended.out.splitlines()) == lines
        as_json = cli(*arguments, "--json")
        _harmless(as_json.out)
        assert as_json.json()


def test_f24_arguments_are_escaped(cli: Cli) -> None:
    ended = cli("ls", "\x1b[2J\nx")
    assert ended.code == 2
    _harmless(ended.err)
    ended = cli("nonsense\x1b[2J\n")
    assert ended.code == 2
    _harmless(ended.err)


def _harmless(text: str) -> None:
    for letter in "\x1b\r\x07\x00\x7f\u202e\u2028\u200b\x9b\ud800":
        assert letter not in text


# --- output that nobody takes --------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.cli.fake_cli", "ls"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()  # before anything is written
    _, told = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGPIPE
    assert told == ""
