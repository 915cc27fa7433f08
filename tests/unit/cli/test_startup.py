"""Help and completion wait for nothing: neither gRPC nor cryptography is loaded for them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_HEAVY = ("grpc", "cryptography", "google.protobuf", "hvac", "requests", "rich")
_GUIDE = Path(__file__).parents[3] / "docs/guides/cli.md"
_COMMANDS = [
    *("push", "promote", "prefetch", "run", "cat", "ls", "inspect", "export", "enable", "disable"),
    *("alias set", "alias list", "lease list", "lease revoke", "whoami", "doctor"),
    *("admin project create", "admin project list"),
    *("admin master-key create", "admin master-key rotate", "admin master-key status"),
    "admin master-key rewrap",
]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["nonsense"]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    script = (
        "import json, sys\n"
        "from modelkms.cli.__main__ import main\n"
        f"main({arguments!r})\n"
        "sys.stderr.write('\\n' + json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = json.loads(done.stderr.splitlines()[-1])
    # typer itself loads pydantic as soon as a command has parameters to convert.
    light = (*_HEAVY, "pydantic") if arguments == ["--help"] else _HEAVY
    heavy = [name for name in loaded if name.split(".")[0] in light or name in light]
    assert heavy == []


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_help_with_an_example_that_stands_in_the_guide(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from modelkms.cli.__main__ import main

    assert main([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    example = re.search(r"Example: modelkms (.*)", shown)
    assert example is not None, shown
    assert example[1].startswith(command)
    for option in ("--profile", "--json", "--verbose"):
        assert option in shown
    assert f"`modelkms {command}" in _GUIDE.read_text()


def test_summaries_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    from modelkms.cli.__main__ import main

    groups: tuple[list[str], ...] = ([], ["alias"], ["lease"], ["admin"])
    of_admin = (["admin", name] for name in ("project", "master-key", "backup", "policy"))
    for group in (*groups, *of_admin):
        assert main([*group, "--help"]) == 0
        assert "..." not in capsys.readouterr().out.replace("[ARGS]...", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from modelkms.cli.__main__ import main; main([])"],
        env={
            **os.environ,
            "_MODELKMS_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": "modelkms pro",
            "COMP_CWORD": "1",
            "_TYPER_COMPLETE_ARGS": "modelkms pro",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "promote" in done.stdout, done.stderr
    assert "prefetch" not in done.stdout
