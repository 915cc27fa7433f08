"""Disks that are really full or really fail (F52): file systems of 2 MiB in a mount namespace of
their own, and a kernel whose answers strace replaces by EIO."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PREFACE = """
import os, sys
from pathlib import Path
from modelkms.cache import ArtifactCache
from modelkms.errors import ModelKmsError
from modelkms.folders import write_all
from modelkms.materialize import materialized
from tests.support.sdk_artifacts import noise_artifact

folder = Path(sys.argv[1])
large, small = noise_artifact(1_500_000), noise_artifact(1_000)

def fill(artifact):
    return lambda file: write_all(file.fileno(), artifact.content)

def cached(artifact, fill):
    ArtifactCache(folder / "cache", 1 << 30).get_or_fill(artifact.artifact_id, artifact.pin, fill)

def told(act):
    try:
        act()
    except ModelKmsError as error:
        print(type(error).__name__)
    else:
        print("done")

def left(folder):
    files = [path.name for path in folder.rglob("*") if path.is_file()]
    print(sum(not name.endswith("lock") for name in files))
"""

_FULL = """
import subprocess
for place in (folder, "/dev/shm"):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], check=True)

def meanwhile(file):  # there was room when it began, and somebody else took it
    (folder / "other").write_bytes(bytes(1_000_000))
    fill(large)(file)

told(lambda: cached(large, meanwhile))
left(folder / "cache")
(folder / "other").unlink()
told(lambda: cached(large, fill(large)))

def write(content):
    (content / "model").write_bytes(bytes(1 << 20))
    (content / "more").write_bytes(bytes(2 << 20))

def materialize():
    with materialized({"model": 1 << 20}, write):
        pass

told(materialize)
left(Path("/dev/shm"))
"""


def test_f52_a_full_file_system_is_told_and_nothing_stays(tmp_path: Path) -> None:
    assert run(
        "unshare", "--user", "--map-root-user", "--mount", script=_FULL, folder=tmp_path
    ) == [
        *("LocalDiskFull", "0"),
        "done",
        *("LocalDiskFull", "0"),
    ]


_FAILING = """
told(lambda: cached(small, fill(small)))
left(folder / "cache")
"""


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_f52_a_failing_disk_is_told_and_nothing_stays(tmp_path: Path, call: str) -> None:
    tracer = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}")
    failing = ("-e", f"inject={call}:error=EIO")
    assert run(*tracer, *failing, script=_FAILING, folder=tmp_path) == ["LocalDiskError", "0"]
    assert run(script=_FAILING, folder=tmp_path) == ["done", "1"]


def run(*around: str, script: str, folder: Path) -> list[str]:
    """What the script prints, run in `folder`."""
    command = [*around, sys.executable, "-c", _PREFACE + script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
