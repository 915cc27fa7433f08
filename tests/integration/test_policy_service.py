"""PolicyService on a running service, asked by the SDK: why, who can, and a change end to end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import modelkms
import pytest
from modelkms.errors import DecisionNotFoundOrDenied, ModelNotFoundOrDenied, NotFoundError

from kms_service.development.vault_setup import AppRoleFiles
from tests.support.certificates import TestAuthority
from tests.support.service_process import CANARIES, POLICY, TRUST_DOMAIN, ServiceProcess

READER, GUEST = (f"spiffe://{TRUST_DOMAIN}/{path}" for path in ("reader/r", "guest/g"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Without a Vault: policy needs none."""
    folder = tmp_path_factory.mktemp("service")
    authority = TestAuthority(TRUST_DOMAIN)
    for name in ("role-id", "secret-id"):
        (folder / name).write_text("unused")
    (folder / "vault-ca.pem").write_bytes(authority.pem)
    service = ServiceProcess(
        folder / "service",
        authority,
        "https://127.0.0.1:1",
        folder / "vault-ca.pem",
        AppRoleFiles(folder / "role-id", folder / "secret-id"),
    )
    service.start()
    yield service
    service.stop()


def connect(service: ServiceProcess, path: str, folder: Path) -> modelkms.Client:
    service.authority.client(path).write(folder / path)
    return modelkms.connect(
        endpoint=f"localhost:{service.grpc_port}",
        ca_file=folder / path / "ca.pem",
        certificate_file=folder / path / "certificate.pem",
        key_file=folder / path / "key.pem",
        project="demo",
        cache_dir=folder / "cache",
        state_dir=folder / "state",
    )


def decision_of(client: modelkms.Client, model: str) -> str:
    """Id of the decision on resolving `model`. Nothing is there: who is permitted is told the
    same as who is not."""
    with pytest.raises(ModelNotFoundOrDenied) as caught:
        client.resolve(model)
    return caught.value.metadata["decision_id"]


def test_questions_on_a_running_service(service: ServiceProcess, tmp_path: Path) -> None:
    with (
        connect(service, "admin/a", tmp_path) as admin,
        connect(service, "reader/r", tmp_path) as reader,
        connect(service, "guest/g", tmp_path) as guest,
    ):
        refused, granted = decision_of(guest, "face"), decision_of(reader, "face")

        told = admin.explain_decision(refused)
        assert (told.principal, told.action, told.resource) == (
            GUEST,
            "ResolveModel",
            "projects/demo/models/face",
        )
        assert (told.decided, told.verdict, told.decided_by) == ("NO", "NO", ())
        missing = {finding.policy.id: finding.missing for finding in told.findings}
        assert missing["reader"] == 'principal.path like "/reader/*"'
        # Permitted, though told as missing: the id is explained, to those who may ask.
        assert admin.explain_decision(granted).decided_by == ("reader",)
        with pytest.raises(NotFoundError):
            guest.explain_decision(refused)
        with pytest.raises(DecisionNotFoundOrDenied):
            admin.explain_decision("0" * 32)

        able = {each.principal: each for each in admin.who_can("ResolveModel", "face").principals}
        assert able[READER].verdict == "YES"
        assert able[READER].last_use_time is not None
        assert GUEST not in able
        assert {policy.id for policy in admin.get_policy_set().policies} == {"admin", "reader"}
        with pytest.raises(ModelNotFoundOrDenied):
            reader.get_policy_set()


def test_a_change_of_policy_end_to_end(service: ServiceProcess, tmp_path: Path) -> None:
    """A dry run lists exactly the decisions that then change."""
    guests = """
    @id("guest") permit (principal, action == ModelKMS::Action::"ResolveModel", resource)
    when { principal.path like "/guest/*" };
    """
    changed = POLICY.replace('"/reader/*"', '"/reader/only/*"') + guests
    cases = [
        {**case, "principal": str(case["principal"]).replace("/reader/a", "/reader/only/a")}
        for case in CANARIES["cases"]
    ]
    retired = [case for case in CANARIES["cases"] if "/reader/a" in str(case["principal"])]
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "policy.cedar").write_text(changed)
    (folder / "canaries.json").write_text(json.dumps({"cases": cases, "retired": retired}))
    who = ("admin/a", "reader/r", "reader/only/x", "guest/g", "nobody")
    with connect(service, "admin/a", tmp_path) as admin:
        before = {path: permitted(service, admin, path, tmp_path) for path in who}
        told = admin.dry_run_policies(folder)
        assert told.refusal == ""
        listed = {
            change.principal.removeprefix(f"spiffe://{TRUST_DOMAIN}/"): (
                change.permitted_now,
                change.permitted_then,
            )
            for change in told.changes
            if change.resource.endswith("/changing")
        }
        epoch = admin.get_policy_set().epoch
        for file in ("canaries.json", "policy.cedar"):
            (folder / file).replace(service.policies / file)
        end = time.monotonic() + 20
        while admin.get_policy_set().epoch == epoch:
            assert time.monotonic() < end, service.log
            time.sleep(0.1)
        after = {path: permitted(service, admin, path, tmp_path) for path in who}
    happened = {path: (before[path], after[path]) for path in who if before[path] != after[path]}
    assert listed == happened == {"reader/r": (True, False), "guest/g": (False, True)}


def permitted(service: ServiceProcess, admin: modelkms.Client, path: str, folder: Path) -> bool:
    """Whether policy lets `path` resolve a model, as was decided when it asked."""
    with connect(service, path, folder) as client, pytest.raises(ModelNotFoundOrDenied):
        client.resolve("changing")
    asked = f"spiffe://{TRUST_DOMAIN}/{path}"
    return admin.explain_access(asked, "ResolveModel", "changing").verdict == "YES"
