"""`make demo` tells its story, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import clean_environment

pytestmark = [pytest.mark.xdist_group("dev"), pytest.mark.timeout(170)]


def test_demo(tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "kms_service.development.demo"],
        env=clean_environment(tmp_path, {"TMPDIR": str(scratch)}),
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    for part in (
        r"publisher  pushed demo/digits@1: digits\.mlpackage, [\d,]+ bytes",
        r"publisher  pushed demo/magika@1: model\.onnx, [\d,]+ bytes",
        r"reader     opened digits@1; \d+ files, same bytes",
        r"reader     its outputs and the plain file's differ by at most 0$",
        r"storage    searched [\d,]+ stored and cached bytes for [\d,]+ pieces of plaintext: none",
        r"stranger   refused: MODEL_NOT_FOUND_OR_DENIED",
        r"reader     cannot renew it: LEASE_REVOKED",
        r"security   rotated the master key under its own Vault login: v1 → v2",
        r"reader     both models still open, and read the same",
        r"metrics    modelkms_leases_issued_total \d+",
        r"audit      chain verified",
    ):
        assert re.search("^" + part, told, re.MULTILINE), f"{part} not in:\n{told}"
    assert 15 <= len(told.splitlines()) <= 25
    assert list(scratch.iterdir()) == []
