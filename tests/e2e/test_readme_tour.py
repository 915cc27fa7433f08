"""README's tour of the command line, run as it stands there, in a shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kms_service.development.stack import DevelopmentStack
from tests.support.cli import clean_environment
from tests.support.tools import REPOSITORY

pytestmark = pytest.mark.xdist_group("stack")


def test_command_line_tour(stack: DevelopmentStack, tmp_path: Path) -> None:
    """The folder looks as a reader's does after `make dev`: `.venv` and `.modelkms-dev` in it."""
    readme = (REPOSITORY / "README.md").read_text()
    (tour,) = re.findall(r"<!-- cli-tour -->\s*```console\n(.*?)```", readme, re.DOTALL)
    (tmp_path / ".venv").symlink_to(REPOSITORY / ".venv")
    (tmp_path / ".modelkms-dev").symlink_to(stack.paths.root)
    (tmp_path / "model.onnx").write_bytes(b"weights" * 50_000)

    done = subprocess.run(
        ["bash", "-eu", "-c", tour],
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "pushed demo/detector@1" in done.stdout
    assert "pushed demo/detector@2; readers still get @1" in done.stdout
