"""What `make dist` builds can be installed by a stranger, with the dependencies it declares."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.support.certificates import TestAuthority
from tests.support.tools import REPOSITORY, uv_binary

VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
EPOCH = "1790000000"
TREES = {
    "modelkms_api": REPOSITORY / "protos",
    "modelkms": REPOSITORY / "client",
    "modelkms_server": REPOSITORY,
}
VAULT_POLICIES = {path.name for path in (REPOSITORY / "deploy/vault/policies").glob("*.hcl")}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three wheels, each made from its source distribution as `make dist` makes them."""
    folder = tmp_path_factory.mktemp("dist")
    for tree in TREES.values():
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
        run([*build, str(tree)], cwd=REPOSITORY)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment with the wheels and, at locked versions, only what they ask for."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    uv = str(uv_binary())
    run([uv, "venv", "--quiet", "--python", sys.executable, str(home)])
    lock = REPOSITORY / "requirements" / "development.txt"
    install = [uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python")]
    wheels = [
        f"{name} @ {path.as_uri()}" if name != "modelkms_server" else server_with_extras(path)
        for name, path in wheel_files(dist).items()
    ]
    run([*install, "--constraints", str(lock), *wheels])
    return home / "bin"


def server_with_extras(wheel: Path) -> str:
    return f"modelkms-server[dev-stack] @ {wheel.as_uri()}"


def wheel_files(dist: Path) -> dict[str, Path]:
    return {name: dist / f"{name}-{VERSION}-py3-none-any.whl" for name in TREES}


def test_each_distribution_has_a_wheel_and_a_source_archive(dist: Path) -> None:
    expected = {f"{name}-{VERSION}-py3-none-any.whl" for name in TREES}
    expected |= {f"{name}-{VERSION}.tar.gz" for name in TREES}
    assert {path.name for path in dist.iterdir() if not path.name.startswith(".")} == expected


@pytest.mark.parametrize("command", ["modelkms", "modelkms-server"])
def test_commands_run(installed: Path, command: str) -> None:
    assert VERSION in run([str(installed / command), "--version"])
    assert "Usage" in run([str(installed / command), "--help"])


@pytest.mark.parametrize(
    "module",
    ["modelkms", "modelkms_api", "kms_service.bootstrap", "kms_service.development.stack"],
)
def test_modules_import_from_the_wheel(installed: Path, tmp_path: Path, module: str) -> None:
    where = f"import {module} as m; print(m.__file__)"
    path = Path(run([str(installed / "python"), "-I", "-c", where], cwd=tmp_path).strip())
    assert path.is_relative_to(installed.parent)


@pytest.mark.faults
def test_the_locked_dependencies_are_all_that_the_service_needs(dist: Path, tmp_path: Path) -> None:
    """As the guide and the image install it: the lock by its hashes, ours without dependencies."""
    uv, python = str(uv_binary()), str(tmp_path / "venv" / "bin" / "python")
    run([uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")])
    install = [uv, "pip", "install", "--quiet", "--python", python]
    lock = REPOSITORY / "requirements" / "server.txt"
    run([*install, "--require-hashes", "-r", str(lock)])
    wheels = wheel_files(dist)
    run([*install, "--no-deps", str(wheels["modelkms_api"]), str(wheels["modelkms_server"])])
    run([uv, "pip", "check", "--python", python])
    parts = ("bootstrap", "adapters.database.postgresql", "telemetry.otlp_logs", "live_checks")
    for part in parts:
        run([python, "-I", "-c", f"import kms_service.{part}"])
    assert VERSION in run([str(tmp_path / "venv" / "bin" / "modelkms-server"), "--version"])


@pytest.mark.faults
def test_what_unit_and_image_start_runs_from_the_wheels(installed: Path, tmp_path: Path) -> None:
    """The unit's own command lines, the example configuration and the image's health check; Vault
    is away, so it is alive and not ready."""
    deploy, home = REPOSITORY / "deploy", tmp_path / "etc"
    shutil.copytree(deploy / "policies", home / "policies")
    authority = TestAuthority("example.org")
    authority.server().write(home / "tls")
    (home / "tls" / "ca.pem").rename(home / "tls" / "client-ca.pem")
    (home / "vault-ca.pem").write_bytes(authority.pem)
    for name in ("vault-role-id", "vault-secret-id"):
        (home / name).write_text("none")
    text = (deploy / "config" / "server.toml").read_text()
    (home / "server.toml").write_text(
        text.replace("/var/lib/modelkms", str(tmp_path)).replace(
            "vault.example.org:8200", "127.0.0.1:1"
        )
    )
    port_file = tmp_path / "ports.json"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        "MODELKMS_SERVER__SERVER__LISTEN": "127.0.0.1:0",
        "MODELKMS_SERVER__SERVER__PORT_FILE": str(port_file),
        "MODELKMS_SERVER__METRICS__LISTEN": "127.0.0.1:0",
    }
    unit = (deploy / "systemd" / "modelkms.service").read_text()
    before, serve = (
        shlex.split(
            line.replace("/opt/modelkms/bin", str(installed)).replace("/etc/modelkms", str(home))
        )
        for line in re.findall(r"^Exec(?:StartPre|Start)=(.*)$", unit, re.MULTILINE)
    )
    subprocess.run(before, env=environment, cwd=tmp_path, check=True, timeout=60)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(serve, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        metrics = json.loads(port_file.read_text())["metrics"]
        image = (deploy / "Dockerfile").read_text()
        check = re.search(r"HEALTHCHECK.*\n\s+CMD (\[.*\])$", image, re.MULTILINE)
        assert check is not None
        _, *arguments = json.loads(check[1].replace("127.0.0.1:9464", f"127.0.0.1:{metrics}"))
        run([str(installed / "python"), *arguments])
        status = subprocess.run(
            [serve[0], "status", "--config", serve[-1]],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert status.returncode == 5
        assert status.stdout.startswith("DEGRADED vault unreachable")
    finally:
        process.terminate()
        assert process.wait(60) == 0, (tmp_path / "log").read_text()


def test_the_shipped_policies_come_along(installed: Path, tmp_path: Path) -> None:
    ask = "from kms_service.development.vault_setup import policies_folder as f; print(f())"
    folder = Path(run([str(installed / "python"), "-I", "-c", ask], cwd=tmp_path).strip())
    assert folder.is_relative_to(installed.parent)
    assert {path.name for path in folder.iterdir()} == VAULT_POLICIES


def test_the_wheels_are_typed_licensed_and_whole(installed: Path) -> None:
    (site,) = installed.parent.glob("lib/python*/site-packages")
    for package in ("modelkms", "modelkms_api", "kms_service"):
        assert (site / package / "py.typed").exists()
    for name in TREES:
        (information,) = site.glob(f"{name}-{VERSION}.dist-info")
        licence = (information / "licenses" / "LICENSE").read_text()
        assert licence == (REPOSITORY / "LICENSE").read_text()
    beside = {Path("development/vault_policies") / file for file in VAULT_POLICIES}
    beside |= {
        Path("starter_policies") / file.name
        for file in (REPOSITORY / "deploy" / "policies").iterdir()
    }
    for name, tree in {"modelkms": "client", "kms_service": ".", "modelkms_api": "protos"}.items():
        expected = sources(REPOSITORY / tree / name)
        assert sources(site / name) == (expected | beside if name == "kms_service" else expected)


@pytest.mark.faults
def test_another_machine_builds_the_same_bytes(dist: Path, tmp_path: Path) -> None:
    """From a copy of what is committed or about to be, elsewhere: other times, modes, time zone."""
    tree = tmp_path / "elsewhere"
    listed = run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY
    ).splitlines()
    for name in listed:
        if (REPOSITORY / name).is_file():
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((REPOSITORY / name).read_bytes())
            target.chmod(0o600 | (REPOSITORY / name).stat().st_mode & 0o100)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    for source in TREES.values():
        run([*build, str(tree / source.relative_to(REPOSITORY))], TZ="Asia/Tokyo")
    built = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(dist)}
    again = files_of(tmp_path / "dist")
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in again} == built


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".whl", ".gz")]


def test_a_release_can_be_signed_and_checked_as_the_guide_says(dist: Path, tmp_path: Path) -> None:
    shutil.copytree(dist, tmp_path / "dist")
    recipe = re.search(
        r"^release: .*\n\t(.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE
    )
    assert recipe is not None
    (tmp_path / "dist" / "modelkms-server.cdx.json").write_text("{}")

    def sh(text: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/sh", "-euc", text]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert sh(recipe[1]).returncode == 0
    guide = (REPOSITORY / "docs" / "guides" / "releases.md").read_text()
    make_key, publish, sign, check = re.findall(r"^```sh\n(.*?)^```$", guide, re.M | re.S)
    for frame in (make_key, publish, sign, check):
        done = sh(frame)
        assert done.returncode == 0, frame + done.stdout + done.stderr
    assert 'Good "modelkms-release" signature' in done.stdout
    assert done.stdout.count(": OK") == 2 * len(TREES) + 1
    # A file that was changed, and then sums that were made to fit it.
    (tmp_path / "dist" / "modelkms-server.cdx.json").write_text("{ }")
    assert sh(check).returncode != 0
    sh(recipe[1])
    assert sh(check).returncode != 0


def sources(package: Path) -> set[Path]:
    """Every file of a package but compiled ones."""
    return {
        path.relative_to(package)
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(command: list[str], cwd: Path | None = None, **variables: str) -> str:
    """Standard output; a failing command fails the test with what it said."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**clean, "SOURCE_DATE_EPOCH": EPOCH, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
