"""No byte of plaintext goes to a disk on any path but `export --plaintext`: shown by what the
kernel is asked for. strace tells every write of a command and of all its children, with the file it
goes to; the model is such that any part of it is recognized."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kms_service.development.stack import PROJECT, DevelopmentStack
from tests.support.cli import MODELKMS, Cli, clean_environment

pytestmark = pytest.mark.faults

_CANARY = b"<plaintext-canary-51b9>"
_SHOWN_BYTES = 4 * len(_CANARY)
_IN_MEMORY = re.compile(
    r"/dev/shm/|/memfd:|(?:pipe|socket|anon_inode|TCP|TCPv6|UNIX|NETLINK)[:\[]|/dev/(?:null|tty|pts/)"
)
_WRITES = re.compile(
    r"^\d+ +(?:write|pwrite64|writev|pwritev|pwritev2)"
    r"\(\d+<(?P<file>.*?)>(?:\(deleted\))?, (?P<rest>.*)"
)
_COPIES = re.compile(r"^\d+ +(?:sendfile|copy_file_range|splice|tee)\(")
_SHARED_MAPPING = re.compile(r"^\d+ +mmap\(.*PROT_WRITE.*MAP_SHARED.*, \d+<(?P<file>.*?)>, ")
_CREATED = re.compile(  # a call of one thread may be told in two lines: of the first all is here
    r'^\d+ +(?:openat\(.*?, "(?P<path>/dev/shm/[^"]+)", \S*O_CREAT\S*, (?P<mode>0\d+)'
    r'|mkdir\("(?P<folder>/dev/shm/[^"]+)", (?P<folder_mode>0\d+))(?:\)| <unfinished)'
)


@dataclass(frozen=True)
class Trace:
    """What a command and its children asked the kernel for."""

    lines: list[str]

    def disk_writes(self) -> list[tuple[str, str]]:
        """(file, the beginning of the data) of each write to something that is not in memory."""
        found = [match for line in self.lines if (match := _WRITES.match(line))]
        return [
            (match["file"], match["rest"]) for match in found if not _IN_MEMORY.match(match["file"])
        ]

    def plaintext_on_disk(self) -> list[str]:
        """Files on a disk that got plaintext, or may have got it past write calls."""
        shown = _CANARY.decode()
        leaks = [file for file, data in self.disk_writes() if shown in data]
        for line in self.lines:
            mapped = _SHARED_MAPPING.match(line)
            if mapped and not _IN_MEMORY.match(mapped["file"]):
                leaks.append(line)
            if _COPIES.match(line):
                leaks.append(line)
        return leaks


@pytest.fixture
def traced(
    stack: DevelopmentStack, tmp_path: Path
) -> Callable[..., tuple[Trace, subprocess.CompletedProcess[bytes]]]:
    """Run `modelkms` under an identity's profile, and under strace."""

    def run(
        identity: str, *arguments: str | Path
    ) -> tuple[Trace, subprocess.CompletedProcess[bytes]]:
        log = tmp_path / "trace"
        profile = {"MODELKMS_PROFILE": str(stack.paths.profile(identity))}
        calls = "write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,tee,mmap"
        done = subprocess.run(
            [
                *("strace", "-f", "-y", "-qq", "-s", str(_SHOWN_BYTES), "-o", log),
                *("-e", f"trace={calls},openat,mkdir", "-e", "signal=none"),
                *MODELKMS,
                *arguments,
            ],
            env=clean_environment(tmp_path / "home", profile),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return Trace(log.read_text(errors="replace").splitlines()), done

    return run


@pytest.fixture(params=["file", "folder"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Of several segments; wherever a write begins, its first bytes hold the canary."""
    content = _CANARY * 60_000
    if request.param == "file":
        path = tmp_path / "model.bin"
        path.write_bytes(content)
        return path
    folder = tmp_path / "model"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "weights.bin").write_bytes(content)
    (folder / "config.json").write_bytes(_CANARY * 5)
    return folder


def test_f55_push_open_and_run_write_no_plaintext_to_a_disk(
    traced: Callable[..., tuple[Trace, subprocess.CompletedProcess[bytes]]],
    cli: Callable[[str], Cli],
    model: Path,
    tmp_path: Path,
) -> None:
    reference = f"{PROJECT}/trace-{'file' if model.is_file() else 'folder'}"
    member = [] if model.is_file() else ["deep/er/weights.bin"]

    push, _ = traced("publisher", "push", model, reference)
    assert push.plaintext_on_disk() == []
    assert any("spool" in file for file, _ in push.disk_writes())  # ciphertext: that is seen

    cat, done = traced("reader", "cat", reference, *member)
    assert done.stdout == _CANARY * 60_000
    assert cat.plaintext_on_disk() == []
    assert any("artifacts" in file for file, _ in cat.disk_writes())  # the cache

    script = 'find "$1" -type f -exec cat {} + ; ulimit -c >&2'
    run, done = traced("reader", "run", reference, "--", "sh", "-c", script, "sh", "{model}")
    assert done.stdout.count(_CANARY) >= 60_000
    assert done.stderr.decode().strip() == "0"  # no core file
    assert run.plaintext_on_disk() == []
    created = [match for line in run.lines if (match := _CREATED.match(line))]
    assert {match["folder_mode"] for match in created if match["folder"]} == {"0700"}
    assert {match["mode"] for match in created if match["path"]} <= {"0600"}
    assert any(match["path"] and "model/" in match["path"] for match in created)


def test_f55_the_trace_shows_what_export_writes_in_plaintext(
    traced: Callable[..., tuple[Trace, subprocess.CompletedProcess[bytes]]],
    cli: Callable[[str], Cli],
    tmp_path: Path,
) -> None:
    """The one way by which it leaves memory: if this is not seen, the test above sees nothing."""
    model = tmp_path / "model.bin"
    model.write_bytes(_CANARY * 60_000)
    cli("publisher").ok("push", model, f"{PROJECT}/trace-export")

    exported, _ = traced(
        "reader", "export", f"{PROJECT}/trace-export", "--plaintext", tmp_path / "exported"
    )

    assert any("exported" in file for file in exported.plaintext_on_disk())
