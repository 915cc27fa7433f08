"""Who held the key, by what right, and is the log whole: asked of the running stack."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kms_service.development.stack import PROJECT, DevelopmentStack
from tests.support.cli import Cli


def audit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kms_service", "audit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_evidence_of_a_lease(
    stack: DevelopmentStack, cli: Callable[[str], Cli], file_model: Path, tmp_path: Path
) -> None:
    cli("publisher").ok("push", str(file_model), f"{PROJECT}/evidence")
    cli("reader").ok("cat", f"{PROJECT}/evidence")
    stack.restart_service()  # its end ships a checkpoint of all that happened before

    told = audit("public-key", "--config", stack.paths.config_file)
    assert (told.returncode, told.stderr) == (0, "")
    key = tmp_path / "audit.pub"
    key.write_text(told.stdout)
    proof = ("--public-key", key, "--checkpoint", stack.paths.checkpoints)

    found = audit("query", stack.paths.audit, "--model", f"{PROJECT}/evidence", "--json", *proof)
    assert found.returncode == 0
    assert "log: main: whole to record " in found.stderr
    assert ", proven to record " in found.stderr
    leased = [
        record
        for record in map(json.loads, found.stdout.splitlines())
        if (record["event"], record["outcome"]) == ("LeaseDataKey", "ok")
    ]
    assert leased
    assert {record["principal"].rsplit("/", 1)[1] for record in leased} == {"reader"}
    assert all(record["policies"] and record["latency_us"] > 0 for record in leased)

    today = leased[0]["time"][:10]
    asked = ("--model", f"{PROJECT}/evidence", "--held", "--from", today, "--to", today)
    told = audit("query", stack.paths.audit, *asked, *proof)
    assert told.returncode == 0
    (row,) = (line for line in told.stdout.splitlines() if "LeaseDataKey" in line)
    who, right = row.split()[6], row.split()[-1]
    assert who.endswith("/reader")
    policy, _, epoch = right.partition("@")
    assert epoch == leased[0]["policy_epoch"][:12]
    # The text of the set that decided, in the same answer.
    assert f'    @id("{policy}")\n' in told.stdout
    assert f'ModelKMS::Principal::"{who}"' in told.stdout
    assert ", proven to record " in told.stderr

    verified = audit("verify", stack.paths.audit, *proof)
    assert verified.returncode == 0
    assert verified.stdout.startswith("main: whole to record ")
