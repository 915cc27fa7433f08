"""Bad input and faults of issue 3: each ends in a clear error, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import modelkms
import pytest

from kms_service.development.stack import DevelopmentStack
from tests.support.cli import MODELKMS, MODELKMS_SERVER, Cli, Finished, clean_environment

pytestmark = pytest.mark.xdist_group("stack")

As = Callable[[str], Cli]


def _clear(finished: Finished, code: int, *words: str) -> None:
    """It ended with `code`, an `error:` line with these words, and no traceback."""
    assert finished.code == code, finished.err
    assert "error: " in finished.err
    assert "Traceback" not in finished.err
    for word in words:
        assert word in finished.err, finished.err


# --- sources ---------------------------------------------------------------------------------


def test_missing_path(cli: As, tmp_path: Path) -> None:
    _clear(cli("publisher").run("push", tmp_path / "nothing", "demo/bad-path"), 7, "nothing")
    assert "bad-path" not in cli("publisher").ok("ls").text


def test_empty_folder(cli: As, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _clear(cli("publisher").run("push", tmp_path / "empty", "demo/bad-empty"), 7, "empty")


@pytest.mark.parametrize("kind", ["symlink", "fifo", "socket-name"])
def test_special_files(cli: As, folder_model: Path, kind: str) -> None:
    special = folder_model / "weights" / "special"
    if kind == "symlink":
        special.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(special)
    else:
        os.mknod(special, 0o600 | 0o140000)
    _clear(cli("publisher").run("push", folder_model, "demo/bad-special"), 7, "special")
    assert "bad-special" not in cli("publisher").ok("ls").text


@pytest.mark.parametrize(
    "reference", ["", "demo/", "UPPER/x", "demo/a@", "demo/a@0", "a/b/c", "../x"]
)
def test_malformed_references(cli: As, file_model: Path, reference: str) -> None:
    _clear(cli("publisher").run("push", file_model, reference), 2)


def test_unknown_model(cli: As) -> None:
    _clear(cli("reader").run("cat", "demo/never-pushed"), 3, "not found")


# --- versions that cannot be opened --------------------------------------------------------------


def test_pushed_but_never_finalized_is_not_openable(
    cli: As, stack: DevelopmentStack, tmp_path: Path
) -> None:
    """Killed in the middle of the upload: nobody can open it; the next push completes."""
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(1 << 20) * 64)
    publisher = cli("publisher")
    process = subprocess.Popen(
        [*MODELKMS, "push", str(large), "demo/bad-killed"],
        env=clean_environment(publisher.home, {"MODELKMS_PROFILE": str(publisher.profile)}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    uploads = stack.paths.artifacts
    _until(lambda: any(path.stat().st_size > 1 << 20 for path in _files(uploads)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    versions = publisher.json("ls", "demo/bad-killed")
    if "PENDING" in str(versions):  # it may have been quicker than the signal
        _clear(cli("reader").run("cat", "demo/bad-killed@1"), 8, "finalized")
    publisher.ok("push", large, "demo/bad-killed", "--promote")
    assert cli("reader").ok("cat", "demo/bad-killed").out == large.read_bytes()


# --- artifacts that were tampered with ------------------------------------------------------------


@pytest.mark.parametrize("how", ["flipped", "cut", "appended", "swapped", "gone"])
def test_tampered_in_store(cli: As, stack: DevelopmentStack, file_model: Path, how: str) -> None:
    name = f"demo/bad-{how}"
    cli("publisher").ok("push", file_model, name)
    stored = _stored(stack, name)
    content = bytearray(stored.read_bytes())
    stored.chmod(0o600)
    match how:
        case "flipped":
            content[len(content) // 2] ^= 1
        case "cut":
            del content[-1]
        case "appended":
            content.append(0)
        case "swapped":
            content[-64:-32], content[-32:] = content[-32:], content[-64:-32]
        case "gone":
            stored.unlink()
    if how != "gone":
        stored.write_bytes(content)
    refused = cli("reader").run("cat", name)
    _clear(refused, 6)
    assert refused.out == b""


def test_artifact_of_another_version_under_this_name(
    cli: As, stack: DevelopmentStack, file_model: Path
) -> None:
    publisher = cli("publisher")
    publisher.ok("push", file_model, "demo/bad-other")
    file_model.write_bytes(file_model.read_bytes()[::-1])
    publisher.ok("push", file_model, "demo/bad-other")
    first, second = (_stored(stack, f"demo/bad-other@{number}") for number in (1, 2))
    second.chmod(0o600)
    second.write_bytes(first.read_bytes())
    refused = cli("reader").run("cat", "demo/bad-other@2")
    _clear(refused, 6)
    assert refused.out == b""
    assert cli("reader").ok("cat", "demo/bad-other@1").out == file_model.read_bytes()[::-1]


@pytest.mark.parametrize("at", [0, 20, 120, 4000, -1])
def test_tampered_cache_is_fetched_anew(
    cli: As, stack: DevelopmentStack, file_model: Path, at: int
) -> None:
    """The cache is never trusted because it is there; what does not verify is replaced."""
    name = f"demo/bad-cache{at % 5000}"
    cli("publisher").ok("push", file_model, name)
    cli("reader").ok("prefetch", name)
    artifact_id = _version(stack, name).artifact_id
    (entry,) = (
        path
        for path in _files(stack.paths.root / "cache" / "reader")
        if artifact_id in path.name and path.stat().st_size > 1000
    )
    content = bytearray(entry.read_bytes())
    content[at] ^= 0x80
    entry.chmod(0o600)
    entry.write_bytes(content)
    done = cli("reader").run("cat", name)
    assert done.code in (0, 6), done.err
    assert done.out in (b"", file_model.read_bytes())
    assert cli("reader").ok("cat", name).out == file_model.read_bytes()


# --- identity -------------------------------------------------------------------------------------


def test_wrong_ca(cli: As, stack: DevelopmentStack) -> None:
    profile = stack.paths.profile("reader")
    wrong = str(stack.vault.ca_file)
    done = cli("reader").run("ls", env={"MODELKMS_CA_FILE": wrong})
    assert profile.exists()
    _clear(done, 4, "certificate")


def test_no_profile(cli: As) -> None:
    _clear(
        cli("reader").run("ls", env={"MODELKMS_PROFILE": "no-such-profile"}), 2, "no-such-profile"
    )


# --- outages --------------------------------------------------------------------------------------


def test_service_killed_in_the_middle_of_a_push(
    cli: As, stack: DevelopmentStack, tmp_path: Path
) -> None:
    """The push ends in an outage; pushing again resumes or starts anew, and the model is whole."""
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(1 << 20) * 64)
    publisher = cli("publisher")
    process = subprocess.Popen(
        [*MODELKMS, "push", str(large), "demo/bad-service"],
        env=clean_environment(publisher.home, {"MODELKMS_PROFILE": str(publisher.profile)}),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    before = set(_files(stack.paths.artifacts))
    _until(lambda: any(path not in before for path in _files(stack.paths.artifacts)))
    os.kill(stack.service.pid, signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert "Traceback" not in told
    stack.restart_service()
    publisher.ok("push", large, "demo/bad-service", "--promote")
    assert cli("reader").ok("cat", "demo/bad-service").out == large.read_bytes()


def test_vault_away_is_an_outage(cli: As, stack: DevelopmentStack, file_model: Path) -> None:
    cli("publisher").ok("push", file_model, "demo/bad-vault")
    os.kill(stack.vault.pid, signal.SIGSTOP)
    try:
        _clear(cli("reader").run("cat", "demo/bad-vault"), 5, "Vault")
    finally:
        os.kill(stack.vault.pid, signal.SIGCONT)
    _until(lambda: cli("reader").run("cat", "demo/bad-vault").code == 0, 40)


# --- the service's own start ----------------------------------------------------------------------


def test_port_in_use(stack: DevelopmentStack, tmp_path: Path) -> None:
    done = _serve(
        stack, tmp_path, {"MODELKMS_SERVER__SERVER__LISTEN": f"127.0.0.1:{stack.grpc_port}"}
    )
    assert done.returncode in (2, 5)
    assert "error: " in done.stderr
    assert str(stack.grpc_port) in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_field(stack: DevelopmentStack, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(stack.paths.config_file.read_text() + "\n[surprise]\nfield = 1\n")
    done = _serve(stack, tmp_path, {}, config)
    assert done.returncode == 2
    assert "surprise" in done.stderr
    assert "Traceback" not in done.stderr


def _serve(
    stack: DevelopmentStack,
    home: Path,
    overrides: dict[str, str],
    config: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Start a second service that must refuse to; with an audit folder and database of its own."""
    own = {
        "MODELKMS_SERVER__AUDIT__FOLDER": str(home / "audit"),
        "MODELKMS_SERVER__SERVER__PORT_FILE": str(home / "ports.json"),
    }
    return subprocess.run(
        [*MODELKMS_SERVER, "serve", "--config", str(config or stack.paths.config_file)],
        env=clean_environment(home, {**own, **overrides}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def _version(stack: DevelopmentStack, reference: str) -> modelkms.VersionInfo:
    with modelkms.connect(stack.paths.profile("reader")) as client:
        return client.resolve(reference)


def _stored(stack: DevelopmentStack, reference: str) -> Path:
    artifact_id = _version(stack, reference).artifact_id
    (path,) = (path for path in _files(stack.paths.artifacts) if artifact_id in path.name)
    return path


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
