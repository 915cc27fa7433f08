"""The security team's yearly round, every command of the guide run; and F41 on the real parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kms_service.development.stack import DevelopmentStack
from tests.support.cli import MODELKMS_SERVER, Cli, clean_environment, run_command

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.faults]

As = Callable[[str], Cli]
GUIDE = Path(__file__).parents[2] / "docs/guides/rotating-master-keys.md"


def test_the_round_in_five_commands(
    cli: As, stack: DevelopmentStack, file_model: Path, tmp_path: Path
) -> None:
    security, publisher, reader = cli("security"), cli("publisher"), cli("reader")
    security.ok("admin", "master-key", "create", "camera")
    security.ok("admin", "project", "create", "camera")
    publisher.ok("push", file_model, "camera/fd")

    commands = re.findall(r"^    (modelkms\S*) (.*)$", GUIDE.read_text(), re.MULTILINE)
    assert len(commands) == 5
    told = []
    for program, line in commands:
        words = line.replace("AUDIT-FOLDER", str(stack.paths.audit)).split()
        if program == "modelkms":
            told.append(security.ok(*words).text)
            assert reader.ok("cat", "camera/fd").out == file_model.read_bytes()
        else:
            told.append(run_command(MODELKMS_SERVER, words, clean_environment(tmp_path)))
    rotated, _, status, retired, audit = told
    assert "version 1 → 2" in rotated
    assert "under version 2  1 data key" in status
    assert "under version 1" not in status
    assert "decrypts from version 2 on (before: 1)" in retired
    assert "whole" in audit


def test_f41_our_gate_refuses_and_tells_how_many(cli: As, file_model: Path) -> None:
    security, publisher, reader = cli("security"), cli("publisher"), cli("reader")
    security.ok("admin", "master-key", "create", "gate")
    security.ok("admin", "project", "create", "gate")
    publisher.ok("push", file_model, "gate/fd")
    security.ok("admin", "master-key", "rotate", "gate")
    refused = security.run("admin", "master-key", "retire", "gate", "--json")
    assert refused.code == 8
    assert '"KEYS_UNDER_OLD_VERSION"' in refused.err
    assert '"v1": "1"' in refused.err
    assert reader.ok("cat", "gate/fd").out == file_model.read_bytes()
    security.ok("admin", "master-key", "rewrap", "gate")
    assert (
        "undo: modelkms admin master-key retire gate --to 1"
        in security.ok("admin", "master-key", "retire", "gate").text
    )
    assert (
        "decrypts from version 1 on (before: 2)"
        in security.ok("admin", "master-key", "retire", "gate", "--to", "1").text
    )
