"""The first officer, and break-glass, drilled on a running service."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import modelkms
import pytest
from modelkms.errors import ModelNotFoundOrDenied

from kms_service import officers
from kms_service.adapters.audit_log import FileAuditLog
from kms_service.adapters.audit_reading import verify
from kms_service.adapters.cedar import CedarPolicyEngine
from kms_service.development.vault_setup import AppRoleFiles
from kms_service.domain.errors import AuditUnavailable, ConfigurationError
from kms_service.officers import bootstrap_officer, break_glass
from tests.integration.test_policy_service import connect
from tests.support.certificates import TestAuthority
from tests.support.service_process import TRUST_DOMAIN, ServiceProcess

ANNA, BOB = (f"spiffe://{TRUST_DOMAIN}/security/{name}" for name in ("anna", "bob"))
HOUR = timedelta(hours=1)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """With an empty policy folder, and without a Vault."""
    authority = TestAuthority(TRUST_DOMAIN)
    for name in ("role-id", "secret-id"):
        (tmp_path / name).write_text("unused")
    (tmp_path / "vault-ca.pem").write_bytes(authority.pem)
    service = ServiceProcess(
        tmp_path / "service",
        authority,
        "https://127.0.0.1:1",
        tmp_path / "vault-ca.pem",
        AppRoleFiles(tmp_path / "role-id", tmp_path / "secret-id"),
    )
    shutil.rmtree(service.policies)
    service.policies.mkdir()
    service.migrate()
    yield service
    service.stop()


def recorded(service: ServiceProcess, outcome: str = "ok") -> list[dict[str, object]]:
    """Records of the chain `officers`, which must be whole."""
    assert not verify(service.folder / "audit").faulty
    lines = [
        line
        for file in sorted((service.folder / "audit" / "officers").glob("*"))
        for line in file.read_text().splitlines()
        if "officer_bootstrapped" in line or "glass_broken" in line
    ]
    return [record for record in map(json.loads, lines) if record["outcome"] == outcome]


def eventually(ask: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not ask():
        assert time.monotonic() < end
        time.sleep(0.1)


def may_administer(client: modelkms.Client) -> bool:
    try:
        client.get_policy_set()
    except ModelNotFoundOrDenied:
        return False
    return True


def glass_metric(service: ServiceProcess) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics") as answer:
        text = answer.read().decode()
    name = "modelkms_break_glass_policies"
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


def test_the_first_officer_is_made_once_and_recorded(service: ServiceProcess) -> None:
    config = service.config()
    assert bootstrap_officer(config, ANNA) == service.policies
    (record,) = recorded(service)
    assert ANNA in json.dumps(record)
    groups = json.loads((service.policies / "groups.json").read_text())["groups"]
    assert {name: members for name, members in groups.items() if members} == {
        "security-officers": [ANNA]
    }
    before = {file.name: file.read_bytes() for file in service.policies.iterdir()}
    with pytest.raises(ConfigurationError, match=f"the first officer was {ANNA}"):
        bootstrap_officer(config, BOB)
    assert {file.name: file.read_bytes() for file in service.policies.iterdir()} == before
    assert len(recorded(service)) == 1
    (tried,) = recorded(service, "denied")
    assert BOB in json.dumps(tried)


def test_a_bootstrap_that_broke_off_can_be_ended(
    service: ServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(officers, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            bootstrap_officer(service.config(), ANNA)
    assert not list(service.policies.iterdir())
    with pytest.raises(ConfigurationError):
        bootstrap_officer(service.config(), BOB)
    bootstrap_officer(service.config(), ANNA)
    CedarPolicyEngine(service.policies, HOUR, HOUR).reload()


def test_without_a_record_there_is_no_officer(
    service: ServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise AuditUnavailable

    monkeypatch.setattr(FileAuditLog, "append", full)
    with pytest.raises(AuditUnavailable):
        bootstrap_officer(service.config(), ANNA)
    assert not list(service.policies.iterdir())


def test_an_officer_joins_the_policies_that_are_there(service: ServiceProcess) -> None:
    shutil.rmtree(service.policies)
    shutil.copytree(officers.starter_policies(), service.policies)
    bootstrap_officer(service.config(), ANNA)
    groups = json.loads((service.policies / "groups.json").read_text())["groups"]
    assert groups["security-officers"] == ["spiffe://example.org/security/*", ANNA]
    assert groups["readers"] == ["spiffe://example.org/reader/*"]
    CedarPolicyEngine(service.policies, HOUR, HOUR).reload()


WRONG_OFFICERS = {
    "no principal": "anna",
    "foreign trust domain": "spiffe://elsewhere.example/anna",
    "issuer that is not served": "oidc:k8s:anna",
    "wildcard": f"spiffe://{TRUST_DOMAIN}/*",
    "quote": f'spiffe://{TRUST_DOMAIN}/a"',
    "newline": f"spiffe://{TRUST_DOMAIN}/a\nb",
}


@pytest.mark.parametrize("what", WRONG_OFFICERS)
def test_who_can_be_no_officer(service: ServiceProcess, what: str) -> None:
    for act in (
        lambda: bootstrap_officer(service.config(), WRONG_OFFICERS[what]),
        lambda: break_glass(service.config(), WRONG_OFFICERS[what], "reason"),
    ):
        with pytest.raises(ConfigurationError):
            act()
    assert not list(service.policies.iterdir())


def test_policies_under_which_an_officer_would_open_models_are_refused(
    service: ServiceProcess,
) -> None:
    service.write_policies(
        f'@id("all") permit (principal, action, resource) when '
        f'{{ principal.trust_domain == "{TRUST_DOMAIN}" && principal.path != "/stranger" }};'
    )
    canaries = {
        "cases": [
            {
                "principal": who,
                "action": "LeaseDataKey",
                "project": "a",
                "model": "b",
                "permitted": let,
            }
            for who, let in ((BOB, True), (f"spiffe://{TRUST_DOMAIN}/stranger", False))
        ]
    }
    (service.policies / "canaries.json").write_text(json.dumps(canaries))
    with pytest.raises(ConfigurationError, match="may open or publish models"):
        bootstrap_officer(service.config(), ANNA)
    assert recorded(service) == []


@pytest.mark.faults
def test_break_glass_drill(service: ServiceProcess, tmp_path: Path) -> None:
    """All officers are locked out; one is let in for a while; all of it is seen and recorded."""
    bootstrap_officer(service.config(), ANNA)
    service.start()
    with (
        connect(service, "security/anna", tmp_path) as anna,
        connect(service, "security/bob", tmp_path) as bob,
    ):
        assert may_administer(anna)
        assert not may_administer(bob)
        assert glass_metric(service) == 0

        broken = break_glass(service.config(), BOB, "Anna's key is lost: INC-4711", HOUR)
        eventually(lambda: may_administer(bob))
        assert glass_metric(service) == 1
        assert datetime.now(UTC) < broken.until < datetime.now(UTC) + HOUR + timedelta(minutes=1)
        # He administers, and still opens and publishes nothing.
        assert bob.block(f"spiffe://{TRUST_DOMAIN}/reader/x", "drill") == 0
        told = bob.explain_access(BOB, "LeaseDataKey", "demo/face")
        assert told.verdict == "NO"
        record = recorded(service)[-1]
        for part in (BOB, "INC-4711", broken.until.isoformat()):
            assert part in json.dumps(record)

        broken.file.unlink()
        eventually(lambda: not may_administer(bob))
        assert glass_metric(service) == 0
        assert may_administer(anna)


def test_broken_glass_ends_by_itself(service: ServiceProcess) -> None:
    bootstrap_officer(service.config(), ANNA)
    broken = break_glass(service.config(), BOB, "drill", timedelta(minutes=30))
    engine = CedarPolicyEngine(service.policies, HOUR, HOUR)
    engine.reload()
    assert engine.current is not None
    officers._require_officer(engine.current, BOB, broken.until - timedelta(minutes=1))
    with pytest.raises(ConfigurationError):
        officers._require_officer(engine.current, BOB, broken.until + timedelta(minutes=1))


@pytest.mark.parametrize(
    ("reason", "lasts"),
    [("", HOUR), (" ", HOUR), ("two\nlines", HOUR), ("x", timedelta(hours=5)), ("x", timedelta(0))],
)
def test_break_glass_needs_a_reason_and_an_end(
    service: ServiceProcess, reason: str, lasts: timedelta
) -> None:
    bootstrap_officer(service.config(), ANNA)
    with pytest.raises(ConfigurationError):
        break_glass(service.config(), BOB, reason, lasts)
    assert len(recorded(service)) == 1
