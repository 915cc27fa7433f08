"""The commands, run as a user runs them: a process of their own, in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODELKMS = (sys.executable, "-m", "modelkms.cli")
MODELKMS_SERVER = (sys.executable, "-m", "kms_service")


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, less any MODELKMS_… and XDG_…, with `home` as HOME."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MODELKMS_", "XDG_"))
    }
    return {**kept, "HOME": str(home), **(extra or {})}


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Cli:
    """`modelkms` under one profile."""

    profile: Path
    home: Path

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 60,
    ) -> Finished:
        """Run to its end, whatever the exit code."""
        done = subprocess.run(
            [*MODELKMS, *(str(argument) for argument in arguments)],
            env=clean_environment(
                self.home, {"MODELKMS_PROFILE": str(self.profile), **(env or {})}
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr.decode())

    def ok(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Finished:
        """Run; it must succeed."""
        finished = self.run(*arguments, env=env)
        assert finished.code == 0, f"{arguments} ended with {finished.code}:\n{finished.err}"
        return finished

    def json(self, *arguments: str | Path) -> Any:
        """Run with --json; it must succeed."""
        return self.ok("--json", *arguments).json()


def run_command(command: Sequence[str], words: Sequence[str], env: Mapping[str, str]) -> str:
    """Run to its end; it must succeed. What it wrote to stdout."""
    done = subprocess.run(
        [*command, *words], env=dict(env), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
