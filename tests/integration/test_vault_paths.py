"""`check-config --live` on real servers: each path of the service's policy, allowed and refused."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kms_service import vault_paths
from kms_service.config import Config
from kms_service.development.vault_setup import AppRoleFiles
from kms_service.parts import open_vault_session
from kms_service.vault_paths import VaultRequest
from tests.support.certificates import TestAuthority
from tests.support.service_process import TRUST_DOMAIN, ServiceProcess
from tests.support.tools import REPOSITORY
from tests.support.vault_servers import VaultRig

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("vault")]

SERVICE_POLICY = REPOSITORY / "deploy" / "vault" / "policies" / "service.hcl"
ROLE = "live-check"
UID = re.compile(r"[0-9a-f]{32}")
Capabilities = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Trial:
    """The shipped policy, changed by one capability, in a role of its own."""

    vault: VaultRig
    config: Config
    tombstone: str

    def problems(self, capabilities: Capabilities) -> list[str]:
        """What the check says under this policy, random uids left out."""
        text = "\n".join(
            f'path "{path}" {{ capabilities = {sorted(allowed)} }}'.replace("'", '"')
            for path, allowed in capabilities.items()
            if allowed
        )
        self.vault.root.sys.create_or_update_policy(ROLE, text)
        with closing(open_vault_session(self.config)) as session:
            found = vault_paths.problems(self.config, session, [self.tombstone])
            return [UID.sub("UID", problem) for problem in found]


@pytest.fixture(params=["openbao", pytest.param("hashicorp", marks=pytest.mark.vault)])
def trial(
    request: pytest.FixtureRequest, vault_of: Callable[[str], VaultRig], tmp_path: Path
) -> Iterator[Trial]:
    vault: VaultRig = vault_of(request.param)
    root: Any = vault.root
    role = f"auth/approle/role/{ROLE}"
    root.write_data(role, data={"token_policies": ROLE, "token_no_default_policy": True})
    files = AppRoleFiles(tmp_path / "role-id", tmp_path / "secret-id")
    files.role_id_file.write_text(root.read(f"{role}/role-id")["data"]["role_id"])
    made = root.write_data(f"{role}/secret-id", data={})["data"]
    files.secret_id_file.write_text(made["secret_id"])
    service = ServiceProcess(
        tmp_path / "service",
        TestAuthority(TRUST_DOMAIN),
        vault.server.address,
        vault.server.ca_file,
        files,
        {"AUDIT__CHECKPOINTS__FOLDER": str(tmp_path / "checkpoints")},
    )
    tombstone = secrets.token_hex(16)
    body = {"options": {"cas": 0}, "data": {"version": "x"}}
    root.write_data(f"modelkms/data/tombstones/{tombstone}", data=body)
    yield Trial(vault, service.config(), tombstone)
    root.delete(role)
    root.sys.delete_policy(ROLE)


def shipped() -> dict[str, frozenset[str]]:
    found = re.findall(
        r'path "([^"]+)" \{\s*capabilities = \[([^\]]+)\]\s*\}', SERVICE_POLICY.read_text()
    )
    return {path: frozenset(re.findall(r'"(\w+)"', listed)) for path, listed in found}


def capability(request: VaultRequest) -> str:
    """Which one lets the request pass."""
    if request.path.endswith("?list=true"):
        return "list"
    if (request.body or {}).get("options") == {"cas": 1}:
        return "create"
    return {"GET": "read", "DELETE": "delete", "POST": "update"}[request.method]


def path_of(request: VaultRequest) -> str:
    """As a policy names it."""
    return UID.sub("*", request.path.removesuffix("?list=true"))


def stanzas_of(request: VaultRequest) -> list[str]:
    """Paths of the shipped policy that cover it."""
    asked = path_of(request)
    return [path for path in shipped() if re.fullmatch(re.escape(path).replace(r"\*", ".*"), asked)]


def test_the_shipped_policy_has_no_problem(trial: Trial) -> None:
    assert trial.problems(shipped()) == []


def test_each_needed_path_that_is_refused_is_named_alone(trial: Trial) -> None:
    requests = list(vault_paths.needed(trial.config))
    used = set()
    for request in requests:
        (stanza,) = stanzas_of(request)
        lacking = capability(request)
        assert lacking in shipped()[stanza]
        used.add((stanza, lacking))
        told = trial.problems({**shipped(), stanza: shipped()[stanza] - {lacking}})
        assert told == [f"{UID.sub('UID', str(request))} is refused, and needed"]
    # And nothing stands in the policy that is not needed.
    assert used == {(path, each) for path, listed in shipped().items() for each in listed}


def test_each_forbidden_path_that_is_allowed_is_named_alone(trial: Trial) -> None:
    before = trial.vault.root.secrets.transit.list_keys()["data"]["keys"]
    for request in vault_paths.forbidden(trial.config, trial.tombstone):
        path, more = path_of(request), {capability(request)}
        if "/encrypt/" in path or "/metadata/" in path or path.endswith(vault_paths.NO_PROJECT):
            more |= {"create"} if request.method == "POST" else set()
        # Of two stanzas that match, the exact one counts alone.
        allowed = {each for stanza in stanzas_of(request) for each in shipped()[stanza]}
        told = trial.problems({**shipped(), path: frozenset(allowed | more)})
        assert told == [f"{UID.sub('UID', str(request))} is allowed, and must not be"], path
    # Allowed or not: asking has changed nothing.
    root = trial.vault.root
    assert root.secrets.transit.list_keys()["data"]["keys"] == before
    kept = root.read(f"modelkms/data/tombstones/{trial.tombstone}")["data"]
    assert (kept["data"], kept["metadata"]["version"]) == ({"version": "x"}, 1)
    assert root.read("modelkms/config")["data"]["cas_required"] is True
