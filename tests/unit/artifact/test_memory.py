"""Memory does not grow with the model: measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.artifact.helpers import folder_of

_LARGE = 300 << 20
_SMALL = 1 << 20

# Peak resident memory of this process alone: ru_maxrss would begin with the parent's.
_PROGRAM = """
import sys
from pathlib import Path
from modelkms.artifact import ArtifactReader, write_artifact

source, stored, out = map(Path, sys.argv[1:])
with stored.open("wb", buffering=0) as sink:
    write_artifact(
        source, sink, bytes(32), version="projects/a/models/b/versions/1",
        version_uid="0" * 32, artifact_id="0" * 32,
    )
with ArtifactReader(stored, bytes(32)) as reader:
    reader.verify()
    for name in reader.files():
        file = reader.open(name)
        while file.read(1 << 20):
            pass
    reader.extract_to(out)
status = Path("/proc/self/status").read_text()
print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def peak_bytes(source: Path, folder: Path) -> int:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, source, folder / "artifact", folder / "out"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (folder / "artifact").unlink()
    return int(done.stdout) * 1024


@pytest.mark.parametrize("as_folder", [False, True])
def test_streaming_stays_in_bounds(as_folder: bool, tmp_path: Path) -> None:
    peaks = []
    for size in (_SMALL, _LARGE):
        source = folder_of(tmp_path / f"{size}", {"weights.bin": b"", "config.json": b"{}"})
        with (source / "weights.bin").open("r+b") as file:
            file.truncate(size)  # sparse
        if not as_folder:
            source /= "weights.bin"
        peaks.append(peak_bytes(source, tmp_path / f"work-{size}"))

    small, large = peaks
    assert large < 96 << 20
    assert large - small < 16 << 20
