"""The main job through the command line, as people do it, on the whole running stack."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import modelkms
import pytest

from kms_service.development.stack import DevelopmentStack
from tests.support.cli import MODELKMS, Cli, clean_environment

pytestmark = pytest.mark.xdist_group("stack")

As = Callable[[str], Cli]


def test_push_then_open_by_another_identity(cli: As, folder_model: Path) -> None:
    pushed = cli("publisher").ok("push", folder_model, "demo/story-folder")
    assert "pushed demo/story-folder@1" in pushed.text
    listed = cli("reader").json("ls", "demo/story-folder@1")
    assert {"config.json", "weights/a.bin", "weights/empty.bin"} <= set(_member_names(listed))
    member = cli("reader").ok("cat", "demo/story-folder", "weights/a.bin")
    assert member.out == (folder_model / "weights/a.bin").read_bytes()


def test_a_later_push_moves_nothing_until_promoted(cli: As, file_model: Path) -> None:
    publisher, reader = cli("publisher"), cli("reader")
    first = file_model.read_bytes()
    publisher.ok("push", file_model, "demo/story-promote")
    file_model.write_bytes(b"second")
    second = publisher.ok("push", file_model, "demo/story-promote")
    assert "readers still get @1 (modelkms promote demo/story-promote@2)" in second.text
    assert reader.ok("cat", "demo/story-promote").out == first
    assert reader.ok("cat", "demo/story-promote@2").out == b"second"
    publisher.ok("promote", "demo/story-promote@2")
    assert reader.ok("cat", "demo/story-promote").out == b"second"
    file_model.write_bytes(b"third")
    publisher.ok("push", file_model, "demo/story-promote", "--promote")
    assert reader.ok("cat", "demo/story-promote").out == b"third"


def test_aliases(cli: As, file_model: Path) -> None:
    cli("publisher").ok("push", file_model, "demo/story-alias")
    cli("publisher").ok("alias", "set", "demo/story-alias@1", "canary")
    assert "canary" in cli("reader").ok("alias", "list", "demo/story-alias").text
    assert cli("reader").ok("cat", "demo/story-alias@canary").out == file_model.read_bytes()


def test_run_gives_the_file_and_the_exit_code(cli: As, file_model: Path, tmp_path: Path) -> None:
    cli("publisher").ok("push", file_model, "demo/story-run")
    seen = tmp_path / "seen"
    script = (
        "import os, sys; path = sys.argv[1];"
        f"open({str(seen)!r}, 'w').write(path);"
        "assert os.environ['MODELKMS_MODEL_PATH'] == path;"
        f"assert open(path, 'rb').read() == open({str(file_model)!r}, 'rb').read();"
        "sys.exit(37)"
    )
    done = cli("reader").run("run", "demo/story-run", "--", sys.executable, "-c", script, "{model}")
    assert done.code == 37, done.err
    assert seen.read_text().startswith("/dev/shm/")
    assert not Path(seen.read_text()).exists()


def test_run_killed_leaves_no_plaintext(cli: As, file_model: Path, tmp_path: Path) -> None:
    cli("publisher").ok("push", file_model, "demo/story-killed")
    reader, seen = cli("reader"), tmp_path / "seen"
    script = (
        f"import sys, time; open({str(seen)!r}, 'w').write(sys.argv[1] + chr(10)); time.sleep(60)"
    )
    arguments = ["run", "demo/story-killed", "--", sys.executable, "-c", script, "{model}"]
    process = subprocess.Popen(
        [*MODELKMS, *arguments],
        env=clean_environment(reader.home, {"MODELKMS_PROFILE": str(reader.profile)}),
    )
    _until(lambda: seen.exists() and seen.read_text().endswith("\n"))
    materialized = Path(seen.read_text().strip())
    assert materialized.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    _until(lambda: not materialized.exists())


def test_prefetched_ciphertext_is_used(cli: As, stack: DevelopmentStack, file_model: Path) -> None:
    cli("publisher").ok("push", file_model, "demo/story-prefetch")
    cli("reader").ok("prefetch", "demo/story-prefetch")
    with modelkms.connect(stack.paths.profile("reader")) as client:
        version = client.resolve("demo/story-prefetch")
    stored = list(stack.paths.artifacts.rglob(f"*{version.artifact_id}*"))
    assert len(stored) == 1
    hidden = stored[0].with_suffix(".hidden")
    stored[0].rename(hidden)
    try:
        assert cli("reader").ok("cat", "demo/story-prefetch").out == file_model.read_bytes()
    finally:
        hidden.rename(stored[0])


def test_export_needs_the_word_plaintext(cli: As, folder_model: Path, tmp_path: Path) -> None:
    cli("publisher").ok("push", folder_model, "demo/story-export")
    target = tmp_path / "exported"
    assert cli("reader").run("export", "demo/story-export", target).code == 2
    cli("reader").ok("export", "demo/story-export", "--plaintext", target)
    for source in (path for path in folder_model.rglob("*") if path.is_file()):
        assert (target / source.relative_to(folder_model)).read_bytes() == source.read_bytes()


def test_disabled_then_enabled(cli: As, file_model: Path) -> None:
    cli("publisher").ok("push", file_model, "demo/story-state")
    cli("security").ok("disable", "demo/story-state@1")
    refused = cli("reader").run("cat", "demo/story-state")
    assert refused.code == 8
    assert "disabled" in refused.err
    cli("security").ok("enable", "demo/story-state@1")
    cli("reader").ok("cat", "demo/story-state")


def test_leases_are_listed_and_revoked(cli: As, stack: DevelopmentStack, file_model: Path) -> None:
    cli("publisher").ok("push", file_model, "demo/story-lease")
    with (
        modelkms.connect(stack.paths.profile("reader")) as reader,
        reader.open("demo/story-lease") as model,
    ):
        listed = cli("security").json("lease", "list")
        assert model.lease.name in str(listed)
        cli("security").ok("lease", "revoke", model.lease.name)
        with pytest.raises(modelkms.ModelKmsError) as caught:
            reader.renew_lease(model.lease.name)
        assert caught.value.reason == "LEASE_REVOKED"


def test_stranger_learns_nothing(cli: As, file_model: Path) -> None:
    cli("publisher").ok("push", file_model, "demo/story-secret")
    told = [
        cli("stranger").run("--json", "cat", reference)
        for reference in ("demo/story-secret", "demo/no-such-model", "other/no-such-model")
    ]
    assert [one.code for one in told] == [3, 3, 3]
    assert "story-secret" not in cli("stranger").run("ls").text


def test_master_key_rotates_and_everything_still_opens(cli: As, file_model: Path) -> None:
    cli("publisher").ok("push", file_model, "demo/story-rotate")
    before = cli("security").json("admin", "master-key", "status", "demo")["latest_version"]
    cli("security").ok("admin", "master-key", "rotate", "demo")
    after = cli("security").json("admin", "master-key", "status", "demo")["latest_version"]
    assert after == before + 1
    assert cli("reader").ok("cat", "demo/story-rotate").out == file_model.read_bytes()


def test_whoami_and_doctor(cli: As) -> None:
    assert cli("reader").json("whoami")["spiffe_id"] == "spiffe://dev.modelkms.local/reader"
    healthy = cli("reader").run("doctor")
    assert healthy.code == 0, healthy.text + healthy.err


def test_a_second_project(cli: As, file_model: Path) -> None:
    """Its master key must exist first; the officer makes it."""
    refused = cli("security").run("admin", "project", "create", "second")
    assert refused.code == 8
    assert "master-key create" in refused.err
    cli("security").ok("admin", "master-key", "create", "second")
    cli("security").ok("admin", "project", "create", "second")
    assert "second" in cli("security").ok("admin", "project", "list").text


def _member_names(listed: object) -> list[str]:
    members = listed["members"] if isinstance(listed, dict) else listed
    assert isinstance(members, list)
    return [member["name"] if isinstance(member, dict) else member for member in members]


def _until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
