"""Deployment files hold together: unit, image, compose file, example configuration, bill of
materials. No container engine is needed, and nothing is fetched."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kms_service.config import load
from tests.support.server_requirements import lines
from tests.support.tools import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
UNIT = DEPLOY / "systemd" / "modelkms.service"
DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = DEPLOY / "compose" / "compose.yml"
TOOLS = Path(sys.executable).parent
MAX_EXPOSURE = 20
"""In tenths: `systemd-analyze security` says 1.4 of 10."""


def run(*command: str | Path, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


# --- systemd --------------------------------------------------------------------------------------


def test_the_unit_is_well_formed(tmp_path: Path) -> None:
    # What it starts need not be installed here.
    text = UNIT.read_text().replace("/opt/modelkms/bin/modelkms-server", "/bin/true")
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = run("systemd-analyze", "verify", "--man=no", unit)
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert ours == []
    unit.write_text(text.replace("ProtectHome=yes", "ProtectHime=yes"))
    assert "ProtectHime" in run("systemd-analyze", "verify", "--man=no", unit).stderr


def test_the_unit_is_hardened() -> None:
    done = run(
        *("systemd-analyze", "security", "--offline=true", "--no-pager"),
        *(f"--threshold={MAX_EXPOSURE}", UNIT),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level for modelkms.service" in done.stdout


def test_the_grace_of_the_unit_is_longer_than_the_services() -> None:
    config = load(DEPLOY / "config" / "server.toml", {})
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > config.server.shutdown_grace_s


# --- the image ------------------------------------------------------------------------------------


def test_the_dockerfile_has_no_findings() -> None:
    done = run(TOOLS / "hadolint", "--failure-threshold", "style", DOCKERFILE)
    assert done.returncode == 0, done.stdout


def test_the_image_runs_without_a_shell_and_not_as_root() -> None:
    final = DOCKERFILE.read_text().split("FROM ")[-1].replace("\\\n", " ")
    assert "\nRUN " not in final
    user = re.search(r"^USER (\d+):(\d+)$", final, re.MULTILINE)
    assert user is not None
    assert "0" not in user.groups()
    for instruction in ("ENTRYPOINT", "CMD", "CMD"):
        forms = re.findall(rf"^\s*(?:HEALTHCHECK .*)?{instruction} +(.*)$", final, re.MULTILINE)
        assert forms
        for form in forms:
            assert isinstance(json.loads(form), list), form


def test_what_the_image_copies_is_let_through_and_is_what_make_dist_and_sbom_leave() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    allowed = {line.removeprefix("!") for line in ignored[1:]}
    assert allowed == {"requirements/server.txt", "dist/*.whl", "dist/modelkms-server.cdx.json"}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == {
        "requirements/server.txt",
        "dist/modelkms_api-*.whl",
        "dist/modelkms_server-*.whl",
        "dist/modelkms-server.cdx.json",
    }


def test_the_lock_of_the_image_follows_pyproject() -> None:
    source = (REPOSITORY / "requirements" / "server.in").read_text().splitlines()
    assert source[1:] == lines(), "run: make requirements"
    development = versions(REPOSITORY / "requirements" / "development.txt")
    for name, version in versions(REPOSITORY / "requirements" / "server.txt").items():
        assert development[name] == version, f"{name}: not the version that is tested"


def versions(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)(?:\[[^]]*\])?==([^ ;]+)", lock.read_text(), re.M))


def test_the_bill_of_materials_lists_the_lock(tmp_path: Path) -> None:
    command = re.search(
        r"^sbom:.*\n\tmkdir.*\n\t(.*)\\\n\t\t(.*)$",
        (REPOSITORY / "Makefile").read_text(),
        re.MULTILINE,
    )
    assert command is not None
    target = tmp_path / "sbom.json"
    text = f"{command[1]} {command[2]}".replace("$(BIN)", str(TOOLS))
    done = run(*text.replace("dist/modelkms-server.cdx.json", str(target)).split())
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    components = {part["name"].lower(): part["version"] for part in found["components"]}
    assert components == versions(REPOSITORY / "requirements" / "server.txt")
    assert found["metadata"]["component"]["name"] == "modelkms-server"


# --- compose --------------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def test_the_compose_file_has_no_findings_but_digests_that_nobody_can_know_here() -> None:
    done = run(TOOLS / "compose-lint", COMPOSE)
    assert done.returncode == 0, done.stdout
    assert set(re.findall(r"CL-\d{4}", done.stdout)) <= {"CL-0019"}, done.stdout


def test_what_the_compose_file_mounts_is_in_the_tree_or_made_by_the_guide() -> None:
    made = {"./config", "secrets/s3.env", "secrets/database-password", "secrets/grafana-password"}
    services = compose()["services"]
    mounts = {
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", ())
        if volume.startswith(".")
    }
    assert mounts >= {"./prometheus.yml", "../grafana/dashboards"}
    for path in mounts - made:
        assert (COMPOSE.parent / path).exists(), path
    declared = compose()["volumes"].keys()
    named = {
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", ())
        if not volume.startswith(".")
    }
    assert named == declared
    for service in services.values():
        context = service.get("build", {}).get("context", ".")
        assert (COMPOSE.parent / context).exists()


def test_replicas_write_chains_of_their_own_and_prometheus_scrapes_both() -> None:
    services = compose()["services"]
    replicas = {name: service for name, service in services.items() if "modelkms-" in name}
    chains = {r["environment"]["MODELKMS_SERVER__AUDIT__CHAIN"] for r in replicas.values()}
    assert len(chains) == len(replicas) == 2
    scraped = yaml.safe_load((COMPOSE.parent / "prometheus.yml").read_text())
    targets = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    assert {target.split(":")[0] for target in targets} == replicas.keys()
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


# --- configuration --------------------------------------------------------------------------------


def test_the_example_configuration_can_be_loaded_and_keeps_state_where_the_unit_lets_it() -> None:
    config = load(DEPLOY / "config" / "server.toml", {})
    state = Path("/var/lib/modelkms")
    assert config.store.folder is not None
    for path in (config.store.folder, config.audit.folder):
        assert path.is_relative_to(state)
    assert config.database.url.startswith(f"sqlite:///{state}")


@pytest.mark.parametrize("program", ["systemd-analyze"])
def test_tools_of_the_machine_are_there(program: str) -> None:
    assert shutil.which(program), f"no {program}; run: .ci/run --install-only"


# --- sizing ---------------------------------------------------------------------------------------


def test_the_sizing_table_of_the_guide_is_the_one_that_was_measured() -> None:
    """`make bench` writes both."""
    results = (REPOSITORY / "tests" / "bench" / "RESULTS.md").read_text()
    measured = results.partition("<!-- section: sizing -->")[2].partition("<!-- section")[0]
    guide = (REPOSITORY / "docs" / "guides" / "operations.md").read_text()
    shown = guide.partition("<!-- sizing -->\n")[2].partition("<!-- /sizing -->")[0]
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert shown.splitlines() == rows
    grows_with = {"a client", "a watching client", "a lease", "a version"}
    for what in grows_with:
        assert any(what in row for row in rows), what
    assert any("leases a second, one core" in row for row in rows)
