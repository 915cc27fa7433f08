"""`modelkms-server dev` as a developer uses it, and what is left when it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cli import MODELKMS_SERVER, Cli, clean_environment

pytestmark = [pytest.mark.xdist_group("dev"), pytest.mark.timeout(120)]


def test_ready_then_push_at_once_and_state_is_kept(tmp_path: Path) -> None:
    directory, model = tmp_path / "dev", tmp_path / "model.onnx"
    model.write_bytes(b"weights" * 1000)
    with _dev(directory, tmp_path) as (process, told):
        profile = Path(_match(r"export MODELKMS_PROFILE=(\S+)", told))
        assert profile == directory / "profiles" / "developer.toml"
        developer = Cli(profile, tmp_path)
        assert "pushed demo/model@1" in developer.ok("push", model, "demo/model").text
        assert developer.ok("cat", "demo/model").out == model.read_bytes()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert _running_in(directory) == []
    with _dev(directory, tmp_path) as (process, _):
        assert Cli(profile, tmp_path).ok("cat", "demo/model").out == model.read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_sigkill_leaves_nothing_running(tmp_path: Path) -> None:
    directory = tmp_path / "dev"
    with _dev(directory, tmp_path) as (process, _):
        assert len(_running_in(directory)) >= 2
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while _running_in(directory):
            assert time.monotonic() < deadline, _running_in(directory)
            time.sleep(0.05)


def test_two_stacks_do_not_share_a_folder(tmp_path: Path) -> None:
    with _dev(tmp_path / "dev", tmp_path):
        second = subprocess.run(
            [*MODELKMS_SERVER, "dev", "--dir", str(tmp_path / "dev")],
            env=clean_environment(tmp_path),
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 2
    assert b"another development stack runs in" in second.stderr


def test_root_token_is_gone_and_secrets_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "dev"
    with _dev(directory, tmp_path):
        for path in directory.rglob("*"):
            if path.name in {"key.pem", "ca-key.pem"} or "secret" in path.name:
                assert path.stat().st_mode & 0o077 == 0, path
        everything = b"".join(
            path.read_bytes() for path in directory.rglob("*.log") if path.is_file()
        )
    assert re.search(rb"\b(hvs|s)\.[A-Za-z0-9]{20,}", everything) is None


@contextmanager
def _dev(directory: Path, home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [*MODELKMS_SERVER, "dev", "--dir", str(directory)],
        env=clean_environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    told = ""
    try:
        for line in process.stdout:
            told += line
            if line == "ready\n":
                break
        else:
            pytest.fail(f"ended before it was ready:\n{told}")
        yield process, told
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _running_in(directory: Path) -> list[str]:
    """Command lines of the processes that name the folder, the `dev` command itself aside."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(directory) in command and " dev --dir " not in command and state != "Z":
            found.append(command)
    return found


def _match(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match.group(1)
