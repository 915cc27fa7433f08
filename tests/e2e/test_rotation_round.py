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


def test_trimming_takes_two_officers_and_waits_for_backups(
    cli: As, stack: DevelopmentStack, file_model: Path, tmp_path: Path
) -> None:
    """On the running stack, whose officers' Vault login may not trim: the last step is Vault's."""
    security, witness = cli("security"), cli("witness")
    security.ok("admin", "master-key", "create", "trimmed")
    security.ok("admin", "project", "create", "trimmed")
    cli("publisher").ok("push", file_model, "trimmed/fd")
    config = stack.paths.config_file
    backup = ["backup", str(tmp_path / "backup"), "--config", str(config)]
    run_command(MODELKMS_SERVER, backup, clean_environment(tmp_path))
    trim = ("admin", "master-key", "trim", "trimmed", "--to", "2")
    security.ok("admin", "master-key", "rotate", "trimmed")
    assert '"MASTER_KEY_NOT_RETIRED"' in security.run(*trim, "--json").err
    security.ok("admin", "master-key", "rewrap", "trimmed")
    security.ok("admin", "master-key", "retire", "trimmed")
    refused = security.run(*trim, "--json")
    assert refused.code == 8
    assert '"BACKUPS_NEED_OLD_VERSION"' in refused.err
    for each in security.json("admin", "backup", "list")["backups"]:
        security.ok("admin", "backup", "destroyed", each["id"], "--reason", "shredded")
    assert "a second officer does it" in security.ok(*trim).text
    assert '"SECOND_OFFICER_REQUIRED"' in security.run(*trim, "--confirm", "--json").err
    assert witness.run(*trim).code != 0  # asks for nothing
    assert '"VAULT_DENIED"' in witness.run(*trim, "--confirm", "--json").err
