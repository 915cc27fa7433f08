"""Who held the key, by what right, and is the log whole: asked of the running stack."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
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

    # The day of the audit: all of it in one file, checkpoints fetched from where they are shipped.
    out = tmp_path / "day.tar"
    day = ("--from", today, "--to", today, "-o", out)
    told = audit("bundle", "--config", stack.paths.config_file, *day)
    assert (told.returncode, told.stdout) == (0, f"wrote {out}\n"), told.stderr
    assert ", proven to record " in told.stderr
    with tarfile.open(out) as tar:
        tar.extractall(tmp_path / "day", filter="data")
    manifest = json.loads((tmp_path / "day" / "manifest.json").read_text())
    assert manifest["policy_sets"][leased[0]["policy_epoch"]] == "whole"
    found_there = (tmp_path / "day" / "policies" / leased[0]["policy_epoch"]).glob("*.cedar")
    assert any(f'@id("{policy}")' in path.read_text() for path in found_there)
    assert f"{who},{leased[0]['details']['version']}," in (tmp_path / "day/access.csv").read_text()
    packed = tmp_path / "day" / "checkpoints"
    assert (packed / "public-keys").read_text() == key.read_text()
    proof = ("--public-key", key, "--checkpoint", packed)
    verified = audit("verify", stack.paths.audit, *proof)
    assert verified.returncode == 0
    assert ", proven to record " in verified.stdout
