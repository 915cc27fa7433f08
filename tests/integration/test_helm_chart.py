"""The chart is linted and rendered by Helm; what it renders is what Kubernetes takes and what the
service can be configured with."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from kms_service.config import load
from tests.support.tools import REPOSITORY, go_tool

pytestmark = pytest.mark.faults

CHART = REPOSITORY / "deploy" / "helm" / "modelkms"
SCHEMAS = {"ServiceMonitor": "servicemonitor.json", "Certificate": "certificate.json"}
POLICIES = {
    path.name: path.read_text() for path in sorted((REPOSITORY / "deploy" / "policies").iterdir())
}
VARIANTS: dict[str, dict[str, Any]] = {
    "least": {},
    "everything": {
        "replicas": 3,
        "image": {"digest": "sha256:" + 64 * "a"},
        "certificate": {"from": "cert-manager", "dnsNames": ["kms.example.org"]},
        "secrets": {"store": "modelkms-store"},
        "audit": {"storageClassName": "fast"},
        "autoscaling": {"enabled": True},
        "monitoring": {"enabled": True},
        "networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "reader"}}}]},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "keys", "operator": "Exists"}],
        "podAnnotations": {"note": "yes"},
        "serviceAccount": {"annotations": {"role": "modelkms"}},
    },
    "spiffe": {
        "certificate": {"from": "csi"},
        "secrets": {"vaultAppRole": "", "vaultCa": "", "database": ""},
        "config": {"vault": {"token_file": "/vault/secrets/token"}},
        "networkPolicy": {"enabled": False},
    },
}


@functools.cache
def helm(*arguments: str) -> str:
    done = subprocess.run(
        [go_tool("helm"), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=VARIANTS)
def values(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("values") / "values.yaml"
    file.write_text(yaml.safe_dump({"policies": POLICIES, **VARIANTS[request.param]}))
    return file


def rendered(values: Path) -> list[dict[str, Any]]:
    text = helm("template", "demo", str(CHART), "--namespace", "models", "-f", str(values))
    return [resource for resource in yaml.safe_load_all(text) if resource]


def test_helm_finds_nothing(values: Path) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), "-f", str(values))


def test_kubernetes_takes_what_is_rendered(values: Path) -> None:
    kinds = set()
    for resource in rendered(values):
        kind = resource["kind"]
        if kind in SCHEMAS:
            schemas = REPOSITORY / "tests" / "support" / "crds"
            schema = json.loads((schemas / SCHEMAS[kind]).read_text())
            jsonschema.validate(resource, schema)
            known = schema["properties"]["spec"]["properties"].keys()
            assert resource["spec"].keys() <= known, kind
        else:
            latest = kubernetes_validate.latest_version()
            kubernetes_validate.validate(resource, latest, strict=True)
        kinds.add(kind)
    assert kinds >= {"StatefulSet", "Service", "Job", "ConfigMap", "PodDisruptionBudget"}


def test_the_service_takes_the_configuration(values: Path, tmp_path: Path) -> None:
    (config_map,) = (
        resource
        for resource in rendered(values)
        if resource["kind"] == "ConfigMap" and "server.toml" in resource["data"]
    )
    text = config_map["data"]["server.toml"]
    (tmp_path / "server.toml").write_text(text)
    config = load(tmp_path / "server.toml", {"MODELKMS_SERVER__AUDIT__CHAIN": "demo-0"})
    assert config.audit.chain == "demo-0"
    mounted = {mount["mountPath"] for mount in container(values, "StatefulSet")["volumeMounts"]}
    files = [value for value in _strings(tomllib.loads(text)) if value.startswith("/etc/modelkms")]
    assert len(files) >= 4
    for file in files:
        assert any(file == path or file.startswith(f"{path}/") for path in mounted), file
    for folder in (config.audit.folder,):
        assert any(folder.is_relative_to(path) for path in mounted)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


def container(values: Path, kind: str) -> dict[str, Any]:
    return pod(values, kind)["containers"][0]  # type: ignore[no-any-return]


def pod(values: Path, kind: str) -> dict[str, Any]:
    (resource,) = (resource for resource in rendered(values) if resource["kind"] == kind)
    return resource["spec"]["template"]["spec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["StatefulSet", "Job"])
def test_pods_are_restricted(values: Path, kind: str) -> None:
    """Kubernetes' pod security standard "restricted", a read-only root, and no API token."""
    spec = pod(values, kind)
    assert spec["automountServiceAccountToken"] is False
    context = spec["containers"][0]["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"configMap", "secret", "emptyDir", "csi"}
    for volume in spec["volumes"]:
        assert (volume.keys() - {"name"}) <= allowed
    mounts = spec["containers"][0]["volumeMounts"]
    declared = {volume["name"] for volume in spec["volumes"]} | {"state"}
    assert {mount["name"] for mount in mounts} <= declared


def test_without_policies_nothing_is_rendered() -> None:
    done = subprocess.run(
        [go_tool("helm"), "template", "demo", CHART],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "policies" in done.stderr


def test_the_chart_has_the_version_of_the_distributions() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    compose = (REPOSITORY / "deploy" / "compose" / "compose.yml").read_text()
    assert set(re.findall(r"image: modelkms-server:(\S+)", compose)) == {project["version"]}
