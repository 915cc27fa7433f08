"""Each command: what it tells people, and what it tells programs."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from modelkms.types import BackupInfo, RewrapFailureInfo

from tests.unit.cli.conftest import Cli
from tests.unit.cli.fake_client import NOW, PROJECT, PUBLISHER, READER, FakeService, lease
from tests.unit.cli.terminal import on_terminal


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"content")
    return path


# --- publishing ----------------------------------------------------------------------------------


def test_first_push_is_what_readers_get(cli: Cli, model: Path) -> None:
    assert cli("push", model, "fd").out == "pushed demo/fd@1; readers get it\n"


def test_later_push_tells_how_to_promote(cli: Cli, model: Path) -> None:
    for _ in range(3):
        cli("push", model, "camera-fd")
    ended = cli("push", model, "demo/camera-fd")
    assert ended.out == (
        "pushed demo/camera-fd@4; readers still get @1 (modelkms promote demo/camera-fd@4)\n"
    )
    assert (
        cli("push", model, "camera-fd", "--promote").out
        == "pushed demo/camera-fd@5; readers get it\n"
    )


def test_push_without_any_stable_version(cli: Cli, service: FakeService, model: Path) -> None:
    service.publish("fd", {"a": b""})
    service.aliases["projects/demo/models/fd/aliases/stable"] = ""
    told = cli("push", model, "fd").out
    assert told == "pushed demo/fd@2; nothing is @stable yet (modelkms promote demo/fd@2)\n"


def test_push_json(cli: Cli, model: Path) -> None:
    cli("push", model, "fd")
    told = cli("push", model, "fd", "--json").json()
    assert told["promoted"] is False
    assert told["version"]["reference"] == "demo/fd@2"
    assert told["stable_version"] == "projects/demo/models/fd/versions/1"


def test_promote_and_aliases(cli: Cli, service: FakeService) -> None:
    service.publish("file", {"model.onnx": b"second"})
    assert cli("promote", "file@2").out == "promoted demo/file@2; readers get it\n"
    assert cli("alias", "set", "file@1", "canary").out == "@canary is demo/file@1\n"
    assert cli("alias", "set", "file@1", "@old").out == "@old is demo/file@1\n"
    lines = cli("alias", "list", "file").out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ALIAS", "VERSION"],
        ["@stable", "demo/file@2"],
        ["@canary", "demo/file@1"],
        ["@old", "demo/file@1"],
    ]
    told = cli("--json", "alias", "list", "file").json()
    assert [alias["id"] for alias in told["aliases"]] == ["stable", "canary", "old"]


@pytest.mark.parametrize("command", ["promote", "enable", "disable"])
@pytest.mark.parametrize("reference", ["file", "file@stable"])
def test_state_needs_an_explicit_version(cli: Cli, command: str, reference: str) -> None:
    ended = cli(command, reference)
    assert ended.code == 2
    assert "does not name a version" in ended.err
    assert "hint: write the version's number" in ended.err


def test_disable_and_enable(cli: Cli) -> None:
    assert cli("disable", "file@1").out == "demo/file@1 is disabled\n"
    refused = cli("cat", "file")
    assert (refused.code, refused.out) == (8, "")
    assert cli("enable", "file@1").out == "demo/file@1 is enabled\n"
    assert cli("disable", "file@1", "--json").json()["state"] == "DISABLED"


# --- reading -------------------------------------------------------------------------------------


def test_ls_models(cli: Cli, service: FakeService) -> None:
    service.labels = {"tier": "gold", "area": "a b"}
    assert cli("ls").out.splitlines() == [
        "MODEL        CREATED               LABELS",
        "demo/file    2026-11-23 08:47:55Z  area=a b,tier=gold",
        "demo/folder  2026-11-23 08:47:55Z  area=a b,tier=gold",
    ]
    assert cli("ls", "--project", "other").out == ""
    assert cli("ls", "--project", "other", "--json").json() == {"models": []}
    assert [model["reference"] for model in cli("ls", "--json").json()["models"]] == [
        "demo/file",
        "demo/folder",
    ]


def test_ls_versions(cli: Cli, service: FakeService) -> None:
    service.publish("file", {"model.onnx": bytes(3 << 20)})
    assert cli("ls", "file").out.splitlines() == [
        "VERSION      STATE    ALIASES  SIZE     CREATED               PUBLISHER",
        f"demo/file@2  ENABLED  -        3.0 MiB  2026-11-23 08:47:55Z  {PUBLISHER}",
        f"demo/file@1  ENABLED  @stable  7 B      2026-11-23 08:47:55Z  {PUBLISHER}",
    ]
    versions = cli("ls", "file", "--json").json()["versions"]
    assert [version["state"] for version in versions] == ["ENABLED", "ENABLED"]


@pytest.mark.parametrize("reference", ["folder@1", "folder@stable"])
def test_ls_members(cli: Cli, reference: str) -> None:
    assert cli("ls", reference).out == "config.json\nweights/a.bin\n"
    told = cli("ls", reference, "--json").json()
    assert told["members"] == [{"name": "config.json"}, {"name": "weights/a.bin"}]
    assert told["version"]["reference"] == "demo/folder@1"


def test_cat(cli: Cli) -> None:
    assert cli("cat", "file").out == "weights"
    assert cli("cat", "folder", "config.json").out == "{}"
    assert cli("--json", "cat", "folder", "weights/a.bin").out == "1234"
    missing = cli("cat", "folder", "nothing")
    assert (missing.code, missing.out) == (3, "")


def test_cat_refuses_a_terminal() -> None:
    cat = [sys.executable, "-m", "tests.unit.cli.fake_cli", "cat", "file"]
    with on_terminal(cat) as terminal:
        assert terminal.finish() == 2
        assert "error: stdout is a terminal" in terminal.told
    with on_terminal([*cat, "--force"]) as terminal:
        assert terminal.finish() == 0
        assert terminal.told == "weights of one file"


def test_prefetch(cli: Cli) -> None:
    assert cli("prefetch", "file").out == "cached demo/file@1: 7 B of ciphertext\n"
    assert cli("prefetch", "file", "--json").json()["version"]["reference"] == "demo/file@1"


def test_export_needs_the_word(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "out"
    refused = cli("export", "folder", target)
    assert refused.code == 2
    assert f"error: this writes the model in the clear to {target}" in refused.err
    assert not target.exists()
    done = cli("export", "folder", "--plaintext", target)
    assert done.out == f"exported demo/folder@1 in plaintext to {target}: 2 files\n"
    assert (target / "weights/a.bin").read_bytes() == b"1234"
    told = cli("export", "folder", "--plaintext", tmp_path / "again", "--json").json()
    assert told["members"] == ["config.json", "weights/a.bin"]


# --- leases, identity, administration ------------------------------------------------------------


def test_lease_list(cli: Cli, service: FakeService) -> None:
    for one in (lease(1), lease(2, "REVOKED")):
        service.leases[one.name] = one
    header, line = cli("lease", "list").out.splitlines()
    assert header.split() == ["LEASE", "VERSION", "STATE", "EXPIRES", "RENEWALS", "HOLDER"]
    assert line == f"{1:032x}  demo/file@1  LIVE   2026-11-23 09:47:55Z  2         {READER}"
    assert len(cli("lease", "list", "--ended").out.splitlines()) == 3
    assert len(cli("lease", "list", "--ended", "--json").json()["leases"]) == 2
    assert cli("lease", "list", "--principal", "spiffe://example.org/nobody").out == ""


def test_lease_revoke(cli: Cli, service: FakeService) -> None:
    for one in (lease(1), lease(2), lease(3)):
        service.leases[one.name] = one
    assert cli("lease", "revoke", f"{1:032x}").out == "ended 1 lease\n"
    assert cli("lease", "revoke", f"{1:032x}").out == "ended 0 leases\n"
    assert cli("lease", "revoke", "--model", "file", "--json").json() == {"revoked": 2}


@pytest.mark.parametrize("arguments", [(), (f"{1:032x}", "--model", "file"), ("--project", "demo")])
def test_lease_revoke_says_what_it_means(cli: Cli, arguments: tuple[str, ...]) -> None:
    ended = cli("lease", "revoke", *arguments)
    assert ended.code == 2
    assert "hint: name one" in ended.err


def test_whoami(cli: Cli, service: FakeService) -> None:
    told = cli("whoami")
    assert told.code == 0
    assert f"identity  {READER}\n" in told.out
    assert told.out.endswith("accepted  yes\n")
    service.refusal = "TRUST_DOMAIN_UNKNOWN"
    refused = cli("whoami")
    assert refused.code == 4
    assert refused.out.endswith("accepted  no: TRUST_DOMAIN_UNKNOWN\n")
    as_json = cli("whoami", "--json")
    assert as_json.code == 4
    assert as_json.json()["accepted"] is False


def test_projects(cli: Cli) -> None:
    created = cli("admin", "project", "create", "camera")
    assert created.out == "created project camera, under master key modelkms-camera\n"
    assert [line.split()[0] for line in cli("admin", "project", "list").out.splitlines()] == [
        "PROJECT",
        "demo",
        "camera",
    ]
    projects = cli("admin", "project", "list", "--json").json()["projects"]
    assert [project["id"] for project in projects] == ["demo", "camera"]


def test_master_key_status(cli: Cli) -> None:
    assert cli("admin", "master-key", "status", "demo").out.splitlines() == [
        "vault key        modelkms-demo",
        "latest version   2, of 2026-11-23 08:47:55Z",
        "decrypts from    version 1",
        "rotates          every 90 d",
        "under version 1  1 data key",
        "under version 2  1,234 data keys",
    ]
    told = cli("admin", "master-key", "status", "demo", "--json").json()
    assert (told["latest_version"], told["auto_rotate_period"]) == (2, 90 * 86400)


def test_master_key_rewrap(cli: Cli, service: FakeService) -> None:
    ended = cli("admin", "master-key", "rewrap", "demo", "--rate", "5000")
    assert (ended.code, ended.out) == (0, "rewrapped 12,345 data keys under modelkms-demo\n")
    assert service.rewrap.keys_per_second_limit == 5000
    told = cli("admin", "master-key", "rewrap", "demo", "--json").json()
    assert (told["done"], told["rewrapped_keys"]) == (True, 12_345)


def test_master_key_rewrap_paused_and_not_waited_for(cli: Cli) -> None:
    paused = cli("admin", "master-key", "rewrap", "demo", "--pause")
    assert paused.out == "paused: 0 done, 12,345 left\n"
    started = cli("admin", "master-key", "rewrap", "demo", "--no-wait")
    assert started.out == "running: 0 done, 12,345 left\n"


def test_master_key_rewrap_names_what_failed(cli: Cli, service: FakeService) -> None:
    failed = f"projects/{PROJECT}/models/face/versions/3"
    service.rewrap_failures = (RewrapFailureInfo(failed, "KEY_RECORD_CORRUPT"),)
    ended = cli("admin", "master-key", "rewrap", "demo")
    assert ended.code == 8
    assert ended.out.splitlines() == [
        "failed: demo/face@3: KEY_RECORD_CORRUPT",
        "rewrapped 12,344 data keys under modelkms-demo",
    ]
    assert "1 of 12,345 data keys are still under an old version" in ended.err
    as_json = cli("admin", "master-key", "rewrap", "demo", "--json")
    assert as_json.json()["failures"] == [{"version": failed, "reason": "KEY_RECORD_CORRUPT"}]
    assert json.loads(as_json.err)["error"]["reason"] == "REWRAP_INCOMPLETE"


def test_blocks(cli: Cli) -> None:
    reader, other = READER, "spiffe://example.org/other"
    blocked = cli("admin", "block", reader, "--reason", "stolen laptop")
    assert blocked.out == f"blocked {reader}; ended 1 lease\n"
    until = cli("admin", "block", other, "--reason", "x", "--until", "2027-01-31T08:00Z")
    assert until.out == f"blocked {other} until 2027-01-31 08:00:00Z; ended 1 lease\n"
    header, first, second = cli("admin", "blocks").out.splitlines()
    assert header.split() == ["PRINCIPAL", "SINCE", "UNTIL", "BY", "REASON"]
    assert first.endswith(f"-                     {PUBLISHER}  stolen laptop")
    assert "2027-01-31 08:00:00Z" in second
    assert len(cli("admin", "blocks", "--json").json()["blocks"]) == 2
    assert cli("admin", "unblock", reader).out == f"unblocked {reader}\n"
    again = cli("admin", "unblock", reader)
    assert again.out == f"nothing to do: {reader} is not blocked\n"
    assert cli("admin", "block", reader).code == 2  # no reason


def test_a_block_may_end_by_itself(cli: Cli) -> None:
    document = cli("admin", "block", READER, "--reason", "x", "--until", "12h", "--json").json()
    ends = datetime.fromisoformat(document["until_time"]) - datetime.now(UTC)
    assert timedelta(hours=11) < ends <= timedelta(hours=12)


@pytest.mark.parametrize(
    "when", ["", "tomorrow", "12", "0d", "2027-01-31T08:00", "2027-13-01T00:00Z"]
)
def test_times_that_are_none(cli: Cli, when: str) -> None:
    ended = cli("admin", "block", READER, "--reason", "x", f"--until={when}")
    assert ended.code == 2
    assert "is no time" in ended.err


def test_freezes(cli: Cli) -> None:
    frozen = cli("admin", "freeze", "camera", "--reason", "incident 7")
    assert frozen.out == "froze project camera; ended 2 leases\n"
    _, line = cli("admin", "freezes").out.splitlines()
    assert line == f"camera   2026-11-23 08:47:55Z  {PUBLISHER}  incident 7"
    assert cli("admin", "freezes", "--json").json()["freezes"][0]["id"] == "camera"
    assert cli("admin", "unfreeze", "camera").out == "unfroze project camera\n"
    again = cli("admin", "unfreeze", "camera")
    assert again.out == "nothing to do: project camera is not frozen\n"


@pytest.mark.parametrize("act", ["create", "rotate"])
def test_officers_acts_need_a_vault_section(cli: Cli, tmp_path: Path, act: str) -> None:
    profile = tmp_path / "reader.toml"
    profile.write_text('endpoint = "localhost:1"\nca_file = "ca.pem"\n')
    ended = cli("--profile", profile, "admin", "master-key", act, "demo")
    assert ended.code == 2
    assert "has no [vault] section" in ended.err


@pytest.mark.parametrize("period", ["", "90", "0d", "1w", "-1d", "1.5h", "٣d", "9999999999d"])
def test_durations(cli: Cli, period: str) -> None:
    ended = cli("admin", "master-key", "create", "demo", f"--auto-rotate-period={period}")
    assert ended.code == 2
    assert "is no duration" in ended.err


def test_clients_are_closed(cli: Cli, service: FakeService) -> None:
    for count, arguments in enumerate(
        (["ls"], ["cat", "file"], ["cat", "nothing"], ["whoami"]), start=1
    ):
        cli(*arguments)
        assert service.clients_closed == count


# --- policy --------------------------------------------------------------------------------------


def test_policy_show(cli: Cli) -> None:
    told = cli("admin", "policy", "show").out
    assert f"// epoch {'ab' * 32}, 3 canary cases\n// group readers: {READER}\n" in told
    assert '@id("reads")\npermit (principal, action, resource);' in told
    assert cli("admin", "policy", "show", "--json").json()["policies"][1]["effect"] == "FORBID"


def test_policy_explain(cli: Cli) -> None:
    asked = (READER, "LeaseDataKey", "file")
    assert cli("admin", "policy", "explain", *asked).out.splitlines() == [
        f"depends on the call: {READER} LeaseDataKey demo/file",
        "groups: readers",
        "  permit reads: applies",
        "  forbid weak: depends; needs context has suite",
    ]
    told = cli("admin", "policy", "explain", "0" * 32).out.splitlines()
    assert told[:2] == [
        f"refused by weak at 2026-11-23 08:47:55Z: {READER} LeaseDataKey demo/file",
        "now: depends on the call",
    ]
    for wrong in ((READER,), (READER, "LeaseDataKey"), ("0" * 31,)):
        assert cli("admin", "policy", "explain", *wrong).code == 2


def test_policy_who_can(cli: Cli) -> None:
    rows = cli("admin", "policy", "who-can", "LeaseDataKey", "file").out.splitlines()
    assert rows[1].split()[:3] == [READER, "yes", "reads"]
    assert rows[2].endswith("context has source")


def test_policy_dry_run(cli: Cli, tmp_path: Path) -> None:
    what = f"{READER} LeaseDataKey demo/file"
    assert cli("admin", "policy", "dry-run", tmp_path).out.splitlines() == [
        f"{what}: refused (12 times), last {'0' * 32}",
        f"{what}: permitted by more, last {'0' * 32}",
        f"{what}: leased for 5 min instead of 1 h (12 times), last {'0' * 32}",
        "3 changes in 1,234 recorded decisions since 2026-11-23 08:47:55Z",
        "2 of them were replayed without redacted values",
    ]


def test_policy_test_runs_the_services_own_engine(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    shutil.copytree(Path(__file__).parents[3] / "deploy" / "policies", folder)
    ended = cli("admin", "policy", "test", folder)
    assert (ended.code, ended.out) == (0, "ok    25 cases\n")
    case = {"principal": READER, "action": "WhoCan", "project": "demo", "permitted": True}
    (folder / "more.cases.json").write_text(json.dumps({"cases": [case]}))
    ended = cli("admin", "policy", "test", folder)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        f"error: {READER} WhoCan demo must be permitted",
        "error: 1 of 26 cases fail",
    ]


def test_backups(cli: Cli, service: FakeService) -> None:
    needs = {"modelkms-camera": 3, "modelkms-audio": 1}
    for backup, complete in (("a" * 32, True), ("b" * 32, False)):
        service.backups[backup] = BackupInfo(
            name=f"backups/{backup}",
            location="db1:/backups/1",
            create_time=NOW,
            complete=complete,
            oldest_versions=needs if complete else {},
            destroyed_by="",
            destroy_reason="",
            destroy_time=None,
        )
    _, whole, begun = cli("admin", "backup", "list").out.splitlines()
    assert "modelkms-audio v1, modelkms-camera v3" in whole
    assert whole.endswith("-")
    assert "any version" in begun
    declared = cli("admin", "backup", "destroyed", "a" * 32, "--reason", "tape 7 shredded")
    assert declared.out.startswith(f"backup {'a' * 32} counts as destroyed, on the word of ")
    listed = cli("admin", "backup", "list", "--json").json()["backups"]
    assert listed[0]["destroy_reason"] == "tape 7 shredded"
    assert listed[0]["oldest_versions"] == needs


def test_trim_is_asked_for(cli: Cli) -> None:
    asked, command = cli("admin", "master-key", "trim", "camera", "--to", "2").out.splitlines()
    assert asked == "asked for: modelkms-camera to lose its versions below 2, for good"
    assert command == (
        "a second officer does it until 2026-11-30 08:47:55Z: "
        "modelkms admin master-key trim camera --to 2 --confirm"
    )
    retired = cli("admin", "master-key", "trim", "camera", "--json").json()
    assert retired["oldest_version"] == 1  # as Vault has it retired


def test_trim_is_not_confirmed_blindly(cli: Cli) -> None:
    ended = cli("admin", "master-key", "trim", "camera", "--confirm")
    assert ended.code == 2
    assert "say which stay" in ended.err
